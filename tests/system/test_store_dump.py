"""What somebody learns who gets hold of the store itself: SECURITY row CR-03."""

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from broker.core.secret import RefreshToken
from broker.core.session import Session, SessionOptions
from broker.services.clock import SystemClock, SystemRandomness
from broker.services.keyring import Keyring, new_key
from broker.services.sessions import Sessions
from broker.services.vault import Vault
from broker.stores.base import Store
from broker.stores.open import open_store
from broker.stores.options import StoreOptions, StoreUrl
from tests.support.grants import grant, held
from tests.support.redis_server import RedisServer, raw

pytestmark = pytest.mark.system

CANARIES = {
    "access token": "canary-access-token-9f2c",
    "refresh token": "canary-refresh-token-77ab",
    "email": "ada.canary@example.com",
    "name": "Ada Canary",
    "subject": "canary-subject-1815",
    "provider's session": "canary-sid-42",
    "issuer": "https://canary-idp.example.com",
    "grant's id": "ca9a12" * 5 + "ca",
}


@pytest.fixture(params=["sqlite", "redis"])
async def dumped(
    request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer
) -> AsyncIterator[tuple[Store, Callable[[], bytes]]]:
    """A store, and a function that returns every byte that somebody finds in it."""

    def files() -> bytes:
        return b"\n".join(file.read_bytes() for file in sorted(tmp_path.iterdir()))

    def keyspace() -> bytes:
        parts = []
        for key in raw(redis_server, "KEYS", "*"):
            parts += [key, repr(contents(redis_server, key)).encode()]
        return b"\n".join(parts)

    url, dump = {
        "sqlite": (f"sqlite://{tmp_path}/broker.db", files),
        "redis": (f"redis://127.0.0.1:{redis_server.port}", keyspace),
    }[request.param]
    store = open_store(StoreOptions(url=StoreUrl.parse(url)), SystemClock(), SystemRandomness())
    await store.start()
    yield store, dump
    await store.close()


def contents(server: RedisServer, key: bytes) -> object:
    reading = {b"hash": ("HGETALL",), b"zset": ("ZRANGE",), b"string": ("GET",)}
    kind = raw(server, "TYPE", key)
    return raw(server, *reading[kind], key, *((0, -1) if kind == b"zset" else ()))


@asynccontextmanager
async def sessions_on(store: Store, keyring: Keyring) -> AsyncIterator[Sessions]:
    async with AsyncExitStack() as stack:
        sessions = Sessions(store, keyring, SessionOptions(), SystemClock(), SystemRandomness())
        stack.push_async_callback(sessions.close)
        yield sessions


async def test_cr_03_a_dump_shows_no_secret_and_opens_nothing(dumped: tuple[Store, Callable[[], bytes]]) -> None:
    """A copy of the whole store holds no token, no user and no cookie, and none of its keys is one."""
    store, dump = dumped
    keyring = Keyring([new_key(SystemRandomness())])
    now = SystemClock().now()
    await Vault(store, keyring).create(
        grant(
            id=CANARIES["grant's id"],
            subject=CANARIES["subject"],
            refresh_token=RefreshToken(CANARIES["refresh token"]),
            tokens={"": held(token=CANARIES["access token"])},
        ),
        ttl_seconds=3600,
        due_at=now + 600,
    )
    async with sessions_on(store, keyring) as sessions:
        session_id = await sessions.start(
            Session(
                grant_id=CANARIES["grant's id"],
                provider="corp",
                issuer=CANARIES["issuer"],
                subject=CANARIES["subject"],
                claims={"email": CANARIES["email"], "name": CANARIES["name"]},
                authenticated_at=now,
                last_seen_at=now,
                ends_at=now + 3600,
                provider_session=CANARIES["provider's session"],
            )
        )
    dumped_bytes = await asyncio.to_thread(dump)

    assert b"session:" in dumped_bytes
    assert b"grant:" in dumped_bytes, "the dump is one of our records"
    shown = [
        name
        for name, canary in {**CANARIES, "cookie": session_id.reveal()}.items()
        if any(form in dumped_bytes for form in forms(canary))
    ]
    assert [] == shown
    async with sessions_on(store, keyring) as another:
        assert await another.load(session_id.reveal().encode()) is not None
        for stolen in set(re.findall(rb"(?:session|grant):[0-9a-f]+|[0-9a-f]{32,}", dumped_bytes)):
            for cookie in (stolen, stolen.partition(b":")[2]):
                assert await another.load(cookie) is None


def forms(text: str) -> list[bytes]:
    """Return a text as it may lie in a dump: plain, in Base64, in hexadecimal."""
    plain = text.encode()
    whole = [base64.b64encode(plain[skip:])[:-4] for skip in range(3)]
    return [plain, plain.hex().encode(), *whole]

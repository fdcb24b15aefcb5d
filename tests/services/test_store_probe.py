"""What the doctor finds of a store, without leaving anything behind."""

from pathlib import Path

import pytest

from broker.core.diagnosis import Finding, Verdict
from broker.core.secret import Secret
from broker.services.clock import SystemClock, SystemRandomness
from broker.services.store_probe import examine_store
from broker.stores.options import StoreOptions, StoreTlsOptions, StoreUrl
from broker.stores.sqlite import SqliteStore
from tests.support.redis_server import RedisServer, running


async def probe(url: str, password: str | None = None, tls: StoreTlsOptions | None = None) -> Finding:
    options = StoreOptions(
        url=StoreUrl.parse(url),
        password=None if password is None else Secret(password),
        tls=tls or StoreTlsOptions(),
        timeout_seconds=1,
    )
    (finding,) = [each async for each in examine_store(options, clock=SystemClock(), randomness=SystemRandomness())]
    return finding


async def test_a_redis_store_is_asked(tmp_path: Path) -> None:
    """It is good, or the key to look at is named: the password, or where it is."""
    server = RedisServer(tmp_path, "requirepass canary")
    url = f"redis://127.0.0.1:{server.port}/0"
    with running(server):
        good, refused = await probe(url, "canary"), await probe(url, "another")
    gone = await probe(url, "canary")

    assert (Verdict.GOOD, f"{url} takes reads and writes") == (good.verdict, good.text)
    assert (Verdict.ERROR, "store.password") == (refused.verdict, refused.key)
    assert (Verdict.ERROR, "store.url") == (gone.verdict, gone.key)


async def test_an_sqlite_file_is_tried_and_not_made(tmp_path: Path) -> None:
    """One that isn't there stays so, since it would be the probing user's; what can never be one is an error."""
    path, other = tmp_path / "broker.db", tmp_path / "other"
    other.write_bytes(b"x" * 4096)
    other.chmod(0o600)

    missing = await probe(f"sqlite://{path}")
    assert not path.exists()
    store = SqliteStore(path, SystemClock(), SystemRandomness())
    await store.start()
    await store.close()
    there, foreign, nowhere = [await probe(f"sqlite://{each}") for each in (path, other, other / "broker.db")]

    assert [Verdict.NOTE, Verdict.GOOD] == [missing.verdict, there.verdict]
    assert [(Verdict.ERROR, "store.url")] * 2 == [(each.verdict, each.key) for each in (foreign, nowhere)]


@pytest.mark.parametrize(("url", "verdict"), [("memory:", Verdict.NOTE), ("rediss://127.0.0.1:1/0", Verdict.ERROR)])
async def test_what_needs_no_server_is_told_without_one(url: str, verdict: Verdict, tmp_path: Path) -> None:
    """A store in memory, and certificates that can't be loaded."""
    tls = StoreTlsOptions(ca_file=str(tmp_path / "none.pem")) if url.startswith("rediss") else None
    found = await probe(url, tls=tls)

    assert (verdict, None if tls is None else "store.tls") == (found.verdict, found.key)

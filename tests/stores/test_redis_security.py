"""How the Redis store shows who it is, and sees whom it talks to: TLS, ACL users, passwords."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.core.secret import Secret
from broker.errors import ConfigError, StoreError
from broker.stores.base import Event, Topic
from broker.stores.options import StoreOptions, StoreTlsOptions, StoreUrl
from broker.stores.redis import RedisStore
from tests.stores.store_contract import KEY, LONG, held, listening
from tests.stores.test_redis import RedisBacking
from tests.support.certificates import Authority
from tests.support.clock import ManualClock, SeededRandomness
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer, running, speaks_tls
from tests.support.tcp_proxy import TcpProxy

PASSWORD = "canary-password"

ACL = (
    "user broker on >canary-password resetchannels -@all ~token-broker:* &token-broker:*"
    " +ping +select +client|setname +info +wait +eval +evalsha"
    " +set +get +del +hget +hmget +hset +pexpire +pttl +time"
    " +zadd +zrange +zrangebyscore +zrem +zremrangebyscore +publish +subscribe"
)
"""What the store needs of one server, and no more."""


class TlsServer:
    """A server that speaks TLS, and wants a client certificate. Where it can't, a proxy does it."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory)
        self._leaf = self.authority.issue("server")
        self._directory = directory
        self.client = self.authority.issue("client", password=b"of the key")
        self.port = 0

    @asynccontextmanager
    async def run(self) -> AsyncIterator["TlsServer"]:
        if speaks_tls():
            self.port = free_port()
            lines = (
                f"tls-port {self.port}",
                f'tls-cert-file "{self._leaf.certificate_file}"',
                f'tls-key-file "{self._leaf.key_file}"',
                f'tls-ca-cert-file "{self.authority.ca_file}"',
                "tls-auth-clients yes",
            )
            with running(RedisServer(self._directory / "redis", *lines)):
                yield self
        else:
            context = self.authority.server_context(self._leaf, client_certificates=True)
            server = RedisServer(self._directory / "redis")
            with running(server):
                async with TcpProxy(server.port, tls=context) as proxy:
                    self.port = proxy.port
                    yield self

    def options(self, **changes: str | None) -> StoreTlsOptions:
        files: dict[str, str | None] = {
            "ca_file": self.authority.ca_file,
            "cert_file": self.client.certificate_file,
            "key_file": self.client.key_file,
        }
        return StoreTlsOptions(**{**files, **changes}, key_password=Secret("of the key"))


@pytest.fixture
async def tls_server(tmp_path: Path) -> AsyncIterator[TlsServer]:
    directory = tmp_path / "tls server"
    directory.mkdir()
    async with TlsServer(directory).run() as server:
        yield server


@pytest.fixture(scope="module")
def acl_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    reader = f"user reader on >{PASSWORD} allkeys allchannels -@all +client|setname +ping +subscribe"
    server = RedisServer(tmp_path_factory.mktemp("acl"), ACL, reader, "user default off")
    with running(server):
        yield server


@pytest.fixture
async def backings() -> AsyncIterator[list[RedisBacking]]:
    """Whatever a test puts in is closed."""
    backings: list[RedisBacking] = []
    yield backings
    for backing in backings:
        await backing.close()


async def test_tls_with_a_client_certificate(tls_server: TlsServer, backings: list[RedisBacking]) -> None:
    """Records and events pass over TLS with both sides' certificates checked."""
    url = StoreUrl.parse(f"rediss://127.0.0.1:{tls_server.port}/0")
    backings.append(RedisBacking(StoreOptions(url=url, tls=tls_server.options())))
    store = await backings[0].open()
    heard = await listening(store)
    assert None is not await store.create(KEY, b"1", ttl_seconds=LONG)
    await store.publish(Event(Topic.GRANT_ENDED, KEY))
    await heard.gets(Event(Topic.GRANT_ENDED, KEY))


async def test_a_server_of_another_authority_is_refused(
    tls_server: TlsServer, backings: list[RedisBacking], tmp_path: Path
) -> None:
    """Neither the system's authorities nor a foreign one vouch for the server: no command is sent to it."""
    url = StoreUrl.parse(f"rediss://127.0.0.1:{tls_server.port}/0")
    for ca_file in (None, Authority(tmp_path, "Other CA").ca_file):
        options = StoreOptions(url=url, tls=tls_server.options(ca_file=ca_file), timeout_seconds=1)
        backings.append(RedisBacking(options))
        with pytest.raises(StoreError, match="certificate verify failed"):
            await backings[-1].open()


async def test_a_server_under_another_name_is_refused(tls_server: TlsServer, backings: list[RedisBacking]) -> None:
    """The certificate must be for the host that the URL names."""
    url = StoreUrl.parse(f"rediss://localhost:{tls_server.port}/0")
    backings.append(RedisBacking(StoreOptions(url=url, tls=tls_server.options(), timeout_seconds=1)))
    with pytest.raises(StoreError, match="certificate verify failed"):
        await backings[0].open()


async def test_a_client_without_certificate_is_told(tls_server: TlsServer, backings: list[RedisBacking]) -> None:
    """A server that wants a client certificate refuses us without one, and we say so."""
    url = StoreUrl.parse(f"rediss://127.0.0.1:{tls_server.port}/0")
    tls = StoreTlsOptions(ca_file=tls_server.authority.ca_file)
    backings.append(RedisBacking(StoreOptions(url=url, tls=tls, timeout_seconds=1)))
    with pytest.raises(StoreError):
        await backings[0].open()


async def test_plain_text_to_a_tls_port_is_told(tls_server: TlsServer, backings: list[RedisBacking]) -> None:
    """A forgotten s in rediss fails within the deadline."""
    url = StoreUrl.parse(f"redis://127.0.0.1:{tls_server.port}/0")
    backings.append(RedisBacking(StoreOptions(url=url, timeout_seconds=1)))
    with pytest.raises(StoreError):
        await backings[0].open()


@pytest.mark.parametrize("name", ["ca_file", "cert_file", "key_file"])
async def test_a_missing_file_stops_the_start(tls_server: TlsServer, tmp_path: Path, name: str) -> None:
    """A certificate or a key that can't be loaded is an error of the configuration."""
    empty = tmp_path / "empty.pem"
    empty.write_bytes(b"")
    for path in (empty, tmp_path / "missing.pem"):
        options = StoreOptions(url=StoreUrl.parse("rediss://127.0.0.1/0"), tls=tls_server.options(**{name: str(path)}))
        with pytest.raises(ConfigError, match="tls"):
            RedisStore(options, ManualClock(), SeededRandomness())


async def test_a_wrong_key_password_stops_the_start(tls_server: TlsServer) -> None:
    """The wrong password for the private key is an error of the configuration, and isn't shown."""
    tls = StoreTlsOptions(
        cert_file=tls_server.client.certificate_file,
        key_file=tls_server.client.key_file,
        key_password=Secret("canary-wrong"),
    )
    options = StoreOptions(url=StoreUrl.parse("rediss://127.0.0.1/0"), tls=tls)
    with pytest.raises(ConfigError) as caught:
        RedisStore(options, ManualClock(), SeededRandomness())
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("in_url", [True, False])
async def test_an_acl_user_with_least_rights_can_do_everything(
    acl_server: RedisServer, backings: list[RedisBacking], in_url: bool
) -> None:
    """The documented rights are enough for every call; the password comes from the URL or from its own option."""
    host = f"127.0.0.1:{acl_server.port}/0"
    if in_url:
        options = StoreOptions(url=Secret(f"redis://broker:{PASSWORD}@{host}"))
    else:
        options = StoreOptions(url=StoreUrl.parse(f"redis://broker@{host}"), password=Secret(PASSWORD))
    backings.append(RedisBacking(options))
    store = await backings[0].open()
    heard = await listening(store)
    version = await store.create(KEY, b"1", ttl_seconds=LONG, tags=["user"], due_at=1)
    assert version is not None
    assert True is await store.touch(KEY, LONG)
    assert [KEY] == await store.find("user")
    assert [KEY] == await store.due("grant", 1, 10)
    assert None is not await store.replace(KEY, b"2", version, ttl_seconds=LONG, due_at=2)
    assert True is await store.delete(KEY)
    lease = held(await store.lease(KEY, LONG))
    assert True is await lease.renew(LONG)
    await lease.release()
    await store.publish(Event(Topic.GRANT_ENDED, KEY))
    await heard.gets(Event(Topic.GRANT_ENDED, KEY))


@pytest.mark.parametrize("userinfo", ["broker:canary-wrong@", "nobody:canary-password@", ""])
async def test_wrong_credentials_are_told_without_showing_them(
    acl_server: RedisServer, backings: list[RedisBacking], userinfo: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Who may not enter learns that, from an error and a log that hold no password."""
    url = Secret(f"redis://{userinfo}127.0.0.1:{acl_server.port}/0")
    backings.append(RedisBacking(StoreOptions(url=url, timeout_seconds=1)))
    with pytest.raises(StoreError, match="Authentication") as caught:
        await backings[0].open()
    shown = [str(caught.value), repr(backings[0].options), caplog.text]
    shown += [str(record.__dict__) for record in caplog.records]
    assert not any("canary" in text for text in shown)


async def test_a_server_that_evicts_is_warned_of(
    acl_server: RedisServer, backings: list[RedisBacking], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A policy by which Redis may delete sessions to make room is logged at the start."""
    server = RedisServer(tmp_path, "maxmemory-policy allkeys-lru")
    with running(server):
        backings.append(RedisBacking(StoreOptions(url=StoreUrl.parse(f"redis://127.0.0.1:{server.port}"))))
        await backings[0].open()
        await backings[0].close()
    assert ["redis_may_evict_sessions"] == [record.message for record in caplog.records]


async def key_named_by(options: StoreOptions) -> str | None:
    """Return the key to look at that a store names which can't start."""
    store = RedisStore(options, ManualClock(), SeededRandomness())
    try:
        with pytest.raises(StoreError) as caught:
            await store.start()
    finally:
        await store.close()
    return caught.value.look_at


@pytest.mark.parametrize(
    ("url", "password", "key"),
    [
        ("redis://broker@127.0.0.1:{port}/0", "another", "store.password"),
        ("redis://broker:another@127.0.0.1:{port}/0", None, "store.url"),
        ("redis://127.0.0.1:{port}/0", None, "store.password"),
        ("redis://stranger@127.0.0.1:{port}/0", PASSWORD, "store.password"),  # the server doesn't say which it is
        ("redis://broker@127.0.0.1:{port}/99", PASSWORD, "store.url"),
        ("redis://reader@127.0.0.1:{port}/0", PASSWORD, "store.url"),
        ("redis+cluster://broker@127.0.0.1:{port}", "another", "store.password"),
        ("redis+sentinel://127.0.0.1:{port}/master", None, "store.sentinel_password"),
    ],
)
async def test_what_is_wrong_with_the_credentials_names_a_key(
    acl_server: RedisServer, url: str, password: str | None, key: str
) -> None:
    """Password, user, database and what the user may do: the store's error says where to look."""
    options = StoreOptions(
        url=StoreUrl.parse(url.format(port=acl_server.port)),
        password=None if password is None else Secret(password),
        timeout_seconds=1,
    )
    assert key == await key_named_by(options)


async def test_what_is_wrong_with_tls_names_a_key(tls_server: TlsServer) -> None:
    """No TLS where it is spoken, an authority that isn't trusted, another name, no client certificate."""
    address = f"127.0.0.1:{tls_server.port}/0"
    without = StoreTlsOptions(ca_file=tls_server.authority.ca_file)
    named = {
        await key_named_by(StoreOptions(url=StoreUrl.parse(url), tls=tls, timeout_seconds=1)): (url, tls)
        for url, tls in (
            (f"redis://{address}", StoreTlsOptions()),
            (f"rediss://{address}", tls_server.options(ca_file=None)),
            (f"rediss://{address}", without),
        )
    }

    assert ["store.url", "store.tls.ca_file", "store.tls.cert_file"] == list(named)
    assert "store.url" == await key_named_by(
        StoreOptions(
            url=StoreUrl.parse(f"rediss://localhost:{tls_server.port}/0"), tls=tls_server.options(), timeout_seconds=1
        )
    )


async def test_a_server_that_is_down_names_no_key() -> None:
    """Nothing in the configuration explains an outage."""
    url = StoreUrl.parse(f"redis://127.0.0.1:{free_port()}/0")
    assert None is await key_named_by(StoreOptions(url=url, timeout_seconds=1))

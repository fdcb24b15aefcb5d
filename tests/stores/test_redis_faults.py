"""What the Redis store does while Redis, or the way to it, fails: SECURITY rows FT-01, FT-02, FT-04 to FT-06."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from broker.errors import StoreError
from broker.stores.base import Busy, Event, Record, Store, StoreDown, Topic
from broker.stores.listeners import RESYNC
from broker.stores.options import StoreOptions, StoreUrl
from tests.stores.store_contract import KEY, LONG, Heard, held, listening
from tests.stores.test_redis import RedisBacking
from tests.support.redis_server import RedisServer, running
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import awake, until, until_async

TIMEOUT = 0.8
"""The deadline of calls in these tests, in seconds."""
RECOVERY = 5.0
"""Within so many seconds after a fault the service is normal (invariant I7)."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that a test may break."""
    server = RedisServer(tmp_path / "redis")
    with running(server):
        yield server


@pytest.fixture
async def proxy(server: RedisServer) -> AsyncIterator[TcpProxy]:
    """The network between the store and the server."""
    async with TcpProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
async def backing(proxy: TcpProxy) -> AsyncIterator[RedisBacking]:
    url = StoreUrl.parse(f"redis://127.0.0.1:{proxy.port}/0")
    backing = RedisBacking(StoreOptions(url=url, timeout_seconds=TIMEOUT, max_connections=8))
    yield backing
    await backing.close()


@pytest.fixture
async def store(backing: RedisBacking) -> Store:
    return await backing.open()


def every_call(store: Store) -> dict[str, Callable[[], Awaitable[object]]]:
    """Return a call of each kind, the lease left out."""
    return {
        "ping": store.ping,
        "get": lambda: store.get(KEY),
        "create": lambda: store.create("grant:new", b"1", ttl_seconds=LONG, tags=["user"], due_at=1),
        "replace": lambda: store.replace(KEY, b"2", 1, due_at=2),
        "delete": lambda: store.delete(KEY),
        "touch": lambda: store.touch(KEY, LONG),
        "find": lambda: store.find("user"),
        "due": lambda: store.due("grant", 1e10, 10),
        "publish": lambda: store.publish(Event(Topic.GRANT_ENDED, KEY)),
    }


async def assert_down(store: Store) -> None:
    """Every kind of call says that the store is down, each within its deadline."""
    for name, call in every_call(store).items():
        async with awake() as seconds:
            with pytest.raises(StoreError):
                await call()
            assert seconds() < TIMEOUT + 0.3, name
    assert isinstance(await store.lease(KEY, LONG), StoreDown)


async def works(store: Store) -> bool:
    try:
        await store.ping()
    except StoreError:
        return False
    return True


async def recovers(store: Store) -> None:
    """The store works again, soon enough, and then for every call."""
    await until_async(lambda: works(store), seconds=RECOVERY, what="the recovery")
    for _ in range(3):
        for call in every_call(store).values():
            await call()


async def test_ft_01_a_killed_server_is_told_at_once(server: RedisServer, store: Store) -> None:
    """While Redis is gone every call fails, at once; when it is back, and empty, everything works within seconds."""
    await store.create(KEY, b"1", ttl_seconds=LONG)
    server.kill()
    await assert_down(store)
    async with awake() as seconds:
        for _ in range(100):
            with pytest.raises(StoreError):
                await store.get(KEY)
        assert seconds() < TIMEOUT
    server.start()
    await until_async(lambda: works(store), seconds=RECOVERY)
    assert None is await store.get(KEY)
    await recovers(store)


async def test_ft_01_a_store_that_starts_before_redis_works_later(server: RedisServer, backing: RedisBacking) -> None:
    """A start without Redis is told; the same store works, and hears events, once Redis is there."""
    server.kill()
    with pytest.raises(StoreError):
        await backing.open()
    [store] = backing.opened
    heard = Heard(store)
    with pytest.raises(StoreError):
        await store.start()
    server.start()
    await recovers(store)
    await heard.gets(RESYNC)
    await store.start()
    await store.publish(Event(Topic.GRANT_ENDED, KEY))
    await heard.gets(Event(Topic.GRANT_ENDED, KEY))


async def test_ft_02_a_hanging_server_makes_nothing_pile_up(server: RedisServer, proxy: TcpProxy, store: Store) -> None:
    """Five hundred calls to a server that hangs end by their deadline, over a bounded number of connections."""
    version = await store.create(KEY, b"1", ttl_seconds=LONG)
    server.pause()
    try:
        async with awake() as seconds:
            outcomes = await asyncio.gather(*(store.get(KEY) for _ in range(500)), return_exceptions=True)
            assert seconds() < 2 * TIMEOUT
        assert all(isinstance(outcome, StoreError) for outcome in outcomes)
        assert proxy.connections <= 8 + 2
        # By now it is known to be down: calls no longer wait for the deadline, but for one of them, now and then.
        began_at = time.monotonic()
        waited = 0
        while time.monotonic() - began_at < 3 * TIMEOUT:
            async with awake() as seconds:
                outcomes = await asyncio.gather(*(store.get(KEY) for _ in range(20)), return_exceptions=True)
                waited += seconds() > TIMEOUT / 2
            assert all(isinstance(outcome, StoreError) for outcome in outcomes)
            await asyncio.sleep(0.01)
        assert waited <= 4
    finally:
        server.resume()
    await until_async(lambda: works(store), seconds=RECOVERY)
    assert Record(b"1", version or 0) == await store.get(KEY)
    await recovers(store)


async def test_ft_02_a_slow_server_is_used_as_long_as_it_keeps_the_deadline(proxy: TcpProxy, store: Store) -> None:
    """Answers that take a third of the deadline are slow, and are answers."""
    proxy.delay_seconds = TIMEOUT / 4
    await store.create(KEY, b"1", ttl_seconds=LONG)
    assert all(await asyncio.gather(*(store.get(KEY) for _ in range(8))))


async def test_ft_04_what_redis_forgot_is_gone_and_nothing_else(server: RedisServer, store: Store) -> None:
    """After FLUSHALL, an eviction and a lost script cache records are missing, and every call works."""
    heard = await listening(store)
    await store.create(KEY, b"1", ttl_seconds=LONG, tags=["user"], due_at=1)
    lease = held(await store.lease(KEY, LONG))
    server.command("FLUSHALL")
    server.command("SCRIPT", "FLUSH")
    assert None is await store.get(KEY)
    assert None is await store.replace(KEY, b"2", 1)
    assert False is await store.touch(KEY, LONG)
    assert False is await lease.renew(LONG)
    assert [] == await store.find("user")
    assert [] == await store.due("grant", 2, 10)
    # A record that was evicted under its index entries is not reported.
    await store.create(KEY, b"1", ttl_seconds=LONG, tags=["user"], due_at=1)
    server.command("DEL", f"token-broker:{{{KEY}}}")
    assert [] == await store.find("user")
    assert [] == await store.due("grant", 2, 10)
    await store.publish(Event(Topic.GRANT_ENDED, KEY))
    await heard.gets(Event(Topic.GRANT_ENDED, KEY))
    await recovers(store)


async def test_ft_05_a_read_only_server_refuses_writes_only(server: RedisServer, store: Store) -> None:
    """A demoted server is still read, its refusals are told, and it works again when it is promoted."""
    version = await store.create(KEY, b"1", ttl_seconds=LONG)
    server.command("REPLICAOF", "127.0.0.1", 1)
    assert Record(b"1", version or 0) == await store.get(KEY)
    with pytest.raises(StoreError, match="ReadOnly"):
        await store.replace(KEY, b"2", version or 0)
    with pytest.raises(StoreError):
        await store.ping()
    assert isinstance(await store.lease(KEY, LONG), StoreDown)
    server.command("REPLICAOF", "NO", "ONE")
    await recovers(store)


async def test_ft_05_a_full_server_refuses_writes_and_keeps_records(server: RedisServer, store: Store) -> None:
    """Out of memory is an error of the store, and no record is lost or half written."""
    version = await store.create(KEY, b"1", ttl_seconds=LONG)
    server.command("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(StoreError, match="OutOfMemory"):
        await store.create("grant:new", b"1", ttl_seconds=LONG)
    with pytest.raises(StoreError):
        await store.replace(KEY, b"2", version or 0)
    with pytest.raises(StoreError):
        await store.ping()
    assert isinstance(await store.lease(KEY, LONG), StoreDown)
    assert Record(b"1", version or 0) == await store.get(KEY)
    assert True is await store.delete(KEY), "deleting makes room"
    server.command("CONFIG", "SET", "maxmemory", "0")
    await recovers(store)
    assert None is not await store.get("grant:new")


async def test_ft_05_a_foreign_value_under_a_key_is_an_error(server: RedisServer, store: Store) -> None:
    """A value of the wrong type, or a record that makes no sense, is told and not taken for a missing one."""
    name = f"token-broker:{{{KEY}}}"
    server.command("SET", name, "text")
    for call in (store.get(KEY), store.replace(KEY, b"2", 1), store.create(KEY, b"1", ttl_seconds=LONG)):
        with pytest.raises(StoreError):
            await call
    server.command("DEL", name)
    for fields in (
        ("value", "x"),
        ("version", "1"),
        *(("value", "x", "version", text) for text in ("-1", "?", "9" * 5000)),
    ):
        server.command("HSET", name, *fields)
        with pytest.raises(StoreError):
            await store.get(KEY)
        server.command("DEL", name)
    server.command("HSET", name, "value", "x", "version", "1")
    with pytest.raises(StoreError):
        await store.touch(KEY, LONG)
    assert True is await store.delete(KEY)
    server.command("HSET", name, "value", "x", "version", "1", "id", "\xff", "tags", "\xff", "due", "soon@")
    await recovers(store)


async def test_ft_05_changed_credentials_are_told_and_recovered_from(server: RedisServer, store: Store) -> None:
    """When Redis suddenly wants a password, calls fail and say why; when it no longer does, they work."""
    server.command("CONFIG", "SET", "requirepass", "other")
    server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes", password="other")
    server.command("CLIENT", "KILL", "TYPE", "pubsub", password="other")
    with pytest.raises(StoreError, match="Auth"):
        await store.get(KEY)
    server.command("CONFIG", "SET", "requirepass", "", password="other")
    await recovers(store)


async def test_ft_06_cancelled_calls_never_shift_answers(server: RedisServer, proxy: TcpProxy, store: Store) -> None:
    """Two thousand calls of which many are cancelled in mid-air, over a slow network: each answer is its own."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    versions = {n: await store.create(f"grant:{n:02x}", b"%d" % n, ttl_seconds=LONG) for n in range(40)}
    proxy.delay_seconds = 0.004

    async def read(number: int) -> None:
        try:
            async with asyncio.timeout(chance.uniform(0, 0.03)):
                assert Record(b"%d" % number, versions[number] or 0) == await store.get(f"grant:{number:02x}")
        except TimeoutError:
            pass

    for _ in range(50):
        await asyncio.gather(*(read(chance.randrange(40)) for _ in range(40)))
    proxy.delay_seconds = 0
    for number, version in versions.items():
        assert Record(b"%d" % number, version or 0) == await store.get(f"grant:{number:02x}")
    await until(lambda: proxy.connections <= 8 + 1, what="the end of dropped connections")


async def test_ft_06_a_cancelled_call_drops_its_connection(proxy: TcpProxy, store: Store) -> None:
    """The connection of a call that was cancelled while its answer was under way is not used again."""
    await store.ping()
    accepted = proxy.accepted
    proxy.delay_seconds = 0.2
    call = asyncio.get_running_loop().create_task(store.touch(KEY, LONG))
    await asyncio.sleep(0.05)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    proxy.delay_seconds = 0
    await store.ping()
    assert accepted + 1 == proxy.accepted


async def test_a_lease_that_was_asked_for_in_vain_is_given_back(proxy: TcpProxy, store: Store) -> None:
    """Whoever is cancelled before the answer holds no lease, and the others needn't wait for its end."""
    await store.ping()
    proxy.delay_seconds = 0.2
    call = asyncio.get_running_loop().create_task(store.lease(KEY, LONG))
    await asyncio.sleep(0.05)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    proxy.delay_seconds = 0

    async def is_free() -> bool:
        return not isinstance(await store.lease(KEY, LONG), Busy)

    await until_async(is_free, what="the lease")


async def test_what_is_given_back_at_the_end_reaches_the_server(proxy: TcpProxy, backing: RedisBacking) -> None:
    """A process that stops in the middle of asking for a lease leaves none behind."""
    store = await backing.open()
    proxy.delay_seconds = 0.1
    call = asyncio.get_running_loop().create_task(store.lease(KEY, LONG))
    await asyncio.sleep(0.05)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await store.close()
    proxy.delay_seconds = 0
    assert not isinstance(await (await backing.open()).lease(KEY, LONG), Busy)


async def test_a_cut_connection_costs_no_call(proxy: TcpProxy, store: Store) -> None:
    """When the server or a firewall has closed the idle connections, the next calls open new ones and succeed."""
    await store.create(KEY, b"1", ttl_seconds=LONG)
    for _ in range(5):
        await asyncio.gather(*(store.get(KEY) for _ in range(8)))
        proxy.cut()
        assert None is not await store.get(KEY)


async def test_a_silent_connection_costs_no_call(proxy: TcpProxy, store: Store) -> None:
    """When a firewall has forgotten the idle connections and drops what they carry, a call succeeds on a new one."""
    await store.create(KEY, b"1", ttl_seconds=LONG)
    proxy.forget()
    assert None is not await store.get(KEY)


@pytest.mark.parametrize("lost", ["answer", "request"])
async def test_a_lost_answer_is_asked_for_again(proxy: TcpProxy, store: Store, lost: str) -> None:
    """A write whose connection broke, before or after Redis did it, is done once, and its true outcome is told."""

    def lose(count: int) -> None:
        (proxy.lose_answers if lost == "answer" else proxy.lose_requests)(count, about=b"EVAL")

    await store.ping()
    lose(1)
    created = await store.create(KEY, b"1", ttl_seconds=LONG)
    assert Record(b"1", created or 0) == await store.get(KEY)
    lose(1)
    replaced = await store.replace(KEY, b"2", created or 0)
    assert Record(b"2", replaced or 0) == await store.get(KEY)
    lose(1)
    assert None is await store.replace(KEY, b"late", created or 0)
    lose(1)
    assert None is await store.create(KEY, b"late", ttl_seconds=LONG)
    lose(1)
    assert False is await store.delete(KEY, created)
    lose(1)
    assert True is await store.delete(KEY, replaced)
    lose(1)
    assert False is await store.delete(KEY)
    lose(1)
    lease = held(await store.lease(KEY, LONG))
    assert isinstance(await store.lease(KEY, LONG), Busy)
    lose(1)
    assert True is await lease.renew(LONG)
    lose(1)
    await lease.release()
    assert not isinstance(await store.lease(KEY, LONG), Busy)


async def test_a_partition_ends_in_resync(proxy: TcpProxy, backing: RedisBacking, server: RedisServer) -> None:
    """A store that is cut off without being told finds out by itself, and says that events may be missing."""
    store = await backing.open()
    heard = await listening(store)
    proxy.partition()
    await assert_down(store)
    server.command("PUBLISH", "token-broker:events", "grant_ended 0 grant:lost")
    await asyncio.sleep(2.5)  # longer than a silent channel is believed in
    proxy.heal()
    await recovers(store)
    await heard.gets(RESYNC)
    await store.publish(Event(Topic.GRANT_ENDED, KEY))
    await heard.gets(Event(Topic.GRANT_ENDED, KEY))


async def test_events_are_heard_again_after_a_restart(server: RedisServer, store: Store) -> None:
    """A restart interrupts the events: RESYNC first, then they come again."""
    heard = await listening(store)
    server.kill()
    server.start()
    await heard.gets(RESYNC)
    await recovers(store)
    await store.publish(Event(Topic.SESSION_ENDED, "session:01"))
    await heard.gets(Event(Topic.SESSION_ENDED, "session:01"))


async def test_too_few_replicas_fail_a_write_that_was_done(server: RedisServer) -> None:
    """With wait_replicas and no replica, a write is told as failed, and a reader sees that it was done."""
    backing = RedisBacking(StoreOptions(url=StoreUrl.parse(f"redis://127.0.0.1:{server.port}/0"), wait_replicas=1))
    try:
        with pytest.raises(StoreError, match="replicas"):
            await backing.open()
        [store] = backing.opened
        with pytest.raises(StoreError, match="replicas"):
            await store.create(KEY, b"1", ttl_seconds=LONG)
        record = await store.get(KEY)
        assert record is not None
        assert b"1" == record.value
    finally:
        await backing.close()


async def test_a_closed_store_fails_every_call(store: Store) -> None:
    """After its end a store opens no connection any more."""
    await store.close()
    await assert_down(store)

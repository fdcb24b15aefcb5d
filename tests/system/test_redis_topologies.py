"""Redis behind Sentinels and as a cluster, for real: the contract, failovers and migrations under load."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Self

import pytest
from redis.crc import key_slot

from broker.errors import StoreError
from broker.stores.base import Event, Store, Topic
from broker.stores.listeners import RESYNC
from broker.stores.options import StoreOptions, StoreUrl
from broker.stores.redis_sentinels import WATCH_SECONDS
from tests.stores.store_contract import KEY, LONG, Heard, StoreContract, listening
from tests.stores.test_redis import RedisBacking
from tests.support.redis_server import ClusterSetup, RedisServer, SentinelSetup, raw, wait_until
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterSetup]:
    setup = ClusterSetup(tmp_path_factory.mktemp("cluster"))
    try:
        yield setup.start()
    finally:
        setup.stop()


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelSetup]:
    setup = SentinelSetup(tmp_path_factory.mktemp("sentinels"))
    try:
        yield setup.start()
    finally:
        setup.stop()


class TestClusterContract(StoreContract):
    """Three nodes that share the keys do what every store does."""

    @pytest.fixture
    async def backing(self, cluster: ClusterSetup) -> AsyncIterator[RedisBacking]:
        for server in cluster.servers:
            server.command("FLUSHALL")
        backing = RedisBacking(StoreOptions(url=StoreUrl.parse(cluster.url)))
        yield backing
        await backing.close()


class TestSentinelContract(StoreContract):
    """A master that Sentinels watch does what every store does, with every write on a replica too."""

    @pytest.fixture
    async def backing(self, sentinels: SentinelSetup) -> AsyncIterator[RedisBacking]:
        sentinels.flush()
        backing = RedisBacking(StoreOptions(url=StoreUrl.parse(sentinels.url), wait_replicas=1))
        yield backing
        await backing.close()


class Writers:
    """Writers that each raise a counter of their own, as fast as they can, and remember what they were told."""

    def __init__(self, store: Store, count: int) -> None:
        self._store = store
        self.acknowledged = [0] * count
        """The highest count of each writer that the store said is written."""
        self.last_success_at = time.monotonic()
        self.longest_gap = 0.0
        self.failures = 0
        self.last_fault = ""
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for number in range(len(self.acknowledged)):
            assert None is not await self._store.create(self.key(number), b"0", ttl_seconds=LONG, due_at=1)
            self._tasks.append(asyncio.get_running_loop().create_task(self._write(number)))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def key(self, number: int) -> str:
        return f"grant:{number:04x}"

    async def _write(self, number: int) -> None:
        while True:
            try:
                record = await self._store.get(self.key(number))
                if record is None:  # lost by the failover: the user would log in again
                    await self._store.create(self.key(number), b"0", ttl_seconds=LONG)
                    continue
                count = int(record.value) + 1
                if await self._store.replace(self.key(number), b"%d" % count, record.version, due_at=count) is not None:
                    self.acknowledged[number] = count
                    self.longest_gap = max(self.longest_gap, time.monotonic() - self.last_success_at)
                    self.last_success_at = time.monotonic()
            except StoreError as fault:
                self.failures += 1
                self.last_fault = str(fault)
            await asyncio.sleep(0.005)

    async def go_on(self, *, within: float = 20.0) -> None:
        """Every writer succeeds again. How soon is only of interest after a fault."""
        before = list(self.acknowledged)
        began_at = time.monotonic()
        await until(
            lambda: all(now > then for now, then in zip(self.acknowledged, before, strict=True)),
            seconds=within,
            what=lambda: f"writing again ({self.last_fault})",
        )
        print(f"writing again after {time.monotonic() - began_at:.2f} s, {self.failures} failures")

    async def lost(self) -> list[int]:
        """Return the numbers of the writers of whom an acknowledged write is gone."""
        lost = []
        for number, count in enumerate(self.acknowledged):
            record = await self._store.get(self.key(number))
            if record is None or int(record.value) < count:
                lost.append(number)
        return lost


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[SentinelSetup]:
    """A master with two replicas, to be broken."""
    setup = SentinelSetup(tmp_path / "s", replicas=2)
    try:
        yield setup.start()
    finally:
        setup.stop()


@pytest.fixture
async def safe_store(failing: SentinelSetup) -> AsyncIterator[Store]:
    """A store whose writes count once a replica has them."""
    backing = RedisBacking(StoreOptions(url=StoreUrl.parse(failing.url), wait_replicas=1))
    yield await backing.open()
    await backing.close()


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_ft_03_a_failover_loses_no_acknowledged_write(
    failing: SentinelSetup, safe_store: Store, how: str
) -> None:
    """When the master dies or hangs under load, writes go to the new one within seconds, and none is lost."""
    heard = await listening(safe_store)
    async with Writers(safe_store, 20) as writers:
        await writers.go_on()
        old = failing.master()
        (old.kill if how == "kill" else old.pause)()
        # 1.5 s until the Sentinels see it, a second or two to agree and promote; then our own 5 s at most.
        await until(lambda: failing.master() is not old, seconds=30, what="the failover")
        await writers.go_on(within=5)
        (old.start if how == "kill" else old.resume)()
        await writers.go_on(within=5)
    assert [] == await writers.lost()
    await heard.gets(RESYNC)
    await hears_again(safe_store, heard)


async def test_ft_03_a_replaced_master_that_still_answers_is_left(failing: SentinelSetup) -> None:
    """
    A master that was replaced while it was cut off from the others, but not from us, is left within seconds.

    It still takes our reads and writes, so nothing but the Sentinels tells that they are lost (redis-py #3874).
    """
    backing = RedisBacking(StoreOptions(url=StoreUrl.parse(failing.url)))
    store = await backing.open()
    try:
        async with Writers(store, 10) as writers:
            await writers.go_on()
            old = failing.master()
            cut_off(old)
            await until(lambda: failing.master() is not old, seconds=30, what="the failover")
            assert "master" == facts(old, "replication")["role"], "nobody has told the old master"

            async def is_left() -> bool:
                before = facts(old, "commandstats")["cmdstat_hset"]
                await writers.go_on(within=5)
                return before == facts(old, "commandstats")["cmdstat_hset"]

            await until_async(is_left, seconds=5, what="the last write to the old master")
            for _ in range(3):
                assert await is_left(), "a write went to the old master again"
        assert [] == await writers.lost()
    finally:
        await backing.close()


@pytest.mark.slow
@pytest.mark.parametrize("began", ["when it was replaced", "when it is about to be replaced"])
async def test_ft_03_an_old_master_that_comes_back_empty_is_not_read(failing: SentinelSetup, began: str) -> None:
    """It is a master, without any data, until a Sentinel demotes it; no record is taken to be missing for that."""
    backing = RedisBacking(StoreOptions(url=StoreUrl.parse(failing.url), wait_replicas=1))
    store = await backing.open()
    try:
        for number in range(20):
            assert None is not await store.create(f"grant:{number:02x}", b"1", ttl_seconds=LONG)
        reader = asyncio.get_running_loop().create_task(read_for_ever(store))
        old = failing.master()
        old.kill()
        is_over = failing.is_failing_over if "about" in began else lambda: failing.master() is not old
        await asyncio.to_thread(wait_until, is_over, what="the failover")
        old.start()
        await until(lambda: failing.master() is not old, seconds=30, what="the failover")
        await until_async(lambda: works(store), seconds=5, what="the recovery")
        assert b"master" == raw(old, "ROLE")[0], "no Sentinel has demoted it yet"
        await asyncio.sleep(2 * WATCH_SECONDS)
        assert not reader.done(), reader.result()
        reader.cancel()
    finally:
        await backing.close()


async def read_for_ever(store: Store) -> list[str]:
    """Return the keys of records that are missing, at the first sight of one."""
    while True:
        for number in range(20):
            key = f"grant:{number:02x}"
            with contextlib.suppress(StoreError):
                if await store.get(key) is None:
                    return [key]
        await asyncio.sleep(0.002)


async def test_ft_04_a_master_that_lost_everything_before_anybody_noticed_is_taken_empty(
    failing: SentinelSetup,
) -> None:
    """Restarted so fast that the Sentinels don't replace it, it has emptied its replicas too: the data is lost."""
    failing.be_patient()
    backing = RedisBacking(StoreOptions(url=StoreUrl.parse(failing.url)))
    store = await backing.open()
    try:
        assert None is not await store.create(KEY, b"1", ttl_seconds=LONG)
        master = failing.master()
        master.kill()
        master.start()
        await until_async(lambda: works(store), seconds=5, what="the recovery")
        assert None is await store.get(KEY)
        assert None is not await store.create(KEY, b"2", ttl_seconds=LONG)
    finally:
        await backing.close()


async def works(store: Store) -> bool:
    try:
        await store.ping()
    except StoreError:
        return False
    return True


async def hears_again(store: Store, heard: Heard) -> None:
    """An event is heard, or a RESYNC in its place, and soon each event."""
    event = Event(Topic.GRANT_ENDED, KEY)

    async def is_heard() -> bool:
        heard.events.clear()
        await store.publish(event)
        await until(lambda: bool(heard.events), what="an event or a RESYNC")
        return event in heard.events

    await until_async(is_heard, what="hearing")


def cut_off(server: RedisServer) -> None:
    """Let *server* go on serving the broker, and nobody else: neither its replicas nor the Sentinels may come in."""
    server.command("CONFIG", "SET", "requirepass", "cut off")
    for kind in ("replica", "pubsub", "normal"):
        listing = raw(server, "CLIENT", "LIST", "TYPE", kind, password="cut off").decode()
        for line in listing.splitlines():
            client = dict(field.partition("=")[::2] for field in line.split())
            if client["name"] != "token-broker" and client["cmd"] != "client|list":
                server.command("CLIENT", "KILL", "ID", client["id"], password="cut off")


def facts(server: RedisServer, section: str) -> dict[str, str]:
    text = raw(server, "INFO", section, password="cut off").decode()
    return dict(line.partition(":")[::2] for line in text.splitlines() if ":" in line)


async def test_sentinels_that_disagree_are_not_followed(failing: SentinelSetup, safe_store: Store) -> None:
    """While most Sentinels are silent, one alone can't talk us out of the master; when they are back, nothing changed."""
    async with Writers(safe_store, 5) as writers:
        replica = failing.replica()
        for sentinel in failing.sentinels[1:]:
            sentinel.pause()
        try:
            failing.sentinels[0].command("SENTINEL", "REMOVE", failing.MASTER)
            failing.sentinels[0].command("SENTINEL", "MONITOR", failing.MASTER, "127.0.0.1", replica.port, 1)
            await asyncio.sleep(2 * WATCH_SECONDS)
            await writers.go_on(within=5)
        finally:
            for sentinel in failing.sentinels[1:]:
                sentinel.resume()
        await writers.go_on(within=5)
    assert [] == await writers.lost()


async def test_ft_01_sentinels_that_are_gone_do_not_matter_while_the_master_is_there(
    failing: SentinelSetup, safe_store: Store
) -> None:
    """A known master is used on while no Sentinel answers."""
    async with Writers(safe_store, 5) as writers:
        for sentinel in failing.sentinels:
            sentinel.kill()
        await asyncio.sleep(2 * WATCH_SECONDS)
        await writers.go_on(within=5)
        assert 0 == writers.failures


@pytest.fixture
async def movable(tmp_path: Path) -> AsyncIterator[tuple[ClusterSetup, Store]]:
    """A cluster to be broken, and a store on it."""
    setup = ClusterSetup(tmp_path / "c")
    backing = RedisBacking(StoreOptions(url=StoreUrl.parse(setup.start().url)))
    try:
        yield setup, await backing.open()
    finally:
        await backing.close()
        setup.stop()


async def test_a_slot_moves_under_load(movable: tuple[ClusterSetup, Store]) -> None:
    """While a slot is moved to another node, key by key, no call fails and no write is lost."""
    setup, store = movable
    async with Writers(store, 30) as writers:
        await writers.go_on()
        for number in range(5):
            slot = key_slot(writers.key(number).encode())
            source = setup.owner(slot)
            target = next(server for server in setup.servers if server is not source)
            target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", setup.node_id(source))
            source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", setup.node_id(target))
            await asyncio.sleep(0.05)
            while names := source.command("CLUSTER", "GETKEYSINSLOT", slot, 10):
                for name in names:
                    source.command("MIGRATE", "127.0.0.1", target.port, name, 0, 5000)
                    await asyncio.sleep(0.02)
            for server in (target, source):
                server.command("CLUSTER", "SETSLOT", slot, "NODE", setup.node_id(target))
            await writers.go_on(within=5)
    assert [] == await writers.lost()
    assert 0 == writers.failures


async def test_ft_01_a_node_that_dies_is_told_and_recovered_from(movable: tuple[ClusterSetup, Store]) -> None:
    """Without a node the cluster is down; when it is back, empty, everything works within seconds."""
    setup, store = movable
    heard = await listening(store)
    keys = [f"grant:{number:02x}" for number in range(30)]
    for key in keys:
        assert None is not await store.create(key, b"1", ttl_seconds=LONG, tags=["user"])
    dead = setup.owner(key_slot(keys[0].encode()))
    dead.kill()
    with pytest.raises(StoreError):
        await store.get(keys[0])
    dead.start()
    await asyncio.to_thread(wait_until, setup.is_complete)

    async def all_answer() -> bool:
        try:
            await store.ping()
            answers = [await store.get(key) for key in keys]
        except StoreError:
            return False
        return None in answers and any(answers)

    await until_async(all_answer, seconds=5, what="the recovery")
    assert None is not await store.create(keys[0], b"2", ttl_seconds=LONG)
    await hears_again(store, heard)

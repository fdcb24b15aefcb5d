"""Which server has a key: what Sentinels and cluster nodes say, and whom of them to believe."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from redis.crc import key_slot

from broker.errors import StoreError
from broker.stores.options import Address
from broker.stores.redis_connection import Dialler
from broker.stores.redis_indexes import Keys
from broker.stores.redis_topology import Cluster, Sentinels, Standalone

DIALLER = Dialler(username=None, password=None)
OLD, NEW = Address("10.0.0.1", 6379), Address("10.0.0.2", 6380)


class Scripted:
    """A server that answers every command alike, or not at all."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.asked = 0
        self.address = Address("", 0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while block := await reader.read(65536):
                is_setname = b"SETNAME" in block
                self.asked += not is_setname
                if self.answer is not None or is_setname:
                    writer.write(b"+OK\r\n" if is_setname else self.answer or b"")
        writer.close()


@contextlib.asynccontextmanager
async def scripted(*answers: bytes | None) -> AsyncIterator[list[Scripted]]:
    servers = [Scripted(answer) for answer in answers]
    async with contextlib.AsyncExitStack() as stack:
        for one in servers:
            listener = await asyncio.start_server(one.serve, "127.0.0.1", 0)
            stack.callback(listener.close)
            one.address = Address("127.0.0.1", listener.sockets[0].getsockname()[1])
        yield servers


def bulk(*texts: str | bytes) -> bytes:
    items = [text.encode() if isinstance(text, str) else text for text in texts]
    return b"*%d\r\n" % len(items) + b"".join(b"$%d\r\n%b\r\n" % (len(item), item) for item in items)


def master(address: Address, epoch: int) -> bytes:
    return bulk("name", "broker", "ip", address.host, "port", str(address.port), "config-epoch", str(epoch))


def soon() -> float:
    return asyncio.get_running_loop().time() + 1


@contextlib.asynccontextmanager
async def sentinels(*answers: bytes | None) -> AsyncIterator[tuple[Sentinels, list[Scripted]]]:
    async with scripted(*answers) as servers:
        topology = Sentinels([server.address for server in servers], "broker", DIALLER)
        try:
            yield topology, servers
        finally:
            await topology.close()


async def relearn(topology: Sentinels | Cluster) -> None:
    await topology.relearn(asyncio.get_running_loop().time(), soon())


async def test_one_server_has_every_key() -> None:
    """A standalone server is asked for everything, and learns nothing."""
    topology = Standalone(OLD)
    assert OLD == await topology.locate("x", 0)
    await topology.relearn(0, 0)
    await topology.watch()
    await topology.close()
    assert {OLD} == topology.addresses()


@pytest.mark.parametrize(
    "answers",
    [
        (master(OLD, 1), master(OLD, 1), master(NEW, 2)),
        (master(NEW, 2), None, master(OLD, 1)),
        (None, None, master(NEW, 2)),
        (b"-ERR No such master with that name\r\n", b":7\r\n", master(NEW, 2)),
        (bulk("ip", "x"), bulk(b"\xff", "y"), master(NEW, 2)),
        (bulk("ip", "h", "port", "x", "config-epoch", "9"), b"*0\r\n", master(NEW, 2)),
    ],
)
async def test_the_newest_configuration_counts(answers: tuple[bytes | None, ...]) -> None:
    """Of what the Sentinels say, the highest epoch is believed; silence, errors and nonsense don't count."""
    async with sentinels(*answers) as (topology, _):
        assert NEW == await topology.locate("x", soon())
        assert {NEW} == topology.addresses()


async def test_a_minority_changes_nothing_that_is_known() -> None:
    """One Sentinel of three can't move us, even with a higher epoch; two can."""
    async with sentinels(master(OLD, 1), master(OLD, 1), master(OLD, 1)) as (topology, servers):
        assert OLD == await topology.locate("x", soon())
        servers[0].answer = master(NEW, 9)
        servers[1].answer = servers[2].answer = b"-ERR\r\n"
        await relearn(topology)
        assert OLD == await topology.locate("x", soon())
        servers[1].answer = master(OLD, 1)
        await relearn(topology)
        assert NEW == await topology.locate("x", soon())


async def test_without_any_answer_there_is_no_master() -> None:
    """While nothing is known, the store is down, and that is learned in time."""
    async with sentinels(None, b"-ERR No such master\r\n") as (topology, _):
        with pytest.raises(StoreError, match="no Sentinel names"):
            await topology.locate("x", soon())


async def test_many_who_want_to_know_ask_once() -> None:
    """A hundred calls that fail at once cause one round of questions, and who is cancelled breaks nothing off."""
    async with sentinels(master(OLD, 1)) as (topology, servers):
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        calls = [loop.create_task(topology.relearn(began_at, soon())) for _ in range(100)]
        await asyncio.sleep(0)
        calls[0].cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert 1 == servers[0].asked
        assert OLD == await topology.locate("x", soon())


async def test_the_sentinels_are_watched() -> None:
    """A new master is noticed though nothing fails."""
    async with sentinels(master(OLD, 1)) as (topology, servers):
        assert OLD == await topology.locate("x", soon())
        watch = asyncio.get_running_loop().create_task(topology.watch())
        servers[0].answer = master(NEW, 2)
        async with asyncio.timeout(3):
            while await topology.locate("x", soon()) != NEW:
                await asyncio.sleep(0.05)
        watch.cancel()


def slots(*ranges: tuple[int, int, bytes, int]) -> bytes:
    """Return an answer to CLUSTER SLOTS, each range with a replica."""
    replica = b"*3\r\n$9\r\n10.9.9.9\r\n:1\r\n$1\r\nr\r\n".replace(b"$9", b"$8")
    parts = (
        b"*4\r\n:%d\r\n:%d\r\n*3\r\n%b:%d\r\n$1\r\nm\r\n" % (first, last, host, port) + replica
        for first, last, host, port in ranges
    )
    return b"*%d\r\n" % len(ranges) + b"".join(parts)


def host(text: str) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text), text.encode())


async def test_a_cluster_is_asked_for_its_slots() -> None:
    """Each key goes to the master of its slot; a node that doesn't know its own name is the one that was asked."""
    low, high = "a", "b"
    assert key_slot(low.encode()) > key_slot(high.encode())
    middle = key_slot(low.encode())
    for unnamed in (b"$-1\r\n", b"$0\r\n\r\n"):
        answer = slots((0, middle - 1, host("10.0.0.1"), 6379), (middle, 16383, unnamed, 7000))
        async with scripted(answer) as [node]:
            topology = Cluster([node.address], DIALLER)
            assert Address("127.0.0.1", 7000) == await topology.locate(low, soon())
            assert OLD == await topology.locate(high, soon())
            assert {OLD, Address("127.0.0.1", 7000)} == topology.addresses()
            await topology.close()


@pytest.mark.parametrize(
    "answer", [None, b"-ERR no cluster\r\n", b"*1\r\n:1\r\n", b"*0\r\n", b"*1\r\n*2\r\n:1\r\n:2\r\n"]
)
async def test_a_cluster_without_an_owner_is_down(answer: bytes | None) -> None:
    """Silence, errors, nonsense and uncovered slots are errors of the store."""
    async with scripted(answer) as [node]:
        topology = Cluster([node.address], DIALLER)
        with pytest.raises(StoreError, match="slot"):
            await topology.locate("x", soon())
        await topology.close()


async def test_another_node_is_asked_where_one_is_silent() -> None:
    """A dead seed does not keep the others from being asked, and the next time another one begins."""
    answer = slots((0, 16383, host("10.0.0.2"), 6380))
    async with scripted(b"-LOADING\r\n", answer) as nodes:
        topology = Cluster([node.address for node in nodes], DIALLER)
        for _ in range(3):
            await relearn(topology)
            assert NEW == await topology.locate("x", soon())
        await topology.close()


@pytest.mark.parametrize("key", ["session:00ff", "grant:11", "grant:{x}"])
def test_what_belongs_to_one_id_is_in_one_slot(key: str) -> None:
    """A record, its lease and its mark meet in one slot of a cluster."""
    keys = Keys("prefix:")
    assert 1 == len({key_slot(name.encode()) for name in (keys.record(key), keys.lease(key), keys.mark(key))})

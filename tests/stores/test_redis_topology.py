"""Which server has a key: what cluster nodes say, and whom of them to believe."""

import asyncio

import pytest
from redis.crc import key_slot

from broker.errors import StoreError
from broker.stores.options import Address
from broker.stores.redis_connection import Dialler
from broker.stores.redis_indexes import Keys
from broker.stores.redis_topology import Cluster, Learning, Standalone
from tests.support.scripted_redis import scripted

DIALLER = Dialler(username=None, password=None)
OLD, NEW = Address("10.0.0.1", 6379), Address("10.0.0.2", 6380)


def soon() -> float:
    return asyncio.get_running_loop().time() + 1


async def relearn(topology: Cluster) -> None:
    await topology.relearn(asyncio.get_running_loop().time(), soon())


async def test_one_server_has_every_key() -> None:
    """A standalone server is asked for everything, and learns nothing."""
    topology = Standalone(OLD)
    assert OLD == await topology.locate("x", 0)
    await topology.relearn(0, 0)
    await topology.watch()
    await topology.close()
    assert {OLD} == topology.addresses()


async def test_what_was_asked_before_is_asked_again() -> None:
    """Who wants to know what holds from now on isn't answered by a round of questions that began before."""
    loop = asyncio.get_running_loop()
    rounds: list[float] = []

    async def learn() -> bool:
        rounds.append(loop.time())
        await asyncio.sleep(0.05)
        return len(rounds) != 3

    learning = Learning(learn)
    first = loop.create_task(learning.after(loop.time(), soon()))
    await asyncio.sleep(0.01)
    await asyncio.gather(*(learning.after(loop.time(), soon()) for _ in range(5)))
    assert 2 == len(rounds)
    await first
    await learning.after(loop.time(), soon())
    assert 3 == len(rounds), "what can't be learned is not asked for ever"
    await learning.close()


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

"""Calls find their server, through everything that redirects them."""

import asyncio
from collections.abc import AsyncIterator
from collections.abc import Set as AbstractSet

import pytest
from redis.exceptions import MovedError

from broker.errors import StoreError
from broker.stores.options import Address
from broker.stores.redis_client import RedisClient, Script
from broker.stores.redis_connection import Dialler
from broker.stores.redis_topology import Standalone, Topology
from tests.support.redis_server import RedisServer
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import awake, until

NOWHERE = Address("127.0.0.1", 1)


class Moving(Topology):
    """Names one address after another, each time it is asked to learn."""

    def __init__(self, *addresses: Address) -> None:
        self._addresses = list(addresses)
        self.notices: list[MovedError] = []

    async def locate(self, key: str, deadline: float) -> Address:
        return self._addresses[0]

    def addresses(self) -> AbstractSet[Address]:
        return {self._addresses[0]}

    async def relearn(self, since: float, deadline: float) -> None:
        if len(self._addresses) > 1:
            del self._addresses[0]

    def moved(self, notice: MovedError) -> None:
        self.notices.append(notice)


def client(topology: Topology, seconds: float = 1.0) -> RedisClient:
    dialler = Dialler(username=None, password=None)
    return RedisClient(topology, dialler, timeout_seconds=seconds, max_connections=4)


@pytest.fixture
def address(redis_server: RedisServer) -> Address:
    return Address("127.0.0.1", redis_server.port)


@pytest.fixture
async def direct(address: Address) -> AsyncIterator[RedisClient]:
    direct = client(Standalone(address))
    yield direct
    await direct.close()


async def test_a_script_is_sent_by_name_and_in_full_where_that_is_unknown(
    direct: RedisClient, redis_server: RedisServer
) -> None:
    """A server that lost its scripts gets them again, and the caller doesn't notice."""
    script = Script("return {KEYS[1], ARGV[1], ARGV[2]}")
    for _ in range(2):
        redis_server.command("SCRIPT", "FLUSH")
        for _ in range(2):
            assert [b"key", b"\xff", b"7"] == await direct.run(script, ["key"], b"\xff", 7)
    assert [1] == redis_server.command("SCRIPT", "EXISTS", script.digest)


async def test_an_error_is_a_store_error_with_its_address(direct: RedisClient, address: Address) -> None:
    """What the server refuses is told with what it said, bounded."""
    with pytest.raises(StoreError, match=str(address)):
        await direct.call("x", "NONSENSE")
    with pytest.raises(StoreError) as caught:
        await direct.run(Script(f"return redis.error_reply('ERR {'x' * 5000}')"), ["x"])
    assert len(str(caught.value)) < 300


async def test_where_one_server_fails_the_next_one_is_asked(address: Address) -> None:
    """A call that meets a dead master is sent to the new one."""
    moving = client(Moving(NOWHERE, address))
    assert b"PONG" == await moving.call("x", "PING")
    await moving.close()


async def test_where_nothing_new_is_learned_the_fault_is_told_at_once() -> None:
    """The dead server isn't asked again and again."""
    dead = client(Moving(NOWHERE))
    async with awake() as seconds:
        with pytest.raises(StoreError):
            await dead.call("x", "PING")
        assert seconds() < 0.5
    await dead.close()


async def test_a_redirection_is_followed_and_learned(direct: RedisClient, address: Address) -> None:
    """MOVED sends the call where the topology says by then, for a few times; going in circles is told."""
    topology = Moving(address)
    moved = client(topology)
    with pytest.raises(StoreError, match="circles"):
        await moved.run(Script("return redis.error_reply('MOVED 7 127.0.0.1:1')"), ["x"])
    assert {(7, "127.0.0.1", 1)} == {(notice.slot_id, notice.host, notice.port) for notice in topology.notices}
    await moved.close()


async def test_what_is_under_way_is_waited_for_and_given_up(direct: RedisClient) -> None:
    """TRYAGAIN, CLUSTERDOWN and READONLY are tried again a few times, and then told."""
    for word in ("TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "READONLY"):
        counted = Script(f"redis.call('INCR', KEYS[1]) return redis.error_reply('{word} later')")
        with pytest.raises(StoreError, match="later"):
            await direct.run(counted, [word])
        assert int(str(await direct.call(word, "GET", word), "ascii")) >= 3  # type: ignore[call-overload]


async def test_pools_of_servers_that_are_no_longer_used_are_closed(redis_server: RedisServer, address: Address) -> None:
    """After a move no connection to the old server stays."""
    async with TcpProxy(redis_server.port) as proxy:
        topology = Moving(Address("127.0.0.1", proxy.port), address)
        moving = client(topology)
        await moving.call("x", "PING")
        assert 1 == proxy.connections
        await topology.relearn(0, 0)
        await moving.call("x", "PING")
        await until(lambda: proxy.connections == 0, what="the end of the old connections")
        await moving.close()


async def test_replicas_are_waited_for_on_the_writing_connection(address: Address) -> None:
    """Without replicas a write that wants one fails in a part of the deadline."""
    patient = client(Standalone(address), seconds=3.0)
    began_at = asyncio.get_running_loop().time()
    async with awake() as seconds:
        with pytest.raises(StoreError, match="replicas"):
            await patient.run(Script("return redis.call('SET', KEYS[1], 'x')"), ["x"], replicas=1)
        assert 0.6 < asyncio.get_running_loop().time() - began_at
        assert seconds() < 2.7
    assert b"x" == await patient.call("x", "GET", "x"), "it was written all the same"
    await patient.close()


async def test_a_busy_process_does_not_take_its_server_for_silent(redis_server: RedisServer) -> None:
    """Calls that wait for their turn longer than for any answer may still be answered."""
    async with TcpProxy(redis_server.port) as proxy:
        proxy.delay_seconds = 0.1
        busy = client(Standalone(Address("127.0.0.1", proxy.port)), seconds=0.6)
        # Eight rounds over four connections take 0.8 s; for a turn three times the deadline is waited.
        assert [b"PONG"] * 32 == await asyncio.gather(*(busy.call("x", "PING") for _ in range(32)))
        proxy.partition()
        async with awake() as seconds:
            outcomes = await asyncio.gather(*(busy.call("x", "PING") for _ in range(60)), return_exceptions=True)
            assert seconds() < 1.8, "who waits behind a silent server is told with it"
        assert all(isinstance(outcome, StoreError) for outcome in outcomes)
        await busy.close()

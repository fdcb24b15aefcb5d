"""Which master the Sentinels mean, whom of them to believe, and when a server may pass for it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from broker.errors import StoreError
from broker.stores.options import Address
from broker.stores.redis_client import RedisClient
from broker.stores.redis_connection import Dialler, Unreachable
from broker.stores.redis_sentinels import GOSSIP_SECONDS, Sentinels
from broker.stores.redis_witness import KEPT, Witness
from tests.support.clock import SeededRandomness
from tests.support.redis_server import RedisServer
from tests.support.scripted_redis import Scripted, bulk, scripted
from tests.support.waiting import awake, until_async

DIALLER = Dialler(username=None, password=None)
OLD, NEW = Address("10.0.0.1", 6379), Address("10.0.0.2", 6380)
WITNESS = "test:witness"


def master(address: Address, epoch: int, *, flags: str = "master", heard_ms: int = 0) -> bytes:
    """Return a Sentinel's answer: it heard the master *heard_ms* ago."""
    place = ("name", "broker", "ip", address.host, "port", str(address.port))
    return bulk(*place, "flags", flags, "last-ok-ping-reply", str(heard_ms), "config-epoch", str(epoch))


def soon() -> float:
    return asyncio.get_running_loop().time() + 1


@contextlib.asynccontextmanager
async def sentinels(*answers: bytes | None) -> AsyncIterator[tuple[Sentinels, list[Scripted]]]:
    async with scripted(*answers) as servers:
        witness = Witness(WITNESS, SeededRandomness())
        topology = Sentinels([server.address for server in servers], "broker", DIALLER, witness)
        try:
            yield topology, servers
        finally:
            await topology.close()


async def relearn(topology: Sentinels) -> None:
    await topology.relearn(asyncio.get_running_loop().time(), soon())


@pytest.mark.parametrize(
    "answers",
    [
        (master(OLD, 1), master(OLD, 1), master(NEW, 2)),
        (master(NEW, 2), None, master(OLD, 1)),
        (master(OLD, 2), master(NEW, 2), master(NEW, 2)),
        (None, None, master(NEW, 2)),
        (b"-ERR No such master with that name\r\n", b":7\r\n", master(NEW, 2)),
        (bulk("ip", "x"), bulk(b"\xff", "y"), master(NEW, 2)),
        (bulk("ip", "h", "port", "x", "config-epoch", "9"), b"*0\r\n", master(NEW, 2)),
    ],
)
async def test_the_newest_configuration_counts(answers: tuple[bytes | None, ...]) -> None:
    """Of what the Sentinels say, the highest epoch is believed, and of those most; silence, errors and nonsense don't count."""
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

        async def is_noticed() -> bool:
            return await topology.locate("x", soon()) == NEW

        await until_async(is_noticed, what="the new master")
        watch.cancel()


async def test_a_sentinel_that_hangs_holds_nobody_up() -> None:
    """Where most have answered, the last one is waited for a moment only."""
    async with sentinels(master(OLD, 1), None, master(OLD, 1)) as (topology, _), awake() as seconds:
        assert OLD == await topology.locate("x", soon())
        assert seconds() < 0.4


async def test_ft_03_an_older_configuration_does_not_lead_back() -> None:
    """Most Sentinels have not heard of the failover yet, and the one that led it is gone: the new master stays."""
    async with sentinels(master(OLD, 1), master(OLD, 1), master(NEW, 2)) as (topology, servers):
        assert NEW == await topology.locate("x", soon())
        servers[2].answer = b"-ERR\r\n"
        await relearn(topology)
        assert NEW == await topology.locate("x", soon())


async def test_sentinels_that_were_set_up_anew_are_believed_in_the_end() -> None:
    """Their numbers begin again below what is known; what they agree on for long enough counts."""
    async with sentinels(master(OLD, 7), master(OLD, 7)) as (topology, servers):
        assert OLD == await topology.locate("x", soon())
        servers[0].answer = servers[1].answer = master(NEW, 0)
        await relearn(topology)
        assert OLD == await topology.locate("x", soon())
        topology._named_at -= GOSSIP_SECONDS
        await relearn(topology)
        assert NEW == await topology.locate("x", soon())


# --- new connections


@pytest.fixture
def here(redis_server: RedisServer) -> Address:
    """A real server, which the Sentinels of a test name or don't."""
    return Address("127.0.0.1", redis_server.port)


@contextlib.asynccontextmanager
async def client(*answers: bytes | None) -> AsyncIterator[tuple[RedisClient, list[Scripted]]]:
    async with sentinels(*answers) as (topology, servers):
        client = RedisClient(topology, DIALLER, timeout_seconds=1, max_connections=4)
        yield client, servers
        await client.close()


async def is_let_in(client: RedisClient, address: Address) -> bool:
    try:
        connection = await client.dial(address)
    except Unreachable:
        return False
    await connection.disconnect()
    return True


async def test_ft_03_a_new_connection_is_used_if_the_sentinels_named_its_server_since(
    here: Address, redis_server: RedisServer
) -> None:
    """The master is asked for when the connection is there, however short ago it was asked for before."""
    redis_server.command("SET", WITNESS, KEPT)
    async with client(master(here, 1), master(here, 1), master(here, 1)) as (broker, servers):
        assert b"PONG" == await broker.call("x", "PING")
        servers[0].answer = master(NEW, 2)
        with pytest.raises(Unreachable, match="no longer the master"):
            await broker.dial(here)
        assert NEW == await broker.topology.locate("x", soon())


async def test_ft_03_an_empty_master_is_refused_until_the_sentinels_have_heard_it(
    here: Address, redis_server: RedisServer
) -> None:
    """Nothing is read from it while a Sentinel may still replace it; then it is the store, for every process."""
    async with client(*[master(here, 1, heard_ms=900)] * 3) as (broker, servers):
        with pytest.raises(Unreachable, match="empty"):
            await broker.call("x", "GET", "x")
        for answers in (
            [master(here, 1, heard_ms=900), master(here, 1), master(here, 1)],
            [master(here, 1, flags="master,s_down"), master(here, 1), master(here, 1)],
            [master(here, 1), master(here, 1), master(here, 1, flags="master,o_down,failover_in_progress")],
            [master(here, 1), b"-ERR\r\n", b"-ERR\r\n"],
            [b"-ERR\r\n"] * 3,
        ):
            for server, answer in zip(servers, answers, strict=True):
                server.answer = answer
            assert not await is_let_in(broker, here), answers
        assert KEPT != redis_server.command("GET", WITNESS)

        for server in servers[1:]:
            server.answer = master(here, 1)
        assert await is_let_in(broker, here)
        assert KEPT == redis_server.command("GET", WITNESS)
        assert -1 == redis_server.command("PTTL", WITNESS)
    async with client(*[master(here, 1, heard_ms=900)] * 3) as (other, _):
        assert await is_let_in(other, here)


async def test_a_server_that_is_emptied_twice_is_found_empty_twice(here: Address, redis_server: RedisServer) -> None:
    """What the Sentinels heard of the first one says nothing about the second."""
    async with client(master(here, 1, heard_ms=900)) as (broker, servers):
        assert not await is_let_in(broker, here)
        await asyncio.sleep(0.3)
        redis_server.command("FLUSHALL")
        servers[0].answer = master(here, 1, heard_ms=200)
        assert not await is_let_in(broker, here)
        await asyncio.sleep(0.3)
        assert await is_let_in(broker, here)


@pytest.mark.parametrize("answer", [None, b"-ERR\r\n"])
async def test_ft_01_a_master_that_has_its_data_needs_no_sentinel(
    here: Address, redis_server: RedisServer, answer: bytes | None
) -> None:
    """New connections to a known master are made while the Sentinels are silent."""
    redis_server.command("SET", WITNESS, KEPT)
    async with client(master(here, 1), master(here, 1)) as (broker, servers):
        assert b"PONG" == await broker.call("x", "PING")
        servers[0].answer = servers[1].answer = answer
        assert await is_let_in(broker, here)


async def test_what_can_not_bear_witness_is_unreachable(here: Address, redis_server: RedisServer) -> None:
    """A replica that lacks the key, and a key of the wrong type, are errors of the store, and say what is wrong."""
    async with client(master(here, 1)) as (broker, _):
        redis_server.command("REPLICAOF", "127.0.0.1", 1)
        try:
            with pytest.raises(StoreError, match="ReadOnlyError"):
                await broker.dial(here)
        finally:
            redis_server.command("REPLICAOF", "NO", "ONE")
        redis_server.command("LPUSH", WITNESS, "x")
        with pytest.raises(StoreError, match="no witness"):
            await broker.dial(here)

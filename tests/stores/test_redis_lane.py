"""Reads share a connection, and whatever goes wrong there costs no read and mixes no answers up."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from redis.asyncio.connection import Connection

from broker.stores.options import Address
from broker.stores.redis_client import RedisClient
from broker.stores.redis_connection import Dialler, Unreachable
from broker.stores.redis_lane import MAX_UNANSWERED, PATIENCE_SHARE, Lane
from broker.stores.redis_topology import Standalone
from tests.support.redis_server import RedisServer
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import awake, until

PATIENCE = 0.5
DIALLER = Dialler(username=None, password=None)


@pytest.fixture
async def proxy(redis_server: RedisServer) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
async def lane(proxy: TcpProxy) -> AsyncIterator[Lane]:
    connection = await DIALLER.dial(Address("127.0.0.1", proxy.port))
    lane = Lane(connection, patience_seconds=PATIENCE)
    yield lane
    lane.lose("the test ended")


@pytest.fixture
async def client(proxy: TcpProxy) -> AsyncIterator[RedisClient]:
    topology = Standalone(Address("127.0.0.1", proxy.port))
    client = RedisClient(topology, DIALLER, timeout_seconds=1.0, max_connections=2)
    yield client
    await client.close()


def echo(word: str) -> bytes:
    return b"*2\r\n$4\r\nECHO\r\n$%d\r\n%b\r\n" % (len(word), word.encode())


def ask(lane: Lane, question: bytes) -> "asyncio.Future[object]":
    answer = lane.ask(question)
    assert answer is not None
    return answer


async def has_lane(client: RedisClient) -> None:
    """Read until the lane is there: a read that finds none opens it."""
    await client.call("x", "PING")
    for _ in range(200):
        await client.read("x", "ECHO", "x")
        if any(keeper.ask(echo("lane")) is not None for keeper in client._lanes.values()):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("there is no lane")


async def test_each_question_gets_its_own_answer(lane: Lane) -> None:
    """Refusals among them, as values; and whoever asked and left takes nobody's answer."""
    answers = [ask(lane, echo(str(number))) for number in range(100)]
    answers[3].cancel()
    refused = ask(lane, b"*1\r\n$8\r\nNONSENSE\r\n")
    last = ask(lane, echo("last"))

    assert b"last" == await last
    assert isinstance(refused.result(), Exception)
    assert [b"%d" % number for number in range(100) if number != 3] == [
        answer.result() for answer in answers if not answer.cancelled()
    ]


async def test_the_questions_of_one_turn_go_out_in_one_write(lane: Lane, redis_server: RedisServer) -> None:
    """The server reads them at once."""
    before = redis_server.command("INFO", "stats")["total_reads_processed"]
    await asyncio.gather(*(ask(lane, echo(str(number))) for number in range(200)))
    after = redis_server.command("INFO", "stats")["total_reads_processed"]

    assert after - before < 10


async def test_a_lane_whose_server_falls_silent_is_lost(lane: Lane, proxy: TcpProxy) -> None:
    """Everybody who waits hears of it together, when the oldest question's time is up, and nobody can ask any more."""
    proxy.partition()
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    async with awake() as seconds:
        answers = [ask(lane, echo(str(number))) for number in range(3)]
        outcomes = await asyncio.gather(*answers, return_exceptions=True)
        assert PATIENCE <= loop.time() - began_at
        assert seconds() < PATIENCE + 0.5

    assert {Unreachable} == {type(outcome) for outcome in outcomes}
    assert (True, None) == (lane.is_lost, lane.ask(echo("x")))


async def test_a_lane_is_not_lost_for_its_loops_lateness(lane: Lane) -> None:
    """The answer came while the loop stood still, and is read after the timers: it is waited for once more."""
    answer = ask(lane, echo("x"))
    await asyncio.sleep(0)  # it is sent
    time.sleep(1.5 * PATIENCE)  # the loop's lateness is what is tested

    assert b"x" == await answer
    assert not lane.is_lost


async def test_a_lane_whose_loop_is_late_is_lost_all_the_same(lane: Lane, proxy: TcpProxy) -> None:
    """A silent server is given at most twice the time."""
    proxy.partition()
    answer = ask(lane, echo("x"))
    await asyncio.sleep(0)
    time.sleep(1.5 * PATIENCE)  # the loop's lateness is what is tested

    async with awake() as seconds:
        with pytest.raises(Unreachable):
            await answer
        assert seconds() < PATIENCE + 0.2


async def test_a_lane_that_is_used_all_the_time_lives_on(lane: Lane) -> None:
    """Its patience counts from the oldest question that has no answer, not from the first."""
    deadline = asyncio.get_running_loop().time() + 2.5 * PATIENCE
    while asyncio.get_running_loop().time() < deadline:
        assert b"x" == await ask(lane, echo("x"))
        await asyncio.sleep(PATIENCE / 50)
    assert not lane.is_lost


async def test_what_nobody_asked_for_ends_the_lane(lane: Lane) -> None:
    """An answer too many, and bytes that are none: nothing that follows can be told apart."""
    pending = ask(lane, echo("x"))
    lane.data_received(b"+one\r\n+two\r\n")
    assert (b"one", True) == (pending.result(), lane.is_lost)


async def test_what_is_no_answer_at_all_ends_the_lane(lane: Lane) -> None:
    """The server, or somebody between, doesn't speak RESP."""
    pending = ask(lane, echo("x"))
    lane.data_received(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert lane.is_lost
    assert isinstance(pending.exception(), Unreachable)


async def test_a_lane_takes_a_bounded_number_of_questions(lane: Lane) -> None:
    """Others go the thorough way."""
    answers = [ask(lane, echo("x")) for _ in range(MAX_UNANSWERED)]
    assert lane.ask(echo("x")) is None
    await asyncio.gather(*answers)
    assert b"x" == await ask(lane, echo("x"))


async def test_a_lane_that_cannot_write_takes_no_questions(lane: Lane) -> None:
    """What can't be sent isn't kept without a bound."""
    lane.pause_writing()
    assert lane.ask(echo("x")) is None
    lane.resume_writing()
    assert b"x" == await ask(lane, echo("x"))


async def test_a_connection_of_another_make_becomes_no_lane() -> None:
    """Where redis-py has changed, reads go the thorough way."""
    with pytest.raises(Unreachable):
        Lane(Connection(), patience_seconds=PATIENCE)


async def test_a_lost_lane_costs_no_read(client: RedisClient, proxy: TcpProxy) -> None:
    """What was under way is asked again, and a new lane is opened."""
    await has_lane(client)
    for _ in range(3):
        proxy.cut()
        assert [b"%d" % n for n in range(20)] == await asyncio.gather(
            *(client.read("x", "ECHO", str(n)) for n in range(20))
        )
    await asyncio.sleep(0)
    await until(lambda: proxy.connections <= 1 + 2, what="the end of the connections that were cut")


async def test_a_read_keeps_its_deadline_whatever_the_lane_does(client: RedisClient, proxy: TcpProxy) -> None:
    """A server that hangs takes a part of the time on the lane and the rest on the thorough way."""
    await has_lane(client)
    proxy.partition()
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    async with awake() as seconds:
        outcomes = await asyncio.gather(*(client.read("x", "ECHO", "x") for _ in range(5)), return_exceptions=True)
        assert PATIENCE_SHARE <= loop.time() - began_at
        assert seconds() < 1.4

    assert all(isinstance(outcome, Exception) for outcome in outcomes)


async def test_a_refused_read_is_told_by_the_thorough_way(client: RedisClient) -> None:
    """Its error names the server."""
    await has_lane(client)
    with pytest.raises(Exception, match="redis at"):
        await client.read("x", "NONSENSE")


async def test_the_lane_goes_with_the_connections_of_its_server(client: RedisClient, proxy: TcpProxy) -> None:
    """A server that has become read-only may not be the master any more: nothing is asked on old connections."""
    await has_lane(client)
    (keeper,) = client._lanes.values()
    await client._forget_connections(Address("127.0.0.1", proxy.port))

    assert keeper.ask(echo("x")) is None


async def test_a_closed_client_has_no_lane(client: RedisClient, proxy: TcpProxy) -> None:
    """And opens none."""
    await has_lane(client)
    await client.close()
    await until(lambda: proxy.connections == 0, what="the end of all connections")
    with pytest.raises(Exception, match="closed"):
        await client.read("x", "ECHO", "x")

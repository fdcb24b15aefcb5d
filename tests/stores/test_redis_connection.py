"""Pools share connections out, drop them on any doubt, and leave a server alone that is down."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from redis.exceptions import ResponseError

from broker.errors import StoreError
from broker.stores.options import Address
from broker.stores.redis_connection import REST_SECONDS, Dialler, Pool, Reply, Unreachable
from tests.support.redis_server import RedisServer
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import awake, until

SIZE = 3


@pytest.fixture
async def proxy(redis_server: RedisServer) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
async def pool(proxy: TcpProxy) -> AsyncIterator[Pool]:
    dialler = Dialler(username=None, password=None)
    pool = Pool(dialler.dial, Address("127.0.0.1", proxy.port), size=SIZE)
    yield pool
    await pool.close()


def soon(seconds: float = 1.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_commands_sent_together_are_answered_in_order(pool: Pool) -> None:
    """Each answer stands where its command did, errors among them."""
    commands = [("SET", "a", b"\x00\xff"), ("GET", "a"), ("NONSENSE",), ("ECHO", "x")]
    ok, value, refusal, echo = await pool.exchange(commands, soon())
    assert [b"OK", b"\x00\xff", b"x"] == [ok, value, echo]
    assert isinstance(refusal, ResponseError)


async def test_connections_are_used_again_and_are_few(pool: Pool, proxy: TcpProxy) -> None:
    """A hundred that take turns use no more connections than the pool's size, and later ones the same."""

    async def echo(number: int) -> list[Reply]:
        async with pool.turn(5):
            return await pool.exchange([("ECHO", str(number))], soon())

    proxy.delay_seconds = 0.005
    for _ in range(2):
        replies = await asyncio.gather(*(echo(n) for n in range(100)))
        assert [[b"%d" % n] for n in range(100)] == replies
        assert SIZE == proxy.accepted


async def test_a_turn_that_does_not_come_is_given_up(pool: Pool) -> None:
    """Who waits for a turn in vain is told so, and what the others do with theirs says nothing about the server."""
    async with pool.turn(1), pool.turn(1), pool.turn(1), awake() as seconds:
        began_at = time.monotonic()
        with pytest.raises(StoreError, match="too many calls"):
            await pool.turn(0.1).__aenter__()
        assert 0.09 < time.monotonic() - began_at
        assert seconds() < 0.5
    async with pool.turn(1) as waited:
        assert waited < 0.1
        assert [b"PONG"] == await pool.exchange([("PING",)], soon())


async def test_an_exchange_ends_by_its_deadline(pool: Pool, proxy: TcpProxy) -> None:
    """A server that says nothing is waited for that long."""
    proxy.partition()
    began_at = time.monotonic()
    async with awake() as seconds:
        calls = (pool.exchange([("PING",)], soon(0.2)) for _ in range(20))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert 0.19 < time.monotonic() - began_at
        assert seconds() < 0.5
    assert all(isinstance(outcome, Unreachable) for outcome in outcomes)
    proxy.heal()
    await until(lambda: proxy.connections == 0, what="the end of the connections")


async def test_an_answer_that_came_while_the_process_was_busy_counts(redis_server: RedisServer) -> None:
    """The event loop stood still until after the deadline, and the answer was there long before."""
    direct = Pool(Dialler(username=None, password=None).dial, Address("127.0.0.1", redis_server.port), size=1)
    for _ in range(2):  # on a new connection, and on one that was idle
        exchange = asyncio.get_running_loop().create_task(direct.exchange([("ECHO", "x")], soon(0.1)))
        await asyncio.sleep(0)
        time.sleep(0.3)  # the loop stands still for longer than the deadline, which is what is tested
        assert [b"x"] == await exchange
    await direct.close()


async def test_a_server_that_is_down_is_left_alone_and_tried_by_one(pool: Pool, proxy: TcpProxy) -> None:
    """After a fault, exchanges fail at once for a moment; then one of many tries, and its success lets all through."""
    proxy.refuse()
    with pytest.raises(Unreachable):
        await pool.exchange([("PING",)], soon())
    accepted = proxy.accepted
    for _ in range(50):
        with pytest.raises(StoreError, match="a moment ago"):
            await pool.exchange([("PING",)], soon())
    assert accepted == proxy.accepted
    proxy.heal()
    await asyncio.sleep(REST_SECONDS)
    outcomes = await asyncio.gather(*(pool.exchange([("PING",)], soon()) for _ in range(50)), return_exceptions=True)
    assert 1 == outcomes.count([b"PONG"])
    assert [[b"PONG"]] * 50 == await asyncio.gather(*(pool.exchange([("PING",)], soon()) for _ in range(50)))


async def test_a_cancelled_trial_lets_the_next_one_try(pool: Pool, proxy: TcpProxy) -> None:
    """The one that tries a server that was down may be cancelled; the server isn't given up for that."""
    proxy.refuse()
    with pytest.raises(Unreachable):
        await pool.exchange([("PING",)], soon())
    await asyncio.sleep(REST_SECONDS)
    proxy.heal()
    proxy.partition()
    trial = asyncio.get_running_loop().create_task(pool.exchange([("PING",)], soon(5)))
    await asyncio.sleep(0.05)
    trial.cancel()
    await asyncio.gather(trial, return_exceptions=True)
    proxy.heal()
    assert [b"PONG"] == await pool.exchange([("PING",)], soon())


async def test_one_slow_answer_does_not_condemn_a_server_that_serves_others(
    pool: Pool, redis_server: RedisServer
) -> None:
    """An exchange that runs out of time while others succeed says nothing about the server."""
    slow = pool.exchange([("BLPOP", "nothing", 3)], soon(1.0))
    task = asyncio.get_running_loop().create_task(slow)
    await asyncio.sleep(0.1)
    assert [b"PONG"] == await pool.exchange([("PING",)], soon())
    with pytest.raises(Unreachable):
        await task
    assert [b"PONG"] == await pool.exchange([("PING",)], soon())


async def test_an_idle_connection_that_fell_silent_takes_half_of_the_time(pool: Pool, proxy: TcpProxy) -> None:
    """What is left is enough for a new connection; the server isn't taken to be down."""
    await pool.exchange([("PING",)], soon())
    proxy.forget()
    began_at = time.monotonic()
    async with awake() as seconds:
        with pytest.raises(Unreachable) as caught:
            await pool.exchange([("PING",)], soon(2.0))
        assert caught.value.was_idle
        assert 0.95 < time.monotonic() - began_at
        assert seconds() < 1.5
    assert [b"PONG"] == await pool.exchange([("PING",)], soon())


async def test_an_answer_that_nobody_asked_for_drops_the_connection(pool: Pool, proxy: TcpProxy) -> None:
    """An idle connection on which something arrives is not used again."""
    await pool.exchange([("PING",)], soon())
    [connection] = pool._idle
    await connection.send_command("ECHO", "stray")
    await until(lambda: bool(connection._reader._buffer))  # type: ignore[union-attr]
    assert [b"mine"] == await pool.exchange([("ECHO", "mine")], soon())
    assert 2 == proxy.accepted


async def test_what_is_no_redis_is_unreachable() -> None:
    """A port on which nobody listens, or something else does, or a name that nobody knows."""

    async def gibberish(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(gibberish, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for address in (Address("127.0.0.1", port), Address("127.0.0.1", 1), Address("no-such-host.invalid", 6379)):
        pool = Pool(Dialler(username=None, password=None).dial, address, size=1)
        with pytest.raises(Unreachable, match=address.host):
            await pool.exchange([("PING",)], soon(5))
        await pool.close()
    server.close()


async def test_a_closed_pool_keeps_nothing(pool: Pool, proxy: TcpProxy) -> None:
    """Connections in use when the pool is closed end with their exchange."""
    proxy.delay_seconds = 0.1
    exchange = asyncio.get_running_loop().create_task(pool.exchange([("PING",)], soon()))
    await until(lambda: proxy.connections == 1)
    await pool.close()
    assert [b"PONG"] == await exchange
    await until(lambda: proxy.connections == 0)

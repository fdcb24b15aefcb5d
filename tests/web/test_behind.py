"""Callers that don't take what they are sent: what they cost, and for how long."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker.core.limit_options import LimitOptions
from broker.core.routing import Route
from tests.support.loops import on_both_loops
from tests.support.proxying import ANONYMOUS, ProxyUnderTest, request
from tests.support.raw_upstream import RawRequest, RawUpstream, Wire
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("either_way")

SMALL = b"y" * 60_000
HUGE = 64 << 20
PIECE = b"x" * (256 << 10)


class Answers:
    """Small ones, and one that is larger than all buffers."""

    def __init__(self) -> None:
        self.sent_bytes = 0

    async def __call__(self, got: RawRequest, wire: Wire) -> None:
        if got.target != b"/huge":
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(SMALL), SMALL))
            return
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % HUGE)
        for _ in range(HUGE // len(PIECE)):
            await wire.send(PIECE)
            self.sent_bytes += len(PIECE)


@asynccontextmanager
async def proxied(answers: Answers, **limits: float) -> AsyncIterator[ProxyUnderTest]:
    async with RawUpstream(answers) as upstream:
        route = Route(path="/", upstream=upstream.url, token=ANONYMOUS)
        async with ProxyUnderTest([route], limits=LimitOptions(**limits)) as proxy:  # type: ignore[arg-type]
            yield proxy


async def deaf_caller(port: int) -> socket.socket:
    """Connect with next to no buffer."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.setblocking(False)
    await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
    return made


def held(proxy: ProxyUnderTest) -> int:
    assert proxy._runner is not None
    assert proxy._runner.server is not None
    return len(proxy._runner.server.connections)


@pytest.mark.parametrize("before", [1, 100])
async def test_up_08_nothing_is_begun_for_a_caller_that_is_behind(before: int) -> None:
    """Requests that it sent ahead wait until it has taken the last answers; then each has its own, whole."""
    answers, loop = Answers(), asyncio.get_running_loop()
    async with proxied(answers) as proxy:
        with await deaf_caller(proxy.port) as caller:
            await loop.sock_sendall(caller, request("/small") * before + request("/huge") + request("/small"))
            await asyncio.sleep(1)
            assert answers.sent_bytes < 16 << 20  # what fits into the kernel's buffers and the upstream's

            received = bytearray()
            expected = (before + 1) * len(SMALL) + HUGE
            while len(received) < expected or not received.endswith(SMALL):
                received += await asyncio.wait_for(loop.sock_recv(caller, 1 << 20), 20)

    assert HUGE == answers.sent_bytes
    assert before + 2 == received.count(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("last", [(), ("Connection: close",)], ids=["kept", "closed"])
async def test_ds_01_a_connection_that_is_closed_is_not_held_for_ever(last: tuple[str, ...]) -> None:
    """The rest of the last answer has its time, as every other has; whoever takes nothing of it holds no connection."""
    answers, loop = Answers(), asyncio.get_running_loop()
    limits = {"reader_timeout_seconds": 1, "keepalive_timeout_seconds": 1, "header_timeout_seconds": 1}
    async with proxied(answers, **limits) as proxy:
        callers = [await deaf_caller(proxy.port) for _ in range(10)]
        for number, caller in enumerate(callers):
            await loop.sock_sendall(caller, request("/small") * (40 + 8 * number) + request("/small", *last))
        await asyncio.sleep(0.5)
        assert held(proxy)
        await until(lambda: held(proxy) == 0, seconds=12, what="the end of the connections")
        for caller in callers:
            caller.close()


async def test_a_caller_that_reads_slowly_has_the_last_answer_whole() -> None:
    """Though the connection is closed behind it, and it takes longer than the timer, as long as it goes on reading."""
    answers = Answers()
    async with proxied(answers, reader_timeout_seconds=1) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(request("/huge", "Connection: close"))
        received, began_at = 0, asyncio.get_running_loop().time()
        while data := await asyncio.wait_for(reader.read(1 << 20), 10):
            received += len(data)
            await asyncio.sleep(2e-8 * len(data) * 2)
        took = asyncio.get_running_loop().time() - began_at
        writer.close()

    assert HUGE < received
    assert took > 2


@on_both_loops
async def test_ds_01_a_caller_that_reads_slowly_and_steadily_is_not_cut() -> None:
    """Though it takes longer than the timer until so much of the answer is taken that the next part is asked for."""
    answers, loop = Answers(), asyncio.get_running_loop()
    async with proxied(answers, reader_timeout_seconds=1) as proxy:
        with await deaf_caller(proxy.port) as caller:
            await loop.sock_sendall(caller, request("/huge"))
            end = loop.time() + 4
            while loop.time() < end:
                assert await asyncio.wait_for(loop.sock_recv(caller, 4096), 5)
                await asyncio.sleep(0.05)
            assert 1 == held(proxy)

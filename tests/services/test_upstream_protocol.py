"""One connection to an upstream that sends whatever a test wants."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker.core.upstream_options import TimeoutOptions, UpstreamOptions
from broker.errors import UpstreamTimeout, UpstreamUnavailable
from broker.services.pool import UpstreamPools
from broker.services.upstream_protocol import MAX_CHUNK_OVERHEAD_BYTES, MAX_HEAD_BYTES, MAX_INFORMATIONAL
from tests.support.loops import on_both_loops
from tests.support.raw_upstream import OK, RawRequest, RawUpstream, Script, Wire, answering
from tests.support.receiver import Recorder, exchange_for

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def pool_for(upstream: RawUpstream) -> AsyncIterator[UpstreamPools]:
    pools = UpstreamPools([UpstreamOptions(urls=(upstream.url,))])
    try:
        yield pools
    finally:
        await pools.close()


async def ask(
    pools: UpstreamPools, *, method: str = "GET", target: str = "/", timeouts: TimeoutOptions | None = None
) -> Recorder:
    recorder = Recorder()
    await next(iter(pools.values())).start(exchange_for(recorder, method=method, target=target, timeouts=timeouts))
    await recorder.wait()
    return recorder


async def answer_to(data: bytes, *, close: bool = False, method: str = "GET") -> tuple[Recorder, Recorder, int]:
    """Return what comes of *data*, what comes of one more request, and how many connections that took."""
    first = True

    async def script(got: RawRequest, wire: Wire) -> None:
        nonlocal first
        if first:
            first = False
            await wire.send(data)
            if close:
                wire.writer.close()
        else:
            await wire.send(OK)

    async with RawUpstream(script) as upstream, pool_for(upstream) as pools:
        recorder = await ask(pools, method=method)
        again = await ask(pools)
        return recorder, again, upstream.connections


@pytest.mark.parametrize(
    ("data", "method", "body"),
    [
        (OK, "GET", b"ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "GET", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", "HEAD", b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "GET", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", "GET", b""),
        (CHUNKED + b"0\r\n\r\n", "GET", b""),
        (CHUNKED + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: u\r\n\r\n", "GET", b"abcde"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HEAD", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, "GET", b"ok"),
    ],
)
async def test_a_whole_answer_leaves_the_connection_for_the_next(data: bytes, method: str, body: bytes) -> None:
    """The end of each kind of answer is found, and the next request goes out on the same connection."""
    recorder, again, connections = await answer_to(data, method=method)

    assert (None, body, True) == (recorder.error, recorder.body, recorder.complete_at_once)
    assert (b"ok", 1) == (again.body, connections)


@pytest.mark.parametrize(
    "data",
    [
        OK.replace(b"Content-Length", b"Connection: close\r\nContent-Length"),
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nevil!",
        OK + b"x",
        CHUNKED + b"2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nevil!",
        CHUNKED + b"2\r\nok\r\n0\r\n\r\nx",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nevil!",
        b"HTTP/1.1 304 Not Modified\r\n\r\nevil!",
    ],
    ids=repr,
)
async def test_up_01_bytes_after_an_answer_reach_nobody(data: bytes) -> None:
    """A connection that carries more than was asked for, or is said to end, isn't used again: B never gets A's bytes."""
    recorder, again, connections = await answer_to(data)

    assert None is recorder.error
    assert b"evil" not in recorder.body
    assert (b"ok", 2) == (again.body, connections)


async def test_up_01_bytes_that_come_later_reach_nobody() -> None:
    """What an upstream sends on an idle connection closes it."""
    sent = asyncio.Event()

    async def script(got: RawRequest, wire: Wire) -> None:
        await wire.send(OK)
        if len(upstream.requests) == 1:
            await asyncio.sleep(0.02)
            await wire.send(OK.replace(b"ok", b"no"))
            sent.set()

    async with RawUpstream(script) as upstream, pool_for(upstream) as pools:
        await ask(pools)
        await sent.wait()
        await asyncio.sleep(0.02)
        again = await ask(pools)

    assert (b"ok", 2) == (again.body, upstream.connections)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok\r\n\r\n",
        b"garbage\r\n\r\n",
        b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * (MAX_INFORMATIONAL + 1) + OK,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x" * (MAX_HEAD_BYTES + 1),
        CHUNKED + b"z\r\n",
        CHUNKED + b"-1\r\n",
        CHUNKED + b"3\r\nabcdef\r\n",
        CHUNKED + b"ffffffffffffffffff\r\n",
        CHUNKED + b"5\nhello\r\n0\r\n\r\n",
    ],
    ids=lambda data: repr(data[:60]),
)
async def test_up_03_a_broken_answer_is_no_answer(data: bytes) -> None:
    """Each is refused, its connection is closed, and the next request is served on another one."""
    recorder, again, connections = await answer_to(data)

    assert isinstance(recorder.error, UpstreamUnavailable)
    assert (b"ok", 2) == (again.body, connections)


async def test_up_08_endless_framing_is_cut() -> None:
    """An answer that is all extension or all trailer doesn't keep the broker busy for ever."""
    for data in (b"1;" + b"x" * (2 * MAX_CHUNK_OVERHEAD_BYTES), b"0\r\n" + b"X: y\r\n" * MAX_CHUNK_OVERHEAD_BYTES):
        recorder, again, _ = await answer_to(CHUNKED + data)
        assert isinstance(recorder.error, UpstreamUnavailable)
        assert b"ok" == again.body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhal",
        CHUNKED + b"5\r\nhal",
        CHUNKED + b"3\r\nhal\r\n",
    ],
    ids=repr,
)
async def test_up_04_a_cut_answer_is_a_failure(data: bytes) -> None:
    """Wherever the upstream breaks off, the receiver hears that it failed, not that it ended."""
    recorder, again, _ = await answer_to(data, close=True)

    assert isinstance(recorder.error, UpstreamUnavailable)
    assert b"ok" == again.body


async def test_an_answer_that_ends_with_its_connection_ends_with_it() -> None:
    """Without a length, the close is the end (RFC 9112 section 6.3, rule 8)."""
    recorder, _, connections = await answer_to(b"HTTP/1.1 200 OK\r\n\r\nall of it", close=True)

    assert (None, b"all of it", 2) == (recorder.error, recorder.body, connections)


async def test_up_04_unless_it_was_reset() -> None:
    """A reset is never a clean end."""

    async def script(got: RawRequest, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await asyncio.sleep(0.05)
        raw = wire.writer.get_extra_info("socket")
        raw.setsockopt(1, 13, b"\x01\0\0\0\0\0\0\0")
        wire.reset()

    async with RawUpstream(script) as upstream, pool_for(upstream) as pools:
        recorder = await ask(pools)

    assert isinstance(recorder.error, UpstreamUnavailable)


async def test_informational_answers_pass_but_100() -> None:
    """103 is for the caller; 100 answers a question that the broker never asks."""
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    recorder, _, connections = await answer_to(b"HTTP/1.1 100 Continue\r\n\r\n" + early + early + OK)

    assert ([103, 103], b"ok", 1) == (recorder.informational, recorder.body, connections)


async def test_an_answer_may_come_byte_by_byte() -> None:
    """However the network cuts it, it is the same answer."""

    def slowly(data: bytes) -> Script:
        async def script(got: RawRequest, wire: Wire) -> None:
            for at in range(len(data)):
                await wire.send(data[at : at + 1])
                if at % 8 == 0:
                    await asyncio.sleep(0.001)

        return script

    for data in (OK, CHUNKED + b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", b"HTTP/1.1 103 Early\r\n\r\n" + OK):
        async with RawUpstream(slowly(data)) as upstream, pool_for(upstream) as pools:
            first, second = await ask(pools), await ask(pools)
        assert (None, None, 1) == (first.error, second.error, upstream.connections)
        assert first.body == second.body in {b"ok", b"hello!"}


async def test_sm_05_an_early_answer_ends_the_connection() -> None:
    """The rest of the request might still be under way: the next request must not follow it."""
    async with RawUpstream(answering(OK), read_body=False) as upstream, pool_for(upstream) as pools:
        recorder = Recorder()
        exchange = exchange_for(recorder, method="POST")
        exchange.head = b"POST / HTTP/1.1\r\nHost: up\r\nContent-Length: 5\r\n\r\n"
        exchange.expect_body(chunked=False)
        await next(iter(pools.values())).start(exchange)
        exchange.write(b"he")
        await recorder.wait()
        exchange.write(b"llo")
        exchange.finish()
        again = await ask(pools)

    assert (b"ok", b"ok", 2) == (recorder.body, again.body, upstream.connections)
    assert b"GET / " in upstream.requests[1].head


@on_both_loops
@pytest.mark.parametrize("at_once", [True, False])
async def test_sm_05_an_early_answer_to_what_is_not_sent_yet_ends_the_connection(*, at_once: bool) -> None:
    """All of the request is given to the loop, which still has a part of it: the upstream hasn't heard that one."""
    body = b"x" * (16 << 20)
    async with RawUpstream(answering(OK), read_body=False) as upstream, pool_for(upstream) as pools:
        recorder = Recorder()
        exchange = exchange_for(recorder, method="POST")
        exchange.head = b"POST / HTTP/1.1\r\nHost: up\r\nContent-Length: %d\r\n\r\n" % len(body)
        if at_once:
            exchange.carry(body, chunked=False)
        else:
            exchange.expect_body(chunked=False)
        await next(iter(pools.values())).start(exchange)
        if not at_once:
            exchange.write(body)
            exchange.finish()
        await recorder.wait()
        again = await ask(pools, method="PATCH")  # it would not be sent again

    assert (b"ok", b"ok", 2) == (recorder.body, again.body, upstream.connections)


async def test_a_body_goes_up_in_chunks_or_as_it_is() -> None:
    """As the exchange says."""
    async with RawUpstream() as upstream, pool_for(upstream) as pools:
        for chunked, framing in ((True, b"Transfer-Encoding: chunked"), (False, b"Content-Length: 8")):
            recorder = Recorder()
            exchange = exchange_for(recorder, method="PUT")
            exchange.head = b"PUT / HTTP/1.1\r\nHost: up\r\n%b\r\n\r\n" % framing
            exchange.expect_body(chunked=chunked)
            await next(iter(pools.values())).start(exchange)
            for piece in (b"abc", b"", b"defgh"):
                exchange.write(piece)
                await exchange.drain()
            exchange.finish()
            exchange.finish()
            await recorder.wait()

    assert [b"abcdefgh", b"abcdefgh"] == [each.body for each in upstream.requests]
    assert 1 == upstream.connections


async def test_ft_10_a_silent_upstream_is_given_up() -> None:
    """No head in time is a timeout; so is a body that stops."""

    async def silent(got: RawRequest, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhal" if got.target == b"/body" else b"")

    timeouts = TimeoutOptions(response_header_seconds=0.2, idle_seconds=0.2)
    async with RawUpstream(silent) as upstream, pool_for(upstream) as pools:
        headless = await ask(pools, timeouts=timeouts)
        bodyless = await ask(pools, target="/body", timeouts=timeouts)

    assert isinstance(headless.error, UpstreamTimeout)
    assert isinstance(bodyless.error, UpstreamTimeout)
    assert b"hal" == bodyless.body


async def test_a_slow_taker_pauses_the_upstream() -> None:
    """While it is paused nothing is read, however much is sent, and no timeout runs; then all of it comes."""
    size = 2 << 20

    async def flood(got: RawRequest, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size >> 16):
            await wire.send(b"x" * (1 << 16))

    async with RawUpstream(flood) as upstream, pool_for(upstream) as pools:
        recorder = Recorder()
        exchange = exchange_for(recorder, timeouts=TimeoutOptions(idle_seconds=1.0))
        await next(iter(pools.values())).start(exchange)
        while recorder.head is None:
            await asyncio.sleep(0.001)
        exchange.pause()
        seen = len(recorder.body)
        await asyncio.sleep(1.5)
        assert seen == len(recorder.body)
        assert None is recorder.error
        exchange.resume()
        await recorder.wait()

    assert (None, size) == (recorder.error, len(recorder.body))


async def test_a_connection_that_was_paused_at_the_end_reads_again() -> None:
    """The next exchange on it gets its answer."""
    async with RawUpstream() as upstream, pool_for(upstream) as pools:
        pool = next(iter(pools.values()))

        class Pausing(Recorder):
            def on_head(self, *arguments: object, **options: object) -> None:
                super().on_head(*arguments, **options)  # type: ignore[arg-type]
                exchange.pause()

        recorder = Pausing()
        exchange = exchange_for(recorder)
        await pool.start(exchange)
        await recorder.wait()
        again = await ask(pools)

    assert (b"ok", 1) == (again.body, upstream.connections)


async def test_an_aborted_exchange_hears_nothing_more() -> None:
    """Its connection is closed, and its receiver left alone."""
    go_on = asyncio.Event()

    async def script(got: RawRequest, wire: Wire) -> None:
        if got.target == b"/late":
            await go_on.wait()
        await wire.send(OK)

    async with RawUpstream(script) as upstream, pool_for(upstream) as pools:
        recorder = Recorder()
        exchange = exchange_for(recorder, target="/late")
        await next(iter(pools.values())).start(exchange)
        exchange.abort()
        exchange.abort()
        go_on.set()
        again = await ask(pools)

    assert (None, False, b"ok") == (recorder.head, recorder.ended.is_set(), again.body)
    assert 2 == upstream.connections


async def test_sm_06_a_tunnel_passes_bytes_as_they_are() -> None:
    """After the 101 that was asked for, both ways, until one side closes."""

    async def script(got: RawRequest, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhi")
        while data := await wire.reader.read(100):
            await wire.send(data.upper())
            if b"bye" in data:
                wire.writer.close()

    async with RawUpstream(script) as upstream, pool_for(upstream) as pools:
        recorder = Recorder()
        exchange = exchange_for(recorder)
        exchange.upgrade = b"websocket"
        await next(iter(pools.values())).start(exchange)
        while not recorder.upgraded:
            await asyncio.sleep(0.001)
        exchange.write(b"one")
        exchange.write(b"bye")
        await recorder.wait()

    assert (None, b"hiONEBYE") == (recorder.error, recorder.body)

"""Whose turn a connection is: aiohttp's, or that of what serves requests past it."""

import asyncio
import time

import pytest
from aiohttp.web_protocol import RequestHandler

from broker.core.routing import Route
from broker.web import lingering, turn_taking
from tests.support.proxying import ANONYMOUS, ProxyUnderTest, request
from tests.support.raw_upstream import OK, RawRequest, RawUpstream, Wire
from tests.support.waiting import until


def proxied(upstream: RawUpstream) -> ProxyUnderTest:
    return ProxyUnderTest([Route(path="/", upstream=upstream.url, token=ANONYMOUS)])


async def test_after_a_slow_request_it_is_taken_again() -> None:
    """What aiohttp has to read in between doesn't end it."""
    async with RawUpstream() as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        for target in ("HTTP://app.example.com/x", "/quick", "HTTP://app.example.com/x", "/quick"):
            await caller.send(request(target, method="PUT", body=b"body"))
            assert 200 == (await caller.answer()).status
        assert 2 == proxy.handled

    assert [b"body"] * 4 == [each.body for each in upstream.requests]


@pytest.mark.parametrize("length", [20_000, 300_000])
async def test_sm_04_a_body_that_was_answered_early_is_read_to_its_end(length: int) -> None:
    """The answer comes at once, the rest of the body goes nowhere, and the connection is good for the next request."""

    async def early(got: RawRequest, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno" if got.head.startswith(b"POST") else OK)

    async with (
        RawUpstream(early, read_body=False) as upstream,
        proxied(upstream) as proxy,
        await proxy.connect() as caller,
    ):
        await caller.send(request("/x", f"Content-Length: {length}", method="POST") + b"half")
        assert 413 == (await caller.answer()).status
        await caller.send(b"x" * (length - 4) + request("/next"))
        assert 200 == (await caller.answer()).status
        assert 0 == proxy.handled


async def test_a_body_that_never_ends_after_an_early_answer_ends_its_connection() -> None:
    """Nobody waits for it for ever."""

    async def early(got: RawRequest, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno")

    async with (
        RawUpstream(early, read_body=False) as upstream,
        proxied(upstream) as proxy,
        await proxy.connect() as caller,
    ):
        await caller.send(request("/x", "Content-Length: 20000", method="POST") + b"half")
        assert 413 == (await caller.answer()).status
        assert await caller.is_closed(lingering.LINGER_SECONDS + 3)


async def test_a_quick_caller_is_not_slow_for_ever() -> None:
    """A request that comes before aiohttp is done with the last one waits a turn of the loop, and is quick again."""
    async with RawUpstream() as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        await caller.send(request("HTTP://app.example.com/slow"))
        assert 200 == (await caller.answer()).status
        for _ in range(100):
            await caller.send(request("/quick"))
            assert 200 == (await caller.answer()).status
        assert 1 == proxy.handled


async def test_while_aiohttp_serves_a_request_the_next_one_waits_without_work() -> None:
    """It is aiohttp's to queue; the loop doesn't turn for it."""

    async def script(got: RawRequest, wire: Wire) -> None:
        if got.target == b"/slow":
            await asyncio.sleep(0.5)
        await wire.send(OK)

    async with RawUpstream(script) as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        await caller.send(request("HTTP://app.example.com/slow"))
        await until(lambda: len(upstream.requests) == 1)
        began = time.thread_time()
        await caller.send(request("/next"))
        assert [200, 200] == [(await caller.answer()).status for _ in range(2)]
        assert 0.25 > time.thread_time() - began

    assert [b"/slow", b"/next"] == [each.target for each in upstream.requests]


async def test_what_is_sent_ahead_is_answered_afterwards() -> None:
    """A caller that doesn't wait for its answer loses nothing, and gets its answers in their order."""
    go_on = asyncio.Event()

    async def script(got: RawRequest, wire: Wire) -> None:
        if got.target == b"/slow":
            await go_on.wait()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(got.target), got.target))

    async with RawUpstream(script) as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        await caller.send(request("/warm"))
        assert 200 == (await caller.answer()).status
        await caller.send(request("/slow"))
        while len(upstream.requests) < 2:
            await asyncio.sleep(0.005)
        await caller.send(request("/next") + request("/x", method="POST", body=b"b" * 100_000) + request("/last"))
        go_on.set()
        bodies = [(await caller.answer()).body for _ in range(4)]

    assert [b"/slow", b"/next", b"/x", b"/last"] == bodies


def test_the_insides_are_those_of_this_aiohttp() -> None:
    """The pinned version has every attribute that the fast path reads."""
    assert turn_taking.fits()
    slots = {name for kind in RequestHandler.__mro__ for name in getattr(kind, "__slots__", ())}
    assert set(turn_taking.INSIDES) - {"_process_keepalive"} <= slots


def test_another_aiohttp_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another minor version the slow path serves everything."""
    monkeypatch.setattr("aiohttp.__version__", "3.15.0")

    assert not turn_taking.fits()

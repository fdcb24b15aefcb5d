"""What is refused once memory is nearly out, and what goes on. The limit itself is tested with the service that reads it."""

import asyncio
import logging

import pytest

from broker.core.limit_options import LimitOptions
from broker.core.routing import RateLimitOptions, Route
from broker.services import metrics
from tests.support.proxying import ALICE, ANONYMOUS, SESSION_COOKIE, USER, ProxyUnderTest, request, token
from tests.support.raw_upstream import OK, RawRequest, RawUpstream, Wire
from tests.support.waiting import until

COOKIE = f"Cookie: {SESSION_COOKIE.decode()}={ALICE.decode()}"


def routes(upstream: RawUpstream) -> list[Route]:
    rate = RateLimitOptions(requests_per_second=0.001, burst=1)
    return [
        Route(path="/", upstream=upstream.url, token=ANONYMOUS, websocket=True),
        Route(path="/api", upstream=upstream.url, token=USER, rate_limit=rate, max_body_bytes=1000),
    ]


def call(*fields: str, method: str = "GET") -> bytes:
    return request("/api/x", COOKIE, "X-CSRF: 1", *fields, method=method)


def shed(proxy: ProxyUnderTest, *, requests: bool, connections: bool = False) -> None:
    assert proxy.proxy is not None
    shedding = proxy.proxy.gate.shedding
    shedding.requests, shedding.connections = requests, connections


@pytest.mark.parametrize("fast", [True, False])
async def test_ft_22_a_request_is_refused_before_anything_is_done_for_it(fast: bool) -> None:
    """No session, no token and no upstream is asked, its rate isn't touched, and its connection lives on."""
    async with RawUpstream() as upstream, ProxyUnderTest(routes(upstream), fast=fast) as proxy:
        proxy.sessions.cached = False  # to find it would take a question to the store
        async with await proxy.connect() as caller:
            await caller.send(request("/warm"))
            assert 200 == (await caller.answer()).status
            shed(proxy, requests=True)
            for data in (request("/x"), call(), call("Content-Length: 2", method="POST") + b"hi"):
                await caller.send(data)
                refused = await caller.answer()
                assert (503, "overloaded") == (refused.status, refused.code)
            assert ([], []) == (proxy.sessions.loads, proxy.tokens.asked)
            assert 1 == len(upstream.requests)

            shed(proxy, requests=False)
            await caller.send(call())
            assert 200 == (await caller.answer()).status


@pytest.mark.parametrize("fast", [True, False])
async def test_what_is_wrong_with_a_request_is_said_all_the_same(fast: bool) -> None:
    """Whoever comes back later would be told then, and what can't be told apart still ends its connection."""
    async with RawUpstream() as upstream, ProxyUnderTest(routes(upstream), fast=fast) as proxy:
        shed(proxy, requests=True)
        assert 413 == (await proxy.send(call("Content-Length: 1001", method="POST"))).status
        async with await proxy.connect() as caller:
            await caller.send(request("/%2e%2e/x"))
            assert (400, "ambiguous_path") == ((got := await caller.answer()).status, got.code)


async def test_ft_22_a_handshake_and_a_body_to_come_are_refused() -> None:
    """Nobody sends a body for nothing, and no tunnel is begun."""
    async with RawUpstream() as upstream, ProxyUnderTest(routes(upstream)) as proxy:
        shed(proxy, requests=True)
        continued = await proxy.send(call("Content-Length: 900", "Expect: 100-continue", method="POST"))
        handshake = await proxy.send(
            request(
                "/socket",
                "Origin: https://app.example.com",
                "Connection: Upgrade",
                "Upgrade: websocket",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            )
        )

    assert (503, 503) == (continued.status, handshake.status)
    assert [] == upstream.requests


@pytest.mark.parametrize("fast", [True, False])
async def test_ft_22_what_is_under_way_goes_on(fast: bool) -> None:
    """A call that has been sent is answered, a stream flows on, and a token that was rejected is renewed for its call."""
    go_on = asyncio.Event()

    async def script(got: RawRequest, wire: Wire) -> None:
        match got.target:
            case b"/stream":
                await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
                await go_on.wait()
                await wire.send(b"cd")
            case b"/api/x" if [b"Bearer alices-token"] == got.fields(b"authorization"):
                await go_on.wait()
                await wire.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
            case _:
                await wire.send(OK)

    async with RawUpstream(script) as upstream, ProxyUnderTest(routes(upstream), fast=fast) as proxy:
        proxy.tokens.known["grant-of-alice"].append(token("newer-token", 2))
        async with await proxy.connect() as stream, await proxy.connect() as caller:
            for each in (stream, caller):
                await each.send(request("/warm"))
                await each.answer()
            await stream.send(request("/stream"))
            await caller.send(call())
            await until(lambda: len(upstream.requests) == 4)
            shed(proxy, requests=True, connections=True)
            go_on.set()
            streamed, answered = await stream.answer(), await caller.answer()

    assert (200, b"abcd") == (streamed.status, streamed.body)
    assert (200, b"ok") == (answered.status, answered.body)
    assert [b"Bearer newer-token"] == upstream.requests[-1].fields(b"authorization")


async def test_ft_22_then_no_connection_is_taken_either(caplog: pytest.LogCaptureFixture) -> None:
    """It is closed at once and counted, without a line for each; those that there are stay."""
    before = _refused("overloaded")
    async with RawUpstream() as upstream, ProxyUnderTest(routes(upstream)) as proxy, await proxy.connect() as old:
        await old.send(request("/"))
        assert 200 == (await old.answer()).status
        shed(proxy, requests=True, connections=True)
        for _ in range(3):
            async with await proxy.connect() as caller:
                assert await caller.is_closed()
        await old.send(request("/"))
        assert 503 == (await old.answer()).status

        shed(proxy, requests=False)
        await old.send(request("/"))
        assert 200 == (await old.answer()).status
        assert 200 == (await proxy.send(request("/"))).status

    assert 3 == _refused("overloaded") - before
    assert [] == [record for record in caplog.records if record.levelno >= logging.WARNING]


def _refused(reason: str) -> float:
    return float(metrics.CONNECTIONS_REFUSED.labels(reason)._value.get())


async def test_no_caller_is_taken_for_an_overload(caplog: pytest.LogCaptureFixture) -> None:
    """Too many connections are a limit of their own."""
    before = _refused("too_many")
    async with (
        RawUpstream() as upstream,
        ProxyUnderTest(routes(upstream), limits=LimitOptions(max_connections=1)) as proxy,
        await proxy.connect() as old,
    ):
        await old.send(request("/"))
        assert 200 == (await old.answer()).status
        async with await proxy.connect() as caller:
            assert await caller.is_closed()

    assert 1 == _refused("too_many") - before
    assert ["too_many_connections"] == [
        record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
    ]

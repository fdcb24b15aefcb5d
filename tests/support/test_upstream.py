"""The upstream double refuses dead tokens and shows what it received."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.support.authorization_server import LedgerServer
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.upstream import Introspection, Upstream, tokens_of


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def exchange(upstream: Upstream, request: bytes) -> bytes:
    """Send *request* as it is, and return the answer up to the connection's end."""
    host, port = upstream.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_only_live_tokens_are_taken(http: aiohttp.ClientSession) -> None:
    """No token, a foreign one and a revoked one get 401 with WWW-Authenticate; a live one is served."""
    async with LedgerServer() as provider, Upstream(check=tokens_of(provider)) as upstream:
        live = f"Bearer {provider.issue('alice')['access_token']}"
        dead = f"Bearer {provider.issue('bob')['access_token']}"
        provider.revoke_access_tokens("bob")
        for headers, expected in (
            ({}, 401),
            ({"Authorization": "Bearer x"}, 401),
            ({"Authorization": dead}, 401),
            ({"Authorization": live}, 200),
        ):
            async with http.get(f"{upstream.url}/orders?a=1", headers=headers) as response:
                assert expected == response.status
                assert (expected == 401) == ("WWW-Authenticate" in response.headers)
        async with http.get(f"{upstream.url}/public") as response:
            assert 200 == response.status
    assert {401: 3, 200: 2} == upstream.statuses
    assert {"sub": "alice", "generation": 1}.items() <= upstream.received[3].claims.items()


async def test_two_authorization_lines_are_refused() -> None:
    """A smuggled second credential shows as 401, even beside a live one."""
    async with LedgerServer() as provider, Upstream(check=tokens_of(provider)) as upstream:
        live = f"Bearer {provider.issue()['access_token']}"
        head = f"GET / HTTP/1.1\r\nHost: up\r\nAuthorization: {live}\r\nauthorization: Bearer other\r\n"
        answer = await exchange(upstream, f"{head}Connection: close\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 401 ")
    assert [live, "Bearer other"] == upstream.received[0].header("authorization")


async def test_a_token_for_another_audience_is_noticed(http: aiohttp.ClientSession) -> None:
    """The upstream of one audience refuses another's token and remembers it."""
    async with LedgerServer() as provider, Upstream(check=tokens_of(provider), audience="stock") as upstream:
        headers = {"Authorization": f"Bearer {provider.issue()['access_token']}"}
        async with http.get(f"{upstream.url}/", headers=headers) as response:
            assert 401 == response.status
    assert [["api"]] == [claims["aud"] for claims in upstream.misdirected]


async def test_the_request_is_kept_byte_for_byte() -> None:
    """Target, header spelling and content arrive in the record unchanged."""
    async with Upstream() as upstream:
        head = b"POST /a%2Fb/%e4?x=%20 HTTP/1.1\r\nhOsT: up\r\nX-Two: 1\r\nx-two: \xe4\r\n"
        answer = await exchange(upstream, head + b"Content-Length: 3\r\nConnection: close\r\n\r\nabc")
        assert answer.startswith(b"HTTP/1.1 200 ")
    (received,) = upstream.received
    assert (b"/a%2Fb/%e4?x=%20", b"abc") == (received.target, received.body)
    assert [(b"hOsT", b"up"), (b"X-Two", b"1"), (b"x-two", b"\xe4")] == list(received.headers[:3])
    assert ["1", "ä"] == received.header("x-two")


async def test_content_is_echoed_while_it_comes(http: aiohttp.ClientSession) -> None:
    """``/echo`` answers the first piece before the last was sent."""
    more = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        await more.wait()
        yield b"last"

    async with Upstream() as upstream, http.post(f"{upstream.url}/echo", data=pieces()) as response:
        assert b"first" == await response.content.readany()
        more.set()
        assert b"last" == await response.content.readany()


async def test_events_and_sockets_work(http: aiohttp.ClientSession) -> None:
    """``/events`` streams events, ``/socket`` echoes text and bytes."""
    async with Upstream() as upstream:
        async with http.get(f"{upstream.url}/events?count=2") as response:
            assert "text/event-stream" == response.content_type
            assert "id: 0\ndata: event 0\n\nid: 1\ndata: event 1\n\n" == await response.text()
        async with http.ws_connect(f"{upstream.url}/socket", protocols=["echo"]) as socket:
            await socket.send_str("hello")
            await socket.send_bytes(b"\x00")
            assert ("echo", "hello", b"\x00") == (
                socket.protocol,
                await socket.receive_str(),
                await socket.receive_bytes(),
            )


async def test_refusals_are_counted_down(http: aiohttp.ClientSession) -> None:
    """refuse(n) answers n times 401, then serves again; /status answers what is asked for."""
    async with Upstream() as upstream:
        upstream.refuse(2)
        statuses = []
        for path in ("/", "/", "/", "/status/418", "/delay/0.01"):
            async with http.get(upstream.url + path) as response:
                statuses.append(response.status)
    assert [401, 401, 200, 418, 200] == statuses


async def test_tokens_are_judged_across_processes(http: aiohttp.ClientSession) -> None:
    """With introspection over HTTP a revoked token is refused as soon as the cache allows."""
    async with (
        RemoteLedgerServer() as provider,
        Introspection(provider.url) as check,
        Upstream(check=check) as upstream,
    ):
        headers = {"Authorization": f"Bearer {(await provider.issue())['access_token']}"}
        async with http.get(upstream.url, headers=headers) as response:
            assert "alice" == (await response.json())["sub"]
        await provider.revoke_subject("alice", access_tokens_only=True)
        async with http.get(upstream.url, headers=headers) as response:
            assert 401 == response.status

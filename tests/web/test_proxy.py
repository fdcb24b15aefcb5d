"""The proxy, from raw bytes in to raw bytes out."""

import asyncio
import json

import pytest

from broker.core.outcome import Cause, LoginNeeded, Unavailable
from broker.core.routing import RetryOn401, Route, TokenChoice, TokenKind
from tests.support.proxying import ALICE, ANONYMOUS, USER, ProxyUnderTest, request, token
from tests.support.raw_upstream import OK, RawRequest, RawUpstream, Wire, answering

pytestmark = pytest.mark.usefixtures("either_way")

UNAUTHORIZED = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\n\r\nnope"


def proxied(upstream: RawUpstream, **options: object) -> ProxyUnderTest:
    route = {"path": "/", "upstream": upstream.url, "token": ANONYMOUS, **options}
    return ProxyUnderTest([Route(**route)])  # type: ignore[arg-type]


async def test_a_request_goes_up_and_its_answer_comes_back() -> None:
    """The upstream sees the target as it came; the caller sees the answer's status, fields and body."""
    answer = b"HTTP/1.1 201 Made Up\r\nX-Thing: a\r\nx-thing: b\r\nContent-Length: 5\r\n\r\nhello"
    async with RawUpstream(answering(answer)) as upstream, proxied(upstream) as proxy:
        got = await proxy.send(request("/a/b.txt?x=%2F%zz", "X-Case: Kept"))

    assert b"HTTP/1.1 201 Made Up" == got.head.partition(b"\r\n")[0]
    assert [b"a", b"b"] == got.fields(b"X-Thing")
    assert b"hello" == got.body
    assert b"GET /a/b.txt?x=%2F%zz HTTP/1.1" == upstream.requests[0].line
    assert b"X-Case" in upstream.requests[0].names


async def test_a_users_call_carries_the_users_token() -> None:
    """The session's token goes upstream, in one Authorization field; cookie and caller's own do not."""
    async with RawUpstream() as upstream, proxied(upstream, token=USER) as proxy:
        got = await proxy.send(request("/", "X-CSRF: 1", "authorization: Bearer stolen", cookie=ALICE))

    assert 200 == got.status
    assert [b"Bearer alices-token"] == upstream.requests[0].fields(b"authorization")
    assert [] == upstream.requests[0].fields(b"cookie")
    assert [b"private, no-store"] == got.fields(b"cache-control")


async def test_without_a_session_nothing_goes_up() -> None:
    """A user's route answers 401 to a caller without a session."""
    async with RawUpstream() as upstream, proxied(upstream, token=USER) as proxy:
        got = await proxy.send(request("/", "X-CSRF: 1"))

    assert (401, "no_session") == (got.status, got.code)
    assert [] == upstream.requests


async def test_a_401_is_answered_with_a_newer_token() -> None:
    """After an upstream's 401 the request goes up once more, with the next generation; the caller sees only that."""

    async def script(got: RawRequest, wire: Wire) -> None:
        await wire.send(OK if got.fields(b"authorization") == [b"Bearer newer"] else UNAUTHORIZED)

    async with RawUpstream(script) as upstream, proxied(upstream, token=USER) as proxy:
        proxy.tokens.known["grant-of-alice"].append(token("newer", 2))
        got = await proxy.send(request("/", "X-CSRF: 1", method="POST", cookie=ALICE, body=b"payload"))

    assert 200 == got.status
    assert [b"payload", b"payload"] == [each.body for each in upstream.requests]
    assert [("grant-of-alice", "", 1)] == proxy.tokens.asked


async def test_up_07_without_a_newer_token_the_401_passes() -> None:
    """The upstream's own 401 reaches the caller, whole, if no newer token is to be had."""
    async with RawUpstream(answering(UNAUTHORIZED)) as upstream, proxied(upstream, token=USER) as proxy:
        got = await proxy.send(request("/", "X-CSRF: 1", cookie=ALICE))

    assert (401, b"nope") == (got.status, got.body)
    assert 1 == len(upstream.requests)


@pytest.mark.parametrize(("configured", "named"), [("corp", {"provider": "corp"}), ("other", {})])
async def test_an_ended_grant_names_the_provider_of_its_session(configured: str, named: dict[str, str]) -> None:
    """The login's URL leads to where the user was logged in, unless the configuration knows that provider no more."""
    async with RawUpstream() as upstream:
        proxy = proxied(upstream, token=USER)
        proxy.providers = (configured,)
        async with proxy:
            proxy.tokens.answer = LoginNeeded("invalid_grant")
            got = await proxy.send(request("/", "X-CSRF: 1", cookie=ALICE))

    assert {"code": "session_expired", "login_parameters": named} == json.loads(got.body)


async def test_an_ended_grant_asks_for_a_login() -> None:
    """LoginNeeded becomes 401 session_expired, before anything goes up."""
    async with RawUpstream() as upstream, proxied(upstream, token=USER) as proxy:
        proxy.tokens.answer = LoginNeeded("invalid_grant")
        got = await proxy.send(request("/", "X-CSRF: 1", cookie=ALICE))

    assert (401, "session_expired") == (got.status, got.code)
    assert [] == upstream.requests


async def test_rt_04_a_store_that_is_down_lets_nobody_through() -> None:
    """Neither an unknown session nor an unavailable token becomes an anonymous call."""
    async with RawUpstream() as upstream, proxied(upstream, token=USER) as proxy:
        proxy.sessions.cached, proxy.sessions.down = False, True
        without_session = await proxy.send(request("/", "X-CSRF: 1", cookie=ALICE))
        proxy.sessions.cached = True
        proxy.tokens.answer = Unavailable(Cause.PROVIDER, 3)
        without_token = await proxy.send(request("/", "X-CSRF: 1", cookie=ALICE))

    assert (503, "store_unavailable") == (without_session.status, without_session.code)
    assert (503, "provider_unavailable") == (without_token.status, without_token.code)
    assert [] == upstream.requests


async def test_connections_are_used_again_on_both_sides() -> None:
    """Two requests of one caller's connection go up on one connection."""
    async with RawUpstream() as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        for _ in range(3):
            await caller.send(request("/"))
            assert 200 == (await caller.answer()).status

    assert 1 == upstream.connections


async def test_a_chunked_body_passes_both_ways() -> None:
    """Chunks are reframed, their content is not touched, and extensions and trailers go no further."""
    answer = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n4\r\ndefg\r\n0\r\nTrailer: t\r\n\r\n"
    )
    async with RawUpstream(answering(answer)) as upstream, proxied(upstream) as proxy:
        sent = request("/", "Transfer-Encoding: chunked", method="PUT") + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
        got = await proxy.send(sent)

    assert b"abcdefg" == got.body
    assert b"hello world" == upstream.requests[0].body
    assert [] == got.fields(b"trailer")


async def test_a_stream_passes_piece_by_piece() -> None:
    """Each piece of a close-delimited stream reaches the caller when it is sent, not at the end."""
    go_on = asyncio.Event()

    async def script(got: RawRequest, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await go_on.wait()
        await wire.send(b"data: 2\n\n")
        wire.writer.close()

    async with RawUpstream(script) as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        await caller.send(request("/"))
        await caller.head()
        first = await asyncio.wait_for(caller.reader.readuntil(b"\n\n\r\n"), 5)
        go_on.set()
        rest = await asyncio.wait_for(caller.reader.readuntil(b"0\r\n\r\n"), 5)

    assert b"9\r\ndata: 1\n\n\r\n" == first
    assert b"9\r\ndata: 2\n\n\r\n0\r\n\r\n" == rest


async def test_up_04_a_cut_body_is_not_a_clean_end() -> None:
    """When the upstream breaks off, the caller's connection breaks off too."""

    async def script(got: RawRequest, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        wire.reset()

    async with RawUpstream(script) as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        await caller.send(request("/"))
        await caller.head()
        cut: BaseException | None = None
        try:
            await asyncio.wait_for(caller.reader.readexactly(100), 5)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            cut = error

    assert cut is not None


async def test_a_dead_upstream_is_502() -> None:
    """A host that takes no connection gives 502, and its name stays in the log."""
    async with RawUpstream() as upstream:
        await upstream.stop()
        async with proxied(upstream) as proxy:
            got = await proxy.send(request("/"))

    assert (502, "upstream_unavailable") == (got.status, got.code)


async def test_a_websocket_is_tunnelled() -> None:
    """After a 101 that was asked for, bytes pass both ways as they are."""

    async def script(got: RawRequest, wire: Wire) -> None:
        assert [b"Upgrade"] == got.fields(b"connection")
        await wire.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhi")
        while data := await wire.reader.read(100):
            await wire.send(data.upper())

    fields = (
        "Connection: keep-alive, Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: x",
    )
    async with RawUpstream(script) as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        await caller.send(request("/", *fields))
        head = await caller.head()
        greeting = await asyncio.wait_for(caller.reader.readexactly(2), 5)
        await caller.send(b"abc")
        echoed = await asyncio.wait_for(caller.reader.readexactly(3), 5)

    assert head.startswith(b"HTTP/1.1 101 ")
    assert (b"hi", b"ABC") == (greeting, echoed)


async def test_expect_is_answered_by_the_broker() -> None:
    """A caller that waits for 100 Continue gets it from the broker, and the upstream sees no Expect."""
    async with RawUpstream() as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        await caller.send(request("/", "Expect: 100-continue", "Content-Length: 4", method="POST"))
        assert b"HTTP/1.1 100 Continue\r\n\r\n" == await caller.head()
        await caller.send(b"body")
        got = await caller.answer()

    assert 200 == got.status
    assert b"body" == upstream.requests[0].body
    assert [] == upstream.requests[0].fields(b"expect")


STEP_UP = 'Bearer error="insufficient_user_authentication", acr_values="gold", max_age="60"'
STRONGER = f"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: {STEP_UP}\r\nContent-Length: 4\r\n\r\nnope".encode()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("retry", list(RetryOn401))
async def test_a_stronger_login_is_no_matter_of_tokens(fast: bool, retry: RetryOn401) -> None:
    """Whatever may be retried: the upstream is asked once, no token is renewed, and the caller is told what it needs."""
    async with RawUpstream(answering(STRONGER)) as upstream:
        proxy = proxied(upstream, token=USER, retry_on_401=retry)
        proxy.fast = fast
        async with proxy:
            proxy.tokens.known["grant-of-alice"].append(token("newer", 2))
            read = await proxy.send(request("/", "X-CSRF: 1", cookie=ALICE))
            posted = await proxy.send(request("/", "X-CSRF: 1", method="POST", cookie=ALICE, body=b"payload"))

    assert [(401, "step_up_required")] * 2 == [(got.status, got.code) for got in (read, posted)]
    assert 2 == len(upstream.requests)
    assert [] == proxy.tokens.asked


async def test_a_newer_token_may_need_a_stronger_login() -> None:
    """An upstream that first finds the token dead, and then its login too weak, is understood both times."""

    async def script(got: RawRequest, wire: Wire) -> None:
        await wire.send(STRONGER if got.fields(b"authorization") == [b"Bearer newer"] else UNAUTHORIZED)

    async with RawUpstream(script) as upstream, proxied(upstream, token=USER) as proxy:
        proxy.tokens.known["grant-of-alice"].append(token("newer", 2))
        got = await proxy.send(request("/", "X-CSRF: 1", cookie=ALICE))

    assert (401, "step_up_required") == (got.status, got.code)
    assert 2 == len(upstream.requests)
    assert [("grant-of-alice", "", 1)] == proxy.tokens.asked


async def test_whoever_can_not_log_in_sees_the_challenge() -> None:
    """A route with a standing grant passes the upstream's own 401 on."""
    standing = TokenChoice(TokenKind.GRANT, "nightly")
    async with RawUpstream(answering(STRONGER)) as upstream:
        proxy = proxied(upstream, token=standing)
        proxy.standing_grants["nightly"] = "grant-of-alice"
        async with proxy:
            got = await proxy.send(request("/"))

    assert (401, b"nope") == (got.status, got.body)
    assert [STEP_UP.encode()] == got.fields(b"www-authenticate")

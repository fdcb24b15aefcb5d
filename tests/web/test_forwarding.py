"""Forwarding in all its forms, on both event loops."""

import asyncio
import socket

import pytest

from broker.core.forwarded import ForwardingField
from broker.core.outcome import LoginNeeded
from broker.core.routing import (
    CacheControl,
    HeaderOptions,
    Navigation,
    RateLimitOptions,
    RetryOn401,
    Route,
    TokenChoice,
    TokenKind,
)
from broker.core.upstream_options import UpstreamOptions
from broker.services.transports import PROBED_AFTER_SECONDS
from tests.support.loops import on_both_loops
from tests.support.proxying import (
    ALICE,
    ANONYMOUS,
    HOST,
    SESSION_COOKIE,
    USER,
    USER_OR_NONE,
    ProxyUnderTest,
    request,
    token,
)
from tests.support.raw_upstream import OK, RawRequest, RawUpstream, Script, Wire, answering
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("either_way")

HANDSHAKE = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: x")
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
UNAUTHORIZED = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\n\r\nnope"


def proxied(upstream: RawUpstream, **options: object) -> ProxyUnderTest:
    return ProxyUnderTest([Route(**{"path": "/", "upstream": upstream.url, "token": ANONYMOUS, **options})])  # type: ignore[arg-type]


async def echo_target(got: RawRequest, wire: Wire) -> None:
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(got.target), got.target))


@pytest.mark.parametrize(
    ("options", "target", "seen"),
    [
        ({"path": "/api"}, "/api/x?y", "/api/x?y"),
        ({"path": "/api", "strip_prefix": True}, "/api/x?y", "/x?y"),
        ({"path": "/api", "strip_prefix": True}, "/api", "/"),
        ({"path": "/api", "strip_prefix": True}, "/api/", "/"),
        ({"path": "/api", "strip_prefix": True}, "/api?y", "/?y"),
        ({"path": "/api", "rewrite_prefix": "/v2/orders"}, "/api/x?y", "/v2/orders/x?y"),
        ({"path": "/api", "rewrite_prefix": "/"}, "/api/x", "/x"),
        ({"path": "/", "rewrite_prefix": "/v2"}, "/x", "/v2/x"),
        ({"path": "/", "strip_prefix": True}, "/x", "/x"),
        ({"path": "/api"}, "/api/%E2%82%AC;a=b/~?%zz", "/api/%E2%82%AC;a=b/~?%zz"),
    ],
)
@on_both_loops
async def test_the_path_that_was_judged_is_the_path_that_is_sent(
    options: dict[str, object], target: str, seen: str
) -> None:
    """Byte for byte, but for the prefix that the route takes off or puts in."""
    async with RawUpstream(echo_target) as upstream, proxied(upstream, **options) as proxy:
        assert seen.encode() == (await proxy.send(request(target))).body


@on_both_loops
async def test_hd_04_the_upstream_is_told_who_called_and_how() -> None:
    """By the broker's own words; those of a trusted proxy are believed, those of others dropped."""
    async with RawUpstream() as upstream:
        route = Route(path="/", upstream=upstream.url, token=ANONYMOUS)
        async with ProxyUnderTest([route]) as proxy:
            await proxy.send(request("/", "X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: gopher"))
        async with ProxyUnderTest([route], trusted=("127.0.0.0/8",)) as proxy:
            await proxy.send(request("/", "X-Forwarded-For: 6.6.6.6, 1.2.3.4", "X-Forwarded-Host: evil"))

    told = [
        [each.fields(name) for name in (b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Host", b"Host")]
        for each in upstream.requests
    ]
    authority = upstream.url.removeprefix("http://").encode()
    assert [[b"127.0.0.1"], [b"https"], [HOST], [authority]] == told[0]
    assert [[b"1.2.3.4, 127.0.0.1"], [b"https"], [HOST], [authority]] == told[1]


@on_both_loops
async def test_hd_04_one_forwarding_field_is_believed_and_the_other_is_dropped() -> None:
    """What a caller claims in the field that its proxy doesn't write has no effect, and neither reaches the upstream."""
    claims = ("Forwarded: for=1.1.1.1", "X-Forwarded-For: 2.2.2.2", "X_Forwarded_For: 3.3.3.3")
    told = {}
    async with RawUpstream() as upstream:
        route = Route(path="/", upstream=upstream.url, token=ANONYMOUS)
        for trusted in ((), ("127.0.0.0/8",)):
            for field in ForwardingField:
                async with ProxyUnderTest([route], trusted=trusted, forwarding_field=field) as proxy:
                    assert 200 == (await proxy.send(request("/", *claims))).status
                last = upstream.requests[-1]
                told[trusted, field] = last.fields(b"X-Forwarded-For")
                assert [] == last.fields(b"Forwarded") + last.fields(b"X_Forwarded_For")
        async with ProxyUnderTest([route], trusted=trusted, forwarding_field=ForwardingField.FORWARDED) as proxy:
            malformed = await proxy.send(request("/", 'Forwarded: for="', "X-Forwarded-For: 2.2.2.2"))

    believed = {ForwardingField.FORWARDED: b"1.1.1.1", ForwardingField.X_FORWARDED_FOR: b"2.2.2.2"}
    for (trusted, field), addresses in told.items():
        assert [b"%b, 127.0.0.1" % believed[field] if trusted else b"127.0.0.1"] == addresses
    assert (400, "bad_request") == (malformed.status, malformed.code)


@on_both_loops
async def test_the_upstream_is_told_in_forwarded_too() -> None:
    """Where the route wants it: the whole chain, and what was asked for."""
    async with RawUpstream() as upstream:
        route = Route(path="/", upstream=upstream.url, token=ANONYMOUS, headers=HeaderOptions(forwarded=True))
        async with ProxyUnderTest([route], trusted=("127.0.0.0/8",)) as proxy:
            await proxy.send(request("/", "X-Forwarded-For: 2001:db8::1", "Forwarded: for=6.6.6.6"))

    expected = b'for="[2001:db8::1]", for=127.0.0.1;host=%b;proto=https' % HOST
    assert [expected] == upstream.requests[0].fields(b"Forwarded")


@on_both_loops
async def test_the_callers_host_can_be_kept() -> None:
    """For upstreams that serve several sites."""
    async with RawUpstream() as upstream:
        options = UpstreamOptions(urls=(upstream.url,), preserve_host=True)
        async with ProxyUnderTest([Route(path="/", upstream=options, token=ANONYMOUS)]) as proxy:
            await proxy.send(request("/"))

    assert [HOST] == upstream.requests[0].fields(b"host")


@on_both_loops
async def test_hd_02_claims_become_fields() -> None:
    """Broker-made, encoded, and absent where the claim is, whatever the caller sends under the name."""
    headers = HeaderOptions(assign={"X-User": "{claims.sub}", "X-Mail": "{claims.email}", "X-Empty": "{claims.none}"})
    async with RawUpstream() as upstream, proxied(upstream, token=USER, headers=headers) as proxy:
        spoofed = ("X-User: root", "x_mail: root", "X-Empty: root", "X.Empty: root")
        await proxy.send(request("/", "X-CSRF: 1", *spoofed, cookie=ALICE))

    seen = upstream.requests[0]
    assert ([b"alice"], [b"alice@example.com"], []) == (
        seen.fields(b"x-user"),
        seen.fields(b"x-mail"),
        seen.fields(b"x-empty"),
    )
    assert b"root" not in seen.head


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
@on_both_loops
async def test_every_method_passes(method: str) -> None:
    """In the caller's spelling; a HEAD's answer has a length and no body."""
    async with RawUpstream() as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        upstream.script = answering(OK if method != "HEAD" else OK[:-2])
        for _ in range(2):
            await caller.send(request("/", method=method))
            got = await caller.answer(method=method)
            assert (200, [b"2"]) == (got.status, got.fields(b"content-length"))

    assert [f"{method} / HTTP/1.1".encode()] * 2 == [each.line for each in upstream.requests]


@pytest.mark.parametrize(
    ("answer", "head", "body"),
    [
        (b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n", b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 9\r\n\r\n", b"", b""),
        (b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n\r\nab", b"", b"ab"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x00", b"", b"\x1f\x8b\x00"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\nContent-Length: 0\r\n\r\n", b"", b""),
        (b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n", b"", b"no"),
    ],
)
@on_both_loops
async def test_up_02_answers_pass_as_they_are(answer: bytes, head: bytes, body: bytes) -> None:
    """Redirects are not followed, nothing is decompressed, and no field is added that the upstream did not send."""
    async with RawUpstream(answering(answer)) as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        for _ in range(2):
            await caller.send(request("/"))
            got = await caller.answer()
            assert (answer[9:12], body) == (got.head[9:12], got.body)
            assert not head or head == got.head
            assert [] == got.fields(b"server")

    assert 2 == len(upstream.requests)


@on_both_loops
async def test_http_1_0_callers_get_what_they_understand() -> None:
    """Neither chunks nor 1xx; a length where it is known, and the end of the connection otherwise."""
    chunked = b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"

    async def slowly(got: RawRequest, wire: Wire) -> None:
        await wire.send(chunked)
        await asyncio.sleep(0.02)
        await wire.send(b"3\r\ndef\r\n0\r\n\r\n")

    async with RawUpstream(slowly) as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        await caller.send(b"GET / HTTP/1.0\r\nHost: app.example.com\r\nConnection: keep-alive\r\n\r\n")
        received = await asyncio.wait_for(caller.reader.read(), 5)
        upstream.script = answering(OK)
        async with await proxy.connect() as other:
            await other.send(b"GET / HTTP/1.0\r\nHost: app.example.com\r\nConnection: keep-alive\r\n\r\n")
            kept = await other.answer()

    assert b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcdef" == received
    assert ([b"keep-alive"], b"ok") == (kept.fields(b"connection"), kept.body)


@on_both_loops
async def test_1xx_pass_to_those_who_know_them() -> None:
    """103 before the answer; the upstream's own 100 is nobody's business."""
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
    async with (
        RawUpstream(answering(early + OK)) as upstream,
        proxied(upstream) as proxy,
        await proxy.connect() as caller,
    ):
        await caller.send(request("/"))
        first, second = await caller.head(), await caller.head()

    assert b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" == first
    assert second.startswith(b"HTTP/1.1 200 ")


@on_both_loops
async def test_up_04_a_cut_answer_without_a_length_is_reset() -> None:
    """An HTTP/1.0 caller, whose answer ends with the connection, must not take a cut for the end."""

    async def cut(got: RawRequest, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await asyncio.sleep(0.05)
        wire.writer.close()

    async with RawUpstream(cut) as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        await caller.send(b"GET / HTTP/1.0\r\nHost: app.example.com\r\n\r\n")
        assert b"half" in await caller.reader.readuntil(b"half")
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(caller.reader.read(), 5)


@pytest.mark.parametrize(
    ("choice", "cookie", "status", "authorization"),
    [
        (ANONYMOUS, ALICE, 200, []),
        (USER_OR_NONE, b"", 200, []),
        (USER_OR_NONE, ALICE, 200, [b"Bearer alices-token"]),
        (USER, b"x" * 43, 401, None),
        (TokenChoice(TokenKind.GRANT, "nightly"), b"", 200, [b"Bearer nightly-token"]),
        (TokenChoice(TokenKind.GRANT, "unknown"), b"", 503, None),
    ],
)
@on_both_loops
async def test_hd_01_whose_token_goes_along(
    choice: TokenChoice, cookie: bytes, status: int, authorization: list[bytes] | None
) -> None:
    """The route says whose; a caller's own Authorization never passes, and our cookie neither."""
    async with RawUpstream() as upstream:
        route = Route(path="/", upstream=upstream.url, token=choice)
        async with ProxyUnderTest([route], standing_grants={"nightly": "g1"}) as proxy:
            proxy.tokens.known["g1"] = [token("nightly-token")]
            got = await proxy.send(request("/", "X-CSRF: 1", "Authorization: Bearer mine", cookie=cookie))

    assert status == got.status
    if authorization is None:
        assert [] == upstream.requests
    else:
        assert authorization == upstream.requests[0].fields(b"authorization")
        assert SESSION_COOKIE not in upstream.requests[0].head


@on_both_loops
async def test_br_01_a_foreign_page_cannot_call() -> None:
    """Without the marker, from another origin, or with a session twice: refused, and nothing goes up."""
    twice = b"Cookie: %b=%b; %b=%b" % (SESSION_COOKIE, ALICE, SESSION_COOKIE, ALICE)
    async with RawUpstream() as upstream, proxied(upstream, token=USER) as proxy:
        refusals = [
            await proxy.send(request("/", cookie=ALICE)),
            await proxy.send(request("/", "X-CSRF: 1", "Origin: https://evil.example", cookie=ALICE)),
            await proxy.send(request("/", "X-CSRF: 1", "Sec-Fetch-Site: cross-site", cookie=ALICE)),
            await proxy.send(request("/", "X-CSRF: 1", twice.decode())),
        ]

    assert [403, 403, 403, 400] == [each.status for each in refusals]
    assert [] == upstream.requests


@on_both_loops
async def test_pages_may_be_navigated_to_where_the_route_says_so() -> None:
    """navigation: allow, and a browser that goes there itself."""
    going = ("Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document", "Sec-Fetch-Site: none")
    async with RawUpstream() as upstream, proxied(upstream, token=USER, navigation=Navigation.ALLOW) as proxy:
        assert 200 == (await proxy.send(request("/", *going, cookie=ALICE))).status
        assert 403 == (await proxy.send(request("/", *going, cookie=ALICE, method="POST"))).status


@on_both_loops
async def test_up_06_a_route_may_leave_caching_to_its_upstream() -> None:
    """cache_control: upstream."""
    answer = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=5\r\nContent-Length: 0\r\n\r\n"
    for choice, expected in ((CacheControl.UPSTREAM, b"max-age=5"), (CacheControl.NO_STORE, b"private, no-store")):
        async with (
            RawUpstream(answering(answer)) as upstream,
            proxied(upstream, token=USER, cache_control=choice) as proxy,
        ):
            got = await proxy.send(request("/", "X-CSRF: 1", cookie=ALICE))
        assert [expected] == got.fields(b"cache-control")


# --- 401


def accepting(newer: bytes, seen: list[bytes]) -> Script:
    async def script(got: RawRequest, wire: Wire) -> None:
        seen.append(got.body)
        await wire.send(OK if got.fields(b"authorization") == [b"Bearer " + newer] else UNAUTHORIZED)

    return script


@pytest.mark.parametrize(
    ("options", "size", "chunked", "status", "attempts"),
    [
        ({}, 1000, False, 200, 2),
        ({}, 1000, True, 200, 2),
        ({}, 100_000, False, 401, 1),
        ({}, 100_000, True, 401, 1),
        ({"max_replay_body_bytes": 200_000}, 100_000, False, 200, 2),
        ({"retry_on_401": RetryOn401.IDEMPOTENT}, 1000, False, 401, 1),
        ({"retry_on_401": RetryOn401.NEVER}, 0, False, 401, 1),
    ],
)
@on_both_loops
async def test_up_07_a_401_is_cured_once_if_the_body_can_be_sent_again(
    options: dict[str, object], size: int, chunked: bool, status: int, attempts: int
) -> None:
    """Whole, or not at all; otherwise the 401 passes, and a newer token is fetched for the next request."""
    seen: list[bytes] = []
    body = b"b" * size
    async with RawUpstream(accepting(b"newer", seen)) as upstream, proxied(upstream, token=USER, **options) as proxy:
        proxy.tokens.known["grant-of-alice"].append(token("newer", 2))
        if chunked:
            data = request("/", "X-CSRF: 1", "Transfer-Encoding: chunked", method="POST", cookie=ALICE)
            data += b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
        else:
            data = request("/", "X-CSRF: 1", method="POST", cookie=ALICE, body=body)
        got = await proxy.send(data)
        await until(lambda: bool(proxy.tokens.asked))

    assert (status, [body] * attempts) == (got.status, seen)
    assert [("grant-of-alice", "", 1)] == proxy.tokens.asked


@on_both_loops
async def test_up_07_a_second_401_passes() -> None:
    """One retry, then the upstream's word stands."""
    async with RawUpstream(answering(UNAUTHORIZED)) as upstream, proxied(upstream, token=USER) as proxy:
        proxy.tokens.known["grant-of-alice"].append(token("newer", 2))
        got = await proxy.send(request("/", "X-CSRF: 1", cookie=ALICE))

    assert (401, b"nope", 2) == (got.status, got.body, len(upstream.requests))


NAMED = {"token": USER_OR_NONE, "headers": HeaderOptions(assign={"X-User": "{claims.sub}", "X-Where": "here"})}
"""Options of a route that names its user, if there is one."""


def whose(got: RawRequest) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """What an upstream sees of the user."""
    return got.fields(b"authorization"), got.fields(b"x-user"), got.fields(b"x-where")


@pytest.mark.parametrize("method", ["GET", "POST"])
@on_both_loops
async def test_se_03_whose_grant_has_ended_is_not_named_any_more(method: str) -> None:
    """A call that goes on without the token is nobody's: neither the upstream nor the access log hears of the session."""
    lines: list[str] = []
    async with RawUpstream() as upstream:
        proxy = proxied(upstream, **NAMED)
        proxy.access_log = lines.append
        async with proxy:
            for answer in (None, LoginNeeded("revoked")):
                proxy.tokens.answer = answer
                got = await proxy.send(request("/", "X-CSRF: 1", "X-User: bob", cookie=ALICE, method=method))
                assert 200 == got.status

    assert ([b"Bearer alices-token"], [b"alice"], [b"here"]) == whose(upstream.requests[0])
    assert ([], [], [b"here"]) == whose(upstream.requests[1])
    assert [True, False] == ["session:alice" in line for line in lines]


@pytest.mark.parametrize("size", [0, 1000])
@on_both_loops
async def test_se_03_a_401_may_show_that_the_grant_has_ended(size: int) -> None:
    """Then the request goes up once more, as nobody's: it would if it came now."""
    async with RawUpstream() as upstream, proxied(upstream, **NAMED) as proxy:

        async def ended_there(got: RawRequest, wire: Wire) -> None:
            proxy.tokens.answer = LoginNeeded("invalid_grant")
            await wire.send(UNAUTHORIZED if got.fields(b"authorization") else OK)

        upstream.script = ended_there
        data = request("/", "X-CSRF: 1", cookie=ALICE, method="POST" if size else "GET", body=b"b" * size)
        assert 200 == (await proxy.send(data)).status

    assert [([b"Bearer alices-token"], [b"alice"], [b"here"]), ([], [], [b"here"])] == [
        whose(each) for each in upstream.requests
    ]
    assert {b"b" * size} == {each.body for each in upstream.requests}


@on_both_loops
async def test_ds_04_a_call_that_goes_on_as_nobodys_counts_against_its_address() -> None:
    """As it does without a cookie: sessions whose grants have ended make no room of their own."""
    options = {"token": USER_OR_NONE, "rate_limit": RateLimitOptions(requests_per_second=0.01, burst=2)}
    async with RawUpstream() as upstream, proxied(upstream, **options) as proxy:
        proxy.tokens.answer = LoginNeeded("revoked")
        cookies = (b"", ALICE, ALICE)
        statuses = [(await proxy.send(request("/", "X-CSRF: 1", cookie=cookie))).status for cookie in cookies]

    assert [200, 200, 429] == statuses


@on_both_loops
async def test_a_large_401_passes_as_it_comes() -> None:
    """More than is held back isn't waited for."""
    body = b"n" * 200_000
    answer = b"HTTP/1.1 401 No\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with RawUpstream(answering(answer)) as upstream, proxied(upstream, token=USER) as proxy:
        got = await proxy.send(request("/", "X-CSRF: 1", cookie=ALICE))

    assert (401, body) == (got.status, got.body)


# --- WebSocket


async def echoing(got: RawRequest, wire: Wire) -> None:
    await wire.send(SWITCH)
    while data := await wire.reader.read(65536):
        await wire.send(data)


@pytest.mark.parametrize(
    ("origin", "origins", "status"),
    [
        ("https://app.example.com", (), 101),
        ("https://other.example", ("https://other.example",), 101),
        ("https://evil.example", ("https://other.example",), 403),
        ("null", (), 403),
        (None, (), 403),
    ],
)
@on_both_loops
async def test_br_03_a_websockets_origin_is_judged(origin: str | None, origins: tuple[str, ...], status: int) -> None:
    """Ours, or one that the route names; scripts of other pages get no socket."""
    fields = (*HANDSHAKE, *([f"Origin: {origin}"] if origin else []))
    async with (
        RawUpstream(echoing) as upstream,
        proxied(upstream, token=USER, origins=origins) as proxy,
        await proxy.connect() as caller,
    ):
        await caller.send(request("/", *fields, cookie=ALICE))
        assert status == (await caller.answer()).status

    assert (status == 101) == bool(upstream.requests)


@on_both_loops
async def test_large_frames_pass_a_socket_both_ways_with_back_pressure() -> None:
    """Four MiB there and back, as they are, though nobody reads while they are sent."""
    sent = bytes(range(256)) * (16 << 10)
    async with RawUpstream(echoing) as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        await caller.send(request("/", *HANDSHAKE))
        assert (await caller.head()).startswith(b"HTTP/1.1 101 ")
        sending = asyncio.ensure_future(caller.send(sent))
        received = await asyncio.wait_for(caller.reader.readexactly(len(sent)), 20)
        await sending

    assert sent == received


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        (HANDSHAKE, {"websocket": False}),
        (HANDSHAKE[:3], {}),
        ((*HANDSHAKE[:2], "Sec-WebSocket-Version: 8", HANDSHAKE[3]), {}),
        (("Connection: Upgrade", "Upgrade: h2c"), {}),
        (("Connection: Upgrade", "Upgrade: websocket, h2c", *HANDSHAKE[2:]), {}),
    ],
)
@on_both_loops
async def test_sm_06_what_is_no_handshake_is_a_plain_request(
    fields: tuple[str, ...], options: dict[str, object]
) -> None:
    """The upstream sees no Upgrade, and an upstream that switches all the same is broken."""
    async with RawUpstream() as upstream, proxied(upstream, **options) as proxy:
        assert 200 == (await proxy.send(request("/", *fields))).status
        assert ([], []) == (upstream.requests[0].fields(b"upgrade"), upstream.requests[0].fields(b"connection"))
        upstream.script = answering(SWITCH)
        assert 502 == (await proxy.send(request("/", *fields))).status


@on_both_loops
async def test_sm_06_a_refused_handshake_is_an_answer() -> None:
    """Whatever else than 101 the upstream says passes, and the connection goes on."""
    answer = b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno"
    async with RawUpstream(answering(answer)) as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        await caller.send(request("/", *HANDSHAKE))
        got = await caller.answer()
        upstream.script = answering(OK)
        await caller.send(request("/"))
        assert 200 == (await caller.answer()).status

    assert (426, b"no") == (got.status, got.body)


@on_both_loops
async def test_both_ends_of_a_socket_are_probed() -> None:
    """It may be silent for ever, and a machine that has vanished says nothing either: only the kernel can tell."""

    async def accept(got: RawRequest, wire: Wire) -> None:
        await wire.send(SWITCH)
        await wire.reader.read()

    async with (
        RawUpstream(accept) as upstream,
        proxied(upstream, websocket=True) as proxy,
        await proxy.connect() as caller,
    ):
        await caller.send(request("/", *HANDSHAKE))
        assert 101 == (await caller.answer()).status
        assert proxy.pools is not None
        (pool,) = proxy.pools.values()
        (upwards,) = pool.hosts[0].connections
        assert proxy._runner is not None
        assert proxy._runner.server is not None
        (downwards,) = proxy._runner.server.connections
        probing = []
        for transport in (upwards._transport, downwards.transport):
            assert transport is not None
            raw = transport.get_extra_info("socket")
            is_probed = raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            probing.append((is_probed, raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)))

    assert [(1, PROBED_AFTER_SECONDS)] * 2 == probing


@on_both_loops
async def test_a_socket_ends_when_either_side_leaves() -> None:
    """The other side's connection is closed."""

    async def leaving(got: RawRequest, wire: Wire) -> None:
        await wire.send(SWITCH + b"bye")
        wire.writer.close()

    async with RawUpstream(leaving) as upstream, proxied(upstream) as proxy:
        async with await proxy.connect() as caller:
            await caller.send(request("/", *HANDSHAKE))
            await caller.head()
            assert b"bye" == await asyncio.wait_for(caller.reader.read(), 5)
        upstream.script = echoing
        async with await proxy.connect() as caller:
            await caller.send(request("/", *HANDSHAKE))
            await caller.head()
        await until(lambda: not upstream._tasks)


# --- early ends


@on_both_loops
async def test_sm_05_an_early_answer_reaches_the_caller() -> None:
    """Before its body is sent; the upstream's connection isn't used again."""
    early = answering(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno")
    async with (
        RawUpstream(early, read_body=False) as upstream,
        proxied(upstream) as proxy,
        await proxy.connect() as caller,
    ):
        await caller.send(request("/", "Content-Length: 1000000", method="POST") + b"x" * 1000)
        got = await caller.answer()
        upstream.read_body = True
        upstream.script = answering(OK)
        assert 200 == (await proxy.send(request("/"))).status

    assert (413, b"no") == (got.status, got.body)
    assert 2 == upstream.connections


@on_both_loops
async def test_a_caller_that_leaves_in_the_middle_of_its_body_ends_it_upstream() -> None:
    """The upstream sees a cut body, not a short one."""
    cut = asyncio.Event()

    async def script(got: RawRequest, wire: Wire) -> None:
        if not (await wire.reader.read(1 << 20)).endswith(b"!") and not await wire.reader.read():
            cut.set()

    async with RawUpstream(script, read_body=False) as upstream, proxied(upstream) as proxy:
        async with await proxy.connect() as caller:
            await caller.send(request("/", "Content-Length: 100000", method="POST") + b"half")
            await until(lambda: bool(upstream.requests))
            await asyncio.sleep(0.05)
        await asyncio.wait_for(cut.wait(), 5)


@on_both_loops
async def test_expect_is_answered_only_to_those_who_may_call() -> None:
    """Whoever has no session is told so before it sends its body."""
    async with RawUpstream() as upstream, proxied(upstream, token=USER) as proxy, await proxy.connect() as caller:
        await caller.send(request("/", "X-CSRF: 1", "Expect: 100-continue", "Content-Length: 4", method="POST"))
        assert b"HTTP/1.1 401 " == (await caller.head())[:13]

    assert [] == upstream.requests

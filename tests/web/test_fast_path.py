"""The fast path does nothing but what the slow one does, only faster, and serves nearly all that is proxied."""

import asyncio
import itertools
import json
import random
import re
from typing import Any

import pytest

from broker.core.outcome import LoginNeeded
from broker.core.routing import HeaderOptions, RateLimitOptions, Route
from tests.support.proxying import ALICE, ANONYMOUS, SESSION_COOKIE, USER, ProxyUnderTest, RawCaller, request, token
from tests.support.raw_upstream import OK, RawRequest, RawUpstream, Wire, answering
from tests.support.request_fuzz import random_request
from tests.support.waiting import until

COOKIE = f"{SESSION_COOKIE.decode()}={ALICE.decode()}"


def routes(upstream: RawUpstream) -> list[Route]:
    headers = HeaderOptions(assign={"X-Tenant": "t1", "X-Who": "{claims.email}"}, remove=("X-Debug",))
    return [
        Route(path="/", upstream=upstream.url, token=ANONYMOUS, headers=HeaderOptions(remove=("X-Debug",))),
        Route(path="/api", upstream=upstream.url, token=USER, headers=headers),
        Route(path="/api/private", upstream=upstream.url, token=USER, methods=("GET",)),
    ]


class Fast:
    """A proxy with the fast path, and its access log."""

    def __init__(self, upstream: RawUpstream, **options: Any) -> None:
        self.lines: list[str] = []
        self.proxy = ProxyUnderTest(
            options.pop("routes", None) or routes(upstream), access_log=self.lines.append, **options
        )

    async def warm(self, caller: RawCaller) -> None:
        """Have the pool hold an idle connection, and this caller's connection be one that was used."""
        await caller.send(request("/warm"))
        assert 200 == (await caller.answer()).status


def pieces_of(data: bytes, seed: int) -> list[bytes]:
    """Every second request comes in several reads."""
    source = random.Random(seed)
    cuts = sorted(source.randrange(len(data)) for _ in range(source.randrange(1, 4))) if seed % 2 else []
    return [data[first:last] for first, last in itertools.pairwise([0, *cuts, len(data)])]


Outcome = tuple[int, bytes, bool]
"""The status and the body of an answer, and whether the connection ends with it."""


def another(data: bytes, seed: int) -> bytes:
    """Return *data* once more, with another target now and then: the same fields are read only once."""
    target = {0: b" /api/private", 1: b" /" + b"z" * 20_000, 2: b" /nowhere?x"}.get(seed % 9)
    return data if target is None else re.sub(rb"(?<=[A-Z]) [^ \r]+", target, data, count=1)


async def exchange(proxy: ProxyUnderTest, data: bytes, *, seed: int) -> list[Outcome]:
    """Send *data*, and if the connection lives on, another request of the same fields."""
    async with await proxy.connect() as caller:
        await caller.send(request("/warm"))
        await caller.answer()
        outcomes = [await outcome_of(caller, data, seed=seed)]
        if not outcomes[0][2]:
            outcomes.append(await outcome_of(caller, another(data, seed), seed=seed))
        return outcomes


async def outcome_of(caller: RawCaller, data: bytes, *, seed: int) -> Outcome:
    method = "HEAD" if data.startswith(b"HEAD") else "GET"
    try:
        for piece in pieces_of(data, seed):
            await caller.send(piece)
            await asyncio.sleep(0.0005)
        answer = await caller.answer(method=method)
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0, b"", True
    closes = b"close" in [each.lower() for each in answer.fields(b"connection")]
    return answer.status, re.sub(rb'"request_id": "[^"]*"', b"", answer.body), closes


def as_sent(got: RawRequest) -> bytes:
    return re.sub(rb"X-Request-ID: [^\r]*", b"X-Request-ID: -", got.head) + got.body


@pytest.mark.parametrize("first_seed", range(0, 1500, 100))
async def test_it_forwards_and_refuses_what_the_slow_path_does(first_seed: int) -> None:
    """For random requests: the same answer, and the same bytes at the upstream, on either path."""
    async with RawUpstream() as upstream:
        fast = Fast(upstream)
        async with fast.proxy as quick, ProxyUnderTest(routes(upstream), fast=False) as slow:
            for seed in range(first_seed, first_seed + 100):
                data = random_request(seed, cookie=COOKIE)
                outcomes = []
                for proxy in (quick, slow):
                    answer = await exchange(proxy, data, seed=seed)
                    sent = [as_sent(each) for each in upstream.requests if each.target != b"/warm"]
                    upstream.requests.clear()
                    outcomes.append((answer, sent))
                assert outcomes[1] == outcomes[0], f"seed {seed}: {data!r}"
            assert 50 < slow.handled - quick.handled, "the fast path was hardly used"


@pytest.mark.parametrize(
    "method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "QUERY", "M-SEARCH"]
)
@pytest.mark.parametrize("body", [b"", b"{}"])
async def test_a_plain_call_takes_it(method: str, body: bytes) -> None:
    """A request with a live session doesn't touch aiohttp's parser."""
    async with RawUpstream() as upstream:
        fast = Fast(upstream)
        async with fast.proxy as proxy, await proxy.connect() as caller:
            await fast.warm(caller)
            await caller.send(request("/api/x", "X-CSRF: 1", cookie=ALICE, method=method, body=body))
            got = await caller.answer()
            assert 0 == proxy.handled

    assert (200, body) == (got.status, upstream.requests[1].body)
    assert [b"Bearer alices-token"] == upstream.requests[1].fields(b"authorization")
    assert [b"alice@example.com"] == upstream.requests[1].fields(b"x-who")
    line = json.loads(fast.lines[-1])
    assert ("/api/x", 200, "/api", "session:alice") == (line["path"], line["status"], line["route"], line["session"])


async def test_tabs_are_white_space() -> None:
    """Around a value and in it; only those in fields about framing are aiohttp's."""
    async with RawUpstream() as upstream:
        fast = Fast(upstream)
        async with fast.proxy as proxy, await proxy.connect() as caller:
            await fast.warm(caller)
            await caller.send(request("/x", "X-Tab:\ta\tb \t"))
            assert 200 == (await caller.answer()).status
            assert 0 == proxy.handled

    assert [b"a\tb"] == upstream.requests[1].fields(b"x-tab")


CHUNKS = b"2\r\nab\r\n1;x=y\r\nc\r\n0\r\nX-Trailer: 1\r\n\r\n"
UPLOADS = {
    "sized": request("/x", "Content-Length: 3", method="POST") + b"abc",
    "chunked": request("/x", "Transfer-Encoding: chunked", method="POST") + CHUNKS,
    "none": request("/x", "X-CSRF: 1", cookie=ALICE),
    "1.0": request("/x", "Connection: keep-alive", "Content-Length: 3", method="POST").replace(b"1.1", b"1.0", 1)
    + b"abc",
}


@pytest.mark.parametrize("name", UPLOADS)
async def test_it_may_come_in_any_pieces(name: str) -> None:
    """Wherever the network cuts a request, the upstream gets the same, and the connection goes on."""
    data, whole = UPLOADS[name], b"" if name == "none" else b"abc"
    async with RawUpstream() as upstream:
        fast = Fast(upstream)
        async with fast.proxy as proxy, await proxy.connect() as caller:
            # Before the end of its request line nobody can say whose a request is.
            for cut in range(data.find(b"\r\n") + 2, len(data)):
                await caller.send(data[:cut])
                await asyncio.sleep(0.001)
                await caller.send(data[cut:])
                assert 200 == (await caller.answer()).status
            assert 0 == proxy.handled

    assert {whole} == {each.body for each in upstream.requests}
    assert not any(each.fields(b"x-trailer") for each in upstream.requests)


@pytest.mark.parametrize(
    "data",
    [
        request("/api", "X-CSRF: 1", "X-Long: " + "x" * 16384, cookie=ALICE)[:-4] + b"\r\n\r\n",
        request("/nothing", *["X-A: 1"] * 101),
        request("HTTP://app.example.com/absolute"),
        request("/a", "Connection: keep-alive\t"),
        request("/a", "Upgrade: h2c", "Connection: Upgrade") + request("/b"),
        request("/a\u00e9"),
    ],
    ids=["long", "many fields", "a scheme in capitals", "tabs", "not waiting for an upgrade", "8-bit"],
)
async def test_what_is_not_plainly_written_falls_through(data: bytes) -> None:
    """What aiohttp reads comes no byte changed; nothing is lost."""
    async with RawUpstream() as upstream:
        fast = Fast(upstream)
        async with fast.proxy as proxy, await proxy.connect() as caller:
            await fast.warm(caller)
            await caller.send(data)
            assert (await caller.answer()).status in {200, 400}
            assert 0 < proxy.handled


async def test_an_upstream_that_fails_in_the_middle_of_a_body_is_502() -> None:
    """The handler says so, under the id that the upstream was told, and the connection lives on."""

    async def broken(got: RawRequest, wire: Wire) -> None:
        if got.head.startswith(b"POST"):
            await wire.reader.read(1000)
            wire.reset()
        else:
            await wire.send(OK)

    async with RawUpstream(broken, read_body=False) as upstream:
        fast = Fast(upstream)
        async with fast.proxy as proxy, await proxy.connect() as caller:
            await caller.send(request("/x", "Content-Length: 20000", method="POST") + b"a" * 10_000)
            got = await caller.answer()
            await caller.send(b"b" * 10_000 + request("/next"))
            assert 200 == (await caller.answer()).status
            assert 1 == proxy.handled

    assert (502, "upstream_unavailable") == (got.status, got.code)


@pytest.mark.parametrize("rest", [b"x\r\n", b"2\r\nabc\r\n", b"0\r\nContent-Length: 3\r\n\r\n"])
async def test_sm_01_chunks_that_are_none_end_the_connection(rest: bytes) -> None:
    """Nobody knows where such a body ends; what follows it is read by nobody."""
    async with RawUpstream() as upstream:
        fast = Fast(upstream)
        async with fast.proxy as proxy, await proxy.connect() as caller:
            await caller.send(request("/x", "Transfer-Encoding: chunked", method="POST") + b"2\r\nab\r\n")
            await asyncio.sleep(0.01)
            await caller.send(rest + request("/smuggled"))
            got = await caller.answer()
            assert await caller.is_closed()

    assert 400 == got.status
    assert b"/smuggled" not in [each.target for each in upstream.requests]


@pytest.mark.parametrize("body", [b"", b"{}"])
async def test_a_401_is_cured(body: bytes) -> None:
    """The upstream sees the old token once and the new one once; the caller sees only the second answer."""

    async def script(got: RawRequest, wire: Wire) -> None:
        stale = got.fields(b"authorization") == [b"Bearer alices-token"]
        await wire.send(b"HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno" if stale else OK)

    async with RawUpstream(script) as upstream:
        fast = Fast(upstream)
        async with fast.proxy as proxy, await proxy.connect() as caller:
            await fast.warm(caller)
            proxy.tokens.known["grant-of-alice"].append(token("newer", 2))
            for _ in range(2):
                await caller.send(request("/api", "X-CSRF: 1", cookie=ALICE, method="POST", body=body))
                assert (200, b"ok") == ((got := await caller.answer()).status, got.body)
            assert 0 == proxy.handled

    assert [body] * 3 == [each.body for each in upstream.requests[1:]]
    sent = [each.fields(b"authorization") for each in upstream.requests[1:]]
    assert [[b"Bearer alices-token"], [b"Bearer newer"], [b"Bearer newer"]] == sent
    assert [("grant-of-alice", "", 1)] == proxy.tokens.asked


async def test_a_body_that_may_not_be_kept_is_not_sent_again() -> None:
    """With ``max_replay_body: 0`` the 401 passes, though the body was in one read with its head."""
    async with RawUpstream() as upstream:
        unkept = Route(path="/", upstream=upstream.url, token=USER, max_replay_body_bytes=0)
        fast = Fast(upstream, routes=[unkept])
        async with fast.proxy as proxy, await proxy.connect() as caller:
            await caller.send(request("/", "X-CSRF: 1", cookie=ALICE))
            await caller.answer()
            proxy.tokens.known["grant-of-alice"].append(token("newer", 2))
            upstream.script = answering(b"HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno")
            await caller.send(request("/", "X-CSRF: 1", cookie=ALICE, method="PUT", body=b"{}"))
            got = await caller.answer()

    assert (401, 2) == (got.status, len(upstream.requests))


async def test_a_401_without_a_newer_token_passes() -> None:
    """The answer that was held back is the one that the caller gets."""
    async with RawUpstream() as upstream:
        fast = Fast(upstream)
        async with fast.proxy as proxy, await proxy.connect() as caller:
            await fast.warm(caller)
            upstream.script = answering(b"HTTP/1.1 401 No\r\nX-Why: z\r\nContent-Length: 2\r\n\r\nno")
            await caller.send(request("/api", "X-CSRF: 1", cookie=ALICE))
            got = await caller.answer()
            upstream.script = answering(OK)
            await caller.send(request("/again"))
            assert 200 == (await caller.answer()).status

    assert (401, [b"z"], b"no") == (got.status, got.fields(b"x-why"), got.body)


async def test_a_broken_answer_is_502_and_the_connection_lives_on() -> None:
    """The handler says what went wrong."""
    async with RawUpstream() as upstream:
        fast = Fast(upstream)
        async with fast.proxy as proxy, await proxy.connect() as caller:
            await fast.warm(caller)
            upstream.script = answering(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n")
            await caller.send(request("/api", "X-CSRF: 1", cookie=ALICE))
            got = await caller.answer()
            upstream.script = answering(OK)
            await caller.send(request("/again"))
            assert 200 == (await caller.answer()).status

    assert (502, "upstream_unavailable") == (got.status, got.code)


async def test_a_connection_that_died_idle_costs_nothing() -> None:
    """The upstream closes its idle connection as the next request is on its way: the request goes up on a new one."""

    async def script(got: RawRequest, wire: Wire) -> None:
        if len(upstream.requests) == 2:
            wire.reset()
        else:
            await wire.send(OK)

    async with RawUpstream(script) as upstream:
        fast = Fast(upstream)
        async with fast.proxy as proxy, await proxy.connect() as caller:
            await fast.warm(caller)
            await caller.send(request("/api", "X-CSRF: 1", cookie=ALICE))
            got = await caller.answer()

    assert 200 == got.status
    assert [b"/warm", b"/api", b"/api"] == [each.target for each in upstream.requests]


async def test_a_session_that_has_to_be_looked_up_takes_it_too() -> None:
    """A task asks for it, and the call goes on without aiohttp."""
    async with RawUpstream() as upstream:
        fast = Fast(upstream)
        async with fast.proxy as proxy, await proxy.connect() as caller:
            await fast.warm(caller)
            proxy.sessions.cached = False
            for _ in range(3):
                await caller.send(request("/api", "X-CSRF: 1", cookie=ALICE, method="POST", body=b"{}"))
                assert 200 == (await caller.answer()).status
            assert (0, ["done"] * 3) == (proxy.handled, proxy.sessions.loads)

    assert [b"Bearer alices-token"] * 3 == [each.fields(b"authorization")[0] for each in upstream.requests[1:]]
    assert [b"{}"] * 3 == [each.body for each in upstream.requests[1:]]


@pytest.mark.parametrize(
    ("cookie", "down", "status", "code"),
    [(b"b" * 43, False, 401, "no_session"), (ALICE, True, 503, "store_unavailable")],
    ids=["no session", "no store"],
)
async def test_what_is_refused_after_a_look_is_answered_by_aiohttps_handler(
    cookie: bytes, down: bool, status: int, code: str
) -> None:
    """It doesn't look again, and the connection lives on."""
    async with RawUpstream() as upstream:
        fast = Fast(upstream)
        async with fast.proxy as proxy, await proxy.connect() as caller:
            await fast.warm(caller)
            proxy.sessions.cached, proxy.sessions.down = False, down
            await caller.send(request("/api", "X-CSRF: 1", cookie=cookie, method="POST", body=b"{}"))
            got = await caller.answer()
            assert len(proxy.sessions.loads) <= 1
            await caller.send(request("/again"))
            assert 200 == (await caller.answer()).status

    assert (status, code) == (got.status, got.code)
    assert [b"/warm", b"/again"] == [each.target for each in upstream.requests]


async def test_a_call_that_was_looked_up_waits_for_a_connection_where_none_is_idle() -> None:
    """It isn't judged or looked up again."""
    async with RawUpstream() as upstream:
        fast = Fast(upstream)
        async with fast.proxy as proxy, await proxy.connect() as caller:
            proxy.sessions.cached = False
            await caller.send(request("/api", "X-CSRF: 1", cookie=ALICE, method="POST", body=b"{}"))
            got = await caller.answer()
            assert ["done"] == proxy.sessions.loads

    assert (200, b"{}") == (got.status, upstream.requests[0].body)


async def test_what_is_sent_while_a_session_is_looked_up_is_answered_afterwards() -> None:
    """In the order in which it came."""
    async with RawUpstream() as upstream:
        fast = Fast(upstream)
        async with fast.proxy as proxy, await proxy.connect() as caller:
            await fast.warm(caller)
            proxy.sessions.cached = False
            proxy.sessions.may_load.clear()
            await caller.send(request("/api/1", "X-CSRF: 1", cookie=ALICE))
            await until(lambda: proxy.sessions.loads == ["begun"], what="the look")
            await caller.send(request("/2") + request("/3", method="POST", body=b"b" * 100_000))
            await asyncio.sleep(0.01)
            proxy.sessions.may_load.set()
            assert [200] * 3 == [(await caller.answer()).status for _ in range(3)]

    assert [b"/api/1", b"/2", b"/3"] == [each.target for each in upstream.requests[1:]]


async def test_a_caller_that_leaves_while_its_session_is_looked_up_sends_nothing_up() -> None:
    """The look ends with the connection."""
    async with RawUpstream() as upstream:
        fast = Fast(upstream)
        async with fast.proxy as proxy:
            async with await proxy.connect() as caller:
                await fast.warm(caller)
                proxy.sessions.cached = False
                proxy.sessions.may_load.clear()
                await caller.send(request("/api", "X-CSRF: 1", cookie=ALICE))
                await until(lambda: proxy.sessions.loads == ["begun"], what="the look")
            await until(lambda: proxy.sessions.loads == ["cancelled"], what="the end of the look")

    assert [b"/warm"] == [each.target for each in upstream.requests]


async def test_an_end_while_a_session_is_looked_up_is_waited_for() -> None:
    """A drain lets the call be answered, and then closes its connection."""
    async with RawUpstream() as upstream:
        fast = Fast(upstream)
        async with fast.proxy as proxy, await proxy.connect() as caller:
            await fast.warm(caller)
            proxy.sessions.cached = False
            proxy.sessions.may_load.clear()
            await caller.send(request("/api", "X-CSRF: 1", cookie=ALICE))
            await until(lambda: proxy.sessions.loads == ["begun"], what="the look")
            assert proxy._runner is not None
            ending = asyncio.get_running_loop().create_task(proxy._runner.cleanup())
            await asyncio.sleep(0.05)
            proxy.sessions.may_load.set()
            got = await caller.answer()
            assert await caller.is_closed()
            await ending

    assert (200, [b"close"]) == (got.status, got.fields(b"connection"))


async def test_a_caller_that_leaves_ends_its_request() -> None:
    """The upstream's connection is closed, for nobody takes the answer any more."""
    left = asyncio.Event()

    async def script(got: RawRequest, wire: Wire) -> None:
        if got.target == b"/warm":
            await wire.send(OK)
        elif not await wire.reader.read(1):
            left.set()

    async with RawUpstream(script) as upstream:
        fast = Fast(upstream)
        async with fast.proxy as proxy:
            async with await proxy.connect() as caller:
                await fast.warm(caller)
                await caller.send(request("/slow"))
                while len(upstream.requests) < 2:
                    await asyncio.sleep(0.005)
            await asyncio.wait_for(left.wait(), 5)


async def test_an_end_in_the_middle_is_waited_for() -> None:
    """A drain lets the call under way end, and then closes its connection."""
    go_on = asyncio.Event()

    async def script(got: RawRequest, wire: Wire) -> None:
        if got.target != b"/warm":
            await go_on.wait()
        await wire.send(OK)

    async with RawUpstream(script) as upstream:
        fast = Fast(upstream)
        async with fast.proxy as proxy, await proxy.connect() as caller:
            await fast.warm(caller)
            await caller.send(request("/slow"))
            while len(upstream.requests) < 2:
                await asyncio.sleep(0.005)
            assert proxy._runner is not None
            ending = asyncio.get_running_loop().create_task(proxy._runner.cleanup())
            await asyncio.sleep(0.05)
            go_on.set()
            got = await caller.answer()
            assert await caller.is_closed()
            await ending

    assert (200, [b"close"]) == (got.status, got.fields(b"connection"))


async def test_ds_04_a_rate_holds_on_both_paths() -> None:
    """The bucket is one, whichever way a request takes."""
    async with RawUpstream() as upstream:
        limited = Route(
            path="/",
            upstream=upstream.url,
            token=ANONYMOUS,
            rate_limit=RateLimitOptions(requests_per_second=0.001, burst=3),
        )
        async with Fast(upstream, routes=[limited]).proxy as proxy, await proxy.connect() as caller:
            statuses = []
            for _ in range(5):
                await caller.send(request("/"))
                statuses.append((await caller.answer()).status)

    assert [200, 200, 200, 429, 429] == statuses


async def test_the_access_log_says_the_same_on_both_paths() -> None:
    """Which way a request took is seen neither by its caller nor in the log."""
    async with RawUpstream() as upstream:
        fast = Fast(upstream)
        async with fast.proxy as proxy, await proxy.connect() as caller:
            await fast.warm(caller)
            for target in ("/api/x", "HTTP://app.example.com/api/x"):
                await caller.send(request(target, "X-CSRF: 1", cookie=ALICE, method="POST", body=b"{}"))
                assert 200 == (await caller.answer()).status
            assert 1 == proxy.handled

    quick, slow = (json.loads(line) for line in fast.lines[1:])
    for line in (quick, slow):
        for varying in ("time", "request_id", "method", "duration_ms"):
            del line[varying]
    assert quick == slow
    assert ("/api", "session:alice") == (quick["route"], quick["session"])


async def test_an_ended_grant_is_noticed() -> None:
    """Without a live token in the process, the token broker is asked."""
    async with RawUpstream() as upstream:
        fast = Fast(upstream)
        async with fast.proxy as proxy, await proxy.connect() as caller:
            await fast.warm(caller)
            proxy.tokens.answer = LoginNeeded("logout")
            await caller.send(request("/api", "X-CSRF: 1", cookie=ALICE))
            got = await caller.answer()

    assert (401, "session_expired") == (got.status, got.code)

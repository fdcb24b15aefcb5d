"""What is open with the leave of a session, a handle or a grant ends with it."""

import asyncio
import contextlib
import math
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import pytest

from broker.core.outcome import LoginNeeded
from broker.core.routing import RetryOn401, Route, TokenChoice, TokenKind
from broker.core.upstream_options import UpstreamOptions
from broker.stores.base import Event, Topic
from broker.web.gate import Call, Endings
from broker.web.relay import MAX_HELD_BYTES
from broker.web.streams import RETRY_SECONDS, SWEEP_SECONDS, Owner, Streams
from tests.support.clock import ManualClock
from tests.support.loops import on_both_loops
from tests.support.proxying import ALICE, USER, FakeSessions, ProxyUnderTest, RawCaller, request, token
from tests.support.raw_upstream import OK, RawRequest, RawUpstream, Script, Wire, answering
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("either_way")

BOB = b"b" * 43


class Events:
    """Implements ``web.streams.Subscription``."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[Event], None]] = []

    def subscribe(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def tell(self, topic: Topic, key: str = "") -> None:
        for listener in self.listeners:
            listener(Event(topic, key))


class Stream:
    def __init__(self) -> None:
        self.cuts = 0

    def cut(self) -> None:
        self.cuts += 1


def owner(sessions: FakeSessions, session_id: bytes, name: str) -> Owner:
    """Return a session's leave, as the proxy makes it."""
    live = sessions.add(session_id, name)

    async def look() -> float | None:
        return None if await sessions.load(session_id, used=False) is None else live.session.ends_at

    return Owner(live.key, live.grant_id, live.session.ends_at, look)


@dataclass
class Owned:
    """What streams need of a call."""

    owner: Owner
    endings: int = 0


def owner_of(call: Call) -> Owner | None:
    return call.owner  # type: ignore[attr-defined, no-any-return]


async def open_streams() -> tuple[Streams, Events, FakeSessions, Stream, Stream]:
    """Return streams of Alice's and Bob's, who both have live sessions."""
    sessions, events = FakeSessions(), Events()
    streams = Streams(owner_of=owner_of, clock=ManualClock(), endings=Endings(), events=events)
    both = []
    for session_id, name in ((ALICE, "alice"), (BOB, "bob")):
        both.append(Stream())
        streams.watch(both[-1], Owned(owner(sessions, session_id, name)))  # type: ignore[arg-type]
    return streams, events, sessions, both[0], both[1]


async def test_se_03_a_logout_cuts_what_the_session_has_open() -> None:
    """And nobody else's."""
    streams, events, sessions, alices, bobs = await open_streams()
    del sessions.known[ALICE]
    events.tell(Topic.SESSION_ENDED, "session:alice")
    await until(lambda: alices.cuts == 1)

    assert (0, 1) == (bobs.cuts, len(streams))
    streams.close()


async def test_a_session_that_only_changed_keeps_what_it_has_open() -> None:
    """New claims are told by the same event."""
    streams, events, _, alices, _ = await open_streams()
    events.tell(Topic.SESSION_ENDED, "session:alice")
    await asyncio.sleep(0.02)

    assert (0, 2) == (alices.cuts, len(streams))
    streams.close()


async def test_a_store_that_is_down_cuts_nothing() -> None:
    """What is known is used until the store can be asked again."""
    streams, events, sessions, alices, _ = await open_streams()
    sessions.down = True
    events.tell(Topic.RESYNC)
    await asyncio.sleep(0.02)

    assert 0 == alices.cuts
    streams.close()


async def test_se_03_after_missed_events_every_session_is_looked_up() -> None:
    """A logout that was told in between is noticed."""
    streams, events, sessions, alices, bobs = await open_streams()
    del sessions.known[ALICE]
    events.tell(Topic.RESYNC)
    await until(lambda: alices.cuts == 1)

    assert 0 == bobs.cuts
    streams.close()


async def test_se_03_after_missed_events_grants_are_looked_up() -> None:
    """The session lives on, but the grant was revoked whose token went along."""
    events = Events()
    async with RawUpstream(endless) as upstream:
        route = Route(path="/", upstream=upstream.url, token=USER)
        async with ProxyUnderTest([route], events=events) as proxy, await proxy.connect() as caller:
            await caller.send(request("/", "X-CSRF: 1", cookie=ALICE))
            await caller.head()
            assert proxy.proxy is not None
            streams = proxy.proxy.streams
            await until(lambda: len(streams) == 1)
            events.tell(Topic.RESYNC)
            await asyncio.sleep(0.05)
            assert 1 == len(streams)

            proxy.tokens.answer = LoginNeeded("revoked")
            events.tell(Topic.RESYNC)
            await until(lambda: len(streams) == 0, seconds=1)


async def test_se_03_a_revoked_grant_cuts_too() -> None:
    """Whose tokens the streams were begun with."""
    streams, events, _, alices, bobs = await open_streams()
    events.tell(Topic.GRANT_ENDED, "grant-of-alice")

    assert (1, 0) == (alices.cuts, bobs.cuts)
    streams.close()


async def test_se_05_the_absolute_end_cuts() -> None:
    """Without any event, and within a second."""
    sessions, clock = FakeSessions(), ManualClock()
    streams = Streams(owner_of=owner_of, clock=clock, endings=Endings())
    stream = Stream()
    streams.watch(stream, Owned(owner(sessions, ALICE, "alice")))  # type: ignore[arg-type]
    clock.set_wall_clock(4e9)
    await until(lambda: stream.cuts == 1, seconds=2)

    assert 0 == len(streams)
    streams.close()


async def test_what_has_ended_is_forgotten() -> None:
    """Removing twice, or what was cut, is nothing."""
    streams, events, _, alices, _ = await open_streams()
    streams.remove(alices, "session:alice")
    streams.remove(alices, "session:alice")
    events.tell(Topic.GRANT_ENDED, "grant-of-alice")

    assert (0, 1) == (alices.cuts, len(streams))
    streams.close()
    assert [] == events.listeners


# --- through the proxy


async def endless(got: RawRequest, wire: Wire) -> None:
    if got.fields(b"upgrade"):
        await wire.send(b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    else:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
    await wire.reader.read()


async def cut_of(proxy: ProxyUnderTest, events: Events, caller: RawCaller, data: bytes) -> bool:
    await caller.send(data)
    await caller.head()
    assert proxy.proxy is not None
    streams = proxy.proxy.streams
    await until(lambda: len(streams) == 1)
    del proxy.sessions.known[ALICE]
    events.tell(Topic.SESSION_ENDED, "session:alice")
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(caller.reader.read(), 1)
    return len(streams) == 0


async def test_se_03_an_event_stream_is_cut_within_a_second() -> None:
    """On the slow path and on the fast one; the upstream hears of it, too."""
    for warm in (False, True):
        events = Events()
        async with RawUpstream(endless) as upstream:
            route = Route(path="/", upstream=upstream.url, token=USER)
            async with ProxyUnderTest([route], events=events) as proxy, await proxy.connect() as caller:
                if warm:
                    upstream.script = RawUpstream().script
                    await caller.send(request("/", "X-CSRF: 1", cookie=ALICE))
                    await caller.answer()
                    upstream.script = endless
                assert await cut_of(proxy, events, caller, request("/", "X-CSRF: 1", cookie=ALICE))
            await until(lambda up=upstream: not up._tasks)  # type: ignore[misc]


async def test_br_03_a_websocket_is_cut_within_a_second() -> None:
    """The tunnel ends with the session."""
    events = Events()
    handshake = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: x")
    async with RawUpstream(endless) as upstream:
        route = Route(path="/", upstream=upstream.url, token=USER)
        async with ProxyUnderTest([route], events=events) as proxy, await proxy.connect() as caller:
            data = request("/", "Origin: https://app.example.com", *handshake, cookie=ALICE)
            assert await cut_of(proxy, events, caller, data)
        await until(lambda: not upstream._tasks)


async def test_an_answer_that_comes_whole_is_never_watched() -> None:
    """The table holds only what takes longer than one read."""
    async with RawUpstream() as upstream:
        route = Route(path="/", upstream=upstream.url, token=USER)
        async with ProxyUnderTest([route]) as proxy:
            for _ in range(3):
                await proxy.send(request("/", "X-CSRF: 1", cookie=ALICE))
            assert proxy.proxy is not None
            assert 0 == len(proxy.proxy.streams)


# --- what was begun before an end, and goes on after it


def end_alices(proxy: ProxyUnderTest, events: Events) -> None:
    """What a logout does."""
    del proxy.sessions.known[ALICE]
    proxy.tokens.known.clear()
    events.tell(Topic.GRANT_ENDED, "grant-of-alice")
    events.tell(Topic.SESSION_ENDED, "session:alice")


def ticking(status: bytes, first: bytes, go_on: asyncio.Event) -> Script:
    """An upstream whose answer begins when it may, and has no end."""

    async def script(got: RawRequest, wire: Wire) -> None:
        await go_on.wait()
        await wire.send(b"HTTP/1.1 %b\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (status, len(first), first))
        while True:
            await wire.send(b"4\r\ntick\r\n")
            await asyncio.sleep(0.05)

    return script


async def breaks_off(caller: RawCaller, seconds: float) -> bool:
    """Return whether nothing more comes after so long."""
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(seconds):
            while await caller.reader.read(1 << 16):
                pass
            return True
    return caller.reader.at_eof() or caller.reader.exception() is not None


async def test_se_03_an_answer_that_begins_after_the_end_is_cut() -> None:
    """The upstream took its time, and nothing was open when the logout was heard of."""
    events, go_on = Events(), asyncio.Event()
    async with RawUpstream(ticking(b"200 OK", b"tick", go_on)) as upstream:
        route = Route(path="/", upstream=upstream.url, token=USER)
        async with ProxyUnderTest([route], events=events) as proxy, await proxy.connect() as caller:
            await caller.send(request("/", "X-CSRF: 1", cookie=ALICE))
            await until(lambda: bool(upstream.requests))
            end_alices(proxy, events)
            await asyncio.sleep(0.1)
            go_on.set()

            assert await breaks_off(caller, 1)


async def test_se_03_a_401_that_is_too_large_to_be_held_is_cut_too() -> None:
    """It passes as it comes, as every other answer does."""
    events, go_on = Events(), asyncio.Event()
    go_on.set()
    async with RawUpstream(ticking(b"401 No", b"x" * (MAX_HELD_BYTES + 1), go_on)) as upstream:
        route = Route(path="/", upstream=upstream.url, token=USER)
        async with ProxyUnderTest([route], events=events) as proxy, await proxy.connect() as caller:
            await caller.send(request("/", "X-CSRF: 1", cookie=ALICE))
            await caller.head()
            await caller.reader.readexactly(MAX_HELD_BYTES)
            end_alices(proxy, events)

            assert await breaks_off(caller, 1)


async def test_se_03_a_small_body_that_comes_after_the_end_goes_nowhere() -> None:
    """It was waited for, so nothing was sent yet: the caller hears what it would hear now."""
    events = Events()
    async with RawUpstream() as upstream:
        route = Route(path="/", upstream=upstream.url, token=USER)
        async with ProxyUnderTest([route], events=events) as proxy, await proxy.connect() as caller:
            await caller.send(request("/", "X-CSRF: 1", "Content-Length: 10", cookie=ALICE, method="POST") + b"01234")
            await asyncio.sleep(0.1)
            end_alices(proxy, events)
            await asyncio.sleep(0.05)
            await caller.send(b"56789")

            assert 401 == (await caller.answer()).status
    assert [] == upstream.requests


async def test_a_small_body_that_comes_after_anothers_end_goes_up() -> None:
    """With the token that is there now."""
    events = Events()
    async with RawUpstream() as upstream:
        route = Route(path="/", upstream=upstream.url, token=USER)
        async with ProxyUnderTest([route], events=events) as proxy, await proxy.connect() as caller:
            await caller.send(request("/", "X-CSRF: 1", "Content-Length: 10", cookie=ALICE, method="POST") + b"01234")
            await asyncio.sleep(0.1)
            events.tell(Topic.SESSION_ENDED, "session:bob")
            proxy.tokens.known["grant-of-alice"] = [token("alices-newer-token", 2)]
            await caller.send(b"56789")

            assert 200 == (await caller.answer()).status
    (got,) = upstream.requests
    assert ([b"Bearer alices-newer-token"], b"0123456789") == (got.fields(b"authorization"), got.body)


async def test_a_call_that_goes_on_as_nobodys_has_the_upstreams_answer() -> None:
    """Where the route takes that: the 401 to a call without a token is no matter of tokens."""
    events = Events()
    async with RawUpstream(answering(b"HTTP/1.1 401 No\r\nContent-Length: 4\r\n\r\nnope")) as upstream:
        route = Route(path="/", upstream=upstream.url, token=TokenChoice(TokenKind.USER_OR_NONE))
        async with ProxyUnderTest([route], events=events) as proxy, await proxy.connect() as caller:
            await caller.send(request("/", "X-CSRF: 1", "Content-Length: 10", cookie=ALICE, method="POST") + b"01234")
            await asyncio.sleep(0.1)
            end_alices(proxy, events)
            await asyncio.sleep(0.05)
            await caller.send(b"56789")
            got = await caller.answer()

    assert (401, b"nope") == (got.status, got.body)
    assert [] == upstream.requests[0].fields(b"authorization")


async def test_se_03_an_upload_is_cut() -> None:
    """It may take days."""
    events = Events()
    async with RawUpstream() as upstream:
        route = Route(path="/", upstream=upstream.url, token=USER)
        async with ProxyUnderTest([route], events=events) as proxy, await proxy.connect() as caller:
            await caller.send(
                request("/", "X-CSRF: 1", "Content-Length: 99999", cookie=ALICE, method="POST") + b"01234"
            )
            await until(lambda: upstream.connections > 0)
            end_alices(proxy, events)

            assert await breaks_off(caller, 1)


async def test_se_03_what_waits_for_a_connection_is_judged_when_it_has_one() -> None:
    """By then its session may be over."""
    events, go_on = Events(), asyncio.Event()

    async def script(got: RawRequest, wire: Wire) -> None:
        await go_on.wait()
        await wire.send(OK)

    async with RawUpstream(script) as upstream:
        only_one = UpstreamOptions(urls=(upstream.url,), max_connections=1)
        route = Route(path="/", upstream=only_one, token=USER)
        async with (
            ProxyUnderTest([route], events=events) as proxy,
            await proxy.connect() as first,
            await proxy.connect() as second,
        ):
            await first.send(request("/first", "X-CSRF: 1", cookie=ALICE))
            await until(lambda: len(upstream.requests) == 1)
            await second.send(request("/second", "X-CSRF: 1", cookie=ALICE))
            await asyncio.sleep(0.1)
            end_alices(proxy, events)
            await asyncio.sleep(0.05)
            go_on.set()

            assert [200, 401] == [(await each.answer()).status for each in (first, second)]
    assert [b"/first"] == [each.target for each in upstream.requests]


def dying(before: Callable[[], None]) -> Script:
    """An upstream that, *before* its connection dies with the first request for /dies unanswered, lets something be."""

    async def script(got: RawRequest, wire: Wire) -> None:
        if got.target == b"/dies" and not got.connection:
            before()
            wire.reset()
        else:
            await wire.send(OK)

    return script


@pytest.mark.parametrize("scrub", [True, False])
@on_both_loops
async def test_se_03_what_a_dead_connection_swallowed_is_judged_before_it_is_sent_again(*, scrub: bool) -> None:
    """By then its session may be over: the caller hears that, and the token goes nowhere."""
    events = Events()
    async with RawUpstream(dying(lambda: end_alices(proxy, events))) as upstream:
        route = Route(path="/", upstream=upstream.url, token=USER, scrub=scrub)
        async with ProxyUnderTest([route], events=events) as proxy, await proxy.connect() as caller:
            await caller.send(request("/lives", "X-CSRF: 1", cookie=ALICE))
            assert 200 == (await caller.answer()).status
            await caller.send(request("/dies", "X-CSRF: 1", cookie=ALICE))

            assert 401 == (await caller.answer()).status
    assert [b"/lives", b"/dies"] == [each.target for each in upstream.requests]


@pytest.mark.parametrize("kind", [TokenKind.USER, TokenKind.USER_OR_NONE])
@on_both_loops
async def test_what_a_dead_connection_swallowed_is_sent_again_with_what_is_there_then(kind: TokenKind) -> None:
    """Whole, with its body, after another's end; and as nobody's after its own, where the route takes that."""
    events = Events()

    def end() -> None:
        if kind is TokenKind.USER_OR_NONE:
            end_alices(proxy, events)
        else:
            events.tell(Topic.SESSION_ENDED, "session:bob")
            proxy.tokens.known["grant-of-alice"] = [token("alices-newer-token", 2)]

    async with RawUpstream(dying(end)) as upstream:
        route = Route(path="/", upstream=upstream.url, token=TokenChoice(kind), retry_on_401=RetryOn401.NEVER)
        async with ProxyUnderTest([route], events=events) as proxy, await proxy.connect() as caller:
            await caller.send(request("/lives", "X-CSRF: 1", cookie=ALICE))
            assert 200 == (await caller.answer()).status
            await caller.send(request("/dies", "X-CSRF: 1", cookie=ALICE, method="PUT", body=b"whole"))

            assert 200 == (await caller.answer()).status
    sent = [(each.target, each.body, each.fields(b"authorization")) for each in upstream.requests]
    expected = [b"Bearer alices-newer-token"] if kind is TokenKind.USER else []
    assert (b"/dies", b"whole", expected) == sent[-1]
    assert 3 == len(sent)


async def test_what_waits_keeps_its_turn_while_others_end() -> None:
    """It is judged anew on the connection that it was given, and waits for no other."""
    events, requested = Events(), 6

    async def script(got: RawRequest, wire: Wire) -> None:
        events.tell(Topic.SESSION_ENDED, "session:bob")
        await asyncio.sleep(0.05)
        await wire.send(OK)

    async with RawUpstream(script) as upstream:
        only_one = UpstreamOptions(urls=(upstream.url,), max_connections=1)
        route = Route(path="/", upstream=only_one, token=USER)
        async with ProxyUnderTest([route], events=events) as proxy, AsyncExitStack() as stack:
            callers = [await stack.enter_async_context(await proxy.connect()) for _ in range(requested)]
            for number, caller in enumerate(callers):
                await caller.send(request(f"/{number}", "X-CSRF: 1", cookie=ALICE))
                await asyncio.sleep(0.005)
            assert [200] * requested == [(await caller.answer()).status for caller in callers]

    assert [b"/%d" % number for number in range(requested)] == [each.target for each in upstream.requests]


async def test_se_03_a_store_that_could_not_say_is_asked_again() -> None:
    """The end was heard of, and whether it is one wasn't known then."""
    streams, events, sessions, alices, bobs = await open_streams()
    sessions.down = True
    events.tell(Topic.SESSION_ENDED, "session:alice")
    await asyncio.sleep(0.1)
    del sessions.known[ALICE]
    sessions.down = False
    await until(lambda: alices.cuts == 1, seconds=RETRY_SECONDS + 2 * SWEEP_SECONDS + 1)

    assert 0 == bobs.cuts
    streams.close()


async def test_br_03_an_owner_is_looked_at_though_nothing_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session may idle away under an open stream, which is no use of it."""
    monkeypatch.setattr("broker.web.streams.LOOK_SECONDS", 0.1)
    streams, _, sessions, alices, bobs = await open_streams()
    await asyncio.sleep(2 * SWEEP_SECONDS)
    assert (0, 0) == (alices.cuts, bobs.cuts)
    del sessions.known[ALICE]
    await until(lambda: alices.cuts == 1, seconds=4 * SWEEP_SECONDS)

    assert 0 == bobs.cuts
    streams.close()


async def test_br_03_of_too_many_owners_each_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though more are due than are looked at, none is passed over for ever."""
    for name, value in (("LOOK_SECONDS", 0.0), ("SWEEP_SECONDS", 0.01), ("MAX_LOOKS", 2)):
        monkeypatch.setattr(f"broker.web.streams.{name}", value)
    looked_at: set[int] = set()
    streams = Streams(owner_of=owner_of, clock=ManualClock(), endings=Endings())

    async def look(number: int) -> float:
        looked_at.add(number)
        return math.inf

    for number in range(20):
        leave = Owner(f"session:{number}", "grant", math.inf, partial(look, number))
        streams.watch(Stream(), Owned(leave))  # type: ignore[arg-type]
    await until(lambda: len(looked_at) == 20, seconds=5)
    streams.close()

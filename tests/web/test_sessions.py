from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web

from broker.core.cookies import CookieNames
from broker.core.session import Index, SameSite, Session, SessionOptions
from broker.services.clock import SystemRandomness
from broker.services.keyring import Keyring, new_key
from broker.services.sessions import Sessions
from broker.stores.memory import MemoryBackend, MemoryStore
from broker.web.sessions import BrowserSessions
from tests.support.clock import ManualClock
from tests.support.faulty_store import FaultyStore
from tests.support.waiting import until, until_async

NAMES = CookieNames.for_public_url("https://app.example.com")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Bench:
    """An application with nothing but sessions."""

    store: FaultyStore
    sessions: Sessions
    browser_sessions: BrowserSessions
    clock: ManualClock
    cookie: str = ""
    released: list[str] = field(default_factory=list)

    def session(self, subject: str) -> Session:
        times = self.sessions.times_of_login()
        return Session(
            grant_id=f"grant-of-{subject}",
            provider="corp",
            issuer="https://idp.example.com",
            subject=subject,
            authenticated_at=times.authenticated_at,
            last_seen_at=times.authenticated_at,
            ends_at=times.ends_at,
        )

    async def call(self, handler: Handler) -> tuple[int, list[str]]:
        """Serve one request with the current cookie. Returns the status and the cookies that were set."""
        app = web.Application(middlewares=[self.browser_sessions.middleware])
        app.router.add_get("/", handler)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        headers = {"Cookie": self.cookie} if self.cookie else {}
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://127.0.0.1:{runner.addresses[0][1]}", headers=headers) as response,
        ):
            await response.read()
            lines = list(response.headers.getall("Set-Cookie", ()))
        await runner.cleanup()
        if lines:
            self.cookie = lines[-1].partition(";")[0]
        return response.status, lines

    async def release(self, replaced: Session, by: Session) -> None:
        """What a login does with the grant of the session that it replaces."""
        (stored,) = await self.sessions.find_by(Index.GRANT, replaced.grant_id)
        assert stored.session == replaced, "the grant of a session ends while the session can still be found"
        assert by.replaces == stored.key
        self.released.append(replaced.subject)

    async def log_in(self, subject: str, *, replaces: str | None = None) -> list[str]:
        async def handler(request: web.Request) -> web.StreamResponse:
            await self.browser_sessions.log_in(request, self.session(subject), replaces=replaces)
            return web.Response()

        return (await self.call(handler))[1]

    async def who(self) -> str | None:
        seen: list[str | None] = []

        async def handler(request: web.Request) -> web.StreamResponse:
            live = await self.browser_sessions.current(request)
            seen.append(None if live is None else live.session.subject)
            return web.Response()

        status, lines = await self.call(handler)
        assert (200, []) == (status, lines), "asking sets no cookie"
        return seen[0]

    async def is_nobody(self) -> bool:
        return await self.who() is None


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    clock = ManualClock()
    store = FaultyStore(MemoryStore(MemoryBackend(clock)))
    await store.start()
    randomness = SystemRandomness()
    sessions = Sessions(store, Keyring([new_key(randomness)]), SessionOptions(), clock, randomness)
    bench = Bench(store, sessions, BrowserSessions(sessions, NAMES, SameSite.STRICT), clock)
    sessions.on_replaced(bench.release)
    yield bench
    await sessions.close()


async def test_a_login_sets_one_cookie_and_the_next_request_is_known(bench: Bench) -> None:
    """The session is found by it, and asking for it changes nothing."""
    assert await bench.who() is None

    (line,) = await bench.log_in("ada")

    assert line.startswith("__Host-Http-session=")
    assert line.endswith("; Path=/; Secure; HttpOnly; SameSite=Strict")
    assert "ada" == await bench.who()


async def test_se_01_each_login_draws_a_new_id_and_destroys_the_old_record(bench: Bench) -> None:
    """Whatever cookie the browser came with (M8)."""
    bench.cookie = f"{NAMES.session}={'p' * 43}"
    await bench.log_in("ada")
    first = bench.cookie

    await bench.log_in("bob")

    assert first != bench.cookie
    assert "p" * 43 not in first
    second, bench.cookie = bench.cookie, first
    assert "ada" == await bench.who(), "nobody knows yet whether the browser was given the new one"
    bench.cookie = second
    assert "bob" == await bench.who()
    await until(lambda: bench.released == ["ada"], what="the end of what hangs on the old session")
    bench.cookie = first
    await until_async(bench.is_nobody)
    bench.cookie = second
    assert "bob" == await bench.who()


async def test_a_login_replaces_the_session_that_the_browser_could_not_show(bench: Bench) -> None:
    """With Strict, the answer to a login comes without the session cookie; the transaction names the session."""
    await bench.log_in("ada")
    session_id = bench.cookie.partition("=")[2].encode()
    live = bench.sessions.peek(session_id)
    assert live is not None
    bench.cookie = ""

    await bench.log_in("bob", replaces=live.key)
    assert "bob" == await bench.who()

    await until_async(lambda: has_ended(bench, session_id))


async def has_ended(bench: Bench, session_id: bytes) -> bool:
    return await bench.sessions.load(session_id) is None


async def test_a_logout_ends_the_session_before_too(bench: Bench) -> None:
    """Also if it comes before anything else has shown that the browser has the new cookie."""
    await bench.log_in("ada")
    before = bench.cookie.partition("=")[2].encode()
    await bench.log_in("bob")

    async def handler(request: web.Request) -> web.StreamResponse:
        await bench.browser_sessions.log_out(request)
        return web.Response()

    await bench.call(handler)

    assert await bench.sessions.load(before) is None
    assert {"ada"} == set(bench.released)


async def test_a_session_before_that_can_not_be_ended_is_ended_later(bench: Bench) -> None:
    """Whoever has logged in anew notices nothing of it."""
    await bench.log_in("ada")
    before = bench.cookie.partition("=")[2].encode()
    await bench.log_in("bob")
    bench.store.failing.add("delete")
    assert "bob" == await bench.who()
    await until(lambda: bench.store.calls.get("delete", 0) == 1)
    bench.store.failing.clear()
    bench.clock.advance(60)

    assert "bob" == await bench.who()

    await until_async(lambda: has_ended(bench, before))


async def test_a_session_is_stored_even_if_the_response_streams(bench: Bench) -> None:
    """aiohttp_session saves nothing then (M8): what must be kept is kept before there is a response."""

    async def handler(request: web.Request) -> web.StreamResponse:
        await bench.browser_sessions.log_in(request, bench.session("ada"), replaces=None)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        return response

    _, lines = await bench.call(handler)

    assert [] == lines
    assert 1 == bench.store.calls["create"]


async def test_a_logout_deletes_record_and_cookie(bench: Bench) -> None:
    """The deletion has the attributes that browsers demand; without a session the cookie goes all the same."""
    await bench.log_in("ada")
    copied = bench.cookie

    async def handler(request: web.Request) -> web.StreamResponse:
        await bench.browser_sessions.log_out(request)
        return web.Response()

    for _ in range(2):
        _, (line,) = await bench.call(handler)
        assert line.startswith("__Host-Http-session=; Max-Age=0; ")
        assert line.endswith("; Path=/; Secure; HttpOnly; SameSite=Strict")
        bench.cookie = copied
    assert await bench.who() is None


async def test_a_store_that_is_down_changes_no_cookie(bench: Bench) -> None:
    """Neither a login nor a logout that failed takes away what the browser has."""
    await bench.log_in("ada")
    bench.store.down = True

    async def log_in(request: web.Request) -> web.StreamResponse:
        await bench.browser_sessions.log_in(request, bench.session("bob"), replaces=None)
        return web.Response()

    async def log_out(request: web.Request) -> web.StreamResponse:
        await bench.browser_sessions.log_out(request)
        return web.Response()

    for handler in (log_in, log_out):
        status, lines = await bench.call(handler)
        assert (500, []) == (status, lines), "the outermost middleware would say 503"
    bench.store.down = False

    assert "ada" == await bench.who()


async def test_se_02_two_cookies_are_refused_until_a_login_replaces_them(bench: Bench) -> None:
    """Nobody is locked out by a planted cookie."""
    await bench.log_in("ada")
    bench.cookie = f"{NAMES.session}={'e' * 43}; {bench.cookie}"

    async def handler(request: web.Request) -> web.StreamResponse:
        await bench.browser_sessions.current(request)
        return web.Response()

    assert 500 == (await bench.call(handler))[0], "the outermost middleware would say 400"
    await bench.log_in("ada")

    assert "ada" == await bench.who()

"""Callers without a browser at the gate: what they show, against a cookie that comes along."""

import asyncio
import contextlib
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256

import pytest

from broker.core.callers import CallerCertificateOptions, CallerIssuerOptions, CallersOptions
from broker.core.grant import Grant, Origin
from broker.core.outcome import LoginNeeded
from broker.core.routing import Route, TokenChoice, TokenKind
from broker.services.callers import Callers
from broker.services.handles import Handles
from broker.services.keyring import Keyring, new_key
from broker.services.last_good import FAILURE_REST_SECONDS
from broker.stores.base import Event, Topic
from broker.stores.memory import MemoryBackend, MemoryStore
from broker.web.streams import SWEEP_SECONDS
from tests.support.clock import ManualClock, SeededRandomness
from tests.support.document_server import DocumentServer
from tests.support.faulty_store import FaultyStore
from tests.support.forge import ec_key, public_jwk, sign
from tests.support.grants import grant, provider_options
from tests.support.proxying import ALICE, USER, USER_OR_NONE, ProxyUnderTest, RawCaller, request, token
from tests.support.raw_upstream import RawRequest, RawUpstream, Wire, answering
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("either_way")

SKEW_SECONDS = provider_options().clock_skew_seconds


async def endless(got: RawRequest, wire: Wire) -> None:
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
    await wire.reader.read()


class Grants:
    """The one thing that callers ask of the token broker."""

    def __init__(self) -> None:
        self.held = [grant(id="batch", origin=Origin.IMPORTED)]

    async def grants(self, _provider: str, _subject: str) -> list[Grant]:
        return self.held


@dataclass(slots=True)
class Site:
    upstream: RawUpstream
    store: FaultyStore
    handles: Handles
    proxy: ProxyUnderTest
    clock: ManualClock
    issuer: DocumentServer
    grants: Grants

    @property
    def open(self) -> int:
        """How many answers the proxy watches."""
        assert self.proxy.proxy is not None
        return len(self.proxy.proxy.streams)

    async def line(self, **attributes: object) -> str:
        """Return the field by which a caller shows a new handle of the grant ``batch``."""
        credential = await self.handles.issue(self.handles.new("batch", **attributes))
        return f"Authorization: Bearer {credential.reveal()}"

    def token(self, *, seconds: float = 1000) -> str:
        """Return a signed token of Alice, whose newest grant is ``batch``."""
        claims = {"iss": self.issuer.url, "aud": "broker", "sub": "alice", "exp": self.clock.now() + seconds}
        return sign({"alg": "ES256", "kid": "ec-1"}, claims, ec_key())

    def tokens(self) -> list[bytes]:
        return [each.fields(b"authorization")[0] for each in self.upstream.requests]


@pytest.fixture
async def site(either_way: None) -> AsyncIterator[Site]:
    clock, randomness = ManualClock(), SeededRandomness()
    store = FaultyStore(MemoryStore(MemoryBackend(clock)))
    await store.start()
    handles = Handles(store, Keyring([new_key(randomness)]), clock, randomness)
    grants = Grants()
    async with RawUpstream() as upstream, DocumentServer() as issuer:
        issuer.answers["/jwks"] = (200, {"keys": [public_jwk(ec_key(), "ec-1")]})
        taken = CallerIssuerOptions(
            issuer=issuer.url, audience="broker", provider="corp", jwks_uri=f"{issuer.url}/jwks"
        )
        callers = Callers(
            CallersOptions(jwt=(taken,)),
            handles=handles,
            tokens=grants,  # type: ignore[arg-type]
            store=store,
            clock=clock,
        )
        nightly = TokenChoice(TokenKind.GRANT, "nightly")
        proxy = ProxyUnderTest(
            [
                Route(path="/", upstream=upstream.url, token=USER),
                Route(path="/open", upstream=upstream.url, token=USER_OR_NONE),
                *[
                    Route(path=f"/{provider}{path}", upstream=upstream.url, token=choice, provider=provider)
                    for provider in ("corp", "other")
                    for path, choice in {"": USER, "/open": USER_OR_NONE, "/nightly": nightly}.items()
                ],
                Route(path="/nightly", upstream=upstream.url, token=nightly),
            ],
            callers=callers,
            standing_grants={"nightly": "batch"},
            events=store,
            clock=clock,
        )
        proxy.tokens.known["batch"] = [token("batchs-token")]
        async with proxy:
            yield Site(upstream, store, handles, proxy, clock, issuer, grants)
        await callers.close()


async def test_a_handle_is_looked_up_once(site: Site) -> None:
    """Then it is known, and nothing is waited for."""
    line = await site.line()
    for _ in range(3):
        assert 200 == (await site.proxy.send(request("/", line))).status
    assert 1 == site.store.calls["get"]
    assert [b"Bearer batchs-token"] * 3 == site.tokens()


async def test_a_handle_goes_before_the_cookie(site: Site) -> None:
    """The first time, when it is looked up, and when it is known; other credentials go after it (frontends send some)."""
    line = await site.line()
    for _ in range(2):
        assert 200 == (await site.proxy.send(request("/", line, cookie=ALICE))).status
    assert 200 == (await site.proxy.send(request("/", "X-CSRF: 1", "Authorization: Bearer x", cookie=ALICE))).status

    assert [b"Bearer batchs-token"] * 2 + [b"Bearer alices-token"] == site.tokens()


@pytest.mark.parametrize("known", [False, True])
async def test_a_handle_that_may_not_be_used_here_is_refused(site: Site, known: bool) -> None:
    """Whether it is known or not, and whatever cookie comes along."""
    line = await site.line(routes=("/reports",))
    if known:
        assert 200 == (await site.proxy.send(request("/reports/1", line))).status
    got = await site.proxy.send(request("/", line, cookie=ALICE))

    assert (403, "forbidden") == (got.status, got.code)
    assert len(site.upstream.requests) == known


async def test_what_names_nobody_is_refused(site: Site) -> None:
    """A handle that nobody issued, another scheme, another credential."""
    for line in ("Bearer tbh_" + "A" * 43, "Basic YTpi", "Bearer x"):
        got = await site.proxy.send(request("/", f"Authorization: {line}"))
        assert (401, "no_session") == (got.status, got.code)
    assert [] == site.upstream.requests


@pytest.mark.parametrize("target", ["/", "/open"])
async def test_se_03_a_handle_whose_grant_has_ended_is_refused(site: Site, target: str) -> None:
    """Where nobody is needed, too, as any other credential that isn't good; and nothing goes up for it."""
    line = await site.line()
    assert 200 == (await site.proxy.send(request(target, line))).status
    site.proxy.tokens.answer = LoginNeeded("invalid_grant")
    got = await site.proxy.send(request(target, line))

    assert (401, "session_expired") == (got.status, got.code)
    assert [b"Bearer batchs-token"] == site.tokens()


async def test_a_token_by_a_key_that_can_not_be_had_yet_is_no_forgery(site: Site) -> None:
    """The issuer has a new key and can't show it: 503 until it does, and soon after that the token is taken."""

    def signed(kid: str) -> str:
        now = int(site.clock.now())
        claims = {"iss": site.issuer.url, "aud": "broker", "sub": "batch", "iat": now, "exp": now + 300}
        return f"Authorization: Bearer {sign({'alg': 'ES256', 'kid': kid}, claims, ec_key(name=kid))}"

    site.issuer.answers["/jwks"] = (200, {"keys": [public_jwk(ec_key(name="old"), "old")]})
    assert 200 == (await site.proxy.send(request("/", signed("old")))).status
    site.issuer.answers["/jwks"] = (503, b"")

    got = await site.proxy.send(request("/", signed("new")))
    assert (503, "provider_unavailable") == (got.status, got.code)

    site.issuer.answers["/jwks"] = (200, {"keys": [public_jwk(ec_key(name="new"), "new")]})
    site.clock.advance(FAILURE_REST_SECONDS)
    assert 200 == (await site.proxy.send(request("/", signed("new")))).status


@pytest.mark.parametrize("way", ["handle", "token"])
@pytest.mark.parametrize("target", ["/other", "/other/open"])
async def test_rt_09_a_route_of_another_provider_refuses_the_caller(site: Site, way: str, target: str) -> None:
    """Its upstream never sees a token of the caller's own provider: not at the first call, known, or after a 401."""
    line = await site.line() if way == "handle" else f"Authorization: Bearer {site.token()}"
    for _ in range(2):
        got = await site.proxy.send(request(target, line))
        assert (403, "forbidden") == (got.status, got.code)
        assert 200 == (await site.proxy.send(request(target.replace("other", "corp"), line))).status
    assert {b"/corp", b"/corp/open"} >= {each.target for each in site.upstream.requests}

    site.proxy.tokens.known["batch"] = [token("of-another", 2, provider="other")]
    assert 403 == (await site.proxy.send(request(target.replace("other", "corp"), line))).status


async def test_rt_09_a_newer_token_is_of_the_routes_provider_too(site: Site) -> None:
    """Whatever becomes of a grant, a call that is sent again after a 401 bears nothing else."""
    site.upstream.script = answering(b"HTTP/1.1 401 No\r\nContent-Length: 4\r\n\r\nnope")
    site.proxy.tokens.known["batch"].append(token("of-another", 2, provider="other"))

    assert 403 == (await site.proxy.send(request("/corp", await site.line()))).status
    assert [b"Bearer batchs-token"] == site.tokens()


async def test_rt_09_a_route_with_a_grant_needs_nobodys_login(site: Site) -> None:
    """The configuration says whose token goes along."""
    assert 200 == (await site.proxy.send(request("/other/nightly"))).status


# --- what they have open


async def is_cut(site: Site, caller: RawCaller) -> bool:
    """Return whether an answer breaks off within the second that is promised."""
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(caller.reader.read(), 1)
    return site.open == 0


async def listen(site: Site, caller: RawCaller, *fields: str, target: str = "/") -> None:
    """Begin an answer that has no end."""
    site.upstream.script = endless
    await caller.send(request(target, *fields))
    await caller.head()
    await until(lambda: site.open == 1)
    await caller.reader.readuntil(b"data: 1\n\n")


async def test_se_03_a_revoked_handle_cuts_what_is_open_with_it(site: Site) -> None:
    """And nothing of another handle of the same grant."""
    async with await site.proxy.connect() as one, await site.proxy.connect() as two:
        first = site.handles.new("batch")
        await listen(site, one, f"Authorization: Bearer {(await site.handles.issue(first)).reveal()}")
        await two.send(request("/", await site.line()))
        await two.head()
        await until(lambda: site.open == 2)
        await site.handles.revoke(first.id)
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(one.reader.read(), 1)
        assert 1 == site.open


async def test_se_05_what_is_open_ends_with_the_handle(site: Site) -> None:
    """At its end, and at the end that a rotation gives it."""
    ending = {"ends_at": site.clock.now() + 100}
    rotated = site.handles.new("batch")
    fields = [await site.line(**ending), f"Authorization: Bearer {(await site.handles.issue(rotated)).reveal()}"]
    for field in fields:
        async with await site.proxy.connect() as caller:
            await listen(site, caller, field)
            if field is fields[1]:
                await site.handles.rotate(rotated.id, overlap_seconds=60)
                await asyncio.sleep(0.05)
            assert 1 == site.open
            site.clock.advance(101)
            assert await is_cut(site, caller)


async def test_se_05_what_is_open_ends_with_the_token(site: Site) -> None:
    """By which a caller says who it is: when such a token is refused, and no sooner."""
    field = f"Authorization: Bearer {site.token(seconds=100)}"
    async with await site.proxy.connect() as caller:
        await listen(site, caller, field)
        assert [b"Bearer batchs-token"] == site.tokens()
        site.clock.advance(99 + SKEW_SECONDS)
        await asyncio.sleep(2 * SWEEP_SECONDS)
        assert 1 == site.open
        site.clock.advance(1)
        assert await is_cut(site, caller)
    assert 401 == (await site.proxy.send(request("/", field))).status


async def test_se_03_after_missed_events_a_token_is_checked_again(site: Site) -> None:
    """Its subject may have no grant any more."""
    field = f"Authorization: Bearer {site.token()}"
    async with await site.proxy.connect() as caller:
        await listen(site, caller, field)
        await site.store.publish(Event(Topic.RESYNC, ""))
        await asyncio.sleep(0.05)
        assert 1 == site.open
        site.grants.held.clear()
        await site.store.publish(Event(Topic.RESYNC, ""))
        assert await is_cut(site, caller)


@pytest.mark.parametrize("target", ["/", "/nightly"])
async def test_se_03_a_revoked_grant_cuts_what_callers_have_open(site: Site, target: str) -> None:
    """Those with a handle, and those who need nothing since the route has a grant."""
    async with await site.proxy.connect() as caller:
        await listen(site, caller, *([await site.line()] if target == "/" else []), target=target)
        await site.store.publish(Event(Topic.GRANT_ENDED, "batch"))
        assert await is_cut(site, caller)


@pytest.mark.parametrize("fields", [("Basic YTpi",), ("Bearer a", "Bearer b"), ("Bearer tbh_x y",), ("Bearer tbh_x",)])
async def test_what_a_route_with_a_grant_is_shown_does_not_matter(site: Site, fields: tuple[str, ...]) -> None:
    """Nobody asks for it, when the answer begins or while it goes on."""
    async with await site.proxy.connect() as caller:
        await listen(site, caller, *(f"Authorization: {field}" for field in fields), target="/nightly")
        assert [b"Bearer batchs-token"] == site.tokens()
        await site.store.publish(Event(Topic.GRANT_ENDED, "batch"))
        assert await is_cut(site, caller)


@pytest.mark.parametrize("is_alive", [True, False])
@pytest.mark.parametrize("target", ["/", "/nightly"])
async def test_se_03_after_missed_events_callers_are_looked_up(site: Site, target: str, is_alive: bool) -> None:
    """A revocation that was told in between is noticed; whoever is as before goes on."""
    handle = site.handles.new("batch")
    line = f"Authorization: Bearer {(await site.handles.issue(handle)).reveal()}"
    async with await site.proxy.connect() as caller:
        await listen(site, caller, *([line] if target == "/" else []), target=target)
        if not is_alive:
            site.proxy.tokens.answer = LoginNeeded("revoked")
            (key,) = [each.key for each in await site.handles._tagged("all")]
            await site.store._store.delete(key)
        await site.store.publish(Event(Topic.RESYNC, ""))
        if is_alive:
            await asyncio.sleep(0.1)
            assert 1 == site.open
        else:
            assert await is_cut(site, caller)


# --- by a certificate


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((), 200),
        (("Sec-Fetch-Site: none",), 200),
        (("Origin: https://app.example.com", "Sec-Fetch-Site: same-origin"), 200),
        (("Origin: https://evil.example",), 403),
        (("Origin: null",), 403),
        (("Sec-Fetch-Site: cross-site",), 403),
        (("Sec-Fetch-Site: same-site",), 403),
    ],
)
async def test_br_01_a_certificate_is_no_proof_that_its_user_wanted_this(fields: tuple[str, ...], status: int) -> None:
    """Browsers show one to whoever asks, as they send cookies. What says nothing of a page is no browser's."""
    certificate = b"a certificate in DER"
    named = {sha256(certificate).hexdigest(): CallerCertificateOptions(provider="corp", subject="alice")}
    clock, randomness = ManualClock(), SeededRandomness()
    store = MemoryStore(MemoryBackend(clock))
    await store.start()
    callers = Callers(
        CallersOptions(certificates=named),
        handles=Handles(store, Keyring([new_key(randomness)]), clock, randomness),
        tokens=Grants(),  # type: ignore[arg-type]
        store=store,
        clock=clock,
    )
    async with RawUpstream() as upstream:
        route = Route(path="/", upstream=upstream.url, token=USER)
        proxy = ProxyUnderTest([route], callers=callers, trusted=("127.0.0.1",))
        proxy.tokens.known["batch"] = [token("batchs-token")]
        async with proxy:
            shown = f"Client-Cert: :{b64encode(certificate).decode()}:"
            for _ in range(2):  # looked up, and known
                assert status == (await proxy.send(request("/", shown, *fields))).status
    assert (2 if status == 200 else 0) == len(upstream.requests)

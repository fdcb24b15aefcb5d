"""The endpoint for gateways, from raw bytes in to raw bytes out."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any, Self

import pytest
from aiohttp import web

from broker.core.forward_auth import ForwardAuthOptions, Gateway
from broker.core.forwarded import TrustedProxies
from broker.core.outcome import Cause, LoginNeeded, Token, Unavailable
from broker.core.routing import HeaderOptions, Navigation, RateLimitOptions, Route, TokenChoice, TokenKind
from broker.core.secret import AccessToken, Secret
from broker.services.clock import SystemClock, SystemRandomness
from broker.services.dpop import new_dpop_key
from broker.services.memory import Shedding
from broker.services.pool import UpstreamPools
from broker.web.connections import ProxyRunner
from broker.web.forward_auth import ForwardAuth
from broker.web.middleware import Outermost
from broker.web.proxy import Proxy
from tests.support.proxying import (
    ALICE,
    ANONYMOUS,
    PUBLIC_URL,
    SESSION_COOKIE,
    USER,
    USER_OR_NONE,
    Answer,
    FakeSessions,
    FakeTokens,
    RawCaller,
    token,
)

SECRET = "the-secret-of-the-gateway-0123456789"
UPSTREAM = "http://127.0.0.1:9"  # nobody is there: nothing may be forwarded
NAVIGATION = ("Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document", "Sec-Fetch-Site: none", "Accept: text/html")
CALL = ("X-CSRF: 1",)

ROUTES = [
    Route(path="/", upstream=UPSTREAM, token=ANONYMOUS),
    Route(path="/api", upstream=UPSTREAM, token=USER, release_token=True, headers=HeaderOptions(assign={"X-Mail": "{claims.email}"})),
    Route(path="/kept", upstream=UPSTREAM, token=USER),
    Route(path="/reads", upstream=UPSTREAM, token=USER, methods=("GET",), release_token=True),
    Route(path="/maybe", upstream=UPSTREAM, token=USER_OR_NONE, release_token=True, headers=HeaderOptions(assign={"X-Mail": "{claims.email}"})),
    Route(path="/pages", upstream=UPSTREAM, token=USER, navigation=Navigation.ALLOW, release_token=True),
    Route(path="/quiet", upstream=UPSTREAM, token=USER, websocket=False, release_token=True),
    Route(path="/service", upstream=UPSTREAM, token=TokenChoice(TokenKind.GRANT, "nightly"), release_token=True),
    Route(path="/slow", upstream=UPSTREAM, token=USER, rate_limit=RateLimitOptions(requests_per_second=0.01, burst=2)),
    Route(path="/host", host="other.example.com", upstream=UPSTREAM, token=ANONYMOUS),
]  # fmt: skip


@dataclass
class Asking:
    """A broker that a gateway asks."""

    gateway: Gateway = Gateway.NGINX
    release_token: bool = True
    client_certificates: bool = False
    networks: tuple[str, ...] = ()
    sessions: FakeSessions = field(default_factory=FakeSessions)
    tokens: FakeTokens = field(default_factory=FakeTokens)
    exits: AsyncExitStack = field(default_factory=AsyncExitStack)
    port: int = 0
    shedding: Shedding = field(default_factory=Shedding)

    async def __aenter__(self) -> Self:
        self.sessions.add(ALICE, "alice", email="alice@example.com")
        self.tokens.known["grant-of-alice"] = [token("alices-token")]
        self.tokens.known["grant-of-nightly"] = [token("nightlys-token")]
        pools = UpstreamPools(route.upstream_options for route in ROUTES)
        trusted = TrustedProxies(("127.0.0.1/32",))
        proxy = Proxy(
            routes=ROUTES,
            upstreams=pools,
            public_url=PUBLIC_URL,
            sessions=self.sessions,
            tokens=self.tokens,
            trusted_proxies=trusted,
            standing_grants={"nightly": "grant-of-nightly"},
        )
        self.shedding = proxy.gate.shedding
        outermost = Outermost(
            public_url=PUBLIC_URL,
            login_url="/bff/login",
            trusted_proxies=trusted,
            clock=SystemClock(),
            randomness=SystemRandomness(),
        )
        app = web.Application(middlewares=[outermost])
        options = ForwardAuthOptions(
            gateway=self.gateway,
            secrets=(Secret("an-older-secret-of-the-gateway-01234"), Secret(SECRET)),
            networks=tuple(ip_network(network) for network in self.networks),
            release_token=self.release_token,
            client_certificates=self.client_certificates,
        )
        ForwardAuth(
            options,
            gate=proxy.gate,
            routes=ROUTES,
            public_url=PUBLIC_URL,
            base_path="/bff",
            refuse=outermost.refuse,
        ).register(app)
        runner = ProxyRunner(app, proxy=proxy, outermost=outermost, shutdown_timeout_seconds=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        self.exits.push_async_callback(pools.close)
        self.exits.push_async_callback(proxy.close, 1.0)
        self.exits.push_async_callback(runner.cleanup)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.exits.aclose()

    async def ask(
        self,
        target: str = "/api/orders",
        *fields: str,
        method: str = "GET",
        host: str = "app.example.com",
        session: bool = True,
        secret: str | None = SECRET,
        cookies: str = "",
    ) -> Answer:
        """Ask as this kind of gateway does about a request."""
        own, asked_method, asked_host = "/bff/auth", "GET", host
        lines = list(fields)
        match self.gateway:
            case Gateway.ENVOY:
                own, asked_method = f"/bff/auth{target}", method
            case Gateway.TRAEFIK | Gateway.CADDY:
                lines += [f"X-Forwarded-Method: {method}", f"X-Forwarded-Uri: {target}", "X-Forwarded-Proto: https"]
                lines += [f"X-Forwarded-Host: {host}"]
                asked_host = "broker.internal:8080"
            case Gateway.NGINX | Gateway.HAPROXY:
                lines += [f"X-Original-Method: {method}", f"X-Original-URI: {target}"]
        if secret is not None:
            lines.append(f"X-Gateway-Secret: {secret}")
        if session:
            cookies = f"{SESSION_COOKIE.decode()}={ALICE.decode()}" + (f"; {cookies}" if cookies else "")
        if cookies:
            lines.append(f"Cookie: {cookies}")
        head = [f"{asked_method} {own} HTTP/1.1", f"Host: {asked_host}", *lines, "Connection: close"]
        return await self.send("\r\n".join(head).encode("latin-1") + b"\r\n\r\n", method=asked_method)

    async def send(self, data: bytes, *, method: str = "GET") -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        async with RawCaller(reader, writer) as caller:
            await caller.send(data)
            return await caller.answer(method=method)


@pytest.fixture(params=list(Gateway))
async def asking(request: Any) -> AsyncIterator[Asking]:
    """A broker for each kind of gateway."""
    async with Asking(request.param) as broker:
        yield broker


@pytest.fixture
async def nginx() -> AsyncIterator[Asking]:
    async with Asking(Gateway.NGINX) as broker:
        yield broker


def one(answer: Answer, name: bytes) -> str | None:
    values = answer.fields(name)
    assert len(values) <= 1, name
    return values[0].decode() if values else None


async def test_a_call_with_a_session_may_go_on_with_the_token(asking: Asking) -> None:
    """The gateway hears yes, in the status that it understands, with the token and the fields of the route."""
    answer = await asking.ask("/api/orders?x=%2F", *CALL, cookies="theme=dark")

    assert (200 if asking.gateway is Gateway.ENVOY else 202) == answer.status
    assert "Bearer alices-token" == one(answer, b"Authorization")
    assert "theme=dark" == one(answer, b"Cookie")
    assert "alice@example.com" == one(answer, b"X-Mail")
    assert "no-store" == one(answer, b"Cache-Control")
    assert b"" == answer.body


async def test_hd_05_our_cookies_stay_here(asking: Asking) -> None:
    """What the gateway sends up in place of the caller's cookies holds none of ours, and without others nothing."""
    only_ours = await asking.ask("/api", *CALL, cookies="__Host-Http-login-0a1b2c3d=x; __Host-Http-Session=y")
    anonymous = await asking.ask("/page", cookies="a=b")

    assert None is one(only_ours, b"Cookie")
    assert "a=b" == one(anonymous, b"Cookie")


async def test_envoy_is_told_what_to_remove() -> None:
    """Envoy leaves what isn't replaced, so it is told to remove it: the caller's Authorization, cookies, claims."""
    async with Asking(Gateway.ENVOY) as envoy:
        anonymous = await envoy.ask("/page", "Authorization: Bearer forged")
        user = await envoy.ask("/api", *CALL, cookies="a=b")

    assert "authorization,cookie,x-gateway-secret,x-mail" == one(anonymous, b"X-Envoy-Auth-Headers-To-Remove")
    assert "x-gateway-secret" == one(user, b"X-Envoy-Auth-Headers-To-Remove")


@pytest.mark.parametrize(
    ("target", "released"),
    [("/api", True), ("/kept", False), ("/page", False), ("/maybe", True), ("/service", True)],
)
async def test_rt_09_only_routes_that_say_so_release_their_token(
    asking: Asking, target: str, *, released: bool
) -> None:
    """A token leaves for the gateway where its route says so, and nowhere else."""
    answer = await asking.ask(target, *CALL)

    assert answer.status in {200, 202}
    assert released == bool(answer.fields(b"Authorization"))


async def test_se_03_whose_grant_has_ended_is_not_named_any_more(asking: Asking) -> None:
    """The gateway hears yes where a route takes anybody, and nothing of whom the cookie named."""
    alices = await asking.ask("/maybe", *CALL)
    asking.tokens.answer = LoginNeeded("revoked")
    nobodys = await asking.ask("/maybe", *CALL)

    assert alices.status == nobodys.status
    assert ("alice@example.com", "Bearer alices-token") == (one(alices, b"X-Mail"), one(alices, b"Authorization"))
    assert (None, None) == (one(nobodys, b"X-Mail"), one(nobodys, b"Authorization"))


@pytest.mark.parametrize(("target", "status"), [("/api", 500), ("/kept", 202)])
async def test_a_bound_token_is_not_released(target: str, status: int) -> None:
    """A proof for the gateway's request can't be made here (RFC 9449): where the token is to go along, that is told."""
    async with Asking() as broker:
        key = new_dpop_key()
        broker.tokens.known["grant-of-alice"] = [Token(AccessToken("at"), "DPoP", 1, 4e9, "corp", key)]
        answer = await broker.ask(target, *CALL)

    assert (status, []) == (answer.status, answer.fields(b"authorization"))


async def test_without_the_main_switch_nothing_is_released() -> None:
    """release_token at the top is needed as well as the route's."""
    async with Asking(release_token=False) as broker:
        answer = await broker.ask("/api", *CALL)

    assert 202 == answer.status
    assert [] == answer.fields(b"Authorization")
    assert b"alices-token" not in answer.head


@pytest.mark.parametrize("secret", [None, "", "x" * 36, SECRET[:-1], SECRET + "x", SECRET.upper()])
@pytest.mark.parametrize("session", [True, False])
async def test_rt_03_who_shows_no_secret_learns_nothing(asking: Asking, secret: str | None, *, session: bool) -> None:
    """Without the gateway's secret the answer is 403, the same with and without a session, and without a token."""
    answer = await asking.ask("/api", *CALL, secret=secret, session=session)

    assert (403, "forbidden") == (answer.status, answer.code)
    assert b"alices-token" not in answer.head + answer.body
    assert [] == answer.fields(b"X-Login-URL")


async def test_two_secrets_are_none(nginx: Asking) -> None:
    """A caller's own secret beside the gateway's is refused, since one of them isn't the gateway's."""
    answer = await nginx.ask("/api", *CALL, f"X-Gateway-Secret: {SECRET}")
    assert 403 == answer.status


async def test_a_gateway_of_another_network_is_none() -> None:
    """With networks configured, the secret alone isn't enough."""
    async with Asking(networks=("10.0.0.0/8",)) as other, Asking(networks=("127.0.0.0/8",)) as own:
        assert 403 == (await other.ask("/api", *CALL)).status
        assert 202 == (await own.ask("/api", *CALL)).status


async def test_an_older_secret_is_taken_while_it_is_configured(nginx: Asking) -> None:
    """Two secrets make a rotation without an outage."""
    assert 202 == (await nginx.ask("/api", *CALL, secret="an-older-secret-of-the-gateway-01234")).status


# --- refusals


async def test_a_call_without_a_session_needs_a_login(asking: Asking) -> None:
    """A script's call is answered 401 with the problem, which says where the login is; it isn't redirected."""
    answer = await asking.ask("/api", *CALL, session=False)

    assert (401, "no_session") == (answer.status, answer.code)
    assert "no_session" == one(answer, b"X-Problem")
    assert "/bff/login" == json.loads(answer.body)["login_url"]
    assert [] == answer.fields(b"Location") + answer.fields(b"X-Login-URL")


async def test_a_navigation_without_a_session_is_led_to_the_login(asking: Asking) -> None:
    """A user is redirected by the absolute URL of the login, and back to the page afterwards; nginx reads it from a field."""
    answer = await asking.ask("/pages/a?b=c", *NAVIGATION, session=False)
    url = "https://app.example.com/bff/login?returnUrl=/pages/a%3Fb%3Dc"

    assert url == one(answer, b"X-Login-URL")
    if asking.gateway is Gateway.NGINX:
        assert 401 == answer.status
        assert [] == answer.fields(b"Location")
    else:
        assert 303 == answer.status
        assert url == one(answer, b"Location")


async def test_or_01_the_login_never_leads_elsewhere(asking: Asking) -> None:
    """Whatever the original target is, the way back is a path of this site or left out."""
    for target in ("//evil.test/x", "/\\evil.test", "https://evil.test/", "/pages/%0d%0aX:y", "/bff/logout"):
        answer = await asking.ask(target, *NAVIGATION, session=False)
        assert b"evil" not in answer.head
        assert answer.status >= 400


@pytest.mark.parametrize(
    ("fields", "method", "allowed"),
    [
        (("X-CSRF: 1",), "POST", True),
        (("X-CSRF: 1", "Origin: https://app.example.com"), "POST", True),
        ((), "GET", False),
        ((), "POST", False),
        (("X-CSRF: 0",), "POST", False),
        (("X-CSRF: 1", "Origin: https://evil.test"), "GET", False),
        (("X-CSRF: 1", "Origin: null"), "GET", False),
        (("X-CSRF: 1", "Sec-Fetch-Site: cross-site"), "GET", False),
        (NAVIGATION, "GET", False),
    ],
)
async def test_br_01_csrf_is_judged_as_it_is_by_the_proxy(
    asking: Asking, fields: tuple[str, ...], method: str, *, allowed: bool
) -> None:
    """The same rules on the original's method and fields; 403 without proof that our own frontend made the call."""
    answer = await asking.ask("/api", *fields, method=method)

    assert allowed == (answer.status in {200, 202})
    if not allowed:
        assert (403, "csrf_failed") == (answer.status, one(answer, b"X-Problem"))
        assert [] == answer.fields(b"Authorization")


@pytest.mark.parametrize(
    ("origin", "target", "allowed"),
    [
        ("https://app.example.com", "/api/socket", True),
        ("https://evil.test", "/api/socket", False),
        (None, "/api/socket", False),
        ("https://app.example.com", "/quiet/socket", False),
    ],
)
async def test_br_03_a_websocket_is_judged_by_its_origin(
    asking: Asking, origin: str | None, target: str, *, allowed: bool
) -> None:
    """Though gateways keep Upgrade to themselves, a handshake is told by its key; a route without them takes none."""
    fields = ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"]
    answer = await asking.ask(target, *fields, *([f"Origin: {origin}"] if origin else []))
    assert allowed == (answer.status in {200, 202})


@pytest.mark.parametrize(
    ("target", "method", "host", "status"),
    [
        ("/reads", "POST", "app.example.com", 405),
        ("/api", "TRACE", "app.example.com", 405),
        ("/api", "get", "app.example.com", 400),
        ("/api", "GET", "evil.test", 421),
        ("/api", "GET", "app.example.com:8443", 421),
        ("/bff/user", "GET", "app.example.com", 404),
        ("/api/%2e%2e/page", "GET", "app.example.com", 400),
        ("/api/../page", "GET", "app.example.com", 400),
        ("/page//x", "GET", "app.example.com", 400),
        ("/page/..%2fapi", "GET", "app.example.com", 400),
        ("/pa%67e/..;/api", "GET", "app.example.com", 400),
        ("/%61pi/x", "GET", "app.example.com", 400),
        ("/API/x", "GET", "app.example.com", 400),
        ("/page\\..\\api", "GET", "app.example.com", 400),
        ("/page%00", "GET", "app.example.com", 400),
    ],
)
async def test_rt_01_what_can_be_read_in_two_ways_is_refused(
    asking: Asking, target: str, method: str, host: str, status: int
) -> None:
    """The proxy's own judgement of path, method and host; to nginx each refusal is a 403, since it knows no other."""
    answer = await asking.ask(target, *CALL, method=method, host=host)

    assert answer.status == (403 if asking.gateway is Gateway.NGINX else status)
    assert [] == answer.fields(b"Authorization")


async def test_an_unknown_path_is_no_open_door() -> None:
    """Where no route matches, the gateway hears no."""
    routes, ROUTES[:] = ROUTES[:], ROUTES[1:]
    try:
        async with Asking(Gateway.CADDY) as broker:
            assert 404 == (await broker.ask("/unknown")).status
    finally:
        ROUTES[:] = routes


@pytest.mark.parametrize(
    "spoofed",
    ["X-Forwarded-Uri: /page", "X-Original-URI: /page", "X-Forwarded-Method: OPTIONS", "X-Original-URL: /page"],
)
async def test_rt_03_a_callers_word_for_the_gateways_is_refused(asking: Asking, spoofed: str) -> None:
    """Whatever a caller adds to steer the judgement makes it a refusal."""
    answer = await asking.ask("/api", spoofed, session=False)
    assert answer.status in {400, 403}


@pytest.mark.parametrize("spoofed", ["X-Mail: root@example.com", "X_Mail: root@example.com", "X-User: root"])
@pytest.mark.parametrize("target", ["/api", "/page"])
async def test_hd_02_a_callers_claims_are_refused(asking: Asking, spoofed: str, target: str) -> None:
    """What the gateway would hand on as the broker's word never comes from the caller."""
    assert (await asking.ask(target, *CALL, spoofed)).status in {400, 403}


@pytest.mark.parametrize("spoofed", ["Client-Cert: :AAAA:", "client_cert: :AAAA:", "Client-Cert-Chain: :AAAA:"])
async def test_hd_04_a_client_certificate_is_the_gateways_word(spoofed: str) -> None:
    """Unless the gateway is configured to say it, a request that says it is refused; in no other spelling ever."""
    async with Asking() as silent, Asking(client_certificates=True) as speaking:
        assert 403 == (await silent.ask("/page", spoofed)).status
        assert (403 if "_" in spoofed else 202) == (await speaking.ask("/page", spoofed)).status


async def test_ds_04_a_routes_rate_is_kept(nginx: Asking) -> None:
    """Questions about a route are counted as its requests are."""
    answers = [await nginx.ask("/slow", *CALL) for _ in range(3)]

    assert [202, 202, 403] == [answer.status for answer in answers]
    assert "too_many_requests" == one(answers[2], b"X-Problem")


@pytest.mark.parametrize(
    ("result", "status", "code"),
    [
        (LoginNeeded("invalid_grant"), 401, "session_expired"),
        (Unavailable(Cause.PROVIDER, 3), 503, "provider_unavailable"),
        (Unavailable(Cause.STORE, 3), 503, "store_unavailable"),
    ],
)
async def test_rt_04_no_token_is_no_yes(asking: Asking, result: Any, status: int, code: str) -> None:
    """A grant that ended needs a login; a fault is a fault, and lets nobody through."""
    asking.tokens.answer = result
    answer = await asking.ask("/api", *CALL)

    assert (status, code) == (answer.status, one(answer, b"X-Problem"))


async def test_rt_04_a_store_that_is_down_is_no_yes(asking: Asking) -> None:
    """A session that can't be looked up is a 503, and no cookie is touched."""
    asking.sessions.cached, asking.sessions.down = False, True
    answer = await asking.ask("/api", *CALL)

    assert (503, "store_unavailable") == (answer.status, one(answer, b"X-Problem"))
    assert [] == answer.fields(b"Set-Cookie")


async def test_ft_22_an_overload_is_no_yes(asking: Asking, caplog: pytest.LogCaptureFixture) -> None:
    """Near the limit of memory gateways are told to come back, and a line for each is no warning."""
    caplog.set_level(logging.INFO, "broker.web.middleware")
    asking.shedding.requests = True
    answer = await asking.ask("/api", *CALL)

    assert (503, "overloaded", "5") == (answer.status, one(answer, b"X-Problem"), one(answer, b"Retry-After"))
    assert [] == answer.fields(b"Authorization")
    assert [("request_refused", logging.INFO)] == [(each.getMessage(), each.levelno) for each in caplog.records]


async def test_a_cookie_that_no_field_can_hold_is_refused(nginx: Asking) -> None:
    """Cookies that aren't text aren't copied half."""
    assert 403 == (await nginx.ask("/page", session=False, cookies="a=\xff\xfe")).status


# --- the endpoint's own target


@pytest.mark.parametrize(
    "target",
    [
        "/bff/auth/../api", "/bff/auth/../../page", "/bff//auth", "/bff/auth/..%2f..%2fpage", "/bff/%61uth",
        "/bff/auth%2f", "/bff/auth/%2e%2e/%2e%2e/page", "//bff/auth/page", "/BFF/auth/page",
    ],
)  # fmt: skip
async def test_rt_01_no_spelling_of_the_endpoint_gets_a_yes(target: str) -> None:
    """A gateway's question that isn't plainly below the endpoint isn't answered 2xx by anything."""
    for gateway in (Gateway.ENVOY, Gateway.NGINX):
        async with Asking(gateway) as broker:
            lines = [f"GET {target} HTTP/1.1", "Host: app.example.com", f"X-Gateway-Secret: {SECRET}", "X-CSRF: 1"]
            lines.append(f"Cookie: {SESSION_COOKIE.decode()}={ALICE.decode()}")
            answer = await broker.send("\r\n".join([*lines, "Connection: close"]).encode() + b"\r\n\r\n")
            assert answer.status >= 400, (gateway, answer)


async def test_only_envoy_asks_below_the_endpoint(nginx: Asking) -> None:
    """To other gateways there is nothing below it."""
    answer = await nginx.send(
        f"GET /bff/auth/page HTTP/1.1\r\nHost: app.example.com\r\nX-Gateway-Secret: {SECRET}\r\n\r\n".encode()
    )
    assert 404 == answer.status


async def test_lk_04_a_refusal_is_logged_as_the_originals(nginx: Asking, caplog: pytest.LogCaptureFixture) -> None:
    """The log names the original's method, path without its query, and the caller behind the gateway."""
    caplog.set_level(logging.INFO, "broker.web.middleware")
    await nginx.ask("/api/orders?code=secret", *CALL, "X-Forwarded-For: 192.0.2.7", method="DELETE", session=False)
    (record,) = [each for each in caplog.records if each.getMessage() == "request_refused"]

    assert ("DELETE", "/api/orders", "192.0.2.7") == (
        record.__dict__["method"], record.__dict__["path"], record.__dict__["client"],
    )  # fmt: skip
    assert not re.search(SECRET, str(record.__dict__))

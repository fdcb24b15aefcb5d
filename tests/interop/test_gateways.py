"""
Real gateways that ask the broker, with the very files of examples/: nginx, HAProxy and Caddy.

The application takes only requests with a live token, except below /public. What it received is what counts.
"""

import asyncio
import io
import json
import re
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.support.broker_process import Answer, navigation
from tests.support.gateway_process import GatewayBrowser, GatewayProcess, gateway_port
from tests.support.path_readers import READERS, route_of
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.upstream import Introspection, Received, Upstream
from tests.support.waiting import until_async

pytestmark = [pytest.mark.interop, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(90)]

ASKING = ("nginx", "haproxy", "caddy")
MORE = [{"path": "/socket", "token": "user", "release_token": True}]
"""Routes beside those of the examples."""

CORPUS = tomllib.loads((Path(__file__).parents[1] / "corpus/paths.toml").read_text())["case"]
ROUTES = ["/", "/api", "/pages", "/socket", "/bff"]
"""What the examples serve, /bff by the broker itself."""


class Site:
    """A gateway with its broker, its authorization server and the application behind it."""

    def __init__(self, gateway: GatewayProcess, provider: RemoteLedgerServer, app: Upstream) -> None:
        self.gateway = gateway
        self.provider = provider
        self.app = app

    def last(self) -> Received:
        return self.app.received[-1]


async def site_of(kind: str, directory: Path) -> AsyncIterator[Site]:
    port = gateway_port()
    callback = f"https://localhost:{port}/bff/callback/corp"
    async with (
        RemoteLedgerServer(redirect_uris=[callback]) as provider,
        Introspection(provider.url) as check,
        Upstream(check=check) as app,
        GatewayProcess(kind, directory, provider=provider.url, port=port, app=app.url, more_routes=MORE) as gateway,
    ):
        yield Site(gateway, provider, app)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=ASKING)
async def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async for each in site_of(request.param, tmp_path_factory.mktemp(request.param)):
        yield each


@pytest.fixture
def site(running: Site) -> Site:
    """One installation serves many tests, each with users of its own."""
    running.app.received.clear()
    return running


async def raw(
    site: Site, browser: GatewayBrowser | None, target: str, *fields: str, method: str = "GET"
) -> tuple[int, bytes]:
    """Send a request whose target no client library tidies up. Returns the status, 0 for none, and what came."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {site.gateway.url.removeprefix('https://')}", *fields]
    if browser is not None:
        lines.append("Cookie: " + "; ".join(f"{name}={value}" for name, value in browser.cookies().items()))
    answer = await site.gateway.send("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1"))
    status = re.match(rb"HTTP/1.1 (\d{3}) ", answer)
    return int(status[1]) if status else 0, answer


async def test_a_user_logs_in_calls_and_logs_out(site: Site) -> None:
    """The whole way through the gateway: login, calls with a token that the browser never sees, logout."""
    async with site.gateway.browser() as browser:
        before = await browser.get("/api/items")
        await browser.log_in()
        browser.http.cookie_jar.update_cookies({"theme": "dark"}, response_url=browser_url(site))
        call = await browser.get("/api/items?a=%2f")
        user = await browser.get("/bff/user")
        cookies = browser.cookies()
        logout = await browser.request("POST", "/bff/logout")
        after = await browser.get("/api/items")
    replayed, _ = await raw(site, None, "/api/items", "X-CSRF: 1", *(f"Cookie: {k}={v}" for k, v in cookies.items()))
    received = site.last()

    assert (401, "no_session") == (before.status, before.json()["code"])
    assert "/bff/login" == before.json()["login_url"]
    assert 200 == call.status
    assert "alice" == user.json()["claims"]["sub"]
    assert 1 == len(site.app.received)
    assert b"/api/items?a=%2f" == received.target
    assert ["alice"] == received.header("x-user")
    assert ["theme=dark"] == received.header("cookie")
    assert [] == received.header("x-gateway-secret")
    (authorization,) = received.header("authorization")
    assert authorization.startswith("Bearer ")
    assert authorization.split()[1] not in call.body.decode() + json.dumps(call.headers)
    assert 200 <= logout.status < 400
    assert (401, 401) == (after.status, replayed)


def browser_url(site: Site) -> Any:
    from yarl import URL

    return URL(site.gateway.url)


async def test_a_navigation_is_led_to_the_login_and_back(site: Site) -> None:
    """Whoever opens a page without a session ends on that page, logged in."""
    async with site.gateway.browser() as browser:
        async with browser.http.get(f"{site.gateway.url}/pages/a?b=c", headers=navigation()) as response:
            page, first = await response.text(), response.history[0].headers["Location"]
        again = await browser.request("GET", "/pages/a?b=c", headers=navigation())

    assert f"{site.gateway.url}/bff/login?returnUrl=/pages/a%3Fb%3Dc" == first
    assert "/pages/a?b=c" in page
    assert 200 == again.status
    assert ["alice"] == site.last().header("x-user")


async def test_tokens_are_renewed_on_the_way(site: Site) -> None:
    """No call fails while two-second tokens come and go, each refresh token is presented once, one login is enough."""
    ledger = await site.provider.ledger()
    logins, before = ledger.count("authorization_code"), ledger.count("refresh_token")
    await site.provider.configure(access_token_seconds=2)
    async with site.gateway.browser() as browser:
        await browser.log_in()
        answers: list[Answer] = []
        end = asyncio.get_running_loop().time() + 5

        async def has_lived_on() -> bool:
            answers.extend(await asyncio.gather(*(browser.get("/api/x") for _ in range(4))))
            if asyncio.get_running_loop().time() < end:
                return False
            return (await site.provider.ledger()).count("refresh_token") >= before + 2

        await until_async(has_lived_on, seconds=30, what="the third token")
    await site.provider.configure(access_token_seconds=300)
    ledger = await site.provider.ledger()

    assert {200} == {answer.status for answer in answers}
    assert logins + 1 == ledger.count("authorization_code")
    assert {} == ledger.presented_twice()


@pytest.mark.parametrize(
    ("method", "path", "fields", "status"),
    [
        ("POST", "/api/x", {"X-CSRF": "1"}, 200),
        ("POST", "/api/x", {}, 403),
        ("GET", "/api/x", {}, 403),
        ("DELETE", "/api/x", {"X-CSRF": "1", "Origin": "https://evil.test"}, 403),
        ("GET", "/api/x", {"X-CSRF": "1", "Sec-Fetch-Site": "cross-site"}, 403),
        ("POST", "/pages/x", {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 403),
    ],
)
async def test_br_01_csrf_is_judged_on_the_original(
    site: Site, method: str, path: str, fields: dict[str, str], status: int
) -> None:
    """A cookie alone moves nothing: the original's method and fields are what is judged."""
    async with site.gateway.browser() as browser:
        await browser.log_in()
        async with browser.http.request(method, site.gateway.url + path, headers=fields) as response:
            got = response.status

    assert status == got
    assert (status == 200) == bool(site.app.received)


async def test_a_large_body_streams_through(site: Site) -> None:
    """The gateway's question has no body, and the request's own arrives whole."""
    body = b"0123456789abcdef" * (5 * 2**16)
    async with site.gateway.browser() as browser:
        await browser.log_in()
        answer = await browser.request("POST", "/api/upload", data=io.BytesIO(body))

    assert 200 == answer.status
    assert body == site.last().body


async def test_a_websocket_is_judged_by_its_origin(site: Site) -> None:
    """Our own page's WebSocket opens through the gateway with the user's token, and a foreign page's does not."""
    async with site.gateway.browser() as browser:
        await browser.log_in()
        async with browser.http.ws_connect(f"{site.gateway.url}/socket", origin=site.gateway.url) as _:
            pass
        with pytest.raises(aiohttp.WSServerHandshakeError) as foreign:
            await browser.http.ws_connect(f"{site.gateway.url}/socket", origin="https://evil.test")

    assert 403 == foreign.value.status
    assert 1 == len(site.app.received)


# --- what a caller may try


@pytest.mark.parametrize(
    "spoofed",
    [
        "X-Original-URI: /public/x",
        "X-Original-Method: OPTIONS",
        "X-Forwarded-Uri: /public/x",
        "X-Forwarded-Method: OPTIONS",
        "X-Forwarded-Host: other.test",
        "X-Forwarded-Proto: http",
        "X-Original-URL: /public/x",
        "X-Rewrite-URL: /public/x",
        "X-HTTP-Method-Override: OPTIONS",
        "X-Gateway-Secret: guess",
        "X_Original_URI: /public/x",
        "Connection: close, X-Original-URI, X-Forwarded-Uri, X-Gateway-Secret, Cookie, X-Forwarded-Proto",
        "Content-Length: 0",
        "Authorization: Bearer forged",
        "X-User: alice",
    ],
)
async def test_rt_03_no_field_is_a_way_in(site: Site, spoofed: str) -> None:
    """Without a session nothing that a caller adds makes the gateway let a call through."""
    status, _ = await raw(site, None, "/api/x", spoofed, "X-CSRF: 1")

    assert 400 <= status < 500
    assert [] == site.app.received


@pytest.mark.parametrize(
    "spoofed",
    ["X-User: root", "x-user: root", "X_User: root", "X-Auth-Request-User: root", "Authorization: Bearer forged"],
)
@pytest.mark.parametrize("path", ["/public/x", "/api/x"])
async def test_hd_01_and_hd_02_no_claim_of_a_caller_arrives(site: Site, spoofed: str, path: str) -> None:
    """On public paths and with a session: the application sees the broker's word, or none."""
    async with site.gateway.browser() as browser:
        await browser.log_in()
        await raw(site, browser, path, spoofed, "X-CSRF: 1")

    for received in site.app.received:
        named = [value for name, value in received.headers if b"user" in name.lower().replace(b"_", b"-")]
        assert [value for value in named if value == b"root"] == []
        assert "Bearer forged" not in received.header("authorization")
        assert len(received.header("authorization")) == (1 if path == "/api/x" else 0)
        assert len(received.header("x-user")) == (1 if path == "/api/x" else 0)
        assert [] == received.header("cookie")


async def test_an_empty_field_is_no_field(site: Site) -> None:
    """A public page's request arrives without Authorization, Cookie and X-User, not with empty ones."""
    await raw(site, None, "/public/x")

    names = {name.lower() for name, _ in site.last().headers}
    assert set() == names & {b"authorization", b"cookie", b"x-user", b"x-gateway-secret"}


def decided(received: Received) -> str:
    """The route by which a request was let through, as its fields show."""
    return "user" if received.header("authorization") else "anonymous"


@pytest.mark.parametrize("with_session", [True, False])
async def test_rt_01_gateway_broker_and_application_read_one_path(site: Site, *, with_session: bool) -> None:
    """
    Every target of [PC], and each of them below /bff, through the gateway: what arrives is by every reader below the
    route whose rules let it through, and without a session nothing arrives that any reader takes for a user's path.
    """
    targets = [case["target"] for case in CORPUS]
    targets += [f"/bff{target}" for target in targets if target.startswith("/")]
    targets += [f"/public{target}" for target in targets if target.startswith("/")]
    async with site.gateway.browser() as browser:
        await browser.log_in()
        site.app.received.clear()
        sender = browser if with_session else None
        for target in targets:
            await raw(site, sender, target, "X-CSRF: 1")

    assert site.app.received, "nothing passed, so nothing was tried"
    for received in site.app.received:
        path = received.target.partition(b"?")[0]
        routes = {route_of(reader(path), ROUTES) for reader in READERS}
        expected = {"anonymous"} if routes == {"/"} else {"user"}
        assert 1 == len(routes), (path, routes)
        assert expected == {decided(received)}, path
        assert with_session or routes == {"/"}, path


@pytest.mark.parametrize("path", ["/bff/auth", "/bff/auth/", "/bff/auth/api", "/bff/%61uth", "/bff//auth", "/BFF/auth"])
async def test_ad_01_callers_cant_ask_the_endpoint(site: Site, path: str) -> None:
    """Even with the right secret, which no caller has, the gateway doesn't hand the question on."""
    from tests.support.gateway_process import SECRET

    async with site.gateway.browser() as browser:
        await browser.log_in()
        status, answer = await raw(
            site, browser, path, f"X-Gateway-Secret: {SECRET}", "X-Original-Method: GET", "X-Original-URI: /api/x",
            "X-Forwarded-Method: GET", "X-Forwarded-Uri: /api/x", "X-CSRF: 1",
        )  # fmt: skip

    assert 400 <= status < 500
    assert b"Bearer" not in answer
    assert [] == site.app.received


@pytest.mark.parametrize("kind", ASKING)
async def test_rt_04_without_a_broker_nobody_gets_through(kind: str, tmp_path: Path) -> None:
    """A broker that is down is 502 or 503 to everybody, and the application sees nothing."""
    async for site in site_of(kind, tmp_path):
        async with site.gateway.browser() as browser:
            await browser.log_in()
            await site.gateway.broker.stop()
            statuses = [(await browser.get(path)).status for path in ("/api/x", "/public/x", "/pages/x")]

        assert {502, 503} >= set(statuses)
        assert [] == site.app.received


# --- the broker forwards


async def test_in_front_a_user_logs_in_calls_and_logs_out(tmp_path: Path) -> None:
    """The same whole way where nginx only ends TLS and the broker forwards."""
    async for site in site_of("nginx-in-front", tmp_path):
        async with site.gateway.browser() as browser:
            await browser.log_in()
            call = await browser.get("/api/items?a=%2f")
            logout = await browser.request("POST", "/bff/logout")
            after = await browser.get("/api/items")
        received = site.last()

        assert (200, 401) == (call.status, after.status)
        assert 200 <= logout.status < 400
        assert b"/api/items?a=%2f" == received.target
        assert ["127.0.0.1, 127.0.0.1"] == received.header("x-forwarded-for")

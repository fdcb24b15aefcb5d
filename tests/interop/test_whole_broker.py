"""
The main job against npm oidc-provider, a certified server: rotation with reuse detection, tokens that live for 5 s.

What is real: the server, the broker in two processes, Redis, and an API that asks the server about each token.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.interop.form_browser import FormBrowser
from tests.interop.installation import calls_at_once, calls_for, log_in, problem, until_answered
from tests.interop.introspection import Introspection
from tests.interop.oidc_provider import OidcProvider
from tests.support.broker_process import BrokerProcess
from tests.support.certificates import Authority
from tests.support.forge import ec_key, pem, public_jwk
from tests.support.redis_server import RedisServer
from tests.support.upstream import Upstream
from tests.support.waiting import until

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]

LIFE_SECONDS = 5
CLIENT_ID = "the broker: +/%&="
SECRET = "a client secret: +/%&= of many characters"  # which Basic must encode, and HS256 takes
API_ID, API_SECRET = "resource-server", "a secret of the API"
FORMS: tuple[Mapping[str, str], ...] = ({"login": "alice", "password": "any"}, {})
"""What the user fills in: the login page, and the consent."""
METHODS = (
    "none",
    "client_secret_basic",
    "client_secret_post",
    "client_secret_jwt",
    "private_key_jwt",
    "tls_client_auth",
)


class Whole:
    """A running installation, and its user's browser."""

    def __init__(self, provider: OidcProvider, broker: BrokerProcess, browser: FormBrowser) -> None:
        self.provider = provider
        self.broker = broker
        self.browser = browser

    def refreshes(self) -> int:
        """Return how many refreshes the server has granted."""
        return self.provider.count(event="grant", type="refresh_token")

    def refusals(self) -> list[dict[str, Any]]:
        """Return what the server refused or revoked."""
        return [event for event in self.provider.events if event["event"] in {"refused", "revoked", "fault"}]


@asynccontextmanager
async def installed(directory: Path, redis: RedisServer, method: str) -> AsyncIterator[Whole]:
    """Run everything, with a client that authenticates itself by *method*."""
    broker = BrokerProcess(directory, workers=2, store={"url": f"redis://127.0.0.1:{redis.port}/0"})
    tls = Tls(directory) if method == "tls_client_auth" else None
    trust: ssl.SSLContext | bool = True if tls is None else tls.trust
    async with AsyncExitStack() as stack:
        served = {} if tls is None else {"tls": tls.of_server}
        clients = [registered(method, broker.url), api()]
        provider = await stack.enter_async_context(OidcProvider(clients, access_token_seconds=LIFE_SECONDS, **served))
        check = await stack.enter_async_context(
            Introspection(
                f"{provider.url}/token/introspection", client_id=API_ID, client_secret=API_SECRET, trust=trust
            )
        )
        upstream = await stack.enter_async_context(Upstream(check=check))
        broker.settings |= {
            "providers": {"corp": configured(method, provider.url, tls)},
            "routes": [{"path": "/api", "upstream": upstream.url, "token": "user"}],
        }
        await stack.enter_async_context(broker)
        yield Whole(provider, broker, await stack.enter_async_context(FormBrowser(broker.url, trust=trust)))


class Tls:
    """The server's certificate and the client's."""

    def __init__(self, directory: Path) -> None:
        authority = Authority(directory)
        server, client = authority.issue("server"), authority.issue("client")
        self.trust = ssl.create_default_context(cafile=authority.ca_file)
        self.of_server = {"certificate": server.certificate_file, "key": server.key_file, "ca": authority.ca_file}
        self.of_client = {
            "ca_file": authority.ca_file,
            "certificate_file": client.certificate_file,
            "key_file": client.key_file,
        }


def registered(method: str, broker_url: str) -> dict[str, Any]:
    """Return the broker as the server knows it (RFC 7591)."""
    more: dict[str, dict[str, Any]] = {
        "none": {},
        "client_secret_jwt": {"client_secret": SECRET, "token_endpoint_auth_signing_alg": "HS256"},
        "private_key_jwt": {
            "jwks": {"keys": [public_jwk(ec_key(), "k-1")]},
            "token_endpoint_auth_signing_alg": "ES256",
        },
        "tls_client_auth": {"tls_client_auth_subject_dn": "CN=client"},
    }
    return {
        "client_id": CLIENT_ID,
        "token_endpoint_auth_method": method,
        "redirect_uris": [f"{broker_url}/bff/callback/corp"],
        "post_logout_redirect_uris": [f"{broker_url}/"],
        "backchannel_logout_uri": f"{broker_url}/bff/backchannel-logout/corp",
        "backchannel_logout_session_required": True,
        "grant_types": ["authorization_code", "refresh_token"],
        "scope": "openid offline_access",
        **more.get(method, {"client_secret": SECRET}),
    }


def api() -> dict[str, Any]:
    """Return the API as the server knows it: it only asks about tokens."""
    return {
        "client_id": API_ID,
        "client_secret": API_SECRET,
        "token_endpoint_auth_method": "client_secret_post",
        "redirect_uris": [],
        "response_types": [],
        "grant_types": [],
    }


def configured(method: str, issuer: str, tls: Tls | None) -> dict[str, Any]:
    """Return the server as the broker knows it."""
    match method:
        case "none":
            credentials: dict[str, Any] = {}
        case "private_key_jwt":
            credentials = {"client_assertion": {"private_key": {"value": pem(ec_key())}, "key_id": "k-1"}}
        case "tls_client_auth":
            assert tls is not None
            credentials = {"tls": tls.of_client}
        case _:
            credentials = {"client_secret": {"value": SECRET}}
    return {
        "preset": "generic-oidc",
        "issuer": issuer,
        "client_id": CLIENT_ID,
        "token_endpoint_auth_method": method,
        "scope": "openid offline_access",
        **credentials,
    }


@pytest.mark.parametrize("method", METHODS)
async def test_the_main_job(tmp_path: Path, redis_server: RedisServer, method: str) -> None:
    """Login, expiry, 50 calls at once, one refresh, logout here and at the server: by each client authentication."""
    async with installed(tmp_path, redis_server, method) as whole:
        browser = whole.browser
        await log_in(browser, *FORMS)
        await asyncio.sleep(LIFE_SECONDS + 0.2)
        statuses = await calls_at_once(browser, 50)
        refreshes, refusals = whole.refreshes(), whole.refusals()
        logout = await browser.request("POST", "/bff/logout")
        page = await browser.submit(await browser.open(logout.json()["redirect"]), {"logout": "yes"})
        after = await browser.get("/api/items")
        asked_again = await browser.begin_login()

    assert {200} == statuses
    assert 1 == refreshes
    assert [] == refusals
    assert f"{whole.broker.url}/" == page.url
    assert "no_session" == problem(after)
    assert "login" in asked_again.form.fields  # the server's session has ended, too
    assert [] == [event for event in whole.refusals() if event["event"] != "revoked"]


async def test_calls_go_on_over_many_lifetimes(tmp_path: Path, redis_server: RedisServer) -> None:
    """Each expiry costs one refresh, whether 50 calls find the token dead or calls never pause; none fails."""
    async with installed(tmp_path, redis_server, "client_secret_basic") as whole:
        await log_in(whole.browser, *FORMS)
        for expiry in (1, 2, 3):
            await asyncio.sleep(LIFE_SECONDS + 0.2)
            assert {200} == await calls_at_once(whole.browser, 50)
            assert expiry == whole.refreshes()
        statuses = await calls_for(whole.browser, 3.5 * LIFE_SECONDS)

    assert {200} == statuses
    assert 3 + 3 <= whole.refreshes() <= 3 + 5
    assert [] == whole.refusals()
    assert 1 == whole.provider.count(event="grant", type="authorization_code")


async def test_a_logout_at_the_server_ends_the_session_within_a_second(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """The back channel reaches one worker; the other one ends the session as well, and another browser's goes on."""
    async with (
        installed(tmp_path, redis_server, "private_key_jwt") as whole,
        FormBrowser(whole.broker.url) as other,
    ):
        await log_in(whole.browser, *FORMS)
        await log_in(other, *FORMS)
        before = [await each.get("/api/items") for each in (whole.browser, other)]
        page = await whole.browser.open(f"{whole.provider.url}/session/end")
        await whole.browser.submit(page, {"logout": "yes"})
        await until(lambda: whole.provider.count(event="backchannel") == 1, what="the logout token")
        await until_answered(whole.browser, 401, code="no_session", seconds=1.0)
        answers = [await whole.browser.get("/api/items") for _ in range(10)]
        kept = await other.get("/api/items")

    assert [200, 200] == [answer.status for answer in before]
    assert {"no_session"} == {problem(answer) for answer in answers}
    assert 200 == kept.status

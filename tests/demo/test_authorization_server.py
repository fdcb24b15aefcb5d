"""The demo's authorization server, as a browser and a client see it. Its token endpoint is tested by the ledger's."""

import re
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest

from tests.support.authorization_server import CLIENT_ID, CLIENT_SECRET, LedgerServer

CALLBACK = "http://127.0.0.1:4711/bff/callback/corp"
REQUEST = {
    "response_type": "code",
    "client_id": CLIENT_ID,
    "redirect_uri": CALLBACK,
    "scope": "openid",
    "state": "s&t",
    "code_challenge": "c" * 43,
    "code_challenge_method": "S256",
}


@pytest.fixture
async def provider() -> AsyncIterator[LedgerServer]:
    async with LedgerServer(asks_for_login=True) as server:
        yield server


@pytest.fixture
async def browser() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


async def ask(browser: aiohttp.ClientSession, url: str, **parameters: str | None) -> tuple[int, str, dict[str, str]]:
    """Send an authorization request. Returns the status, the page, and the parameters that it redirects with."""
    query = {name: value for name, value in {**REQUEST, **parameters}.items() if value is not None}
    async with browser.get(f"{url}/authorize", params=query, allow_redirects=False) as response:
        return response.status, await response.text(), _redirected(response)


async def send_form(browser: aiohttp.ClientSession, url: str, page: str, name: str) -> tuple[int, dict[str, str]]:
    ticket = re.search(r'name="ticket" value="([0-9a-f]+)"', page)
    assert ticket
    form = {"ticket": ticket[1], "username": name}
    async with browser.post(f"{url}/login", data=form, allow_redirects=False) as response:
        return response.status, _redirected(response)


def _redirected(response: aiohttp.ClientResponse) -> dict[str, str]:
    location = response.headers.get("Location", "")
    return {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}


async def test_a_login_begins_with_a_form_and_is_remembered(
    provider: LedgerServer, browser: aiohttp.ClientSession
) -> None:
    """The first request shows the form; once logged in, the browser is sent straight back."""
    status, page, _ = await ask(browser, provider.url)
    assert (200, True) == (status, "not for production" in page)
    status, answer = await send_form(browser, provider.url, page, "bob")
    assert (303, "s&t", provider.url) == (status, answer["state"], answer["iss"])
    status, _, answer = await ask(browser, provider.url)
    assert (303, True) == (status, "code" in answer)


async def test_a_form_is_good_once(provider: LedgerServer, browser: aiohttp.ClientSession) -> None:
    """The ticket of a form that was sent is forgotten."""
    _, page, _ = await ask(browser, provider.url)
    assert 303 == (await send_form(browser, provider.url, page, "bob"))[0]
    assert 400 == (await send_form(browser, provider.url, page, "bob"))[0]


@pytest.mark.parametrize("name", ["", "x" * 65, "a\x1bb"])
async def test_a_name_is_bounded(provider: LedgerServer, browser: aiohttp.ClientSession, name: str) -> None:
    """An empty, long or unprintable name logs nobody in."""
    _, page, _ = await ask(browser, provider.url)
    assert 400 == (await send_form(browser, provider.url, page, name))[0]


@pytest.mark.parametrize(("parameter", "value"), [("prompt", "login"), ("max_age", "0")])
async def test_a_new_login_can_be_demanded(
    provider: LedgerServer, browser: aiohttp.ClientSession, parameter: str, value: str
) -> None:
    """``prompt=login`` and an exceeded ``max_age`` show the form again."""
    _, page, _ = await ask(browser, provider.url)
    await send_form(browser, provider.url, page, "bob")
    assert 200 == (await ask(browser, provider.url, **{parameter: value}))[0]


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge": None}, "invalid_request"),
        ({"prompt": "none"}, "login_required"),
    ],
)
async def test_a_wrong_request_goes_back_with_an_error(
    provider: LedgerServer, browser: aiohttp.ClientSession, changed: dict[str, str | None], error: str
) -> None:
    """Refusals go to the registered redirect_uri, with state and iss (RFC 6749 section 4.1.2.1)."""
    status, _, answer = await ask(browser, provider.url, **changed)
    assert (303, error, "s&t", provider.url) == (status, answer["error"], answer["state"], answer["iss"])


@pytest.mark.parametrize("changed", [{"client_id": "<b>"}, {"redirect_uri": "https://evil.test/"}])
async def test_nobody_is_sent_to_an_unregistered_uri(
    provider: LedgerServer, browser: aiohttp.ClientSession, changed: dict[str, str]
) -> None:
    """A wrong client or redirect_uri gets a page, not a redirect."""
    status, page, answer = await ask(browser, provider.url, **changed)
    assert (400, {}, False) == (status, answer, "<b>" in page)


async def test_userinfo_needs_a_live_token(provider: LedgerServer, browser: aiohttp.ClientSession) -> None:
    """A live access token names its user; a revoked one gets 401."""
    tokens = provider.issue("dora")
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    async with browser.get(f"{provider.url}/userinfo", headers=headers) as response:
        assert "dora" == (await response.json())["sub"]
    form = {"token": str(tokens["refresh_token"]), "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    async with browser.post(f"{provider.url}/revoke", data=form) as response:
        assert 200 == response.status
    async with browser.get(f"{provider.url}/userinfo", headers=headers) as response:
        assert 401 == response.status
    assert ["revoked"] == [family.revoked for family in provider.ledger.families_revoked(None)]


async def test_a_logout_ends_what_grew_from_the_login(provider: LedgerServer, browser: aiohttp.ClientSession) -> None:
    """RP-initiated logout forgets the browser; unregistered targets are not followed."""
    _, page, _ = await ask(browser, provider.url)
    await send_form(browser, provider.url, page, "bob")
    target = {"post_logout_redirect_uri": "https://evil.test/"}
    async with browser.get(f"{provider.url}/logout", params=target, allow_redirects=False) as response:
        assert (200, True) == (response.status, "logged out" in await response.text())
    assert 200 == (await ask(browser, provider.url))[0]

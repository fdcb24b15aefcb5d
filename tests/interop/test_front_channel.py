"""Ways of asking and answering through the browser, through the whole broker, at npm oidc-provider."""

import asyncio
import html
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import pytest
from yarl import URL

from tests.interop.form_browser import FormBrowser, Page
from tests.interop.introspection import Introspection
from tests.interop.oidc_provider import OidcProvider
from tests.interop.test_whole_broker import API_ID, API_SECRET, FORMS, Whole, api, configured, registered
from tests.support.broker_process import BrokerProcess, navigation
from tests.support.upstream import Upstream

pytestmark = [pytest.mark.interop, pytest.mark.timeout(60)]

METHOD = "private_key_jwt"


@asynccontextmanager
async def installed(
    directory: Path, *, client: Mapping[str, Any], corp: Mapping[str, Any], **options: Any
) -> AsyncIterator[tuple[Whole, Upstream]]:
    """
    Run everything.

    Args:
        directory: For the broker's files.
        client: More of the client's metadata at the server.
        corp: More of the server's configuration at the broker.
        options: Of the server.
    """
    broker = BrokerProcess(directory)
    async with AsyncExitStack() as stack:
        clients = [{**registered(METHOD, broker.url), **client}, api()]
        provider = await stack.enter_async_context(OidcProvider(clients, access_token_seconds=600, **options))
        check = await stack.enter_async_context(
            Introspection(f"{provider.url}/token/introspection", client_id=API_ID, client_secret=API_SECRET)
        )
        upstream = await stack.enter_async_context(Upstream(check=check))
        broker.settings |= {
            "providers": {"corp": {**configured(METHOD, provider.url, None), **corp}},
            "routes": [{"path": "/api", "upstream": upstream.url, "token": "user"}],
        }
        await stack.enter_async_context(broker)
        browser = await stack.enter_async_context(FormBrowser(broker.url))
        yield Whole(provider, broker, browser), upstream


async def fill_in(whole: Whole, page: Page) -> Page:
    for fields in FORMS:
        if page.has_form:
            page = await whole.browser.submit(page, fields)
    return page


@pytest.mark.parametrize("pushed", [False, True])
async def test_requests_and_responses_may_both_be_signed(tmp_path: Path, pushed: bool) -> None:
    """
    A server that takes only signed requests (RFC 9101), pushed or not, and answers by one JWT (JARM): the login succeeds,
    and neither URL shows what is in them, but for what OpenID Connect Core section 6.1 wants beside a request object.
    """
    signed = {"request_object_signing_alg": "ES256", "authorization_signed_response_alg": "ES256"}
    corp = {"request_object": True, "response_mode": "jwt"}
    async with installed(
        tmp_path, client=signed, corp=corp, requireSignedRequests=True, requirePushedAuthorization=pushed
    ) as (whole, _upstream):
        login = f"{whole.broker.url}/bff/login"
        async with whole.browser.http.get(login, headers=navigation(), allow_redirects=False) as begun:
            asked = parse_qs(urlsplit(begun.headers["Location"]).query)
        page = await fill_in(whole, await whole.browser.begin_login())
        status = (await whole.browser.get("/api/x")).status

    expected = {"client_id", "request_uri"} if pushed else {"client_id", "request", "response_type", "scope"}
    assert expected == asked.keys()
    assert whole.browser.is_home(page), page
    assert 200 == status


async def test_a_server_that_wants_signed_requests_gets_no_other(tmp_path: Path) -> None:
    """Without ``request_object`` the same server refuses, and its refusal ends on a page of the broker's."""
    signed = {"request_object_signing_alg": "ES256"}
    async with installed(tmp_path, client=signed, corp={}, requireSignedRequests=True) as (whole, _upstream):
        page = await whole.browser.begin_login()

    assert (400, "/bff/callback/corp") == (page.status, urlsplit(page.url).path)
    assert "Request Object" not in page.text


async def silent_login(whole: Whole) -> str:
    """Go the way of a hidden frame. Returns what the page that frames it is told."""
    url, site = f"{whole.broker.url}/bff/silent-login", "same-origin"
    for _ in range(10):
        headers = {"Sec-Fetch-Dest": "iframe", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": site}
        async with whole.browser.http.get(URL(url, encoded=True), headers=headers, allow_redirects=False) as response:
            text, location = await response.text(), response.headers.get("Location")
        refresh = re.search(r'content="0;url=([^"]*)"', text)
        if location is not None:
            url, site = urljoin(url, location), "cross-site"
        elif refresh is not None:
            url, site = urljoin(url, html.unescape(refresh[1])), "same-origin"
        else:
            (told,) = re.findall(r'data-logged-in="(\w+)"', text)
            return str(told)
    raise AssertionError("no end of redirects")


async def test_a_silent_login_asks_what_the_server_knows(tmp_path: Path) -> None:
    """``login_required`` before the user has logged in there, a session afterwards, without a page of the server's."""
    async with installed(tmp_path, client={}, corp={}) as (whole, _upstream):
        before = await silent_login(whole)
        assert whole.browser.is_home(await fill_in(whole, await whole.browser.begin_login()))
        whole.browser.http.cookie_jar.clear(lambda cookie: cookie.key == "session")
        assert 401 == (await whole.browser.get("/api/x")).status
        after = await silent_login(whole)
        call = await whole.browser.get("/api/x")

    assert ("false", "true", 200) == (before, after, call.status)


async def test_a_newer_login_is_asked_for_and_given(tmp_path: Path) -> None:
    """RFC 9470: the upstream wants a login of the last second; the server asks the user again, and the call goes through."""
    async with installed(tmp_path, client={}, corp={"allowed_parameters": ["max_age"]}) as (whole, upstream):
        assert whole.browser.is_home(await fill_in(whole, await whole.browser.begin_login()))
        await asyncio.sleep(2.6)  # the server's clock counts whole seconds
        upstream.refuse(challenge='Bearer error="insufficient_user_authentication", max_age="1"')
        refused = await whole.browser.get("/api/x")
        page = await whole.browser.open(whole.broker.url + refused.json()["login_url"])
        assert "login" in page.form.fields, "the server asks the user again"
        page = await fill_in(whole, page)
        call = await whole.browser.get("/api/x")

    assert (401, "step_up_required") == (refused.status, refused.json()["code"])
    assert whole.browser.is_home(page), page
    assert 200 == call.status
    assert 2 == whole.provider.count(event="grant", type="authorization_code")

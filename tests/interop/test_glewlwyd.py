"""The broker against Debian's glewlwyd: it doesn't decode Basic credentials, and refuses refresh tokens without a word."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from tests.interop.form_browser import FormBrowser, Page
from tests.interop.glewlwyd.server import (
    API_ID,
    API_SECRET,
    CLIENT_ID,
    CLIENT_SECRET,
    LIFE_SECONDS,
    USER,
    Glewlwyd,
    running_glewlwyd,
)
from tests.interop.installation import Installation, calls_at_once, calls_for, until_answered
from tests.interop.introspection import Introspection
from tests.support.ports import free_port
from tests.support.waiting import until
from tests.system.test_doctor import doctor

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120, func_only=True)]

QUIRKS = {"basic_encoding": "raw", "empty_400": "invalid_grant"}


@asynccontextmanager
async def installed(
    directory: Path, *, plugin: Mapping[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Glewlwyd, Installation, FormBrowser]]:
    """Run a server, and a broker that is its client; by default with the quirks that it needs."""
    port = free_port()
    with running_glewlwyd(
        directory, redirect_uri=f"http://127.0.0.1:{port}/bff/callback/corp", **(plugin or {})
    ) as server:
        installation = Installation(
            directory,
            token_endpoint=server.token_endpoint,
            provider={
                "issuer": server.issuer,
                "client_id": CLIENT_ID,
                "client_secret": {"value": CLIENT_SECRET},
                "scope": "openid",
                **QUIRKS,
                **options,
            },
            check=Introspection(server.introspection_endpoint, client_id=API_ID, client_secret=API_SECRET),
            port=port,
        )
        async with installation.running() as browser:
            yield server, installation, browser


async def log_in(browser: FormBrowser, server: Glewlwyd) -> None:
    home = await pass_login_page(browser, server)
    assert browser.is_home(home), home


async def pass_login_page(browser: FormBrowser, server: Glewlwyd) -> Page:
    """Do what the scripts of glewlwyd's login and consent pages do, and return where that leads to."""
    page = URL((await browser.begin_login()).url)
    assert "/login.html" == page.path, page
    for method, path, document in (
        ("POST", "auth/", USER),
        ("PUT", f"auth/grant/{CLIENT_ID}", {"scope": "openid"}),
    ):
        async with browser.http.request(method, f"{server.url}/api/{path}", json=document) as response:
            assert response.status == 200, (path, response.status, await response.text())
    return await browser.open(f"{page.query['callback_url']}&g_continue")


async def test_calls_go_on_over_token_lifetimes(tmp_path: Path) -> None:
    """Refresh tokens that are used once are rotated, an expiry costs one refresh, and no call fails."""
    async with installed(tmp_path) as (server, installation, browser):
        await log_in(browser, server)
        await asyncio.sleep(LIFE_SECONDS + 0.2)
        at_once = await calls_at_once(browser, 50)
        refreshes = len(installation.tap.refreshes())
        statuses = await calls_for(browser, 3.5 * LIFE_SECONDS)

    assert {200} == at_once | statuses
    assert 1 == refreshes
    assert {200} == set(installation.tap.statuses())
    assert [] == installation.tap.presented_twice()


async def test_a_disabled_refresh_token_is_refused_without_a_word_and_ends_the_grant(tmp_path: Path) -> None:
    """An empty 400 means invalid_grant by configuration: the user is led to the login, and asked for once."""
    async with installed(tmp_path) as (server, installation, browser):
        await log_in(browser, server)
        await asyncio.to_thread(server.disable_refresh_tokens)
        await until_answered(browser, 401, code="session_expired", seconds=3 * LIFE_SECONDS)
        again = await browser.get("/api/items")

    assert [(400, b"")] == [(request.status, request.content) for request in installation.tap.refreshes()]
    assert "/bff/login" == again.json()["login_url"].partition("?")[0]


async def test_without_the_quirk_an_empty_400_ends_nothing(tmp_path: Path) -> None:
    """It might come from a gateway: callers are told to wait."""
    async with installed(tmp_path, empty_400="transient") as (server, installation, browser):
        await log_in(browser, server)
        await asyncio.to_thread(server.disable_refresh_tokens)
        await until_answered(browser, 503, code="provider_unavailable", seconds=3 * LIFE_SECONDS)
        user = await browser.get("/bff/user")

    assert {(400, b"")} == {(request.status, request.content) for request in installation.tap.refreshes()}
    assert 200 == user.status


async def test_form_encoded_credentials_are_not_its_clients(tmp_path: Path) -> None:
    """With the encoding of RFC 6749 the login fails, and the log names the key to look at."""
    async with installed(tmp_path, basic_encoding="form") as (server, installation, browser):
        page = await pass_login_page(browser, server)
        await until(lambda: bool(installation.events("token_request_failed")), what="the log")
        (failure,) = installation.events("token_request_failed")

    assert 503 == page.status
    assert [(403, {"error": "unauthorized_client"})] == [
        (request.status, request.answer) for request in installation.tap.requests
    ]
    assert "providers.corp.client_secret" == failure["look_at"]


async def test_a_wrong_secret_ends_no_session(tmp_path: Path) -> None:
    """The server would disable a token that came with it, and say nothing: so it is asked about the client first."""
    async with installed(tmp_path) as (server, installation, browser):
        await log_in(browser, server)
        await asyncio.to_thread(server.set_client_secret, "another")
        await until_answered(browser, 503, code="provider_unavailable", seconds=3 * LIFE_SECONDS)
        refreshes = installation.tap.refreshes()
        await asyncio.to_thread(server.set_client_secret, CLIENT_SECRET)
        await until_answered(browser, 200, seconds=60)
        look_at = {record.get("look_at") for record in installation.events("token_request_failed")}

    assert [] == refreshes
    assert {200} == {request.status for request in installation.tap.refreshes()}
    assert {"providers.corp.client_secret"} == look_at - {None}


@pytest.mark.parametrize(("secret", "code"), [(CLIENT_SECRET, 0), ("wrong", 1)])
async def test_the_doctor_tells_a_wrong_secret(tmp_path: Path, secret: str, code: int) -> None:
    """Although the server refuses any refresh token without a word."""
    with running_glewlwyd(tmp_path, redirect_uri="https://app.example.com/bff/callback/corp") as server:
        provider = {"issuer": server.issuer, "client_id": CLIENT_ID, "client_secret": {"value": secret}, **QUIRKS}
        exit_code, out, _ = await doctor(tmp_path, {"corp": provider})

    assert code == exit_code
    assert bool(code) is ("providers.corp.client_secret: the server refuses the client" in out)


async def test_a_wrong_secret_ends_nothing_where_an_empty_400_is_no_verdict(tmp_path: Path) -> None:
    """Without one-time refresh tokens the grant outlives a wrong secret, if the configuration lets it."""
    lasting = {"refresh-token-one-use": "never"}
    async with installed(tmp_path, plugin=lasting, empty_400="transient") as (server, installation, browser):
        await log_in(browser, server)
        await asyncio.to_thread(server.set_client_secret, "another")
        await until_answered(browser, 503, code="provider_unavailable", seconds=3 * LIFE_SECONDS)
        await asyncio.to_thread(server.set_client_secret, CLIENT_SECRET)
        await until_answered(browser, 200, seconds=60)

    assert {400, 200} == set(installation.tap.statuses())

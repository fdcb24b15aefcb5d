"""The broker against django-oauth-toolkit, which revokes the old access token when it rotates the refresh token."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.interop.django_oauth_toolkit import (
    API_ID,
    API_SECRET,
    CLIENT_ID,
    CLIENT_SECRET,
    USER,
    interpreter,
    running_site,
)
from tests.interop.form_browser import FormBrowser
from tests.interop.installation import Installation, calls_for, log_in, until_answered
from tests.interop.introspection import Introspection
from tests.support.waiting import until_async

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180, func_only=True)]

LIFE_SECONDS = 4
STRICT = {"REFRESH_TOKEN_REUSE_PROTECTION": True}
AGREE = {"allow": "Authorize"}


@pytest.fixture(scope="module", autouse=True)
def _installed_before_any_deadline_runs() -> None:
    interpreter()


@asynccontextmanager
async def installed(
    directory: Path, *, site: dict[str, Any], **options: Any
) -> AsyncIterator[tuple[Installation, FormBrowser]]:
    """Run a site with settings of its own, and a broker that is its client."""
    with running_site(directory, **{"ACCESS_TOKEN_EXPIRE_SECONDS": LIFE_SECONDS, **site}) as server:
        installation = Installation(
            directory,
            token_endpoint=server.token_endpoint,
            provider={
                "issuer": server.issuer,
                "revocation_endpoint": server.revocation_endpoint,  # its OpenID metadata don't name it
                "client_id": CLIENT_ID,
                "client_secret": {"value": CLIENT_SECRET},
                "scope": "openid read",
                **options,
            },
            check=Introspection(server.introspection_endpoint, client_id=API_ID, client_secret=API_SECRET),
        )
        async with installation.running() as browser:
            yield installation, browser


async def test_no_caller_sees_the_death_of_an_old_access_token(tmp_path: Path) -> None:
    """The API refuses tokens that a rotation killed on their way; the broker sends those calls again."""
    async with installed(tmp_path, site=STRICT) as (installation, browser):
        await log_in(browser, USER, AGREE)
        statuses = await calls_for(browser, 4.5 * LIFE_SECONDS, callers=8)

    assert {200} == statuses
    assert installation.upstream.statuses[401] > 0
    assert {200} == set(installation.tap.statuses())
    assert 4 <= len(installation.tap.refreshes()) <= 7
    assert [] == installation.tap.presented_twice()


async def test_within_the_grace_a_lost_answer_is_had_again(tmp_path: Path) -> None:
    """With ``rotation: grace`` the token is presented again, and brings what the first answer brought."""
    site = STRICT | {"REFRESH_TOKEN_GRACE_PERIOD_SECONDS": 30}
    async with installed(tmp_path, site=site, rotation="grace", rotation_grace="30s") as (installation, browser):
        await log_in(browser, USER, AGREE)
        installation.tap.lose_answers(1)
        statuses = await calls_for(browser, 2.5 * LIFE_SECONDS)

    lost, again = installation.tap.refreshes()[:2]
    assert {200} == statuses
    assert {200} == set(installation.tap.statuses())
    assert lost.refresh_token == again.refresh_token
    assert lost.answer["refresh_token"] == again.answer["refresh_token"]
    assert lost.answer["access_token"] == again.answer["access_token"]


@pytest.mark.parametrize("site", [STRICT, {}], ids=["reuse protection", "default"])
async def test_without_a_grace_a_lost_answer_ends_in_a_login(tmp_path: Path, site: dict[str, Any]) -> None:
    """The token is presented again only when nothing is left to lose; the site refuses it, and the user logs in."""
    async with installed(tmp_path, site=site, token_endpoint_timeout="2s") as (installation, browser):
        await log_in(browser, USER, AGREE)
        installation.tap.lose_answers(1)
        await until_answered(browser, 401, code="session_expired", seconds=5 * LIFE_SECONDS)
        await browser.get("/api/items")
        refreshes = installation.tap.refreshes()
        await log_in(browser, AGREE)  # Django's own session lives
        again = await browser.get("/api/items")

    assert [200, 400] == [request.status for request in refreshes]
    assert "invalid_grant" == refreshes[1].answer["error"]
    assert 200 == again.status


async def test_a_logout_revokes_the_tokens_at_the_server(tmp_path: Path) -> None:
    """What the session had is dead at once, not only when it expires."""
    async with installed(tmp_path, site={"ACCESS_TOKEN_EXPIRE_SECONDS": 600}) as (installation, browser):
        await log_in(browser, USER, AGREE)
        access_token = installation.tap.requests[0].answer["access_token"]
        before = await installation.check(access_token)
        logout = await browser.request("POST", "/bff/logout")

        async def is_dead() -> bool:
            return not (await installation.check(access_token))["active"]

        await until_async(is_dead, what="the revocation")

    assert before["active"]
    assert {"redirect": "/"} == logout.json()  # the site has no logout for clients, and says so

"""What a refresh says of a session's user."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from broker.core.grant import EndReason
from broker.core.outcome import LoginNeeded, Token
from broker.demo import issuer
from broker.services.claims import ClaimsRenewal
from tests.support.document_server import DocumentServer
from tests.web.conftest import SITE, Process, Site
from tests.web.test_login import log_in
from tests.web.test_logout import logged_in

GOOD = {"email": "ada@example.com", "email_verified": True}


@contextmanager
def saying(claims: dict[str, Any]) -> Iterator[None]:
    """Let the authorization server's id tokens hold *claims*, which may change."""
    with pytest.MonkeyPatch.context() as patch:
        usual = issuer.user_claims
        patch.setattr(issuer, "user_claims", lambda subject: {**usual(subject), **claims})
        yield


class Renewal:
    """Brings claims up to date as the whole broker does, and tells when that is done."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._renewal = ClaimsRenewal(process.servers, process.tokens, process.sessions)
        self._tasks: list[asyncio.Task[None]] = []
        process.tokens.on_identified(
            lambda grant, who: self._tasks.append(asyncio.ensure_future(self._renewal.renew(grant, who)))
        )

    async def after_refresh(self, site: Site, session_id: str) -> str:
        """Refresh the session's grant, wait until its claims are renewed, and return the grant's id."""
        live = await self._process.sessions.load(session_id.encode())
        assert live is not None
        site.clock.advance(400)
        assert isinstance(await self._process.tokens.token(live.grant_id), Token)
        assert self._tasks
        await asyncio.gather(*self._tasks)
        return live.grant_id


async def test_rt_10_userinfo_is_asked_again_after_a_refresh(site: Site) -> None:
    """What it said at the login is neither lost nor kept: groups that are taken away are gone."""
    async with DocumentServer() as documents:
        documents.answers["/userinfo"] = (200, {"sub": "alice", "groups": ["admins", "staff"]})
        process = await site.start(provider={"userinfo": True, "userinfo_endpoint": f"{documents.url}/userinfo"})
        renewal = Renewal(process)
        browser, session_id = await logged_in(site)
        documents.answers["/userinfo"] = (200, {"sub": "alice", "groups": ["staff"]})

        await renewal.after_refresh(site, session_id)
        claims = (await browser.fetch(f"{SITE}/bff/user")).json()["claims"]

    assert ["staff"] == claims["groups"]


@pytest.mark.parametrize("answer", [(503, b""), (401, b""), (200, {"sub": "mallory", "groups": ["root"]})])
async def test_a_userinfo_that_can_not_be_asked_takes_nothing_away(site: Site, answer: Any) -> None:
    """A fault costs no rights; and what it says of somebody else isn't taken."""
    async with DocumentServer() as documents:
        documents.answers["/userinfo"] = (200, {"sub": "alice", "groups": ["staff"]})
        process = await site.start(provider={"userinfo": True, "userinfo_endpoint": f"{documents.url}/userinfo"})
        renewal = Renewal(process)
        browser, session_id = await logged_in(site)
        documents.answers["/userinfo"] = answer

        await renewal.after_refresh(site, session_id)
        claims = (await browser.fetch(f"{SITE}/bff/user")).json()["claims"]

    assert ["staff"] == claims["groups"]


async def test_rt_11_an_address_with_which_nobody_may_log_in_ends_the_grant(site: Site) -> None:
    """A user who changes it after the login is told what a login would be told, and no upstream sees it."""
    said = dict(GOOD)
    with saying(said):
        process = await site.start(provider={"email_domains": ("example.com",)})
        renewal = Renewal(process)
        browser, session_id = await logged_in(site)
        said.update(email="ceo@example.com", email_verified=False)

        grant_id = await renewal.after_refresh(site, session_id)

        assert isinstance(await process.tokens.token(grant_id), LoginNeeded)
        grant = await process.tokens.grant(grant_id)
        assert grant is not None
        assert grant.ended is not None
        assert EndReason.IDENTITY_REFUSED == grant.ended.reason
        assert 401 == (await browser.fetch(f"{SITE}/bff/user")).status
        assert 400 == (await log_in(await site.browser())).status


async def test_an_id_token_without_the_address_ends_nothing(site: Site) -> None:
    """A refreshed one may hold less than that of the login (OpenID Connect Core section 12.2)."""
    said = dict(GOOD)
    with saying(said):
        process = await site.start(provider={"email_domains": ("example.com",)})
        renewal = Renewal(process)
        _, session_id = await logged_in(site)
        said["email"] = said["email_verified"] = None
        grant_id = await renewal.after_refresh(site, session_id)

    assert isinstance(await process.tokens.token(grant_id), Token)

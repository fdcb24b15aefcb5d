"""Logins that ask the user nothing, in a frame of our own page."""

import re
from urllib.parse import parse_qs, urlsplit

import pytest

from broker.core.grant import EndReason
from broker.core.login import LoginOptions
from tests.support.browser import Browser, Page
from tests.support.waiting import until, until_async
from tests.web.conftest import SITE, Site
from tests.web.test_login import SESSION, answered, has_ended, log_in, revoked, session_of

IFRAME = {"Sec-Fetch-Dest": "iframe"}
SILENT = f"{SITE}/bff/silent-login?provider=corp"


async def frame(browser: Browser, url: str = SILENT, *, by: str = SITE, follow: bool = True) -> Page:
    """Let a page of *by* show *url* in a frame."""
    return await browser.go(url, from_origin=by, destination="iframe", follow=follow)


def told(page: Page) -> bool | None:
    """What the page that frames it is told; None if it is told nothing."""
    if not page.may_be_framed_by(SITE):
        return None
    found = re.search(r'<body data-logged-in="(true|false)"><script>', page.text)
    return None if found is None else found[1] == "true"


def known_to_the_provider(site: Site, user: str = "alice") -> None:
    """Let the provider know the browser's user: without a cookie, which would have to be one that goes into frames."""
    site.provider.configure(knows_browsers=True, log_in_as=user)


async def test_whom_the_provider_knows_is_logged_in(site: Site) -> None:
    """The frame goes there and back, and tells; the browser has a session then, and nothing of the attempt is left."""
    await site.start()
    browser = await site.browser()
    known_to_the_provider(site)

    page = await frame(browser)

    assert (200, True) == (page.status, told(page))
    assert [SESSION] == list(browser.cookies[SITE])
    user = await browser.fetch(f"{SITE}/bff/user")
    assert (200, "alice") == (user.status, user.json()["claims"]["sub"])


async def test_the_provider_is_asked_without_the_user(site: Site) -> None:
    """``prompt=none`` is sent although no caller may choose ``prompt``, and over what the configuration says."""
    await site.start(provider={"allowed_parameters": (), "authorization_parameters": {"prompt": "consent"}})
    browser = await site.browser()

    page = await frame(browser, follow=False)

    assert 303 == page.status
    assert ["none"] == parse_qs(urlsplit(page.header("Location") or "").query)["prompt"]


async def test_whom_the_provider_does_not_know_is_not(site: Site) -> None:
    """``login_required`` ends in a page that says so, without a session and without an error."""
    await site.start()
    browser = await site.browser()

    page = await frame(browser)

    assert (200, False, None) == (page.status, told(page), session_of(browser))
    assert {} == browser.cookies[SITE]


async def test_who_has_a_session_is_told_at_once(site: Site) -> None:
    """The provider isn't asked, and the session stays as it is; it is no session of another provider."""
    await site.start()
    browser = await site.browser()
    await log_in(browser)
    session, calls = session_of(browser), len(site.provider.ledger.calls)

    assert told(await frame(browser, follow=False)) is True
    assert told(await frame(browser, f"{SITE}/bff/silent-login", follow=False)) is True
    assert told(await frame(browser, f"{SITE}/bff/silent-login?provider=other", follow=False)) is False

    assert (session, calls) == (session_of(browser), len(site.provider.ledger.calls))


async def test_who_is_asked(site: Site) -> None:
    """The default provider, unless the URL names one; a session of another provider isn't denied for the default."""
    await site.start(login=LoginOptions(default_provider="other"))
    browser = await site.browser()

    for query, name in (("", "other"), ("?provider=corp", "corp")):
        location = (await frame(browser, f"{SITE}/bff/silent-login{query}", follow=False)).header("Location") or ""
        assert location.startswith(site.providers[name].url)
    await log_in(browser)
    assert told(await frame(browser, f"{SITE}/bff/silent-login", follow=False)) is True


async def end_grant(site: Site, browser: Browser) -> None:
    live = await site.process.sessions.load((session_of(browser) or "").encode())
    assert live is not None
    await site.process.tokens.end(live.grant_id, EndReason.INVALID_GRANT)


@pytest.mark.parametrize(("user", "expected"), [("alice", True), ("mallory", False)])
async def test_lg_08_a_session_is_never_exchanged_for_another_users(site: Site, user: str, expected: bool) -> None:
    """
    A session whose grant has ended is replaced by one of the same user. If the provider now knows another one, nothing
    changes hands: the old session stays, and the new grant is revoked.
    """
    await site.start()
    browser = await site.browser()
    known_to_the_provider(site, user)
    other = await site.browser()
    await log_in(other, "alice")
    browser.cookies[SITE] = dict(other.cookies[SITE])
    before = session_of(browser)
    await end_grant(site, browser)

    page = await frame(browser)

    assert expected is told(page)
    assert expected is (before != session_of(browser))
    if expected:
        # No page goes on in a frame: the first call of the page that frames it shows the new cookie.
        assert 200 == (await browser.fetch(f"{SITE}/bff/user")).status
        await until_async(lambda: has_ended(site.process, (before or "").encode()))
    else:
        await until(lambda: revoked(site, "mallory"))
        assert 401 == (await browser.fetch(f"{SITE}/bff/user")).status


async def test_lg_08_who_logs_in_meanwhile_stays(site: Site) -> None:
    """A silent attempt that is overtaken by a login as somebody else in another tab changes nothing."""
    await site.start()
    browser = await site.browser()
    known_to_the_provider(site, "mallory")
    there = (await frame(browser, follow=False)).header("Location")
    assert there is not None
    attempt = dict(browser.cookies[SITE])
    other = await site.browser()
    await log_in(other, "alice")
    browser.cookies[SITE] = {**attempt, **other.cookies[SITE]}

    page = await frame(browser, there)

    assert told(page) is False
    assert "alice" == (await browser.fetch(f"{SITE}/bff/user")).json()["claims"]["sub"]


@pytest.mark.parametrize("by", ["https://evil.test", "https://blog.example.com"])
async def test_lg_09_only_our_own_page_begins_a_silent_login(site: Site, by: str) -> None:
    """Another site's frame is refused, and neither its own page nor a script may go there."""
    await site.start()
    browser = await site.browser()

    assert (403, None) == (
        (page := await frame(browser, by=by)).status,
        told(page) if page.may_be_framed_by(by) else None,
    )
    assert 403 == (await browser.go(SILENT)).status
    assert 403 == (await browser.fetch(SILENT)).status
    assert {} == browser.cookies.get(SITE, {})


async def test_lg_09_a_frame_answers_only_what_began_in_one(site: Site) -> None:
    """The answer to a login in a window isn't taken in a frame, nor the other way round; neither is used up."""
    await site.start()
    browser = await site.browser()
    windows = await answered(browser)
    page = await frame(browser, windows)
    assert (400, False) == (page.status, told(page))
    assert 200 == (await browser.go(windows, from_origin="https://idp.test")).status

    browser = await site.browser()
    known_to_the_provider(site)
    there = (await frame(browser, follow=False)).header("Location")
    back = (await browser.go(there or "", from_origin=SITE, destination="iframe", follow=False)).header(
        "Location"
    ) or ""
    assert 400 == (await browser.go(back, from_origin="https://idp.test")).status
    assert told(await frame(browser, back)) is True


async def test_a_fault_is_told_too(site: Site) -> None:
    """A provider that is down, an unknown provider: the page learns that nobody is logged in, and the status says why."""
    await site.start()
    browser = await site.browser()
    unknown = await frame(browser, f"{SITE}/bff/silent-login?provider=nobody")
    await site.provider.stop()
    down = await frame(browser)

    assert [(400, False), (503, False)] == [(page.status, told(page)) for page in (unknown, down)]


async def test_lg_10_the_answer_is_taken_once(site: Site) -> None:
    """A second answer to the same attempt finds nothing."""
    await site.start()
    browser = await site.browser()
    known_to_the_provider(site)
    assert told(await frame(browser)) is True
    (last,) = [page.url for page in browser.responses[-3:] if "once_more" in page.url]

    page = await frame(browser, last)

    assert (400, False) == (page.status, told(page))


async def test_br_04_what_is_framed_runs_one_script_of_ours(site: Site) -> None:
    """The policy names the script by its hash, and nobody but our own pages may frame it."""
    await site.start()
    browser = await site.browser()
    await log_in(browser)

    page = await frame(browser, follow=False)

    policy = page.header("Content-Security-Policy") or ""
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/]{43}='; ", policy)
    assert "frame-ancestors 'self'" in policy
    assert "SAMEORIGIN" == page.header("X-Frame-Options")
    assert page.text.count("<script>") == 1

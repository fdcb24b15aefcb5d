from urllib.parse import parse_qsl, urlsplit

import pytest

from broker.core.audience import DEFAULT_AUDIENCE
from broker.core.grant import EndReason
from tests.support.authorization_server import CLIENT_SECRET
from tests.web.conftest import SITE, Site
from tests.web.test_login import SESSION, log_in, session_of

USER = f"{SITE}/bff/user"


async def test_the_user_endpoint_says_who_is_logged_in_and_until_when(site: Site) -> None:
    """Claims, the two ends of the session, and where to log in and out."""
    await site.start(provider={"max_rotation_seconds": 14 * 86400.0})
    browser = await site.browser()
    await log_in(browser)
    began_at = int(site.clock.now())
    site.clock.advance(100)

    user = (await browser.fetch(USER)).json()

    assert ("alice", site.provider.url) == (user["claims"]["sub"], user["claims"]["iss"])
    assert ("corp", began_at) == (user["provider"], user["authenticated_at"])
    assert began_at + 8 * 3600 == user["session"]["expires_at"]
    assert 8 * 3600 - 100 == user["session"]["expires_in"]
    assert began_at + 30 * 86400 == user["session"]["ends_at"]
    assert began_at + 14 * 86400 == user["login_needed_at"]
    assert "/bff/login" == user["login_url"]
    assert user["logout_url"].startswith("/bff/logout?token=")


async def test_nobody_is_a_problem_that_says_where_to_log_in(site: Site) -> None:
    """401 as a problem document with a stable type, and nothing to ask the user for."""
    await site.start()
    browser = await site.browser()

    answer = await browser.fetch(USER)

    problem = answer.json()
    assert (401, "application/problem+json") == (answer.status, (answer.header("Content-Type") or "").split(";")[0])
    assert ("urn:token-broker:problem:no_session", "no_session", 401) == tuple(
        problem[key] for key in ("type", "code", "status")
    )
    assert ("/bff/login", answer.header("X-Request-ID")) == (problem["login_url"], problem["request_id"])
    assert (answer.header("WWW-Authenticate") or "").startswith("Cookie ")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-CSRF": "0"},
        {"X-CSRF": "1", "Origin": "https://evil.test"},
        {"X-CSRF": "1", "Origin": "null"},
        {"X-CSRF": "1", "Sec-Fetch-Site": "same-site"},
    ],
)
async def test_br_01_only_our_own_frontend_may_ask(site: Site, headers: dict[str, str]) -> None:
    """403, with and without a session, so that nobody learns whether there is one."""
    await site.start()
    browser = await site.browser()
    anonymous = await browser.fetch(USER, headers=headers)
    await log_in(browser)

    answer = await browser.fetch(USER, headers=headers)

    for page in (anonymous, answer):
        assert (403, "csrf_failed") == (page.status, page.json()["code"])
    assert "alice" not in answer.text


async def test_br_04_no_origin_is_ever_allowed_in(site: Site) -> None:
    """No CORS header, no reflection, not for ``null``, not for our own."""
    await site.start()
    browser = await site.browser()
    await log_in(browser)

    for origin in ("https://evil.test", "null", "https://blog.example.com", SITE):
        answer = await browser.fetch(USER, headers={"X-CSRF": "1", "Origin": origin})
        assert not [name for name, _ in answer.headers if name.lower().startswith("access-control-")]
        assert "Origin" in (answer.header("Vary") or "")
    preflight = await browser.fetch(
        USER,
        method="OPTIONS",
        page="https://evil.test",
        headers={"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "x-csrf"},
    )
    assert 405 == preflight.status
    assert not [name for name, _ in preflight.headers if name.lower().startswith("access-control-")]


async def test_tk_05_no_byte_of_a_token_reaches_the_browser(site: Site) -> None:
    """Login, user, problems, errors, logout: no access, refresh or id token in any body or header."""
    process = await site.start()
    browser = await site.browser()
    await log_in(browser)
    live = await process.sessions.load((session_of(browser) or "").encode())
    assert live is not None
    grant = await process.tokens.grant(live.grant_id)
    assert grant is not None
    assert grant.refresh_token is not None
    assert grant.id_token is not None
    held = grant.tokens[DEFAULT_AUDIENCE.key].access_token

    await browser.fetch(USER)
    await browser.fetch(USER, headers={})
    await browser.go(f"{SITE}/bff/login?returnUrl=//evil.test", follow=False)
    await browser.go(f"{SITE}/bff/nothing", follow=False)
    await browser.go(f"{SITE}/bff/logout")
    await browser.fetch(f"{SITE}/bff/logout", method="POST")

    ours = [response for response in browser.responses if response.url.startswith(SITE)]
    assert len(ours) > 8
    for secret in (grant.refresh_token, grant.id_token, held):
        value = secret.reveal()
        for part in (value, value[:24], value[-24:]):
            assert not [response.url for response in ours if part in response.text + repr(response.headers)]


async def test_a_page_that_polls_may_leave_the_idle_end_alone(site: Site) -> None:
    """``slide=false`` asks without using the session; without it, asking is a use."""
    process = await site.start()
    browser = await site.browser()
    await log_in(browser)
    site.clock.advance(3600)

    still = (await browser.fetch(f"{USER}?slide=false")).json()["session"]["expires_in"]
    await browser.fetch(USER)
    live = await process.sessions.load((session_of(browser) or "").encode(), used=False)

    assert 7 * 3600 == still
    assert live is not None
    assert site.clock.now() <= live.session.last_seen_at


async def test_a_session_whose_grant_has_ended_needs_a_login(site: Site) -> None:
    """The frontend hears of it before its first call fails, and the login's URL names where the user was logged in."""
    process = await site.start()
    browser = await site.browser()
    await log_in(browser)
    live = await process.sessions.load((session_of(browser) or "").encode())
    assert live is not None
    await process.tokens.end(live.grant_id, EndReason.REVOKED)

    answer = await browser.fetch(USER)

    assert (401, "session_expired", "/bff/login?provider=corp") == (
        answer.status,
        answer.json()["code"],
        answer.json()["login_url"],
    )


async def test_a_store_that_is_down_hides_nobody_who_is_known(site: Site) -> None:
    """A known user is still told; a session that isn't known is a 503 and keeps its cookie."""
    one, two = await site.start(), await site.start()
    browser = await site.browser(one)
    await log_in(browser)
    one.store.down = two.store.down = True

    known = await browser.fetch(USER)
    site.move(browser, two)
    unknown = await browser.fetch(USER)

    assert (200, None) == (known.status, known.json()["login_needed_at"])
    assert (503, "store_unavailable") == (unknown.status, unknown.json()["code"])
    assert int(unknown.header("Retry-After") or 0) > 0
    assert SESSION in browser.cookies[SITE]


@pytest.mark.parametrize(
    "cookie",
    [
        "\u2000__Host-Http-session={id}",
        "\u00a0__Host-Http-session={id}",
        "__host-http-session={id}",
        '"__Host-Http-session"={id}',
        '__Host-Http-session="{id}"',
        "__Host-session={id}",
        "session={id}",
        "={id}",
        "__Host-Http-session={id}=",
        "a=1, __Host-Http-session={id}",
    ],
)
async def test_se_02_a_cookie_that_is_nearly_ours_opens_nothing(site: Site, cookie: str) -> None:
    """The reader of aiohttp takes several of them for the session cookie (M4)."""
    await site.start()
    browser = await site.browser()
    await log_in(browser)
    session_id = session_of(browser) or ""
    browser.cookies.clear()

    answer = await browser.fetch(USER, headers={"X-CSRF": "1", "Cookie": cookie.format(id=session_id)})

    assert 401 == answer.status


async def test_se_02_two_session_cookies_are_refused(site: Site) -> None:
    """Nobody can say which of the two was planted; a login replaces both."""
    await site.start()
    browser = await site.browser()
    await log_in(browser)
    session_id = session_of(browser)
    browser.cookies.clear()

    answer = await browser.fetch(
        USER, headers={"X-CSRF": "1", "Cookie": f"{SESSION}={'e' * 43}; {SESSION}={session_id}"}
    )

    assert (400, "bad_request") == (answer.status, answer.json()["code"])


async def test_lk_01_no_secret_is_written_to_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """At debug level, over login, errors and logout: no id, cookie, state, code, proof, token or client secret."""
    caplog.set_level("DEBUG")
    access_log: list[str] = []
    process = await site.start(access_log=access_log)
    browser = await site.browser()
    await log_in(browser)
    session_id = session_of(browser) or ""
    live = await process.sessions.load(session_id.encode())
    assert live is not None
    grant = await process.tokens.grant(live.grant_id)
    assert grant is not None
    assert grant.refresh_token is not None
    assert grant.id_token is not None
    logout_url = (await browser.fetch(USER)).json()["logout_url"]
    await browser.fetch(USER, headers={})
    await browser.go(next(url for response in browser.responses for url in response.hops if "/callback/" in url))
    await browser.go(SITE + logout_url, from_origin=SITE)

    asked = [dict(parse_qsl(urlsplit(response.url).query)) for response in browser.responses]
    secrets = {query[name] for query in asked for name in ("code", "state", "nonce") if name in query}
    secrets |= {
        line.partition(";")[0].partition("=")[2] for response in browser.responses for line in response.set_cookies
    }
    secrets |= {session_id, logout_url.rpartition("=")[2], CLIENT_SECRET}
    secrets |= {token.reveal() for token in (grant.refresh_token, grant.id_token, grant.tokens[""].access_token)}
    logged = repr([record.__dict__ for record in caplog.records]) + caplog.text + repr(access_log)
    assert "session_started" in logged
    assert len(secrets - {""}) > 8
    assert not [secret for secret in secrets - {""} if secret in logged]

import asyncio
import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest

from broker.core.login import LoginOptions
from broker.core.outcome import Token
from broker.core.routing import RateLimitOptions
from broker.core.session import Index, SameSite
from broker.services.clock import SystemRandomness
from broker.services.keyring import new_key
from tests.support.browser import Browser, Page, origin_of
from tests.support.document_server import DocumentServer
from tests.support.waiting import until, until_async
from tests.web.conftest import KEY, SITE, Process, Site

SESSION = "__Host-Http-session"
RETURN_URLS = tomllib.loads((Path(__file__).parents[1] / "corpus/return_urls.toml").read_text())["group"]


async def begin(browser: Browser, **query: str) -> Page:
    """Begin a login, and stop at the redirect to the authorization server."""
    return await browser.go(f"{SITE}/bff/login?{urlencode(query)}", follow=False)


async def answered(browser: Browser, **query: str) -> str:
    """Begin a login, and return the callback URL that the authorization server sends the browser to."""
    there = (await begin(browser, **{"provider": "corp", **query})).header("Location")
    assert there is not None
    back = (await browser.go(there, from_origin=SITE, follow=False)).header("Location")
    assert back is not None
    assert back.startswith(f"{SITE}/bff/callback/")
    return back


async def log_in(browser: Browser, user: str = "alice", **query: str) -> Page:
    return await browser.go(
        f"{SITE}/bff/login?{urlencode({'provider': 'corp', 'login_hint': user, 'prompt': 'login', **query})}"
    )


async def arrive(browser: Browser, callback: str, *, follow: bool = True) -> Page:
    """Come back from the authorization server's site."""
    return await browser.go(callback, from_origin="https://idp.test", follow=follow)


def session_of(browser: Browser) -> str | None:
    cookie = browser.cookies.get(SITE, {}).get(SESSION)
    return None if cookie is None else cookie.value


def revoked(site: Site, subject: str) -> bool:
    """Whether a grant of the user was revoked at the authorization server."""
    return any(family.revoked for family in site.provider.ledger.families_of(subject))


def with_query(url: str, **changes: str | None) -> str:
    parts = urlsplit(url)
    query = {**{name: values[0] for name, values in parse_qs(parts.query).items()}, **changes}
    return f"{parts.scheme}://{parts.netloc}{parts.path}?" + urlencode(
        {name: value for name, value in query.items() if value is not None}
    )


async def refused(site: Site, browser: Browser, url: str, status: int = 400) -> Page:
    """Go to *url* and be refused: no session, no token request, a way back."""
    before = (session_of(browser), len(site.provider.ledger.calls))
    page = await arrive(browser, url)
    assert status == page.status, page.text
    assert before == (session_of(browser), len(site.provider.ledger.calls))
    assert any(link.partition("?")[0] == "/bff/login" for link in page.links)
    return page


# --- the good way


@pytest.mark.parametrize("same_site", list(SameSite))
@pytest.mark.parametrize("return_url", ["/", "/orders/17?a=b&c=%2F#part", "/a?q='%22%3C&next=//evil.test"])
async def test_a_login_ends_where_the_user_wanted_to_go(site: Site, same_site: SameSite, return_url: str) -> None:
    """With Strict and with Lax the first page comes with the session cookie, so nothing loops."""
    await site.start(same_site=same_site)
    browser = await site.browser()

    page = await log_in(browser, returnUrl=return_url)

    assert return_url.partition("#")[0] == page.json()["path"]
    assert f"{SESSION}={session_of(browser)}" in page.json()["cookie"]
    assert [SESSION] == list(browser.cookies[SITE]), "nothing of the login is left"


async def test_a_page_that_another_site_links_to_ends_in_a_session(site: Site) -> None:
    """The whole chain begins on another site, and the session cookie is there at its end."""
    await site.start()
    browser = await site.browser()

    page = await browser.go(f"{SITE}/bff/login?provider=corp&returnUrl=/a", from_origin="https://mail.test")

    assert SESSION in page.json()["cookie"]


@pytest.mark.parametrize("relation", ["https://mail.test", "https://blog.example.com"])
async def test_a_link_on_another_site_goes_on_with_the_session_that_is_there(site: Site, relation: str) -> None:
    """With Strict the browser doesn't show its session to the login at first; nobody logs in again for it."""
    await site.start()
    browser = await site.browser()
    await log_in(browser)
    session, calls = session_of(browser), len(site.provider.ledger.calls)

    page = await browser.go(f"{SITE}/bff/login?returnUrl=/orders%3Fa%3Db", from_origin=relation)

    assert "/orders?a=b" == page.json()["path"]
    assert f"{SESSION}={session}" in page.json()["cookie"]
    assert calls == len(site.provider.ledger.calls)


async def test_a_link_on_our_own_site_logs_in_anew(site: Site) -> None:
    """Whoever asks for a login while logged in gets one: it may be somebody else, or a stronger one."""
    await site.start()
    browser = await site.browser()
    await log_in(browser)
    session = session_of(browser)

    await browser.go(f"{SITE}/bff/login?provider=corp", from_origin=SITE)

    assert session != session_of(browser)


async def test_a_session_of_another_provider_is_not_gone_on_with(site: Site) -> None:
    """A link that names a provider leads to its login."""
    await site.start()
    browser = await site.browser()
    await log_in(browser)

    await browser.go(f"{SITE}/bff/login?provider=other", from_origin="https://mail.test")

    assert 1 == len(site.providers["other"].ledger.calls)


async def test_se_04_the_session_cookie_has_every_attribute(site: Site) -> None:
    """Secure, HttpOnly, Path=/, SameSite=Strict, no Domain, no end of its own."""
    await site.start()
    browser = await site.browser()
    callback = await answered(browser)

    page = await arrive(browser, callback, follow=False)

    session = [line for line in page.set_cookies if line.startswith(SESSION)]
    assert [f"{SESSION}={session_of(browser)}; Path=/; Secure; HttpOnly; SameSite=Strict"] == session
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", session_of(browser) or "")


async def test_each_attempt_asks_with_secrets_of_its_own(site: Site) -> None:
    """State, nonce and S256 challenge are fresh each time, and the redirect URI is the provider's own."""
    await site.start()
    browser = await site.browser()

    asked = []
    for _ in range(2):
        location = (await begin(browser, provider="corp")).header("Location")
        assert location is not None
        asked.append({name: value for name, (value,) in parse_qs(urlsplit(location).query).items()})

    for query in asked:
        assert ("code", "S256") == (query["response_type"], query["code_challenge_method"])
        assert f"{SITE}/bff/callback/corp" == query["redirect_uri"]
        assert [43] * 3 == [len(query[name]) for name in ("state", "nonce", "code_challenge")]
    for name in ("state", "nonce", "code_challenge"):
        assert asked[0][name] != asked[1][name]


async def test_the_transaction_cookie_shows_nothing(site: Site) -> None:
    """It is Lax, short-lived and sealed; neither state nor verifier can be read from it."""
    await site.start()
    browser = await site.browser()

    page = await begin(browser, provider="corp")

    (line,) = page.set_cookies
    state = parse_qs(urlsplit(page.header("Location") or "").query)["state"][0]
    assert re.fullmatch(
        r"__Host-Http-login-[0-9a-f]{8}=[A-Za-z0-9_-]+; Max-Age=900; Path=/; Secure; HttpOnly; SameSite=Lax", line
    )
    assert state not in line


async def test_a_browser_without_fetch_metadata_can_log_in(site: Site) -> None:
    """Older browsers send none."""
    await site.start()
    browser = await site.browser()
    browser.fetch_metadata = False

    page = await log_in(browser)

    assert SESSION in page.json()["cookie"]


async def test_several_providers_are_chosen_from(site: Site) -> None:
    """A login that names none shows a page with all of them, and each link leads there and back."""
    await site.start()
    browser = await site.browser()

    choice = await browser.go(f"{SITE}/bff/login?returnUrl=/a%3Fb")
    page = await browser.go(SITE + choice.links[1], from_origin=SITE)

    assert ["/bff/login?provider=corp&returnUrl=/a%3Fb", "/bff/login?provider=other&returnUrl=/a%3Fb"] == choice.links
    assert "/a?b" == page.json()["path"]
    assert 1 == len(site.providers["other"].ledger.calls)


async def test_the_default_provider_is_asked(site: Site) -> None:
    """Where the configuration names one, nobody is asked."""
    await site.start(login=LoginOptions(default_provider="other"))
    browser = await site.browser()

    await browser.go(f"{SITE}/bff/login")

    assert 1 == len(site.providers["other"].ledger.calls)


# --- LG-01: whose answer is it


async def test_lg_01_an_attackers_answer_in_the_victims_browser_is_refused(site: Site) -> None:
    """State and code are good, but this browser began no such attempt."""
    await site.start()
    attacker, victim = await site.browser(), await site.browser()
    callback = await answered(attacker, login_hint="mallory")

    await refused(site, victim, callback)
    await answered(victim)  # an attempt of its own doesn't help
    await refused(site, victim, callback)


@pytest.mark.parametrize(
    "changes",
    [
        {"state": None},
        {"state": ""},
        {"state": "x"},
        {"state": "A" * 43},
        {"state": "A" * 44},
        {"state": "é" * 43},
        {"state": "../" * 14 + "a"},
        {"code": None},
    ],
)
async def test_lg_01_an_answer_that_is_not_whole_is_refused(site: Site, changes: dict[str, str | None]) -> None:
    """Without its state, with another, or without a code, nothing is asked of the token endpoint."""
    await site.start()
    browser = await site.browser()

    await refused(site, browser, with_query(await answered(browser), **changes))


async def test_lg_01_an_answer_is_taken_once(site: Site) -> None:
    """Neither the same browser nor a thief who has its cookies can use it again."""
    await site.start()
    browser, thief = await site.browser(), await site.browser()
    callback = await answered(browser)
    thief.cookies[SITE] = dict(browser.cookies[SITE])

    await arrive(browser, callback)

    assert session_of(browser) is not None
    await refused(site, browser, callback)
    await refused(site, thief, callback)


async def test_lg_01_an_answer_is_taken_once_over_all_processes(site: Site) -> None:
    """Of ten callbacks at once over two processes, also while their keys are rotated, one succeeds."""
    newer = new_key(SystemRandomness())
    one = await site.start()
    two = await site.start(keys=[newer, KEY])
    browser = await site.browser()
    callback = await answered(browser)
    twins = []
    for number in range(10):
        twin = await site.browser(one if number % 2 else two)
        twin.cookies[SITE] = dict(browser.cookies[SITE])
        twins.append(twin)

    pages = await asyncio.gather(*(arrive(twin, callback, follow=False) for twin in twins))

    assert [303] + [400] * 9 == sorted(page.status for page in pages)
    assert 1 == len([twin for twin in twins if session_of(twin) is not None])
    assert 1 == len(site.provider.ledger.calls)


async def test_lg_01_an_attempt_expires(site: Site) -> None:
    """After its time the answer is refused, by what is sealed inside the cookie, not by Max-Age."""
    await site.start(login=LoginOptions(timeout_seconds=60.0))
    browser = await site.browser()
    callback = await answered(browser)

    site.clock.advance(60)

    await refused(site, browser, callback)


async def test_lg_01_a_cookie_of_another_attempt_or_another_making_is_refused(site: Site) -> None:
    """Cookies that are swapped, cut, altered or made up open nothing."""
    await site.start()
    browser = await site.browser()
    first, second = await answered(browser), await answered(browser)
    jar = browser.cookies[SITE]
    (one, two) = jar
    values = [jar[two].value, jar[one].value[:-2], jar[one].value[::-1], "", "AAAA", jar[one].value + "A" * 400]

    for value in values:
        browser.set_cookie(SITE, f"{one}={value}; Path=/; Secure; HttpOnly; SameSite=Lax")
        await refused(site, browser, first)

    assert 200 == (await arrive(browser, second)).status


async def test_lg_02_an_answer_at_another_providers_callback_is_refused(site: Site) -> None:
    """One provider's answer is never taken for another's."""
    await site.start()
    browser = await site.browser()
    callback = await answered(browser, provider="corp")

    await refused(site, browser, callback.replace("/callback/corp", "/callback/other"))
    await refused(site, browser, callback.replace("/callback/corp", "/callback/nobody"))


@pytest.mark.parametrize("iss", [None, "https://evil.test", ""])
async def test_lg_02_a_wrong_or_missing_issuer_is_refused_before_any_token_request(site: Site, iss: str | None) -> None:
    """The server promises ``iss``, so an answer without it, or of another, isn't its own (RFC 9207)."""
    await site.start()
    browser = await site.browser()

    await refused(site, browser, with_query(await answered(browser), iss=iss))


async def test_lg_02_a_stolen_code_in_the_attackers_own_attempt_is_refused(site: Site) -> None:
    """PKCE ties the code to the browser that asked for it."""
    await site.start()
    victim, attacker = await site.browser(), await site.browser()
    stolen = parse_qs(urlsplit(await answered(victim)).query)["code"][0]

    page = await arrive(attacker, with_query(await answered(attacker), code=stolen))

    assert 400 == page.status
    assert session_of(attacker) is None


@pytest.mark.parametrize("parameter", ["state", "code", "iss", "error"])
async def test_hd_09_a_parameter_that_came_twice_is_refused(site: Site, parameter: str) -> None:
    """Also with the same value: readers differ in which of the two they take."""
    await site.start()
    browser = await site.browser()
    callback = await answered(browser)
    value = parse_qs(urlsplit(callback).query).get(parameter, ["x"])[0]

    page = await arrive(browser, f"{callback}&{parameter}={quote(value)}&{parameter}={quote(value)}")

    assert 400 == page.status
    assert session_of(browser) is None
    assert 200 == (await arrive(browser, callback)).status, "the attempt isn't used up"


# --- LG-03, LG-04: many attempts


async def test_lg_03_logins_that_are_begun_cost_nothing(site: Site) -> None:
    """After five hundred of them the store is empty, the browser has a few cookies, and a login still works."""
    generous = RateLimitOptions(requests_per_second=1e6, burst=1_000_000)
    await site.start(login=LoginOptions(client_rate_limit=generous, rate_limit=generous))
    browser = await site.browser()

    for _ in range(500):
        assert 303 == (await begin(browser, provider="corp", returnUrl="/" + "a" * 200)).status
    cookies = browser.cookies[SITE]

    assert {} == site.backend.records
    assert len(cookies) <= LoginOptions().max_parallel
    assert sum(len(cookie.name) + len(cookie.value) for cookie in cookies.values()) <= 4096
    assert SESSION in (await log_in(browser)).json()["cookie"]


async def test_lg_03_cookies_that_are_made_up_do_not_lock_out(site: Site) -> None:
    """Whatever a page of a sibling could have planted is removed at the next login."""
    await site.start()
    browser = await site.browser()
    for number in range(20):
        browser.set_cookie(SITE, f"__Host-Http-login-{number:08x}=junk; Path=/; Secure; HttpOnly; SameSite=Lax")

    await log_in(browser)

    assert [SESSION] == list(browser.cookies[SITE])


async def test_lg_04_five_tabs_at_once_each_end_right(site: Site) -> None:
    """They are begun together and answered in another order; each ends on its own page, with a session."""
    await site.start()
    browser = await site.browser()
    callbacks = [await answered(browser, returnUrl=f"/tab/{number}") for number in range(5)]

    ends = [await arrive(browser, callbacks[number]) for number in (3, 0, 4, 2, 1)]

    assert [f"/tab/{number}" for number in (3, 0, 4, 2, 1)] == [page.json()["path"] for page in ends]
    assert all(SESSION in page.json()["cookie"] for page in ends)
    assert [SESSION] == list(browser.cookies[SITE])


async def test_lg_04_the_sixth_tab_is_refused_cleanly(site: Site) -> None:
    """The oldest of too many attempts is given up: a page says so and offers the login."""
    await site.start(login=LoginOptions(max_parallel=2))
    browser = await site.browser()
    callbacks = []
    for _ in range(3):
        site.clock.advance(1)
        callbacks.append(await answered(browser))

    await refused(site, browser, callbacks[0])

    assert 200 == (await arrive(browser, callbacks[1])).status
    assert 200 == (await arrive(browser, callbacks[2])).status


# --- LG-06, LG-07, LG-10: parameters


async def test_lg_06_the_caller_chooses_only_what_is_allowed(site: Site) -> None:
    """Scope, redirect_uri, response_type and whatever isn't listed are ignored; a listed one goes along."""
    await site.start()
    browser = await site.browser()

    location = (
        await begin(
            browser,
            provider="corp",
            scope="admin",
            redirect_uri="https://evil.test",
            response_type="token",
            state="x",
            client_id="evil",
            acr_values="high",
            code_challenge_method="plain",
            login_hint="bob",
        )
    ).header("Location")

    query = {name: value for name, (value,) in parse_qs(urlsplit(location or "").query).items()}
    assert ("openid offline_access", "code", "S256", "bob") == tuple(
        query[name] for name in ("scope", "response_type", "code_challenge_method", "login_hint")
    )
    assert f"{SITE}/bff/callback/corp" == query["redirect_uri"]
    assert "x" != query["state"]
    assert "acr_values" not in query


@pytest.mark.parametrize(
    "query",
    [
        "provider=nobody",
        "provider=corp&provider=corp",
        "provider=corp&login_hint=" + "a" * 513,
        "provider=corp&login_hint=a%0Ab",
        "provider=corp&returnUrl=/a&rd=/b",
        "provider=corp&returnUrl=/a&returnUrl=/a",
        "provider=..%2f",
    ],
)
async def test_a_login_url_that_is_wrong_is_refused(site: Site, query: str) -> None:
    """A mistake in the frontend is a clear 400, and no attempt."""
    await site.start()
    browser = await site.browser()

    page = await browser.go(f"{SITE}/bff/login?{query}", follow=False)

    assert 400 == page.status
    assert {} == browser.cookies.get(SITE, {})


@pytest.mark.parametrize(
    "error",
    [
        "access_denied",
        "<script>alert(1)</script>",
        "a\r\nSet-Cookie: x=y",
        '"onmouseover="x',
        "e" * 4000,
        "\u202e\u0000\x1b[31m",
    ],
)
async def test_lg_07_an_error_answer_shows_nothing_of_itself(
    site: Site, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the page nor the headers repeat what came, and the log repeats little of it, on one line."""
    await site.start()
    browser = await site.browser()
    state = parse_qs(urlsplit(await answered(browser)).query)["state"][0]
    query = urlencode({"state": state, "error": error, "error_description": error, "iss": site.provider.url})
    before = len(browser.responses)

    page = await arrive(browser, f"{SITE}/bff/callback/corp?{query}")

    assert 400 == page.status
    assert "<script" not in page.text
    if error != "access_denied":
        for response in browser.responses[before:]:
            assert error not in response.text + repr(response.headers)
    for record in caplog.records:
        detail = str(getattr(record, "detail", ""))
        assert len(detail) < 200
        assert detail.isprintable()
    assert session_of(browser) is None


async def test_a_silent_login_that_needs_the_user_ends_where_it_came_from(site: Site) -> None:
    """With ``prompt=none`` an unknown user is no error: the page comes back without a session."""
    site.provider.configure(asks_for_login=True)
    await site.start()
    browser = await site.browser()

    page = await browser.go(f"{SITE}/bff/login?provider=corp&prompt=none&returnUrl=/app")

    assert "/app" == page.json()["path"]
    assert session_of(browser) is None


@pytest.mark.parametrize("name", ["access_token", "id_token", "refresh_token", "token"])
async def test_lg_10_a_token_in_the_url_is_refused(site: Site, name: str) -> None:
    """Only the code flow is spoken (RFC 9700 section 2.1.2)."""
    await site.start()
    browser = await site.browser()

    await refused(site, browser, f"{await answered(browser)}&{name}=x")


# --- LG-09: who asks


FRAMED = [
    {"Sec-Fetch-Dest": "iframe"},
    {"Sec-Fetch-Dest": "frame"},
    {"Sec-Fetch-Dest": "embed"},
    {"Sec-Fetch-Dest": "object"},
    {"Sec-Fetch-Dest": "image", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Dest": "empty", "Sec-Fetch-Mode": "cors"},
    {"Sec-Purpose": "prefetch"},
    {"Sec-Purpose": "prefetch;prerender"},
    {"Purpose": "prefetch"},
    {"X-Moz": "prefetch"},
    {"X-Purpose": "preview"},
]


@pytest.mark.parametrize("headers", FRAMED, ids=lambda headers: ",".join(headers.values()))
async def test_lg_09_frames_images_and_prefetching_use_nothing_up(site: Site, headers: dict[str, str]) -> None:
    """A login isn't begun by them, and an answer that they carry isn't taken: the user's own comes after."""
    await site.start()
    browser = await site.browser()
    callback = await answered(browser)
    cookies = dict(browser.cookies[SITE])

    pages = [
        await browser.go(url, headers=headers, from_origin="https://evil.test", follow=False)
        for url in (f"{SITE}/bff/login?provider=corp", callback, f"{SITE}/bff/return")
    ]

    # A frame may bring the answer to a silent login, to nobody's eyes but our own pages'.
    framed = headers.get("Sec-Fetch-Dest") == "iframe"
    assert [403, 200 if framed else 403, 403] == [page.status for page in pages]
    assert not any(page.may_be_framed_by("https://evil.test") for page in pages)
    assert cookies == browser.cookies[SITE]
    assert 200 == (await arrive(browser, callback)).status


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "OPTIONS"])
async def test_lg_09_only_get_begins_and_answers_logins(site: Site, method: str) -> None:
    """Other methods get 405 and use nothing up."""
    await site.start()
    browser = await site.browser()
    callback = await answered(browser)

    for url in (f"{SITE}/bff/login?provider=corp", callback, f"{SITE}/bff/return", f"{SITE}/bff/user"):
        page = await browser.go(url, method=method, follow=False)
        assert 405 == page.status
        assert "GET" == page.header("Allow")

    assert 200 == (await arrive(browser, callback)).status


# --- SE-01, LG-08: what was there before


async def test_se_01_a_preset_id_is_not_kept(site: Site) -> None:
    """Whatever session id the browser came with, the login draws a new one."""
    await site.start()
    browser = await site.browser()
    browser.set_cookie(SITE, f"{SESSION}={'f' * 43}; Path=/; Secure; HttpOnly; SameSite=Strict")

    await log_in(browser)

    assert "f" * 43 != session_of(browser)
    assert await site.process.sessions.load(b"f" * 43) is None


async def test_lg_08_a_login_as_somebody_else_ends_the_session_before(site: Site) -> None:
    """The old id is dead on every process, the old grant has ended, and the provider was told."""
    one, two = await site.start(), await site.start()
    browser = await site.browser(one)
    await log_in(browser, "alice")
    old = (session_of(browser) or "").encode()
    live = await two.sessions.load(old)
    assert live is not None

    await log_in(browser, "bob")
    await until(lambda: two.sessions.peek(old) is None, seconds=1.0)

    for process in (one, two):
        assert await process.sessions.load(old) is None
    grant = await one.tokens.grant(live.grant_id)
    assert grant is None or grant.ended is not None
    await until(lambda: revoked(site, "alice"), what="the revocation")
    assert not revoked(site, "bob")


async def test_lg_08_a_login_as_the_same_user_revokes_nothing(site: Site) -> None:
    """Some providers would end the new grant with the old one."""
    await site.start()
    browser = await site.browser()
    await log_in(browser, "alice")
    old = session_of(browser)

    await log_in(browser, "alice")
    await asyncio.sleep(0.05)

    assert old != session_of(browser)
    assert not revoked(site, "alice")
    assert 1 == len(await site.process.sessions.find_by(Index.PROVIDER, "corp"))


# --- what fails


async def test_a_refused_identity_leaves_no_token_behind(site: Site) -> None:
    """The id token is missing: no session, no grant, and the refresh token that came is revoked."""
    site.provider.configure(omit_at_login=frozenset({"id_token"}))
    await site.start()
    browser = await site.browser()

    page = await log_in(browser)

    assert 400 == page.status
    assert session_of(browser) is None
    assert [] == [key for key in site.backend.records if not key.startswith("state:")]
    await until(lambda: revoked(site, "alice"), what="the revocation")


@pytest.mark.parametrize("fault", ["create:grant", "create:session"])
async def test_a_store_that_fails_after_the_code_leaves_nothing_behind(site: Site, fault: str) -> None:
    """503, no session, no live grant, and the refresh token is revoked; the next login works."""
    process = await site.start()
    browser = await site.browser()
    callback = await answered(browser)
    process.store.failing.add(fault)

    page = await arrive(browser, callback)

    assert 503 == page.status
    assert page.header("Retry-After")
    assert session_of(browser) is None
    await until(lambda: revoked(site, "alice"), what="the revocation")
    assert [] == [key for key in site.backend.records if key.startswith("session:")]
    process.store.failing.clear()
    assert SESSION in (await log_in(browser, "bob")).json()["cookie"]


@pytest.mark.parametrize("user", ["alice", "bob"])
async def test_a_store_that_fails_to_end_the_session_before_costs_nobody_a_login(site: Site, user: str) -> None:
    """The new session lives, and so does its grant. The old one ends as soon as the store lets it."""
    process = await site.start()
    browser = await site.browser()
    await log_in(browser, "alice")
    before = (session_of(browser) or "").encode()
    callback = await answered(browser, login_hint=user)
    process.store.failing.add("delete:session")

    page = await arrive(browser, callback)
    process.store.failing.clear()

    assert 200 == page.status
    assert before != (session_of(browser) or "").encode()
    await assert_logged_in(process, browser)
    await until_async(lambda: has_ended(process, before))


async def assert_logged_in(process: Process, browser: Browser) -> None:
    """Of the cookies that it has, the browser's session has a grant that lives here and at the provider."""
    page = await browser.fetch(f"{SITE}/bff/user")
    assert 200 == page.status, page.text
    live = await process.sessions.load((session_of(browser) or "").encode())
    assert live is not None
    assert isinstance(result := await process.tokens.token(live.grant_id), Token), result


async def has_ended(process: Process, session_id: bytes) -> bool:
    return await process.sessions.load(session_id) is None


@pytest.mark.parametrize("user", ["alice", "bob"])
@pytest.mark.parametrize("cut", ["hang-up", "kill"])
async def test_tk_02_wherever_a_second_login_is_cut_off_the_browser_stays_logged_in(
    site: Site, tmp_path: Path, user: str, cut: str
) -> None:
    """At each call to the store on the way to the page, by whatever cookie the browser has by then."""
    cut_off = 0
    for number in range(1, 50):
        process = await site.start(spool_dir=tmp_path)
        browser = await site.browser(process)
        await log_in(browser, "alice")
        before = (session_of(browser) or "").encode()
        callback = await answered(browser, login_hint=user, prompt="login")
        reached, released = process.store.hold_call(number)
        arriving = asyncio.ensure_future(arrive(browser, callback))
        reaching = asyncio.ensure_future(reached.wait())
        await asyncio.wait([arriving, reaching], return_when=asyncio.FIRST_COMPLETED)
        reaching.cancel()
        if arriving.done():
            released.set()
            break
        arriving.cancel()
        await asyncio.sleep(0.02)
        if cut == "kill":
            await process.kill()
        released.set()
        await asyncio.sleep(0.05)
        if cut == "kill":
            process = await site.start(spool_dir=tmp_path)
            await process.tokens.recover()
            site.move(browser, process)

        site.clock.advance(3600)
        await assert_logged_in(process, browser)
        if before != (session_of(browser) or "").encode():
            await until_async(lambda: has_ended(process, before))  # noqa: B023 - it is awaited here
        cut_off += 1

    assert cut_off > 5


async def test_se_01_a_browser_that_never_comes_back_keeps_the_session_that_it_had(site: Site) -> None:
    """The answer was sent and didn't reach it: the old session lives on, and the new one ends unused."""
    process = await site.start()
    browser = await site.browser()
    await log_in(browser, "alice")
    jar = dict(browser.cookies[SITE])
    await arrive(browser, await answered(browser), follow=False)
    lost = (session_of(browser) or "").encode()
    browser.cookies[SITE] = jar

    for _ in range(9):
        await assert_logged_in(process, browser)
        site.clock.advance(3600)

    assert await process.sessions.load(lost) is None


async def test_se_01_the_first_use_of_the_new_session_ends_the_one_before(site: Site) -> None:
    """Also where the browser never comes to the page that goes on."""
    process = await site.start()
    browser = await site.browser()
    await log_in(browser, "alice")
    before = (session_of(browser) or "").encode()
    await arrive(browser, await answered(browser), follow=False)
    assert await process.sessions.load(before, used=False) is not None

    await assert_logged_in(process, browser)

    await until_async(lambda: has_ended(process, before))
    await assert_logged_in(process, browser)


@pytest.mark.parametrize("after", [False, True])
async def test_tk_02_a_browser_that_hangs_up_during_a_login_leaves_no_family(site: Site, after: bool) -> None:
    """It was given no cookie, so nobody could use what came: its grant ends, and the provider is told."""
    process = await site.start()
    browser = await site.browser()
    await log_in(browser, "bob")
    callback = await answered(browser, login_hint="alice", prompt="login")
    reached, released = process.store.hold("create", after=after)
    arriving = asyncio.ensure_future(arrive(browser, callback))
    await reached.wait()
    released.set()  # the state is used up first
    reached, released = process.store.hold("create", after=after)
    await reached.wait()

    arriving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await arriving
    await asyncio.sleep(0.3)  # the broker hears of it meanwhile
    released.set()

    await until(lambda: revoked(site, "alice"), what="the revocation")
    assert [] == [grant for grant in await process.tokens.grants("corp", "alice") if grant.ended is None]


async def test_a_login_that_is_cut_off_ends_no_session_that_the_user_has(site: Site) -> None:
    """Some providers would end the old grant with the new one: both hang on one session there."""
    process = await site.start()
    browser = await site.browser()
    await log_in(browser, "alice")
    callback = await answered(browser)
    reached, released = process.store.hold("create")
    arriving = asyncio.ensure_future(arrive(browser, callback))
    await reached.wait()
    released.set()
    reached, released = process.store.hold("create")
    await reached.wait()

    arriving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await arriving
    await asyncio.sleep(0.3)  # the broker hears of it meanwhile
    released.set()
    await until_async(lambda: all_but_one_ended(process))

    assert not revoked(site, "alice")
    assert 200 == (await browser.fetch(f"{SITE}/bff/user")).status


async def all_but_one_ended(process: Process) -> bool:
    ended = [grant.ended is not None for grant in await process.tokens.grants("corp", "alice")]
    return [False, True] == sorted(ended)


async def test_a_store_that_is_down_at_the_callback_costs_no_code(site: Site) -> None:
    """Nothing is asked of the token endpoint, and the same answer works once the store is back."""
    process = await site.start()
    browser = await site.browser()
    callback = await answered(browser)
    process.store.down = True

    page = await arrive(browser, callback)
    process.store.down = False

    assert 503 == page.status
    assert 0 == len(site.provider.ledger.calls)
    assert SESSION in (await arrive(browser, callback)).json()["cookie"]


async def test_a_provider_that_is_down_is_a_503_with_a_way_on(site: Site) -> None:
    """At the beginning and at the token endpoint: the user may try again, and then it works."""
    await site.start()
    browser = await site.browser()
    site.provider.fail_next("status", endpoint="openid-configuration", status=500, count=1)
    down_at_first = await browser.go(f"{SITE}/bff/login?provider=corp")
    site.clock.advance(120)
    callback = await answered(browser, returnUrl="/wanted?a=b")
    site.provider.fail_next("status", endpoint="token", status=503)

    down_later = await arrive(browser, callback)

    for page in (down_at_first, down_later):
        assert 503 == page.status
        assert int(page.header("Retry-After") or 0) > 0
    again = await browser.go(SITE + down_later.links[0], from_origin=SITE)
    assert "/wanted?a=b" == again.json()["path"], "whoever starts again still gets there"
    assert SESSION in again.json()["cookie"]


@pytest.mark.parametrize("error", ["server_error", "temporarily_unavailable"])
async def test_a_provider_that_says_it_is_down_is_a_503_with_a_way_on(site: Site, error: str) -> None:
    """These two words stand for statuses that a redirect can't have: it isn't the login that failed."""
    await site.start()
    browser = await site.browser()

    page = await refused(
        site, browser, with_query(await answered(browser, returnUrl="/wanted"), code=None, error=error), status=503
    )

    assert int(page.header("Retry-After") or 0) > 0
    assert "Try again" in page.text
    again = await browser.go(SITE + page.links[0], from_origin=SITE)
    assert "/wanted" == again.json()["path"]


@pytest.mark.parametrize("says_it", [True, False])
async def test_a_server_without_metadata_and_id_tokens_may_say_who_it_is(site: Site, says_it: bool) -> None:
    """As GitHub does at times: with an issuer that is configured, the login succeeds both ways."""
    url = site.provider.url
    async with DocumentServer() as api:
        api.answers["/user"] = (200, {"id": 583231})
        plain: dict[str, Any] = {
            "discovery": False,
            "scope": "profile",
            "authorization_endpoint": f"{url}/authorize",
            "token_endpoint": f"{url}/token",
            "userinfo_endpoint": f"{api.url}/user",
            "userinfo_members": {"sub": "id"},
        }
        await site.start(provider=plain)
        browser = await site.browser()
        callback = await answered(browser)
        assert [url] == parse_qs(urlsplit(callback).query)["iss"]

        page = await arrive(browser, callback if says_it else with_query(callback, iss=None))

        assert SESSION in page.json()["cookie"]


# --- OR-01: where it may end


@pytest.mark.parametrize("group", RETURN_URLS, ids=[group["why"] for group in RETURN_URLS])
async def test_or_01_a_login_ends_on_our_own_site_or_not_at_all(site: Site, group: dict[str, Any]) -> None:
    """Every value that would leave the site, or that readers could take differently, is a 400, by both names."""
    await site.start(login=LoginOptions(default_provider="corp"))
    browser = await site.browser()

    for value in group["values"]:
        query = quote(value.encode("utf-8", "surrogatepass"), safe="")
        pages = [await browser.go(f"{SITE}/bff/login?{name}={query}") for name in ("returnUrl", "rd")]
        if group["verdict"] == "refuse":
            assert [400, 400] == [page.status for page in pages], value
        else:
            # aiohttp's client leaves an empty query out.
            expected = value.partition("#")[0].removesuffix("?")
            assert [(SITE, expected)] * 2 == [(origin_of(page.url), page.json()["path"]) for page in pages]


async def test_or_01_the_return_page_goes_nowhere_but_where_the_login_wanted(site: Site) -> None:
    """No parameter, no foreign link and no old cookie chooses where it goes."""
    await site.start()
    browser = await site.browser()
    back = await arrive(browser, await answered(browser, returnUrl="/wanted"), follow=False)
    ours = SITE + (back.header("Location") or "")
    attempt = ours.rpartition("=")[2]

    for query in (
        "",
        "?returnUrl=/evil",
        "?attempt=zzzzzzzz",
        "?attempt=00000000",
        f"?returnUrl=/evil&attempt={attempt}x",
    ):
        page = await browser.go(f"{SITE}/bff/return{query}", from_origin="https://evil.test", follow=False)
        assert (200, "/") == (page.status, page.refresh_url)
    first = await browser.go(ours, follow=False)
    again = await browser.go(ours, follow=False)

    assert "/wanted" == first.refresh_url
    assert "/" == again.refresh_url


async def test_the_ticket_of_a_login_that_ended_long_ago_is_worth_nothing(site: Site) -> None:
    """A minute after the login, the return page goes to the start page."""
    await site.start()
    browser = await site.browser()
    back = await arrive(browser, await answered(browser, returnUrl="/wanted"), follow=False)

    site.clock.advance(60)
    page = await browser.go(SITE + (back.header("Location") or ""), follow=False)

    assert "/" == page.refresh_url


# --- BR-07, RT-08, HD-04: redirects


async def test_br_07_every_redirect_is_a_303_that_tells_no_referrer(site: Site) -> None:
    """No URL with a code is shown as a page, kept in the history or sent on as Referer."""
    await site.start()
    browser = await site.browser()

    await log_in(browser)

    ours = [response for response in browser.responses if origin_of(response.url) == SITE and "/bff/" in response.url]
    assert [303, 303, 200] == [response.status for response in ours]
    for response in ours:
        assert "no-referrer" == response.header("Referrer-Policy")
        assert "no-store" == response.header("Cache-Control")
        if response.status == 200:
            assert "code=" not in response.url


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-Host": "evil.test"},
        {"X-Forwarded-Proto": "http"},
        {"X-Forwarded-Prefix": "/evil"},
        {"X-Forwarded-Port": "81"},
        {"Forwarded": "host=evil.test;proto=http"},
        {"X-Original-URL": "/evil"},
        {"X-Rewrite-URL": "/evil"},
        {"X-Host": "evil.test"},
    ],
    ids=lambda headers: next(iter(headers)),
)
async def test_hd_04_no_header_moves_the_redirect_uri(site: Site, headers: dict[str, str]) -> None:
    """It is made from ``public_url``, and so is the Secure attribute."""
    await site.start()
    browser = await site.browser()

    page = await browser.go(f"{SITE}/bff/login?provider=corp", headers=headers, follow=False)

    query = parse_qs(urlsplit(page.header("Location") or "").query)
    assert [f"{SITE}/bff/callback/corp"] == query["redirect_uri"]
    assert all("; Secure; " in line for line in page.set_cookies)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("app.example.com", 303),
        ("APP.example.com", 303),
        ("app.example.com.", 303),
        ("app.example.com:443", 303),
        ("app.example.com:8443", 421),
        ("evil.test", 421),
        ("app.example.com.evil.test", 421),
        ("127.0.0.1", 421),
        ("evil@app.example.com", 400),
        ("app.example.com,evil.test", 400),
        ("app.example.com/", 400),
    ],
)
async def test_rt_08_another_host_is_not_served(site: Site, host: str, status: int) -> None:
    """Case, a dot at the end and the scheme's own port make no difference."""
    await site.start()
    browser = await site.browser()

    page = await browser.go(f"{SITE}/bff/login?provider=corp", headers={"Host": host}, follow=False)

    assert status == page.status
    if status == 303:
        assert quote(f"{SITE}/bff/callback/corp", safe="") in (page.header("Location") or "")


@pytest.mark.parametrize(
    "path",
    [
        "/bff/%6cogin", "/%62ff/login", "/bff/./login", "/bff/x/../login", "/bff//login", "//bff/login", "/bff/login/",
        "/bff/%2e/login", "/bff/login%2f", "/bff/login;x", "/bff/callback/%63orp", "/bff/login%00", "/BFF/login",
        "/bff/LOGIN", "/bff/", "/bff", "/bff/nothing",
    ],
)  # fmt: skip
async def test_rt_01_an_endpoint_has_one_spelling(site: Site, path: str) -> None:
    """Whatever needs decoding or tidying up is none of our endpoints."""
    await site.start(login=LoginOptions(default_provider="corp"))
    browser = await site.browser()

    page = await browser.go(SITE + path, follow=False)

    assert page.status in (200, 404), page.status
    if page.status == 200:
        assert path == page.json()["path"], "it is the application's"


# --- plain-text loopback


async def test_plain_text_loopback_has_plain_cookies(site: Site) -> None:
    """Without TLS, on this machine only, the prefix and Secure are left out; the rest works alike."""
    await site.start(public_url="http://localhost:8080")
    browser = await site.browser()
    browser.servers = {"http://localhost:8080": site.process.url}

    page = await browser.go("http://localhost:8080/bff/login?provider=corp&returnUrl=/a")

    assert "/a" == page.json()["path"]
    assert ["session"] == list(browser.cookies["http://localhost:8080"])
    ours = [response for response in browser.responses if response.url.startswith("http://localhost:8080/bff")]
    assert not any(response.header("Strict-Transport-Security") for response in ours)

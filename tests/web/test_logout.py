from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from broker.core.compact_jws import unverified_claim
from broker.core.forwarded import TrustedProxies
from broker.core.id_token import LOGOUT_EVENT
from broker.core.outcome import LoginNeeded
from broker.demo.signing import SigningKey
from broker.services.clock import SystemRandomness
from broker.services.keyring import new_key
from broker.services.last_good import FAILURE_REST_SECONDS
from tests.support.authorization_server import CLIENT_ID
from tests.support.browser import Browser, Page
from tests.support.waiting import until
from tests.web.conftest import KEY, SITE, Process, Site
from tests.web.test_login import SESSION, log_in, revoked, session_of

LOGOUT = f"{SITE}/bff/logout"


async def is_alive(process: Process, session_id: str | None) -> bool:
    return await process.sessions.load((session_id or "").encode(), used=False) is not None


async def logged_in(site: Site, user: str = "alice", process: Process | None = None) -> tuple[Browser, str]:
    browser = await site.browser(process)
    await log_in(browser, user)
    session_id = session_of(browser)
    assert session_id is not None
    return browser, session_id


async def logout_url(browser: Browser) -> str:
    return f"{SITE}{(await browser.fetch(f'{SITE}/bff/user')).json()['logout_url']}"


# --- by the user


async def test_se_03_a_logout_by_a_script_ends_everything(site: Site) -> None:
    """The cookie is deleted, a copy of it is dead on every process, the grant has ended and is revoked."""
    one, two = await site.start(), await site.start()
    browser, session_id = await logged_in(site, process=one)
    live = await two.sessions.load(session_id.encode())
    assert live is not None

    answer = await browser.fetch(LOGOUT, method="POST")

    assert 200 == answer.status
    assert answer.json()["redirect"].startswith(f"{site.provider.url}/logout?")
    assert {} == browser.cookies[SITE]
    await until(lambda: two.sessions.peek(session_id.encode()) is None, seconds=1.0)
    assert not await is_alive(one, session_id)
    assert not await is_alive(two, session_id)
    grant = await two.tokens.grant(live.grant_id)
    assert grant is None or grant.ended is not None
    await until(lambda: revoked(site, "alice"), what="the revocation")


async def test_the_browser_comes_back_from_the_providers_logout(site: Site) -> None:
    """The redirect ends the session at the provider too, and the next login asks for the user."""
    site.provider.configure(asks_for_login=False)
    await site.start()
    browser, _ = await logged_in(site)

    answer = await browser.fetch(LOGOUT, method="POST")
    page = await browser.go(answer.json()["redirect"], from_origin=SITE)

    assert f"{SITE}/" == page.url
    assert {} == browser.cookies[SITE]
    query = parse_qs(urlsplit(answer.json()["redirect"]).query)
    assert [f"{SITE}/"] == query["post_logout_redirect_uri"]
    assert "id_token_hint" not in query, "no token goes into a URL by default"


async def test_se_04_the_deletion_repeats_the_attributes(site: Site) -> None:
    """Browsers keep a ``__Host-`` cookie otherwise (M8)."""
    await site.start()
    browser, _ = await logged_in(site)

    answer = await browser.fetch(LOGOUT, method="POST")

    assert (
        f"{SESSION}=; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/; Secure; HttpOnly; SameSite=Strict",
    ) == answer.set_cookies


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_the_logout_url_of_the_user_endpoint_works_as_a_link_and_as_a_form(site: Site, method: str) -> None:
    """It carries a proof, so it needs no header; the browser is redirected by 303."""
    process = await site.start()
    browser, session_id = await logged_in(site)

    page = await browser.go(await logout_url(browser), from_origin=SITE, method=method, follow=False)

    assert 303 == page.status
    assert (page.header("Location") or "").startswith(f"{site.provider.url}/logout?")
    assert not await is_alive(process, session_id)


FOREIGN = [
    ("a form on another site", "POST", {"from_origin": "https://evil.test"}, {}),
    ("a form on a sibling site", "POST", {"from_origin": "https://blog.example.com"}, {}),
    ("a form on our own site without the proof", "POST", {"from_origin": SITE}, {}),
    ("a wrong proof", "POST", {"from_origin": SITE}, {"token": "0" * 64}),
    ("an empty proof", "POST", {"from_origin": SITE}, {"token": ""}),
]


@pytest.mark.parametrize(("why", "method", "options", "query"), FOREIGN, ids=[row[0] for row in FOREIGN])
async def test_br_01_a_foreign_logout_is_refused(
    site: Site, why: str, method: str, options: dict[str, str], query: dict[str, str]
) -> None:
    """Even if the browser sends the cookie along, as it would with Lax or from a sibling."""
    process = await site.start()
    browser, session_id = await logged_in(site)

    cookie = {"Cookie": f"{SESSION}={session_id}"}
    page = await browser.go(
        f"{LOGOUT}?{urlencode(query)}", method=method, headers=cookie, follow=False, from_origin=options["from_origin"]
    )

    assert 403 == page.status, why
    assert await is_alive(process, session_id)


async def test_br_01_the_proof_of_one_session_ends_no_other(site: Site) -> None:
    """Mallory's own logout URL does nothing in Alice's browser."""
    process = await site.start()
    mallory, _ = await logged_in(site, "mallory")
    alice, session_id = await logged_in(site, "alice")

    page = await alice.go(await logout_url(mallory), method="POST", from_origin=SITE, follow=False)
    asked = await alice.go(await logout_url(mallory), from_origin=SITE, follow=False)

    assert 403 == page.status
    assert 200 == asked.status
    assert await is_alive(process, session_id)


@pytest.mark.parametrize("from_origin", [None, SITE, "https://evil.test"])
async def test_br_01_a_bare_link_asks_before_it_logs_out(site: Site, from_origin: str | None) -> None:
    """GET without the proof shows a page with the right link; only the user can follow it."""
    process = await site.start()
    browser, session_id = await logged_in(site)

    page = await browser.go(LOGOUT, from_origin=from_origin, headers={"Cookie": f"{SESSION}={session_id}"})

    assert 200 == page.status
    assert await is_alive(process, session_id)
    done = await browser.go(SITE + page.links[0], from_origin=SITE, follow=False)
    assert 303 == done.status
    assert not await is_alive(process, session_id)


@pytest.mark.parametrize("from_origin", ["https://evil.test", "https://blog.example.com"])
async def test_br_01_another_site_takes_no_cookie_away_that_it_hides(site: Site, from_origin: str) -> None:
    """
    Browsers leave out a Strict cookie where another site leads, by a link, a frame or a form. It isn't expired then: the
    link is taken up once more by our own page, where the user is asked.
    """
    process = await site.start()
    browser, session_id = await logged_in(site)

    link = await browser.go(LOGOUT, from_origin=from_origin, follow=False)
    form = await browser.go(LOGOUT, method="POST", from_origin=from_origin, follow=False)
    frame = await browser.go(LOGOUT, from_origin=from_origin, headers={"Sec-Fetch-Dest": "iframe"}, follow=False)

    assert [200, 403, 403] == [link.status, form.status, frame.status]
    assert [] == [*link.set_cookies, *form.set_cookies, *frame.set_cookies]
    assert ["/bff/logout"] == link.links
    assert 1 == len((await browser.go(SITE + link.links[0], from_origin=SITE, follow=False)).links)
    assert await is_alive(process, session_id)


@pytest.mark.parametrize(
    "headers", [{"Sec-Purpose": "prefetch"}, {"Sec-Fetch-Dest": "iframe"}, {"Sec-Fetch-Dest": "image", "Sec-Fetch-Mode": "no-cors"}]
)  # fmt: skip
async def test_lg_09_nobody_is_logged_out_ahead_of_their_coming(site: Site, headers: dict[str, str]) -> None:
    """A prefetched or framed logout link does nothing, though its proof is right."""
    process = await site.start()
    browser, session_id = await logged_in(site)

    page = await browser.go(await logout_url(browser), headers=headers, from_origin=SITE, follow=False)

    assert 403 == page.status
    assert await is_alive(process, session_id)


async def test_a_logout_without_a_session_is_done_already(site: Site) -> None:
    """By script, by link and by form, with a dead cookie or none; a cookie that is shown is deleted."""
    await site.start()
    browser = await site.browser()

    for jar in ({}, {"Cookie": f"{SESSION}={'x' * 43}"}):
        script = await browser.fetch(LOGOUT, method="POST", headers={"X-CSRF": "1", **jar})
        link = await browser.go(LOGOUT, headers=jar, follow=False)

        assert (200, "/") == (script.status, script.json()["redirect"])
        assert (303, "/") == (link.status, link.header("Location"))
        assert [True] * len(jar) == [line.startswith(f"{SESSION}=; Max-Age=0") for line in link.set_cookies]


async def test_tk_07_a_provider_that_is_down_keeps_nobody_logged_in(site: Site) -> None:
    """Revocation fails and its logout can't be found: the local logout works all the same."""
    process = await site.start()
    browser, session_id = await logged_in(site)
    await site.provider.stop()
    site.clock.advance(7200)  # whatever was known of it is old

    answer = await browser.fetch(LOGOUT, method="POST")

    assert 200 == answer.status
    assert not await is_alive(process, session_id)


async def test_a_store_that_is_down_says_that_the_logout_did_not_work(site: Site) -> None:
    """503, and the cookie stays: the user is still logged in and must not believe otherwise."""
    process = await site.start()
    browser, session_id = await logged_in(site)
    process.store.down = True

    answer = await browser.fetch(LOGOUT, method="POST")
    process.store.down = False

    assert 503 == answer.status
    assert "store_unavailable" == answer.json()["code"]
    assert session_id == session_of(browser)
    assert await is_alive(process, session_id)


async def test_a_logout_url_survives_a_rotation_of_the_keys(site: Site) -> None:
    """A proof that an older key made is still taken."""
    old = await site.start()
    browser, session_id = await logged_in(site, process=old)
    url = await logout_url(browser)
    new = await site.start(keys=[new_key(SystemRandomness()), KEY])
    site.move(browser, new)

    page = await browser.go(url, from_origin=SITE, follow=False)

    assert 303 == page.status
    assert not await is_alive(old, session_id)


async def test_lk_04_a_logout_is_written_down(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Who, from where, and nothing secret."""
    caplog.set_level("INFO")
    await site.start(trusted_proxies=TrustedProxies(["127.0.0.1"]))
    browser, session_id = await logged_in(site)

    await browser.fetch(LOGOUT, method="POST", headers={"X-CSRF": "1", "X-Forwarded-For": "6.6.6.6, 192.0.2.7"})

    (record,) = [record for record in caplog.records if record.getMessage() == "logout"]
    assert ("alice", "192.0.2.7") == (record.__dict__["subject"], record.__dict__["client"])
    assert session_id not in caplog.text + repr([record.__dict__ for record in caplog.records])


@pytest.mark.parametrize("why", ["the grant had ended", "a logout that failed"])
async def test_the_hint_goes_to_the_provider_although_the_grant_had_ended(site: Site, why: str) -> None:
    """Without it, some providers ask the user, or refuse, and go on with their own session."""
    process = await site.start(provider={"end_session_id_token_hint": True})
    browser, session_id = await logged_in(site)
    live = await process.sessions.load(session_id.encode())
    assert live is not None
    if why == "the grant had ended":
        site.provider.revoke_subject("alice")
        site.clock.advance(3600)
        assert isinstance(await process.tokens.token(live.grant_id), LoginNeeded)
    else:
        process.store.failing = {"delete"}
        assert 503 == (await browser.fetch(LOGOUT, method="POST")).status
        process.store.failing = set()

    answer = await browser.fetch(LOGOUT, method="POST")

    (hint,) = parse_qs(urlsplit(answer.json()["redirect"]).query)["id_token_hint"]
    assert "alice" == unverified_claim(hint, "sub")


# --- by the provider


async def backchannel(
    site: Site,
    token: str,
    *,
    process: Process | None = None,
    provider: str = "corp",
    headers: dict[str, str] | None = None,
) -> Page:
    """Post a logout token as the provider does: from a server, without a browser's headers."""
    caller = await site.browser(process)
    caller.fetch_metadata = False
    return await caller.go(
        f"{SITE}/bff/backchannel-logout/{provider}",
        method="POST",
        form={"logout_token": token},
        headers=headers,
        follow=False,
    )


async def sid_of(process: Process, session_id: str) -> str:
    live = await process.sessions.load(session_id.encode(), used=False)
    assert live is not None
    assert live.session.provider_session is not None
    return live.session.provider_session


async def test_jw_06_a_sid_ends_one_session_on_every_process(site: Site) -> None:
    """The provider's session of one device ends; the user's other device stays."""
    one, two = await site.start(), await site.start()
    _, laptop = await logged_in(site, process=one)
    _, phone = await logged_in(site, process=two)
    assert await is_alive(two, laptop)

    answer = await backchannel(site, site.provider.logout_token(sid=await sid_of(one, laptop)))
    await until(lambda: two.sessions.peek(laptop.encode()) is None, seconds=1.0)

    assert (200, "no-store") == (answer.status, answer.header("Cache-Control"))
    assert not await is_alive(one, laptop)
    assert not await is_alive(two, laptop)
    assert await is_alive(one, phone)


async def test_jw_06_a_subject_ends_all_of_the_users_sessions(site: Site) -> None:
    """And nobody else's, nor those of the same subject at another provider."""
    process = await site.start()
    sessions = [(await logged_in(site))[1] for _ in range(3)]
    _, other_user = await logged_in(site, "bob")
    other = await site.browser()
    await log_in(other, "alice", provider="other")

    answer = await backchannel(site, site.provider.logout_token(subject="alice"))

    assert 200 == answer.status
    assert [False] * 3 == [await is_alive(process, each) for each in sessions]
    assert await is_alive(process, other_user)
    assert await is_alive(process, session_of(other))


async def test_jw_06_a_sid_of_another_subject_ends_nothing(site: Site) -> None:
    """Where both are named, both must fit."""
    process = await site.start()
    _, session_id = await logged_in(site)

    token = site.provider.logout_token(sid=await sid_of(process, session_id), subject="bob")
    answer = await backchannel(site, token)

    assert 200 == answer.status
    assert await is_alive(process, session_id)


async def test_jw_06_a_logout_token_is_taken_once(site: Site) -> None:
    """A captured token can't end the sessions that came after it, on no process."""
    one, two = await site.start(), await site.start()
    token = site.provider.logout_token(subject="alice")
    assert 200 == (await backchannel(site, token)).status
    _, later = await logged_in(site)

    for process in (one, two):
        assert 400 == (await backchannel(site, token, process=process)).status

    assert await is_alive(one, later)


async def test_jw_06_a_store_that_fails_is_no_success(site: Site) -> None:
    """The provider hears of the failure and tries again; then the session ends."""
    process = await site.start()
    _, session_id = await logged_in(site)
    token = site.provider.logout_token(sid=await sid_of(process, session_id))

    for fault in ("find", "delete", "get:session", "create"):
        process.store.failing = {fault}
        assert 503 == (await backchannel(site, token)).status, fault
    process.store.failing = set()

    assert 200 == (await backchannel(site, token)).status
    assert not await is_alive(process, session_id)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": None}, "exp: missing"),
        ({"exp": "soon"}, "exp: no sensible instant"),
        ({"jti": None}, "jti: missing"),
        ({"events": {}}, "events: the token tells of no logout"),
    ],
)
async def test_jw_06_a_providers_token_that_is_refused_is_logged_with_the_claim(
    site: Site, caplog: pytest.LogCaptureFixture, changes: dict[str, object], reason: str
) -> None:
    """Its operator must see why logouts don't arrive; what anybody else sends is in no warning."""
    process = await site.start()
    _, session_id = await logged_in(site)
    now = int(site.clock.now())
    claims = {"iss": site.provider.url, "aud": CLIENT_ID, "iat": now, "exp": now + 120, "jti": "j-1"}
    claims |= {"sid": await sid_of(process, session_id), "events": {LOGOUT_EVENT: {}}} | changes
    token = site.provider.issuer.signing_key.sign({name: value for name, value in claims.items() if value is not None})

    assert [400, 400] == [(await backchannel(site, each)).status for each in (token, f"{token[:-4]}AAAA")]
    assert await is_alive(process, session_id)
    (record,) = [record for record in caplog.records if record.getMessage() == "logout_token_refused"]
    assert ("WARNING", "corp", reason) == (record.levelname, record.__dict__["provider"], record.__dict__["reason"])


async def test_jw_06_a_token_by_a_key_that_can_not_be_had_yet_is_no_forgery(site: Site) -> None:
    """The provider has a new key and can't show it: it hears of a failure, tries again, and then the session ends."""
    process = await site.start()
    _, session_id = await logged_in(site)
    sid = await sid_of(process, session_id)
    site.provider.issuer.signing_key = SigningKey("ES256")
    site.provider.fail_next("status", endpoint="jwks", status=503, count=1)
    token = site.provider.logout_token(sid=sid)

    refused = await backchannel(site, token)
    assert (503, str(int(FAILURE_REST_SECONDS))) == (refused.status, refused.header("Retry-After"))
    assert 503 == (await log_in(await site.browser(), "bob")).status
    assert await is_alive(process, session_id)

    site.clock.advance(FAILURE_REST_SECONDS)
    assert 200 == (await backchannel(site, token)).status
    assert not await is_alive(process, session_id)


async def test_jw_06_a_token_that_must_not_be_believed_ends_nothing(site: Site) -> None:
    """An id token, another provider's token, another client's, a changed one and none at all."""
    process = await site.start()
    _, session_id = await logged_in(site)
    sid = await sid_of(process, session_id)
    live = await process.sessions.load(session_id.encode())
    assert live is not None
    grant = await process.tokens.grant(live.grant_id)
    assert grant is not None
    assert grant.id_token is not None
    good = site.provider.logout_token(sid=sid)
    bad = [
        grant.id_token.reveal(),
        site.providers["other"].logout_token(sid=sid),
        site.provider.logout_token(sid=sid, client_id="other"),
        site.provider.logout_token(),
        good[:-4] + "AAAA",
        good.rpartition(".")[0] + ".",
        "",
        "x",
    ]

    for token in bad:
        assert 400 == (await backchannel(site, token)).status, token
    for provider in ("nobody", "other"):
        assert (await backchannel(site, good, provider=provider)).status in (400, 404)

    assert await is_alive(process, session_id)
    assert 200 == (await backchannel(site, good)).status


@pytest.mark.parametrize(
    ("headers", "form", "status"),
    [
        ({"Content-Type": "application/json"}, {"logout_token": "x"}, 400),
        ({"Content-Type": "multipart/form-data"}, {"logout_token": "x"}, 400),
        ({}, {"logout": "x"}, 400),
        ({}, {"logout_token": "x" * 70_000}, 413),
        ({}, {f"a{number}": "x" for number in range(20)}, 400),
    ],
)
async def test_jw_06_a_request_that_is_no_logout_is_refused(
    site: Site, headers: dict[str, str], form: dict[str, str], status: int
) -> None:
    """Another content type, no token, too much of everything."""
    await site.start()
    caller = await site.browser()
    caller.fetch_metadata = False

    page = await caller.go(
        f"{SITE}/bff/backchannel-logout/corp", method="POST", form=form, headers=headers, follow=False
    )

    assert status == page.status

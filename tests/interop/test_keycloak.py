"""The broker with the preset ``keycloak`` against Keycloak itself."""

import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.interop.form_browser import FormBrowser
from tests.interop.installation import Installation, calls_at_once, calls_for, log_in, problem, until_answered
from tests.interop.introspection import Introspection
from tests.interop.keycloak.server import LIFE_SECONDS, SECRETS, USER, Keycloak, running_keycloak
from tests.support.waiting import until
from tests.system.test_doctor import doctor, run_doctor

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180, func_only=True)]

ROTATION = {"strict": "strict", "forgiving": "grace", "lasting": "none"}
"""What the realms' settings are called in the broker's configuration."""
CLIENTS = ("public", "confidential", "signing")


@pytest.fixture(scope="module")
def keycloak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keycloak]:
    with running_keycloak(tmp_path_factory.mktemp("keycloak")) as server:
        yield server


def install(
    keycloak: Keycloak,
    directory: Path,
    *,
    realm: str,
    client: str,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Installation:
    """Return an installation that is one client of one realm."""
    return Installation(
        directory,
        token_endpoint=keycloak.token_endpoint(realm),
        provider={
            "preset": "keycloak",
            "base_url": keycloak.url,
            "realm": realm,
            "client_id": client,
            "rotation": ROTATION[realm],
            **credentials(keycloak, client),
            **options,
        },
        check=Introspection(
            f"{keycloak.token_endpoint(realm)}/introspect",
            client_id="resource-server",
            client_secret=SECRETS["resource-server"],
        ),
        **(settings or {}),
    )


def credentials(keycloak: Keycloak, client: str) -> dict[str, Any]:
    """Return what the broker proves with that it is *client*."""
    match client:
        case "confidential" | "standing":
            return {"client_secret": {"value": SECRETS[client]}}
        case "signing":
            return {"client_assertion": {"private_key": {"value": keycloak.signing_key.as_pem(private=True).decode()}}}
        case _:
            return {}


@pytest.mark.parametrize("realm", ["strict", "lasting"])
async def test_calls_go_on_over_token_lifetimes(keycloak: Keycloak, tmp_path: Path, realm: str) -> None:
    """Whatever the client's credential, no call fails, and each expiry costs one refresh."""
    installations = [install(keycloak, tmp_path / name, realm=realm, client=name) for name in CLIENTS]

    async def drive(installation: Installation) -> set[int]:
        async with installation.running() as browser:
            await log_in(browser, USER)
            return await calls_for(browser, 3.5 * LIFE_SECONDS, callers=2)

    statuses = await asyncio.gather(*map(drive, installations))

    assert [{200}] * len(CLIENTS) == statuses
    for installation in installations:
        assert {200} == set(installation.tap.statuses())
        assert 3 <= len(installation.tap.refreshes()) <= 5
        assert [] == installation.tap.presented_twice()  # "lasting" sends new ones too; the old ones go on working


async def test_parallel_calls_on_an_expired_token_cause_one_refresh(keycloak: Keycloak, tmp_path: Path) -> None:
    """Fifty calls at once, twice: all succeed, and Keycloak sees two refreshes."""
    installation = install(keycloak, tmp_path, realm="strict", client="confidential")
    async with installation.running() as browser:
        await log_in(browser, USER)
        for expiry in (1, 2):
            await asyncio.sleep(LIFE_SECONDS + 0.5)
            assert {200} == await calls_at_once(browser, 50)
            assert expiry == len(installation.tap.refreshes())

    assert [] == installation.tap.presented_twice()


@pytest.mark.parametrize("realm", ["forgiving", "lasting"])
async def test_a_lost_answer_costs_nothing_where_the_token_is_taken_again(
    keycloak: Keycloak, tmp_path: Path, realm: str
) -> None:
    """Keycloak rotates and its answer is lost: no caller notices."""
    installation = install(keycloak, tmp_path, realm=realm, client="confidential")
    async with installation.running() as browser:
        await log_in(browser, USER)
        installation.tap.lose_answers(1)
        statuses = await calls_for(browser, 2.5 * LIFE_SECONDS)

    assert {200} == statuses
    assert {200} == set(installation.tap.statuses())
    assert 3 <= len(installation.tap.refreshes())


async def test_a_lost_answer_of_a_strict_realm_ends_in_a_login(keycloak: Keycloak, tmp_path: Path) -> None:
    """The token is presented again only when nothing is left to lose; Keycloak refuses it, and the user logs in."""
    installation = install(keycloak, tmp_path, realm="strict", client="confidential", token_endpoint_timeout="2s")
    async with installation.running() as browser:
        await log_in(browser, USER)
        installation.tap.lose_answers(1)
        await until_answered(browser, 401, code="session_expired", seconds=5 * LIFE_SECONDS)
        refreshes = installation.tap.refreshes()
        await log_in(browser)  # Keycloak's own session lives, so it asks for nothing
        again = await browser.get("/api/items")

    assert [200, 400] == [request.status for request in refreshes]
    assert "invalid_grant" == refreshes[1].answer["error"]
    assert 200 == again.status


async def test_an_offline_token_needs_no_session_at_keycloak(keycloak: Keycloak, tmp_path: Path) -> None:
    """Keycloak keeps no session of the user and promises no end (``refresh_expires_in`` 0); calls go on all the same."""
    installation = install(keycloak, tmp_path, realm="strict", client="public", scope="openid offline_access")
    async with installation.running() as browser:
        await log_in(browser, USER)
        sessions = await asyncio.to_thread(keycloak.sessions, "strict")
        statuses = await calls_for(browser, 1.5 * LIFE_SECONDS)
        user = await browser.get("/bff/user")
        await installation.broker.kill()
        await asyncio.sleep(LIFE_SECONDS)
        await installation.broker.start()
        after_restart = await browser.get("/api/items")

    assert installation.tap.requests[0].answer["session_state"] not in sessions
    assert {0} == {request.answer["refresh_expires_in"] for request in installation.tap.requests}
    assert {200} == statuses
    assert user.json()["login_needed_at"] is None
    assert 200 == after_restart.status


async def test_a_user_whom_the_administrator_logs_out_must_log_in(keycloak: Keycloak, tmp_path: Path) -> None:
    """The next refresh finds the grant ended, once; then each call is told where to log in."""
    installation = install(keycloak, tmp_path, realm="lasting", client="confidential")
    async with installation.running() as browser:
        await log_in(browser, USER)
        await browser.get("/api/items")
        before = len(installation.tap.refreshes())
        await asyncio.to_thread(keycloak.log_out_user, "lasting")
        # At first it is the API that answers 401: a token that is refused just after it was issued isn't replaced.
        await until_answered(browser, 401, code="session_expired", seconds=2 * LIFE_SECONDS)
        answers = [await browser.get("/api/items") for _ in range(3)]
        page = await browser.begin_login()

    assert ["session_expired"] * 3 == [problem(answer) for answer in answers]
    assert "/bff/login" == answers[0].json()["login_url"].partition("?")[0]
    assert ["invalid_grant"] == [request.answer["error"] for request in installation.tap.refreshes()[before:]]
    assert page.form.fields.keys() >= USER.keys()


async def test_a_back_channel_logout_ends_the_one_session_that_it_names(keycloak: Keycloak, tmp_path: Path) -> None:
    """Of two browsers of one user, that whose ``session_state`` Keycloak ends is logged out within a second."""
    installation = install(keycloak, tmp_path, realm="strict", client="confidential")
    url = f"{installation.broker.url}/bff/backchannel-logout/corp"
    attributes = {"backchannel.logout.url": url, "backchannel.logout.session.required": "true"}
    await asyncio.to_thread(keycloak.set_client, "strict", "confidential", attributes=attributes)
    async with installation.running() as first, FormBrowser(first.origin) as second:
        await log_in(first, USER)
        await log_in(second, USER)
        state, other = (request.answer["session_state"] for request in installation.tap.requests)
        await asyncio.to_thread(keycloak.end_session, "strict", state)
        await until_answered(first, 401, code="no_session", seconds=1.0)
        kept = await second.get("/api/items")
        await until(lambda: bool(installation.events("backchannel_logout")), what="the line in the log")
        ended = installation.events("backchannel_logout")

    assert state != other
    assert 200 == kept.status
    assert [1] == [record["sessions"] for record in ended]


async def test_an_administrators_logout_ends_offline_tokens_too(keycloak: Keycloak, tmp_path: Path) -> None:
    """Keycloak takes no token that it issued before: the grant has ended, and nobody is told it is down."""
    installation = install(keycloak, tmp_path, realm="lasting", client="public", scope="openid offline_access")
    async with installation.running() as browser:
        await log_in(browser, USER)
        await asyncio.sleep(1.0)  # it counts in whole seconds
        await asyncio.to_thread(keycloak.log_out_user, "lasting")
        await until_answered(browser, 401, code="session_expired", seconds=2 * LIFE_SECONDS)

    assert ["Stale token"] == [request.answer["error_description"] for request in installation.tap.refreshes()]


@pytest.mark.parametrize("hint", [True, False])
async def test_a_logout_ends_the_session_at_keycloak(keycloak: Keycloak, tmp_path: Path, hint: bool) -> None:
    """The browser goes to Keycloak and comes back, asked to confirm if no id token goes along."""
    installation = install(keycloak, tmp_path, realm="lasting", client="public", end_session_id_token_hint=hint)
    async with installation.running() as browser:
        await log_in(browser, USER)
        (state,) = (request.answer["session_state"] for request in installation.tap.requests)
        before = await asyncio.to_thread(keycloak.sessions, "lasting")
        logout = await browser.request("POST", "/bff/logout")
        page = await browser.open(logout.json()["redirect"])
        asked = page.has_form
        if asked:
            page = await browser.submit(page)
        sessions = await asyncio.to_thread(keycloak.sessions, "lasting")
        after = await browser.get("/api/items")

    assert not (hint and asked)  # without it, Keycloak asks unless the revocation has ended the session by then
    assert f"{installation.broker.url}/" == page.url
    assert state in before
    assert state not in sessions
    assert "no_session" == problem(after)


async def test_a_wrong_secret_is_the_operators_fault_and_ends_nothing(keycloak: Keycloak, tmp_path: Path) -> None:
    """While Keycloak knows another secret, callers get 503 and keep their session; the log names the key to look at."""
    installation = install(keycloak, tmp_path, realm="strict", client="confidential")
    async with installation.running() as browser:
        await log_in(browser, USER)
        await asyncio.to_thread(keycloak.set_client, "strict", "confidential", secret="another")
        try:
            await until_answered(browser, 503, code="provider_unavailable", seconds=3 * LIFE_SECONDS)
        finally:
            await asyncio.to_thread(keycloak.set_client, "strict", "confidential", secret=SECRETS["confidential"])
        refused = await browser.get("/api/items")
        await until_answered(browser, 200, seconds=60)
        look_at = {record.get("look_at") for record in installation.events("token_request_failed")} - {None}

    assert "Retry-After" in refused.headers
    assert {"providers.corp.client_secret"} == look_at
    assert 1 == len([request for request in installation.tap.requests if request.grant_type == "authorization_code"])


STANDING = {
    "client_credentials": {"type": "client_credentials"},
    "password": {"type": "password", "username": USER["username"], "password": {"value": USER["password"]}},
    "jwt_bearer": {"type": "jwt_bearer", "subject": "svc-report"},
}
GRANT_TYPES = {"jwt_bearer": "urn:ietf:params:oauth:grant-type:jwt-bearer"}


@pytest.mark.parametrize("kind", STANDING)
async def test_a_standing_grant_serves_over_token_lifetimes(keycloak: Keycloak, tmp_path: Path, kind: str) -> None:
    """Nobody logs in. A password is sent once and then refreshed; the others bring no refresh token, and go anew."""
    settings = {"token": {"grant": "nightly"}, "grants": {"nightly": {"provider": "corp", **STANDING[kind]}}}
    key = {"value": keycloak.signing_key.as_pem(private=True).decode()}
    installation = install(
        keycloak,
        tmp_path,
        realm="strict",
        client="standing",
        settings=settings,
        user_assertion={"private_key": key, "issuer": "https://broker.example"},
    )
    async with installation.running() as browser:
        statuses = await calls_for(browser, 3.5 * LIFE_SECONDS)
    kinds = [request.grant_type for request in installation.tap.requests]

    assert {200} == statuses
    assert {200} == {request.status for request in installation.tap.requests}
    assert 4 <= len(kinds) <= 6
    assert [] == installation.tap.presented_twice()
    assert GRANT_TYPES.get(kind, kind) == kinds[0]
    assert {kinds[0] if kind != "password" else "refresh_token"} == set(kinds[1:])


async def test_a_standing_grant_survives_a_logout_by_the_administrator(keycloak: Keycloak, tmp_path: Path) -> None:
    """Its refresh token has ended, and the password brings another: no call is told to log in."""
    settings = {"token": {"grant": "nightly"}, "grants": {"nightly": {"provider": "corp", **STANDING["password"]}}}
    installation = install(keycloak, tmp_path, realm="lasting", client="standing", settings=settings)
    async with installation.running() as browser:
        before = await browser.get("/api/items")
        await asyncio.to_thread(keycloak.log_out_user, "lasting")
        await asyncio.sleep(LIFE_SECONDS + 0.5)
        after = await browser.get("/api/items")

    assert (200, 200) == (before.status, after.status)
    assert ["password", "refresh_token", "password"] == [each.grant_type for each in installation.tap.requests]


@pytest.mark.parametrize(
    ("realm", "shown"),
    [
        ("strict", "the server ends the whole grant when a refresh token is presented again: rotation strict fits"),
        ("forgiving", "the server takes a refresh token again after it was rotated: rotation grace fits"),
        ("lasting", "the server takes a refresh token again after it was rotated: rotation none fits"),
    ],
)
async def test_the_doctor_finds_what_the_realm_is_set_to(
    keycloak: Keycloak, tmp_path: Path, realm: str, shown: str
) -> None:
    """With a grant to spend; everything else that it probes is good, the redirect URI too."""
    installation = install(keycloak, tmp_path, realm=realm, client="confidential")
    async with installation.running() as browser:
        await log_in(browser, USER)
        spent = tmp_path / "tokens.json"
        spent.write_text(json.dumps(installation.tap.requests[0].answer))
        config = tmp_path / f"config-{installation.broker.port}.yaml"
        code, said, _ = await run_doctor(config, "--spend", str(spent))

    assert 0 == code, said
    assert f"good    {shown}" in said
    assert f"good    the server sends browsers back to {installation.broker.url}/bff/callback/corp" in said


async def test_the_doctor_names_a_redirect_uri_that_is_not_registered(keycloak: Keycloak, tmp_path: Path) -> None:
    """Keycloak sends nobody back."""
    provider = {
        "preset": "keycloak",
        "base_url": keycloak.url,
        "realm": "strict",
        "client_id": "confidential",
        **credentials(keycloak, "confidential"),
    }
    code, said, _ = await doctor(tmp_path, {"corp": provider})

    assert 1 == code
    assert ["public_url:"] == [line.split()[1] for line in said.splitlines() if line.startswith("  error")]

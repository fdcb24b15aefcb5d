"""
What an operator sets up wrongly is named by its key, in the log and by the doctor, and ends nobody's session.

The configuration stays as it is and the server changes its mind, as when somebody changes the client there: a browser
is logged in before, another tries to log in meanwhile, and then the server is put right.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.authorization_server import Behaviour, LedgerServer
from tests.support.broker_process import Answer, BrokerProcess, Browser, navigation, provider_options
from tests.support.forge import ec_key, pem, public_jwk
from tests.support.upstream import Upstream, tokens_of
from tests.support.waiting import until, until_async
from tests.system.test_doctor import run_doctor

pytestmark = pytest.mark.system

LIFE_SECONDS = 4
KEY, OTHER_KEY = ec_key(), ec_key(name="another")
BY_KEY = {"token_endpoint_auth_method": "private_key_jwt", "client_assertion": {"private_key": {"value": pem(KEY)}}}
TRUSTS_KEY = {"client_key": public_jwk(KEY)}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """
    Something that is wrong between the configuration and the server.

    Attributes:
        server: How the server is when all is well.
        wrong: What it changes.
        provider: How the broker is configured.
        route: The same of the route.
        login: The key that the log names when a login fails.
        status: What a browser gets that wants to log in.
        refresh: The key that the log names when a refresh fails; None if none fails.
        doctor: The key that the doctor names.
    """

    wrong: Mapping[str, Any]
    login: str
    refresh: str | None
    doctor: str
    status: int
    server: Mapping[str, Any] = field(default_factory=dict)
    provider: Mapping[str, Any] = field(default_factory=dict)
    route: Mapping[str, Any] = field(default_factory=dict)


FAULTS = {
    "secret": Fault(
        wrong={"client_secret": "another"},
        login="providers.corp.client_secret",
        refresh="providers.corp.client_secret",
        doctor="providers.corp.client_secret",
        status=503,
    ),
    "key": Fault(
        server=TRUSTS_KEY,
        provider=BY_KEY,
        wrong={"client_key": public_jwk(OTHER_KEY)},
        login="providers.corp.client_assertion",
        refresh="providers.corp.client_assertion",
        doctor="providers.corp.client_assertion",
        status=503,
    ),
    "scope": Fault(
        provider={"refresh_scope": True},
        wrong={"scopes": frozenset({"openid"})},
        login="providers.corp.scope",
        refresh="providers.corp.scope",
        doctor="providers.corp.scope",
        status=400,
    ),
    "redirect URI": Fault(
        wrong={"redirect_uris": ("https://elsewhere.example/callback",)},
        login="public_url",
        refresh=None,  # no refresh says where its answer goes
        doctor="public_url",
        status=400,
    ),
    "audience": Fault(
        provider={"authorization_parameters": {"resource": "urn:orders"}},
        route={"resource": "urn:orders"},
        wrong={"audiences": frozenset({"urn:others"})},
        login="providers.corp.authorization_parameters",
        refresh="routes.audience",
        doctor="providers.corp.authorization_parameters",
        status=400,
    ),
    "clock": Fault(
        wrong={"clock_ahead_seconds": 600.0},
        login="providers.corp.clock_skew",
        refresh=None,  # the id token that comes along isn't believed, and the tokens are as good as ever
        doctor="providers.corp.clock_skew",
        status=400,
    ),
    "clock, with assertions": Fault(
        server=TRUSTS_KEY,
        provider=BY_KEY,
        wrong={"clock_ahead_seconds": 600.0},
        login="providers.corp.clock_skew",
        refresh="providers.corp.clock_skew",
        doctor="providers.corp.clock_skew",
        status=503,
    ),
}

EACH = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)


@asynccontextmanager
async def installed(
    directory: Path, fault: Fault, **behaviour: Any
) -> AsyncIterator[tuple[LedgerServer, BrokerProcess, Browser]]:
    """An installation where all is well, and a browser that nobody has logged in with."""
    async with (
        LedgerServer(**fault.server, **behaviour) as server,
        Upstream(check=tokens_of(server)) as upstream,
        BrokerProcess(
            directory,
            providers={"corp": provider_options(server.url, **fault.provider)},
            routes=[{"path": "/api", "upstream": upstream.url, "token": "user", **fault.route}],
        ) as broker,
        Browser(broker.url) as browser,
    ):
        yield server, broker, browser


def put_right(server: LedgerServer, fault: Fault) -> None:
    right = Behaviour(**fault.server)
    server.configure(**{name: getattr(right, name) for name in fault.wrong})


def named_in_log(broker: BrokerProcess) -> set[str]:
    return {str(record["look_at"]) for record in broker.log() if record.get("look_at")}


async def begin_login(broker: BrokerProcess, browser: Browser) -> tuple[int, str]:
    async with browser.http.get(f"{broker.url}/bff/login", headers=navigation()) as answer:
        return answer.status, await answer.text()


@EACH
async def test_a_login_that_can_not_be_names_its_key(tmp_path: Path, fault: Fault) -> None:
    """In the log and by the doctor; the browser is told no more than that it failed, and a session stays as it is."""
    async with installed(tmp_path, fault) as (server, broker, alice), Browser(broker.url) as bob:
        await alice.log_in()
        server.configure(**fault.wrong)
        # A server that sends nobody back is only noticed by and by.
        pages = [await begin_login(broker, bob) for _ in range(3)]
        await until(lambda: named_in_log(broker) != set(), what="the key in the log")
        _, said, _ = await run_doctor(tmp_path / f"config-{broker.port}.yaml")
        user = await alice.get("/bff/user")

        put_right(server, fault)
        healthy_status, healthy, _ = await run_doctor(tmp_path / f"config-{broker.port}.yaml")
        await bob.log_in(user="bob")
        called = await bob.get("/api/x")

    assert {fault.login} == named_in_log(broker)
    assert {fault.status} == {status for status, _ in pages}
    assert not any(fault.login in shown for _, shown in pages)
    assert {fault.doctor} == {line.split()[1].rstrip(":") for line in said.splitlines() if line.startswith("  error")}
    assert (200, 200) == (user.status, called.status)
    assert 0 == healthy_status, healthy


@pytest.mark.slow
@EACH
async def test_a_refresh_that_can_not_be_names_its_key_and_ends_nothing(tmp_path: Path, fault: Fault) -> None:
    """Callers are told to wait, nobody to log in, and when the server is put right the same session goes on."""
    behaviour = {"access_token_seconds": LIFE_SECONDS}
    async with installed(tmp_path, fault, **behaviour) as (server, broker, browser):
        await browser.log_in()
        assert 200 == (await browser.get("/api/x")).status
        server.configure(**fault.wrong)
        answers: list[Answer] = []

        async def is_noticed() -> bool:
            answers.append(await browser.get("/api/x"))
            if fault.refresh is None:
                return server.ledger.count("refresh_token") >= 2
            return answers[-1].status == 503

        await until_async(is_noticed, seconds=5 * LIFE_SECONDS, what="the fault")
        is_of_clock = "clock_ahead_seconds" in fault.wrong
        expected = {"providers.corp.clock_skew"} if is_of_clock else {fault.refresh} - {None}
        await until(lambda: expected <= named_in_log(broker), what="the key in the log")
        look_at = named_in_log(broker)
        put_right(server, fault)

        async def is_well() -> bool:
            answers.append(await browser.get("/api/x"))
            return answers[-1].status == 200

        await until_async(is_well, seconds=60, what="the recovery")
        families = server.ledger.families_of("alice")

    # A clock that jumps ends the access tokens, and a token that has just been issued is not renewed when the API
    # refuses it: then its own 401 passes.
    assert {answer.status for answer in answers} <= {200, 503} | ({401} if is_of_clock else set())
    assert all(b"login_url" not in answer.body for answer in answers)
    assert expected == look_at
    assert [None] == [family.revoked for family in families]  # one login, which nothing has ended


async def test_algorithms_that_the_server_does_not_sign_by_are_named(tmp_path: Path) -> None:
    """Which keys are taken is configured, too."""
    fault = Fault(wrong={}, provider={"id_token_algorithms": ["RS256"]}, login="", refresh=None, doctor="", status=400)
    async with installed(tmp_path, fault) as (_, broker, browser):
        status, shown = await begin_login(broker, browser)
        await until(lambda: named_in_log(broker) != set(), what="the key in the log")
        assert {"providers.corp.id_token_algorithms"} == named_in_log(broker)
    assert (400, False) == (status, "id_token_algorithms" in shown)


async def test_a_secret_that_becomes_wrong_raises_an_alarm(tmp_path: Path) -> None:
    """The log says it once as an error, and the gauge is up until the server believes the broker again."""
    fault = FAULTS["secret"]
    async with installed(tmp_path, fault) as (server, broker, browser):
        await browser.log_in()
        server.configure(**fault.wrong)

        async def is_alarmed() -> bool:
            # A token that has just been issued is not renewed when an upstream refuses it.
            server.revoke_access_tokens("alice")
            await browser.get("/api/x")
            return 1.0 == (await broker.metrics()).get('provider_degraded{provider="corp"}')

        await until_async(is_alarmed, seconds=10, what="the gauge")
        await until(lambda: "provider_refuses_the_broker" in broker.log_path.read_text(), what="the alarm")
        alarms = [record for record in broker.log() if record["event"] == "provider_refuses_the_broker"]
    assert ["providers.corp.client_secret"] == [record["look_at"] for record in alarms]

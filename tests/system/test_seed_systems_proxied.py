"""
The four authorization servers of the seeds behind the whole broker: first tokens, calls, expiries, rotation, the chain's
end, and the logout.

The pages of the documents run as an installation, with a browser or an API client in front and an upstream behind that
takes live tokens only; variants of the servers' answers are told in test_seed_systems.py.
"""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from broker.config import loads
from broker.services.clock import SystemRandomness
from broker.services.keyring import new_key
from broker.web.app import Installation
from tests.support.broker_process import Browser
from tests.support.clock import ManualClock
from tests.support.doubles import apiax, mosaic, oracle
from tests.support.doubles.base import DAY, Double
from tests.support.ports import free_port
from tests.system.test_seed_systems import JWK, MOSAIC_FILES, ORACLE_FILES, Secrets, page

pytestmark = pytest.mark.system

ADMIN_TOKEN = "an-admin-token-of-thirty-two-characters"
HOUR = 3600.0


class Upstream:
    """Takes what the double says is live, by one Authorization header."""

    def __init__(self, double: Double) -> None:
        self.subjects: list[str] = []
        self.url = ""
        self._double = double

    async def answer(self, request: web.Request) -> web.Response:
        (authorization,) = request.headers.getall("Authorization")
        token = authorization.removeprefix("Bearer ")
        if not self._double.is_live(token):
            return web.Response(status=401)
        self.subjects.append(self._double.subject_of(token))
        return web.json_response({"path": request.path})


@asynccontextmanager
async def listening(runner: web.AppRunner, port: int = 0) -> AsyncIterator[str]:
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def installation(
    name: str, double: Double, directory: Path, files: Mapping[str, str]
) -> AsyncIterator[tuple[str, str, Upstream]]:
    """Run a page's configuration; yields where the broker and its admin API listen, and the upstream."""
    upstream = Upstream(double)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", upstream.answer)
    port = free_port()
    async with listening(web.AppRunner(app, access_log=None)) as upstream_url:
        yaml = re.sub(r"upstream: .*", f"upstream: {upstream_url}", page(name, 0, double))
        yaml = re.sub(r"^public_url: .*", f"public_url: http://127.0.0.1:{port}", yaml, flags=re.MULTILINE)
        yaml = re.sub(r"^store: .*", "store: {url: 'memory:'}", yaml, flags=re.MULTILINE)
        if "admin:" not in yaml:
            yaml += "admin: {listen: 127.0.0.1:9090, token: {file: broker-admin-token}}\n"
        secrets = {
            "broker-key": new_key(SystemRandomness()).reveal(),
            "broker-admin-token": ADMIN_TOKEN,
            **files,
        }
        running = Installation(loads(yaml.encode(), file=name, source=Secrets(secrets, directory)), clock=double.clock)
        await running.start()
        try:
            async with (
                listening(running.public_runner(), port) as url,
                listening(running.admin_runner()) as admin_url,
            ):
                yield url, admin_url, upstream
        finally:
            await running.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000)


async def operate(admin: str, method: str, path: str, document: object = None) -> Any:
    """Ask the admin API, and expect success."""
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}) as http,
        http.request(method, f"{admin}/api{path}", json=document) as response,
    ):
        assert response.status in {200, 201}, await response.text()
        return await response.json()


async def test_mosaic_oidc_serves_a_browser_until_the_chain_ends(clock: ManualClock, tmp_path: Path) -> None:
    """A fortnight of calls, each with a live token; the user is told when it ends, and logs in again then."""
    double = mosaic.MosaicOidc(clock)
    async with (
        double,
        installation("transmit-mosaic", double, tmp_path, MOSAIC_FILES) as (url, _, upstream),
        Browser(url) as browser,
    ):
        double.redirect_uri = f"{url}/bff/callback/mosaic"
        began = clock.now()
        await browser.log_in()
        user = await browser.get("/bff/user")
        statuses = []
        for _ in range(48):
            statuses.append((await browser.get("/api/orders")).status)
            clock.advance(7 * HOUR)
        ended = await browser.get("/api/orders")
        await browser.log_in()
        again = await browser.get("/api/orders")

    assert {200} == set(statuses)
    assert began + 14 * DAY == user.json()["login_needed_at"]
    assert (401, 200) == (ended.status, again.status)
    assert "/bff/login" == ended.json()["login_url"].partition("?")[0]
    assert {"alice"} == set(upstream.subjects)
    assert len(double.presented) == len(set(double.presented)) >= 47
    assert 0 == double.revoked_families


async def test_mosaic_backend_serves_over_the_chains_end(clock: ManualClock, tmp_path: Path) -> None:
    """After a year of rotations the session brings new tokens, and no caller notices; after its logout nothing does."""
    double = mosaic.MosaicBackend(clock)
    async with (
        double,
        installation("transmit-mosaic-backend", double, tmp_path, MOSAIC_FILES) as (url, admin, upstream),
        aiohttp.ClientSession() as http,
    ):
        login = {name: value for name, value in double.log_in("user-1").items() if name != "token_type"}
        issued = await operate(admin, "POST", "/grants", {"provider": "mosaic", "subject": "user-1", **login})

        async def call() -> int:
            async with http.get(f"{url}/api/orders", headers={"Authorization": f"Bearer {issued['handle']}"}) as answer:
                return answer.status

        statuses = []
        for _ in range(29):
            statuses.append(await call())
            clock.advance(13 * DAY)
        authenticated = double.calls("/cis/v1/auth/session/authenticate")
        statuses.append(await call())
        await operate(admin, "DELETE", f"/grants/{issued['grant']}")
        after = await call()

    assert {200} == set(statuses)
    assert (0, 1) == (authenticated, double.calls("/cis/v1/auth/session/authenticate"))
    assert len(double.presented) == len(set(double.presented)) >= 28
    assert (401, {}) == (after, double.sessions)
    assert {"user-1"} == set(upstream.subjects)


async def test_mosaic_oidc_serves_a_browser(clock: ManualClock, tmp_path: Path) -> None:
    """A login with consent, a call, an expiry without a new login, and a logout."""
    double = mosaic.MosaicOidc(clock)
    async with (
        double,
        installation("transmit-mosaic", double, tmp_path, MOSAIC_FILES) as (url, _, upstream),
        Browser(url) as browser,
    ):
        double.redirect_uri = f"{url}/bff/callback/mosaic"
        await browser.log_in()
        first = await browser.get("/api/orders")
        clock.advance(HOUR + 60)
        second = await browser.get("/api/orders")
        logout = await browser.request("POST", "/bff/logout")
        after = await browser.get("/api/orders")

    assert [200, 200, 401] == [first.status, second.status, after.status]
    assert 200 <= logout.status < 400
    assert ["alice", "alice"] == upstream.subjects
    assert (1, 0) == (len(double.presented), double.revoked_families)


async def test_mosaic_backend_serves_an_application_by_handle(clock: ManualClock, tmp_path: Path) -> None:
    """The application hands its tokens over, gets a handle, calls with it over an expiry, and revokes the grant."""
    double = mosaic.MosaicBackend(clock)
    async with (
        double,
        installation("transmit-mosaic-backend", double, tmp_path, MOSAIC_FILES) as (url, admin, upstream),
        aiohttp.ClientSession() as http,
    ):
        login = {name: value for name, value in double.log_in("user-1").items() if name != "token_type"}
        operator = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        imported = {"provider": "mosaic", "subject": "user-1", **login}
        async with http.post(f"{admin}/api/grants", json=imported, headers=operator) as response:
            assert 201 == response.status, await response.text()
            issued = await response.json()
        caller = {"Authorization": f"Bearer {issued['handle']}"}
        statuses = []
        for _ in range(3):
            async with http.get(f"{url}/api/orders", headers=caller) as response:
                statuses.append(response.status)
            clock.advance(HOUR + 60)
        async with http.delete(f"{admin}/api/grants/{issued['grant']}", headers=operator) as response:
            assert 200 == response.status
        async with http.get(f"{url}/api/orders", headers=caller) as response:
            statuses.append(response.status)

    assert [200, 200, 200, 401] == statuses
    assert {} == double.sessions  # the session would bring new tokens: it ends, too
    assert ["user-1"] * 3 == upstream.subjects
    assert 2 == double.calls("/cis/v1/auth/token/refresh")


@pytest.mark.parametrize(
    ("name", "path", "days", "subject"),
    [("apiax", "/rules/v1", 14, apiax.USERNAME), ("oracle-idcs", "/reports/today", 7, "svc-report")],
)
async def test_a_standing_grant_serves_over_the_chains_end(
    clock: ManualClock, tmp_path: Path, name: str, path: str, days: int, subject: str
) -> None:
    """The chain rotates until it ends, and is begun anew unnoticed; what the operator revokes is over, there too."""
    double: Double = apiax.Apiax(clock) if name == "apiax" else oracle.OracleIdcs(clock, key=JWK)
    files = {"apiax-password": apiax.PASSWORD, **ORACLE_FILES}
    async with (
        double,
        installation(name, double, tmp_path, files) as (url, admin, upstream),
        Browser(url) as browser,
    ):
        statuses = []
        for _ in range(2 * days + 4):
            statuses.append((await browser.get(path)).status)
            clock.advance(DAY / 2)
        (grant,) = (await operate(admin, "GET", "/grants"))["grants"]
        revoked = await operate(admin, "DELETE", f"/grants/{grant['id']}")
        after = await browser.get(path)

    assert {200} == set(statuses)
    assert {subject} == set(upstream.subjects)
    assert len(double.presented) >= 2 * days
    assert 0 == double.revoked_families
    assert revoked["revoked_at_provider"]
    assert (503, False) == (after.status, b"login_url" in after.body)  # no caller could log in for it


async def test_apiax_serves_by_a_standing_grant(clock: ManualClock, tmp_path: Path) -> None:
    """A call needs no login: the password's grant goes along, over an expiry by a Java timestamp."""
    double = apiax.Apiax(clock)
    async with (
        double,
        installation("apiax", double, tmp_path, {"apiax-password": apiax.PASSWORD}) as (url, _, upstream),
        Browser(url) as browser,
    ):
        first = await browser.get("/rules/v1")
        clock.advance(1860)
        second = await browser.get("/rules/v1")

    assert [200, 200] == [first.status, second.status]
    assert [apiax.USERNAME] * 2 == upstream.subjects
    assert 1 == len(double.presented)


async def test_oracle_serves_by_a_user_assertion(clock: ManualClock, tmp_path: Path) -> None:
    """A call carries a token of the technical user, for whom the broker signed an assertion."""
    double = oracle.OracleIdcs(clock, key=JWK)
    async with (
        double,
        installation("oracle-idcs", double, tmp_path, ORACLE_FILES) as (url, _, upstream),
        Browser(url) as browser,
    ):
        first = await browser.get("/reports/today")
        clock.advance(HOUR + 60)
        second = await browser.get("/reports/today")

    assert [200, 200] == [first.status, second.status]
    assert ["svc-report"] * 2 == upstream.subjects
    assert 1 == len(double.presented)

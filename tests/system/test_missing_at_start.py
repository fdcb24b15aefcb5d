"""FT-26: names that don't resolve yet, a password and a clock that aren't set yet, when the broker starts."""

import sys
import time
from pathlib import Path

import pytest

from tests.support.broker_process import BrokerProcess, Browser, navigation, provider_options
from tests.support.redis_server import RedisServer, running
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.shifted_clock import Shift
from tests.support.upstream import Upstream
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.system

YEAR = 365 * 86400.0


async def test_ft_26_without_dns_the_broker_starts_and_says_what_it_can_not_do(
    tmp_path: Path, upstream: Upstream
) -> None:
    """Provider, one upstream and the store have names that don't resolve: 502 and 503, and what needs none works."""
    routes = [
        {"path": "/public", "upstream": upstream.url, "token": "none"},
        {"path": "/away", "upstream": "https://nowhere.invalid", "token": "none"},
        {"path": "/api", "upstream": upstream.url, "token": "user"},
    ]
    broker = BrokerProcess(
        tmp_path,
        providers={"corp": provider_options("https://nowhere.invalid")},
        routes=routes,
        store={"url": "redis://nowhere.invalid:6379/0"},
    )
    await broker.start(wait_ready=False)
    try:
        async with Browser(broker.url) as browser:

            async def is_served() -> bool:
                return (await browser.get("/public/x")).status == 200

            await until_async(is_served, seconds=10, what="the route that needs nobody")
            away = await browser.get("/away/x")
            session = await browser.get("/api/x", headers={"Cookie": f"session={'A' * 43}"})
            async with browser.http.get(f"{broker.url}/bff/login", headers=navigation()) as login:
                retry_after = login.headers.get("Retry-After")
    finally:
        code = await broker.stop()

    assert (502, 503, 503) == (away.status, session.status, login.status)
    assert retry_after
    assert "Retry-After" in session.headers
    assert 0 == code


async def test_ft_26_a_password_that_is_not_set_yet_is_named_and_waited_for(tmp_path: Path, upstream: Upstream) -> None:
    """The log says which key of the store to look at; once the server takes the password, all works by itself."""
    server = RedisServer(tmp_path / "redis", "requirepass another")
    store = {"url": f"redis://127.0.0.1:{server.port}/0", "password": {"value": "canary"}, "timeout": "300ms"}
    with running(server):
        broker = BrokerProcess(tmp_path, routes=[{"path": "/", "upstream": upstream.url, "token": "none"}], store=store)
        await broker.start(wait_ready=False)
        try:

            def events(name: str) -> list[dict[str, object]]:
                return [record for record in broker.log() if record["event"] == name]

            await until(lambda: bool(events("store_unavailable_at_start")), what="the outage")
            server.command("CONFIG", "SET", "requirepass", "canary", password="another")
            await until(lambda: bool(events("store_recovered")), seconds=10, what="the recovery")
        finally:
            code = await broker.stop()

    assert ["store.password"] == [record["look_at"] for record in events("store_unavailable_at_start")]
    assert "canary" not in broker.log_path.read_text()
    assert 0 == code


async def test_ft_26_a_clock_that_is_not_set_yet_lets_nobody_in_and_nobody_out(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """At the first of January 1971 an id token is from the future: refused. Once the clock is set, logins work."""
    shift = Shift(tmp_path / "shift")
    shift.seconds = YEAR - time.time()
    command = (sys.executable, "-m", "tests.support.shifted_clock", tmp_path / "shift")
    corp = provider_options(provider.url, allowed_parameters=["login_hint"])
    routes = [{"path": "/api", "upstream": upstream.url, "token": "user"}]
    async with (
        BrokerProcess(tmp_path, command=command, providers={"corp": corp}, routes=routes) as broker,
        Browser(broker.url) as browser,
    ):
        login = f"{broker.url}/bff/login?login_hint=alice"
        async with browser.http.get(login, headers=navigation()) as response:
            refused = response.status
        before = await browser.get("/api/x")
        shift.seconds = 0.0
        await browser.log_in()
        after = await browser.get("/api/x")

    assert (400, 401, 200) == (refused, before.status, after.status)

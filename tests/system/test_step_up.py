"""An upstream that wants a stronger or newer login, through the whole broker (RFC 9470)."""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.broker_process import BrokerProcess, Browser, navigation, provider_options
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.upstream import Upstream
from tests.support.waiting import until

pytestmark = pytest.mark.system


@pytest.fixture
async def broker(tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream) -> AsyncIterator[BrokerProcess]:
    options = provider_options(provider.url, allowed_parameters=["acr_values", "max_age", "login_hint"])
    routes = [
        {"path": "/api", "upstream": upstream.url, "token": "user"},
        {"path": "/pages", "upstream": upstream.url, "token": "user", "navigation": "allow"},
    ]
    async with BrokerProcess(tmp_path, providers={"corp": options}, routes=routes) as made:
        yield made


async def test_lg_08_a_newer_login_is_asked_for_and_got(
    broker: BrokerProcess, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """The problem's ``login_url`` asks for what the upstream wants; after that login the call goes through."""
    async with Browser(broker.url) as browser:
        await browser.log_in()
        upstream.refuse(challenge='Bearer error="insufficient_user_authentication", max_age="300"')
        refused = await browser.get("/api/x")
        problem = refused.json()
        assert (401, "step_up_required") == (refused.status, problem["code"])
        asked = parse_qs(urlsplit(problem["login_url"]).query)
        assert {"provider": ["corp"], "max_age": ["300"]} == asked
        assert 0 == (await provider.ledger()).count("refresh_token")

        login = f"{broker.url}{problem['login_url']}"
        async with browser.http.get(login, headers=navigation(), allow_redirects=False) as begun:
            assert ["300"] == parse_qs(urlsplit(begun.headers["Location"]).query)["max_age"]
        async with browser.http.get(login, headers=navigation()) as response:
            assert 200 == response.status
        assert 200 == (await browser.get("/api/x")).status


async def test_lg_08_a_login_that_is_too_weak_is_refused(
    broker: BrokerProcess, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """A page is sent to the login by itself; a server that ignores ``acr_values`` gets nobody in, and no one out."""
    async with Browser(broker.url) as browser:
        await browser.log_in()
        upstream.refuse(challenge='Bearer error="insufficient_user_authentication", acr_values="gold"')
        async with browser.http.get(f"{broker.url}/pages/x", headers=navigation(), allow_redirects=False) as sent:
            asked = parse_qs(urlsplit(sent.headers["Location"]).query)
        assert {"provider": ["corp"], "acr_values": ["gold"], "returnUrl": ["/pages/x"]} == asked

        async with browser.http.get(broker.url + sent.headers["Location"], headers=navigation()) as failed:
            assert 400 == failed.status
        assert 200 == (await browser.get("/api/x")).status
    await until(lambda: "acr: the authentication is too weak" in broker.log_path.read_text())


async def test_lg_06_what_may_not_be_asked_for_is_left_out(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """An upstream chooses no parameter that the operator hasn't allowed; the log names the key that would allow it."""
    routes = [{"path": "/api", "upstream": upstream.url, "token": "user"}]
    async with (
        BrokerProcess(tmp_path, providers={"corp": provider_options(provider.url)}, routes=routes) as broker,
        Browser(broker.url) as browser,
    ):
        await browser.log_in()
        upstream.refuse(challenge='Bearer error="insufficient_user_authentication", acr_values="gold"')
        problem = (await browser.get("/api/x")).json()
        assert ("step_up_required", "/bff/login?provider=corp") == (problem["code"], problem["login_url"])
        await until(lambda: "step_up_not_allowed" in broker.log_path.read_text())
        (warned,) = [record for record in broker.log() if record["event"] == "step_up_not_allowed"]
    assert ("providers.corp.allowed_parameters", "acr_values") == (warned["look_at"], warned["left_out"])

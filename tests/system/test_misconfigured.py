"""What an operator sets up wrongly is named in the log by its key, and ends nobody's session."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker_process import BrokerProcess, Browser, navigation, provider_options
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.upstream import Introspection, Upstream
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.system


@pytest.fixture
async def provider() -> AsyncIterator[RemoteLedgerServer]:
    async with RemoteLedgerServer() as server:
        yield server


@pytest.mark.parametrize(
    ("wrong", "status", "look_at"),
    [
        ({"client_secret": {"value": "wrong"}}, 503, "providers.corp.client_secret"),
        ({"id_token_algorithms": ["RS256"]}, 400, "providers.corp.id_token_algorithms"),
    ],
)
async def test_a_login_that_can_not_be_names_its_key(
    tmp_path: Path, provider: RemoteLedgerServer, wrong: dict[str, Any], status: int, look_at: str
) -> None:
    """The browser is told no more than that it failed; the log says where to look."""
    async with (
        BrokerProcess(tmp_path, providers={"corp": provider_options(provider.url, **wrong)}) as broker,
        Browser(broker.url) as browser,
    ):
        async with browser.http.get(f"{broker.url}/bff/login", headers=navigation()) as answer:
            shown = await answer.text()
            assert status == answer.status
        await until(lambda: look_at in broker.log_path.read_text())
    assert look_at not in shown
    assert look_at in {record.get("look_at") for record in broker.log()}


async def test_a_secret_that_becomes_wrong_ends_no_session(tmp_path: Path, provider: RemoteLedgerServer) -> None:
    """Refreshes fail, an alarm names the key, and with the right secret everybody goes on with the same session."""
    async with Introspection(provider.url) as check, Upstream(check=check) as upstream:
        broker = BrokerProcess(
            tmp_path,
            providers={"corp": provider_options(provider.url)},
            routes=[{"path": "/api", "upstream": upstream.url, "token": "user"}],
        )
        async with broker, Browser(broker.url) as browser:
            await browser.log_in()
            right = broker.settings["providers"]["corp"]["client_secret"]
            broker.settings["providers"]["corp"]["client_secret"] = {"value": "wrong"}
            await broker.stop()
            await broker.start()

            async def is_alarmed() -> bool:
                # A token that has just been issued is not renewed when an upstream refuses it: until it is old enough,
                # the upstream's own 401 passes. Either way nothing tells the browser to log in.
                upstream.refuse()
                refused = await browser.get("/api/x")
                assert refused.status in {401, 503}
                assert b"login_url" not in refused.body
                return "provider_refuses_the_broker" in broker.log_path.read_text()

            await until_async(is_alarmed, seconds=10, what="the alarm")
            upstream.refuse_next = 0
            alarm = [record for record in broker.log() if record["event"] == "provider_refuses_the_broker"]
            assert ["providers.corp.client_secret"] == [record["look_at"] for record in alarm]

            async def is_degraded() -> bool:
                return 1.0 == (await broker.metrics()).get('provider_degraded{provider="corp"}')

            await until_async(is_degraded)
            broker.settings["providers"]["corp"]["client_secret"] = right
            await broker.stop()
            await broker.start()
            assert 200 == (await browser.get("/api/x")).status
            assert 200 == (await browser.get("/bff/user")).status

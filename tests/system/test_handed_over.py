"""A configured grant whose tokens somebody else gets, through the whole broker."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker_process import BrokerProcess, provider_options
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.upstream import Upstream
from tests.support.waiting import until_async
from tests.system.test_callers import ADMIN_TOKEN, admin, call
from tests.system.test_command_line import command

pytestmark = pytest.mark.system


@pytest.fixture
async def broker(tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream) -> AsyncIterator[BrokerProcess]:
    made = BrokerProcess(
        tmp_path,
        workers=2,
        providers={"corp": provider_options(provider.url)},
        grants={"nightly": {"provider": "corp", "type": "imported"}},
        routes=[{"path": "/reports", "upstream": upstream.url, "token": {"grant": "nightly"}}],
        log={"level": "debug"},
    )
    made.settings["admin"]["token"] = {"value": ADMIN_TOKEN}
    async with made:
        yield made


async def call_each_worker(broker: BrokerProcess) -> set[int]:
    """Call by many connections, which the kernel spreads over the workers. Returns the statuses."""
    return set(await asyncio.gather(*(call(broker, "/reports/daily") for _ in range(20))))


async def test_what_is_handed_over_serves_rotates_and_outlives_a_restart(
    broker: BrokerProcess, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """By the command, for callers of every worker; what takes its place later ends it at its server."""
    await provider.configure(access_token_seconds=2)
    first = await provider.issue("batch")
    await provider.configure(access_token_seconds=300)  # so that there is one refresh, however long all this takes
    assert {503} == await call_each_worker(broker)

    out, err = await command(broker, "grants", "import", "--grant", "nightly", given=json.dumps(first))
    assert (True, "") == (out.startswith("nightly: handed over, as grant "), err)
    assert {200} == await call_each_worker(broker)
    await asyncio.sleep(2.1)  # the token's life, on the server's clock
    assert {200} == await call_each_worker(broker)
    ledger = await provider.ledger()
    assert (1, {}) == (ledger.count("refresh_token"), ledger.presented_twice())

    await broker.stop()
    await broker.start()
    assert {200} == await call_each_worker(broker)
    assert 1 == (await provider.ledger()).count("refresh_token")

    second = await provider.issue("batch")
    status, answer = await admin(broker, "POST", "/grants", {"grant": "nightly", **taken(second)})
    assert (200, "standing", "fresh", None) == (status, answer["origin"], answer["state"], answer["ended"])

    async def is_served_by_the_second() -> bool:
        upstream.received.clear()
        assert {200} == await call_each_worker(broker)
        seen = {value for request in upstream.received for value in request.header("authorization")}
        return seen == {f"Bearer {second['access_token']}"}

    await until_async(is_served_by_the_second, seconds=5.0)
    ledger = await provider.ledger()
    former, present = ledger.families_of("batch")
    assert ("revoked", None) == (former.revoked and "revoked", present.revoked)
    shown = json.dumps(answer) + out + broker.log_path.read_text()
    secrets = [*(issued.token for issued in ledger.issued), first["access_token"], second["access_token"]]
    assert [] == [secret for secret in secrets if secret in shown]


async def test_one_that_was_revoked_waits_for_the_next_tokens(
    broker: BrokerProcess, provider: RemoteLedgerServer
) -> None:
    """Its callers get a 503 until then."""
    _, filled = await admin(broker, "POST", "/grants", {"grant": "nightly", **taken(await provider.issue("batch"))})
    status, _ = await admin(broker, "DELETE", f"/grants/{filled['id']}")
    assert 200 == status
    assert 503 == await call(broker, "/reports/daily")

    status, answer = await admin(
        broker, "POST", "/grants", {"grant": "nightly", **taken(await provider.issue("batch"))}
    )

    assert (200, filled["id"]) == (status, answer["id"])

    async def works() -> bool:
        return await call_each_worker(broker) == {200}

    await until_async(works, seconds=5.0)


def taken(response: dict[str, Any]) -> dict[str, Any]:
    return {name: response[name] for name in ("access_token", "expires_in", "refresh_token")}


async def test_tokens_are_taken_into_one_grant(broker: BrokerProcess, provider: RemoteLedgerServer) -> None:
    """Whichever way they came first: two grants would both present the refresh token."""
    mine, imported = taken(await provider.issue("batch")), taken(await provider.issue("batch"))
    owner = {"provider": "corp", "subject": "batch"}
    _, filled = await admin(broker, "POST", "/grants", {"grant": "nightly", **mine})
    _, handle = await admin(broker, "POST", "/grants", {**owner, **imported})

    refusals = [
        await admin(broker, "POST", "/grants", document)
        for document in ({**owner, **mine}, {"grant": "nightly", **imported})
    ]
    again = await admin(broker, "POST", "/grants", {"grant": "nightly", **mine})

    assert [400, 400] == [status for status, _ in refusals]
    assert filled["id"] in refusals[0][1]["title"]
    assert handle["grant"] in refusals[1][1]["title"]
    assert (200, filled["id"]) == (again[0], again[1]["id"])

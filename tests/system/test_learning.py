"""What the broker sees of a provider is told where an operator looks."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.authorization_server import LedgerServer
from tests.support.broker_process import BrokerProcess, provider_options
from tests.support.upstream import Upstream, tokens_of
from tests.support.waiting import until
from tests.system.test_callers import ADMIN_TOKEN, admin, call
from tests.system.test_doctor import run_doctor

pytestmark = pytest.mark.system


def told(broker: BrokerProcess) -> list[dict[str, Any]]:
    return [
        record
        for record in broker.log()
        if record["event"] == "provider_behaviour_differs" and record["level"] == "warning"
    ]


async def test_a_server_that_is_stricter_than_configured_is_told(tmp_path: Path) -> None:
    """By both workers' counts: in the log, the admin API and the doctor; the configuration stays as it is."""
    async with LedgerServer() as server, Upstream(check=tokens_of(server)) as upstream:
        broker = BrokerProcess(
            tmp_path,
            providers={"corp": provider_options(server.url, rotation="none")},
            routes=[{"path": "/api", "upstream": upstream.url, "token": "user"}],
            workers=2,
        )
        broker.settings["admin"]["token"] = {"value": ADMIN_TOKEN}
        async with broker:

            async def first_call(subject: str) -> int:
                tokens = server.issue(subject)
                document: dict[str, Any] = {"provider": "corp", "subject": subject}
                document["refresh_token"] = tokens["refresh_token"]
                _, issued = await admin(broker, "POST", "/grants", document)
                return await call(broker, "/api/x", issued["handle"])

            served = [await first_call(f"user-{number}") for number in range(4)]
            server.fail_next("close", when="after")
            lost = await first_call("unlucky")
            await until(lambda: told(broker) != [], what="the warning")
            _, answer = await admin(broker, "GET", "/providers")
            _, said, _ = await run_doctor(tmp_path / f"config-{broker.port}.yaml")
            warnings = told(broker)

    assert ([200] * 4, 401) == (served, lost)
    (corp,) = answer["providers"]
    assert ("corp", "none") == (corp["name"], corp["rotation"])
    assert (4, 4, 1) == tuple(corp["seen"][each] for each in ("refreshed", "rotated", "refused_again"))
    assert [("warning", "rotation", {"rotation": "strict"})] == [
        (each["verdict"], each["key"], each["fitting"]) for each in corp["differs"]
    ]
    assert "warning providers.corp.rotation: as the broker has seen, the server ended a grant" in said
    assert 'rotation: "strict"' in said
    (warning,) = warnings
    assert ("providers.corp.rotation", {"rotation": "strict"}) == (warning["look_at"], warning["fitting"])

"""The commands that speak to a broker that runs."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from broker.services.clock import SystemRandomness
from broker.services.keyring import new_key
from tests.support.broker_process import ROOT, BrokerProcess, provider_options
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.upstream import Upstream

pytestmark = pytest.mark.system


@pytest.fixture
async def broker(tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream) -> AsyncIterator[BrokerProcess]:
    made = BrokerProcess(
        tmp_path,
        providers={"corp": provider_options(provider.url)},
        grants={"nightly": {"provider": "corp", "type": "imported"}},
        routes=[
            {"path": "/api", "upstream": upstream.url, "token": "user"},
            {"path": "/reports", "upstream": upstream.url, "token": {"grant": "nightly"}},
        ],
    )
    made.settings["admin"]["token"] = {"value": "an-admin-token-of-thirty-two-characters"}
    async with made:
        yield made


async def command(
    broker: BrokerProcess, *words: str, given: str = "", code: int = 0, count: int = 2
) -> tuple[str, str]:
    """Run a command with the broker's configuration after its first *count* words, and return what it printed."""
    config = broker.directory / f"config-{broker.port}.yaml"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "broker", *words[:count], str(config), *words[count:]),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(given.encode())
    assert code == process.returncode, err.decode()
    return out.decode(), err.decode()


async def call(broker: BrokerProcess, handle: str) -> int:
    headers = {"Authorization": f"Bearer {handle}"}
    async with aiohttp.ClientSession() as http, http.get(f"{broker.url}/api/x", headers=headers) as response:
        return response.status


async def test_a_grants_life_by_commands(broker: BrokerProcess, provider: RemoteLedgerServer) -> None:
    """Import, list, show, issue, rotate, revoke: each handle works as long as it should, and no token is printed."""
    response = await provider.issue("batch")
    printed: list[str] = []

    out, err = await command(
        broker, "grants", "import", "--provider", "corp", "--subject", "batch", given=json.dumps(response)
    )
    first = out.removesuffix("\n")
    grant = re.findall(r"of grant (\S+);", err)[0]
    assert re.fullmatch(r"tbh_[A-Za-z0-9_-]{43}", first)
    assert first not in err
    assert 200 == await call(broker, first)

    printed += await command(broker, "grants", "list")
    rows = {line.split()[0]: line.split()[1:] for line in printed[0].splitlines()}
    assert ["corp", "batch", "imported", "fresh", "1", "-", "-", "1"] == rows[grant]
    printed += await command(broker, "grants", "show", grant)
    assert "subject: batch\n" in printed[-2]

    out, _ = await command(broker, "handles", "issue", grant, "--label", "nightly", "--route", "/api/other")
    assert 403 == await call(broker, out.strip())
    printed += await command(broker, "handles", "list", "--grant", grant)
    ids = {"nightly" in line: line.split()[0] for line in printed[-2].splitlines()[1:]}

    out, _ = await command(broker, "handles", "rotate", ids[False], "--overlap", "1h")
    second = out.strip()
    assert (200, 200) == (await call(broker, first), await call(broker, second))
    await command(broker, "handles", "revoke", ids[False])
    assert (401, 200) == (await call(broker, first), await call(broker, second))

    out, _ = await command(broker, "grants", "revoke", grant)
    assert out.endswith(": ended here, and at the provider\n")
    assert 401 == await call(broker, second)
    assert (f"{grant}: it had ended already\n", "") == await command(broker, "grants", "revoke", grant)
    secrets = {response["access_token"], response["refresh_token"], first, second}
    assert not any(secret in text for secret in secrets for text in printed)


async def test_a_configured_grant_goes_by_its_name(broker: BrokerProcess, provider: RemoteLedgerServer) -> None:
    """As routes and ``import --grant`` name it; its id is as good."""
    listed, hint = await command(broker, "grants", "list")
    (row,) = (line.split() for line in listed.splitlines() if line.split()[-2] == "nightly")
    grant = row[0]
    assert ["corp", "nightly", "standing", "empty", "0", "-", "nightly", "1"] == row[1:]
    assert hint.startswith("nightly: it waits for tokens: hand them over by `token-broker grants import --grant nightl")
    await command(broker, "grants", "import", "--grant", "nightly", given=json.dumps(await provider.issue("nightly")))

    shown, hint = await command(broker, "grants", "show", "nightly")
    assert ("", True) == (hint, "state: fresh\n" in shown)
    assert (f"id: {grant}\n", "name: nightly\n") == tuple(shown.splitlines(keepends=True)[:2])
    handle, _ = await command(broker, "handles", "issue", "nightly", "--label", "by name")
    assert 200 == await call(broker, handle.strip())
    by_name, by_id = [(await command(broker, "handles", "list", "--grant", each))[0] for each in ("nightly", grant)]
    assert (by_id, 2) == (by_name, len(by_name.splitlines()))
    out, _ = await command(broker, "grants", "revoke", "nightly")
    assert f"{grant}: ended here, and at the provider\n" == out
    assert 401 == await call(broker, handle.strip())


async def test_cr_04_lists_say_which_keys_are_needed_still(broker: BrokerProcess, provider: RemoteLedgerServer) -> None:
    """Once no row says the number of an old key, what is listed goes on without it."""
    importing = ("grants", "import", "--provider", "corp", "--subject")

    async def imported(subject: str) -> tuple[str, str]:
        """Import a grant, and return its id, and that of its handle."""
        _, said = await command(broker, *importing, subject, given=json.dumps(await provider.issue(subject)))
        (ids,) = re.findall(r"handle (\S+) of grant (\S+);", said)
        return ids[1], ids[0]

    async def needed() -> dict[str, str]:
        """What each list says of the keys, by ids."""
        lists = [await command(broker, each, "list") for each in ("grants", "handles")]
        rows = [re.split(" {2,}", line) for listed, _ in lists for line in listed.splitlines()[1:]]
        return {row[0]: row[-1] for row in rows}

    old_grant, old_handle = await imported("before")
    broker.settings["keys"].insert(0, {"value": new_key(SystemRandomness()).reveal()})
    broker.write_settings()
    await broker.reload()
    new_grant, new_handle = await imported("after")
    assert {old_grant: "2", old_handle: "2", new_grant: "1", new_handle: "1"}.items() <= (await needed()).items()

    successor, said = await command(broker, "handles", "rotate", old_handle, "--overlap", "1h")
    (successor_id,) = re.findall(r"handle (\S+) of", said)
    assert 200 == await call(broker, successor.strip())
    assert {old_grant: "2", old_handle: "1, 2", successor_id: "1"}.items() <= (await needed()).items()


async def test_an_operator_needs_no_secret_but_the_admin_token(broker: BrokerProcess) -> None:
    """In a shell beside a service that has its secrets by itself, a handle can be revoked nevertheless."""
    broker.settings["providers"]["corp"]["client_secret"] = {"file": "/run/credentials/of-the-service"}
    broker.write_settings()
    tokens = {"refresh_token": "never used"}
    importing = ("grants", "import", "--provider", "corp", "--subject", "batch")
    _, said = await command(broker, *importing, given=json.dumps(tokens))
    (handle,) = re.findall(r"handle (\S+) of", said)

    assert (f"{handle}: ended\n", "") == await command(broker, "handles", "revoke", handle)
    _, refused = await command(broker, "login", "--provider", "corp", code=1, count=1)
    assert "providers.corp.client_secret" in refused


async def test_what_the_broker_refuses_is_1(broker: BrokerProcess) -> None:
    """Each refusal is one line on standard error."""
    importing = ("grants", "import", "--subject", "batch", "--provider")
    for words, given, said in (
        ((*importing, "nobody"), "{}", "providers.nobody: there is no such provider\n"),
        (("grants", "import", "--grant", "x"), "{}", "grants.x: there is no such grant of type imported\n"),
        ((*importing, "corp"), "{}", "the token response has neither a refresh_token nor a session_id\n"),
        (
            (*importing, "corp", "--file", "/nowhere"),
            "",
            "/nowhere: the token response can't be read: No such file or directory\n",
        ),
        (("grants", "show", "nothing"), "", "there is no such grant\n"),
        (("handles", "list", "--grant", "nothing"), "", "there is no such grant\n"),
        (
            ("handles", "issue", "nightly", "--ends-at", "2020-01-31T00:00:00Z"),
            "",
            "--ends-at 2020-01-31T00:00:00Z: expected an instant to come\n",
        ),
        (
            ("handles", "issue", "nightly", "--route", "/api", "--route", "/nope"),
            "",
            "--route /nope: the configuration has no route there\n",
        ),
        (
            ("handles", "issue", "nightly", "--route", "/reports"),
            "",
            "--route /reports: the route there takes no handles, since its `token` is none or a grant's\n",
        ),
        (
            (*importing, "corp", "--network", "10.0.0.1/8"),
            '{"refresh_token": "r"}',
            "--network 10.0.0.1/8: expected a network without host bits, such as 192.0.2.0/24\n",
        ),
        (("handles", "issue", "nothing"), "", "there is no such grant\n"),
        (("handles", "revoke", "nothing"), "", "there is no such handle\n"),
        (
            ("handles", "revoke", "tbh_" + "A" * 43),
            "",
            "that is a handle itself, and a secret: name its id, as the list of handles shows it\n",
        ),
    ):
        assert ("", said) == await command(broker, *words, given=given, code=1)


async def test_a_wrong_bound_is_2(broker: BrokerProcess) -> None:
    """A time without its zone, and a duration without a unit, are mistakes of the command line."""
    await command(broker, "handles", "issue", "g", "--ends-at", "2030-01-31T00:00:00", code=2)
    await command(broker, "handles", "rotate", "h", "--overlap", "10", code=2)

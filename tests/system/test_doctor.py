"""`token-broker doctor` as an operator runs it."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from broker.config import PretendedSource, loads
from broker.services.clock import SystemRandomness
from broker.services.keyring import new_key
from tests.support.broker_process import ROOT, provider_options
from tests.support.remote_authorization_server import RemoteLedgerServer

pytestmark = pytest.mark.system


async def doctor(directory: Path, providers: dict[str, Any], *words: str) -> tuple[int | None, str, str]:
    config = directory / "config.yaml"
    keys = [{"value": new_key(SystemRandomness()).reveal()}]
    settings = {"public_url": "https://app.example.com", "keys": keys, "providers": providers}
    store = {"url": f"sqlite://{directory}/none/broker.db"}
    config.write_text(json.dumps({**settings, "store": store}))
    return await run_doctor(config, *words)


async def run_doctor(config: Path, *words: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "broker", "doctor", str(config), *words),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@pytest.fixture
async def provider() -> AsyncIterator[RemoteLedgerServer]:
    callbacks = [f"https://app.example.com/bff/callback/{name}" for name in ("good", "secret", "issuer", "bad")]
    async with RemoteLedgerServer(redirect_uris=callbacks) as server:
        yield server


async def test_what_is_wrong_is_named_with_yaml_that_fits(tmp_path: Path, provider: RemoteLedgerServer) -> None:
    """Exit code 1, the key, and a block that can be pasted; the good provider is good; no secret is printed."""
    providers = {
        "good": provider_options(provider.url),
        "secret": provider_options(provider.url, client_secret={"value": "wr0ng"}),
        "issuer": provider_options(f"{provider.url}/"),
    }
    (tmp_path / "none").touch()
    code, out, err = await doctor(tmp_path, providers)

    assert (1, "") == (code, err)
    assert out.startswith(
        f"store:\n  error   store.url: {tmp_path}/none/broker.db isn't there, and {tmp_path}/none can't"
    )
    assert "error   providers.secret.client_secret: the server refuses the client: invalid_client" in out
    assert f"error   providers.issuer.issuer: the metadata speaks for {provider.url}, not for" in out
    assert "good    the server sends browsers back to https://app.example.com/bff/callback/good" in out
    assert "providers.good." not in out.replace("providers.good.scope", "")
    assert "wr0ng" not in out
    pasted = out[out.index("    providers:\n") :].splitlines()[:3]
    block = "\n".join([*pasted, "        client_id: c", "    keys: [{file: k}]", "    public_url: https://a.example"])
    assert loads(block.encode(), file="pasted", source=PretendedSource()).providers["issuer"].issuer == provider.url


async def test_one_provider_can_be_chosen(tmp_path: Path, provider: RemoteLedgerServer) -> None:
    """Exit code 0 if that one is good; a name that isn't there is refused."""
    providers = {"good": provider_options(provider.url), "bad": provider_options(f"{provider.url}/")}
    code, out, _ = await doctor(tmp_path, providers, "--provider", "good")
    assert (0, False) == (code, "bad" in out)
    assert (1, "", "providers.none: there is no such provider\n") == await doctor(
        tmp_path, providers, "--provider", "none"
    )


async def test_the_rotation_is_tried_out_only_with_a_grant_that_is_given(
    tmp_path: Path, provider: RemoteLedgerServer
) -> None:
    """It ends; without it no refresh token of anybody is presented."""
    tokens = tmp_path / "tokens.json"
    issued = await provider.issue("nobody")
    tokens.write_text(json.dumps(issued))
    providers = {"good": provider_options(provider.url, rotation="grace"), "bad": provider_options(provider.url)}
    before, _, _ = await doctor(tmp_path, providers, "--provider", "good")
    presented = {each.token for each in (await provider.ledger()).presented}
    code, out, err = await doctor(tmp_path, providers, "--provider", "good", "--spend", str(tokens))
    refused = await doctor(tmp_path, providers, "--spend", str(tokens))

    assert 0 == before
    assert issued["refresh_token"] not in presented
    assert (1, "") == (code, err)
    assert "error   providers.good.rotation: the server ends the whole grant" in out
    assert 'rotation: "strict"' in out
    assert 2 == refused[0]
    assert refused[2].endswith("error: --spend goes with --provider, which says whose grant it is\n")
    assert [True] == [family.revoked is not None for family in (await provider.ledger()).families_of("nobody")]

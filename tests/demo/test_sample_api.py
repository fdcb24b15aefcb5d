"""The sample API takes good tokens only, and shows what came without showing the token."""

from collections.abc import AsyncIterator, Mapping

import aiohttp
import pytest

from broker.demo.issuer import TokenFormat
from broker.demo.sample_api import AUDIENCE, SampleApi
from broker.services.clock import SystemClock
from tests.support.authorization_server import LedgerServer


@pytest.fixture
async def provider() -> AsyncIterator[LedgerServer]:
    async with LedgerServer(token_format=TokenFormat.JWT, default_audience=AUDIENCE) as server:
        yield server


@pytest.fixture
async def api(provider: LedgerServer) -> AsyncIterator[SampleApi]:
    api = SampleApi(issuer=provider.url, clock=SystemClock())
    await api.start()
    yield api
    await api.stop()


async def get(api: SampleApi, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
    async with aiohttp.ClientSession() as http, http.get(api.url + path, headers=headers) as response:
        return response.status, await response.text()


async def test_a_good_token_is_described_and_never_shown(provider: LedgerServer, api: SampleApi) -> None:
    """The answer names subject, generation and jti; no part of the token is in it."""
    token = str(provider.issue("alice")["access_token"])
    status, text = await get(api, "/api/token", {"Authorization": f"Bearer {token}", "X-Forwarded-For": "192.0.2.1"})
    record = provider.access_token(token)
    assert record is not None
    assert 200 == status
    assert all(said in text for said in ('"subject": "alice"', '"generation": 1', record.jti, "192.0.2.1"))
    assert not any(part in text for part in token.split("."))


async def test_every_other_token_is_refused(provider: LedgerServer, api: SampleApi) -> None:
    """None, an opaque one, a forged one, an id token, one for another audience and an expired one."""
    tokens = provider.issue()
    id_token = str(tokens["id_token"])
    head, _, signature = str(tokens["access_token"]).split(".")
    provider.configure(default_audience="somebody-else")
    foreign = str(provider.issue()["access_token"])
    provider.configure(default_audience=AUDIENCE, access_token_seconds=-10)
    expired = str(provider.issue()["access_token"])
    for credential in (
        "",
        "Basic YTpi",
        "Bearer at_1234",
        f"Bearer {head}.e30.{signature}",
        f"Bearer {id_token}",
        f"Bearer {foreign}",
        f"Bearer {expired}",
    ):
        assert 401 == (await get(api, "/api/token", {"Authorization": credential}))[0], credential


@pytest.mark.parametrize("path", ["/", "/app.js", "/style.css", "/icon.svg"])
async def test_the_page_is_whole_and_its_policy_strict(api: SampleApi, path: str) -> None:
    """Everything comes from this origin, and the policy allows nothing else."""
    status, text = await get(api, path, {})
    assert 200 == status
    assert "https://" not in text
    async with aiohttp.ClientSession() as http, http.get(api.url + path) as response:
        policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy

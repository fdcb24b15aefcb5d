"""How the sample API checks tokens; what it refuses is in test_sample_api.py."""

import aiohttp
import pytest

from broker.demo.bearer import BearerCheck, InvalidToken
from broker.demo.issuer import TokenFormat
from tests.support.authorization_server import LedgerServer


class StillClock:
    def __init__(self, time: float) -> None:
        self.time = time

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


async def test_a_token_is_good_until_its_last_moment() -> None:
    """Expiry is judged by the API's own clock."""
    clock = StillClock(1_700_000_000.0)
    async with LedgerServer(clock=clock, token_format=TokenFormat.JWT, access_token_seconds=15) as provider:
        token = f"bearer {provider.issue('ada')['access_token']}"
        async with aiohttp.ClientSession() as http:
            check = BearerCheck(issuer=provider.url, audience="api", clock=clock, http=http)
            clock.time += 14.9
            assert "ada" == (await check.claims(token))["sub"]
            clock.time += 0.1
            with pytest.raises(InvalidToken, match="expired"):
                await check.claims(token)

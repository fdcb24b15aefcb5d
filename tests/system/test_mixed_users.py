"""Many users at once, with everything that could mix them up: expiry, rotation, hang-ups, a store that stalls."""

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.support.broker_process import BrokerProcess, Browser, provider_options
from tests.support.redis_server import RedisServer, running
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.upstream import Introspection, Upstream

pytestmark = pytest.mark.system

USERS = [f"user-{number}" for number in range(12)]
CALLS = 6000


async def test_tk_03_every_token_is_its_callers_own(tmp_path: Path, provider: RemoteLedgerServer) -> None:
    """Of thousands of calls over two workers, whatever is hung up on and whatever stalls, none bears another's token."""
    await provider.configure(access_token_seconds=2)
    chance = random.Random(20261121)
    redis = RedisServer(tmp_path / "redis")
    heard: Counter[str] = Counter()
    foreign: list[tuple[str, str]] = []

    async def call(user: str, browser: Browser) -> None:
        path = "/api/delay/0.02" if chance.random() < 0.3 else "/api/echo-of-nothing"
        patience = chance.uniform(0.001, 0.03) if chance.random() < 0.2 else 20.0
        try:
            async with asyncio.timeout(patience):
                answer = await browser.get(path)
        except TimeoutError:
            heard["hung up"] += 1
            return
        heard[str(answer.status)] += 1
        if answer.status == 200 and answer.json()["sub"] != user:
            foreign.append((user, answer.json()["sub"]))

    async def stall() -> None:
        while True:
            await asyncio.sleep(chance.uniform(0.3, 1.0))
            redis.pause()
            await asyncio.sleep(chance.uniform(0.05, 0.8))
            redis.resume()

    with running(redis):
        async with (
            Introspection(provider.url, cache_seconds=60) as check,
            Upstream(check=check, records=False) as upstream,
            BrokerProcess(
                tmp_path,
                providers={"corp": provider_options(provider.url, allowed_parameters=["login_hint"])},
                routes=[{"path": "/api", "upstream": upstream.url, "strip_prefix": True, "token": "user"}],
                store={"url": f"redis://127.0.0.1:{redis.port}/0", "timeout": "500ms"},
                workers=2,
            ) as broker,
        ):
            browsers = {user: Browser(broker.url) for user in USERS}
            for user, browser in browsers.items():
                await browser.log_in(user=user)
            stalling = asyncio.create_task(stall())
            try:
                for _ in range(CALLS // 60):
                    users = chance.choices(USERS, k=60)
                    await asyncio.gather(*(call(user, browsers[user]) for user in users))
            finally:
                stalling.cancel()
                await asyncio.wait([stalling])
                redis.resume()
                for browser in browsers.values():
                    await browser.http.close()
    ledger = await provider.ledger()

    assert [] == foreign
    assert {"200", "hung up"} <= set(heard) <= {"200", "503", "hung up"}, heard
    assert heard["200"] > CALLS // 3
    assert ledger.count("refresh_token") >= len(USERS)
    assert {} == ledger.presented_twice()
    assert len(USERS) == ledger.count("authorization_code"), "somebody was logged out"

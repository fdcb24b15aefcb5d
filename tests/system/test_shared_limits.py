"""Rates that two brokers keep together through one Redis."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from broker.services.clock import SystemRandomness
from broker.services.keyring import new_key
from tests.support.broker_process import BrokerProcess, navigation, provider_options
from tests.support.checker import now
from tests.support.raw_upstream import RawUpstream
from tests.support.redis_server import RedisServer, running

pytestmark = pytest.mark.system

RATE = {"requests_per_second": 20, "burst": 10}


def settings(redis: RedisServer, upstream: RawUpstream, **changes: Any) -> dict[str, Any]:
    return {
        "store": {"url": f"redis://127.0.0.1:{redis.port}/0", "timeout": "1s"},
        "providers": {"corp": provider_options("http://127.0.0.1:9")},
        "routes": [
            {"path": "/one", "upstream": upstream.url, "token": "none", "rate_limit": RATE},
            {"path": "/all", "upstream": upstream.url, "token": "none", "total_rate_limit": RATE},
            {"path": "/free", "upstream": upstream.url, "token": "none"},
        ],
        "public_url": "http://127.0.0.1:1",
        "keys": [{"value": new_key(SystemRandomness()).reveal()}],
        **changes,
    }


async def flood(brokers: list[BrokerProcess], path: str, seconds: float, **options: Any) -> tuple[list[int], float]:
    """Ask all brokers as often as they answer. Returns the statuses, and how long it lasted."""
    began, statuses = now(), []
    headers = {"Host": "127.0.0.1:1", **options.pop("headers", {})}
    async with aiohttp.ClientSession() as http:

        async def ask(broker: BrokerProcess) -> None:
            while now() < began + seconds:
                async with http.get(broker.url + path, headers=headers, allow_redirects=False, **options) as answer:
                    statuses.append(answer.status)
                await asyncio.sleep(0.005)

        await asyncio.gather(*(ask(broker) for broker in brokers for _ in range(4)))
    return statuses, now() - began


@pytest.mark.slow
async def test_ds_04_two_brokers_on_one_redis_keep_one_rate(tmp_path: Path) -> None:
    """What both admit together stays within the rate, and one burst more; without Redis no request fails."""
    for name in ("a", "b", "redis"):
        (tmp_path / name).mkdir()
    async with RawUpstream() as upstream:
        redis = RedisServer(tmp_path / "redis")
        with running(redis):
            options = settings(redis, upstream)
            async with BrokerProcess(tmp_path / "a", **options) as a, BrokerProcess(tmp_path / "b", **options) as b:
                for path in ("/one/x", "/all/x"):
                    statuses, lasted = await flood([a, b], path, 4.0)
                    admitted = statuses.count(200)
                    print(f"{path}: {admitted} of {len(statuses)} in {lasted:.2f} s")
                    assert {200, 429} == set(statuses)
                    assert 0.8 * 20 * lasted <= admitted <= 20 * lasted + 2 * 10 + 1
                redis.kill()
                free, _ = await flood([a, b], "/free/x", 0.5)
                alone, lasted = await flood([a, b], "/one/x", 3.0)

    assert {200} == set(free)
    assert {200, 429} == set(alone)
    assert 20 * lasted <= alone.count(200) <= 2 * (20 * lasted + 10) + 2


@pytest.mark.slow
async def test_ds_04_two_brokers_count_logins_together(tmp_path: Path) -> None:
    """A client that goes from one broker to the other begins no more logins than at one."""
    for name in ("a", "b", "redis"):
        (tmp_path / name).mkdir()
    slow = {"requests_per_second": 0.01, "burst": 5}
    async with RawUpstream() as upstream:
        redis = RedisServer(tmp_path / "redis")
        with running(redis):
            options = settings(redis, upstream, login={"client_rate_limit": slow})
            async with BrokerProcess(tmp_path / "a", **options) as a, BrokerProcess(tmp_path / "b", **options) as b:
                refused: list[int] = []
                for broker in (a, b):
                    statuses, _ = await flood([broker], "/bff/login", 1.0, headers=navigation())
                    refused.append(len(statuses) - statuses.count(429))

    assert 5 == refused[0]
    assert refused[1] <= 5, "what it takes before it hears of the others"

"""FT-25 in small: random faults from a seed while users work. ``SOAK_SEED`` repeats a run, ``SOAK_SECONDS`` extends it."""

import asyncio
import os
import random
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker_process import BrokerProcess
from tests.support.checker import RECOVERY_SECONDS, Outage, now, violations
from tests.support.kill_points import Countdown
from tests.support.population import Population
from tests.support.redis_server import RedisServer, running
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.tcp_proxy import TcpProxy
from tests.support.upstream import Upstream
from tests.system.test_faults_load import DURABLE, TOKEN_SECONDS, redis_store, settings

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(3 * 3600)]

SECONDS = float(os.environ.get("SOAK_SECONDS", "40"))
POOL = 16
"""Connections to the store: pools may be fuller after a fault than before, up to what they are bounded by."""
Fault = Callable[[], Coroutine[Any, Any, None]]


async def test_ft_25_random_faults_leave_nothing_behind(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """After a minute of faults nobody was logged out, and descriptors, tasks and memory are where they were."""
    seed = int(os.environ.get("SOAK_SEED") or random.randrange(10**6))
    print(f"SOAK_SEED={seed}")
    rng = random.Random(seed)
    await provider.configure(access_token_seconds=TOKEN_SECONDS, rotation="grace", rotation_grace_seconds=600)
    redis = RedisServer(tmp_path / "redis", *DURABLE)
    countdown = Countdown(tmp_path / "countdown")
    command = (sys.executable, "-m", "tests.support.kill_points", countdown.path)
    with running(redis):
        async with TcpProxy(redis.port) as network:
            installation = settings(
                provider,
                upstream,
                corp={"rotation_grace": "10m"},
                store={**redis_store(network.port), "max_connections": POOL},
            )
            # How many connections to it are idle is the crowd's doing: none of them lives until they are counted.
            for route in installation["routes"]:
                route["upstream"] = {"urls": [route["upstream"]], "keepalive_timeout": "1s"}
            async with BrokerProcess(tmp_path, command=command, **installation) as broker:
                faults = _faults(rng, redis, network, provider, upstream)
                # The same crowd before, so that caches and pools are as full as they get without faults.
                async with Population(broker.url, users=10, seed=seed) as population, population.at_work():
                    await asyncio.sleep(4)
                at_start = await _levels(broker, countdown)
                async with Population(broker.url, users=10, seed=seed) as population:
                    began = now()
                    async with population.at_work():
                        while now() < began + SECONDS:
                            name = rng.choice(sorted(faults))
                            print(f"{now() - began:6.1f} s: {name}")
                            await faults[name]()
                            await asyncio.sleep(rng.uniform(0.2, 2.0))
                        await provider.clear_faults()
                        ended = now()
                        await asyncio.sleep(RECOVERY_SECONDS + 3)
                    last = await population.everybody_calls()
                at_end = await _levels(broker, countdown)
    history, ledger = population.history, await provider.ledger()
    outage = Outage(began=began, ended=ended, statuses=frozenset({401, 502, 503}))
    print(f"{len(history.calls)} calls {dict(history.statuses())}, {history.hung_up} hung up")
    print(f"{ledger.count('refresh_token')} refreshes, {at_start} -> {at_end}")

    assert {200} == {call.status for call in last}
    assert [] == violations(history, ledger, upstream.received, outages=[outage], log=broker.log_path)[:20]
    assert 0 == countdown.deaths
    assert at_end["tasks"] <= at_start["tasks"] + 4
    assert at_end["descriptors"] <= at_start["descriptors"] + POOL + 4
    assert at_end["megabytes"] <= at_start["megabytes"] + 24


async def _levels(broker: BrokerProcess, countdown: Countdown) -> dict[str, float]:
    await asyncio.sleep(3)  # connections that are idle or that their clients closed are gone, and caches swept
    metrics = await broker.metrics()
    return {
        "tasks": countdown.tasks,
        "descriptors": metrics["process_open_fds"],
        "megabytes": round(metrics["process_resident_memory_bytes"] / 2**20, 1),
    }


def _faults(
    rng: random.Random, redis: RedisServer, network: TcpProxy, provider: RemoteLedgerServer, upstream: Upstream
) -> dict[str, Fault]:
    async def pause_redis() -> None:
        redis.pause()
        await asyncio.sleep(rng.uniform(0.1, 2.5))
        redis.resume()

    async def restart_redis() -> None:
        redis.kill()
        await asyncio.sleep(rng.uniform(0.1, 2.5))
        redis.start()

    async def cut_store() -> None:
        network.cut()

    async def partition_store() -> None:
        network.partition()
        await asyncio.sleep(rng.uniform(0.1, 2.5))
        network.heal()

    async def slow_store() -> None:
        network.delay_seconds = rng.uniform(0.01, 0.4)
        await asyncio.sleep(rng.uniform(0.5, 2.0))
        network.delay_seconds = 0.0

    async def read_only_store() -> None:
        redis.command("REPLICAOF", "127.0.0.1", 1)
        await asyncio.sleep(rng.uniform(0.2, 2.0))
        redis.command("REPLICAOF", "NO", "ONE")

    async def lose_answers() -> None:
        await provider.fail_next("close", when="after", count=rng.randrange(1, 4), grant_type="refresh_token")

    async def provider_fails() -> None:
        status = rng.choice([429, 500, 502, 503, 403])
        await provider.fail_next(status=status, count=rng.randrange(1, 8), body="<html>")

    async def provider_hangs() -> None:
        await provider.fail_next("hang", when=rng.choice(["before", "after"]), count=rng.randrange(1, 3))
        await asyncio.sleep(rng.uniform(0.5, 3.0))
        await provider.clear_faults()

    async def slow_provider() -> None:
        await provider.configure(latency_seconds=(0.0, rng.uniform(0.1, 1.5)))
        await asyncio.sleep(rng.uniform(0.5, 3.0))
        await provider.configure(latency_seconds=(0.0, 0.0))

    async def refuse_tokens() -> None:
        upstream.refuse(rng.randrange(1, 10))

    async def restart_upstream() -> None:
        await upstream.stop()
        await asyncio.sleep(rng.uniform(0.1, 1.0))
        await upstream.start()

    faults: list[Fault] = [
        *(pause_redis, restart_redis, cut_store, partition_store, slow_store, read_only_store),
        *(lose_answers, provider_fails, provider_hangs, slow_provider, refuse_tokens, restart_upstream),
    ]
    return {fault.__name__: fault for fault in faults}

"""Faults of the store and of the provider under a whole broker while its users work, judged by the checker."""

import asyncio
import random
import resource
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker_process import BrokerProcess, provider_options
from tests.support.checker import RECOVERY_SECONDS, Outage, now, violations
from tests.support.population import PARALLEL_CALLS, Population
from tests.support.redis_server import RedisServer, SentinelSetup, running, wait_until
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.tcp_proxy import TcpProxy
from tests.support.upstream import Upstream

pytestmark = [pytest.mark.system, pytest.mark.slow]

TOKEN_SECONDS = 4
"""Tokens live for so short a time that every fault meets refreshes."""


def settings(provider: RemoteLedgerServer, upstream: Upstream, **changes: Any) -> dict[str, Any]:
    corp = provider_options(
        provider.url, allowed_parameters=["login_hint"], rotation="grace", token_endpoint_timeout="2s"
    )
    return {
        "providers": {"corp": {**corp, **changes.pop("corp", {})}},
        "routes": [
            {"path": "/api", "upstream": upstream.url, "strip_prefix": True, "token": "user"},
            {"path": "/public", "upstream": upstream.url, "token": "none"},
        ],
        **changes,
    }


@asynccontextmanager
async def redis_of_its_own(directory: Path, *options: str) -> AsyncIterator[RedisServer]:
    server = RedisServer(directory / "redis", *options)
    with running(server):
        yield server


class Scene:
    """A broker, its users at work, and a fault."""

    def __init__(
        self, broker: BrokerProcess, population: Population, provider: RemoteLedgerServer, upstream: Upstream
    ) -> None:
        self.broker = broker
        self.population = population
        self.provider = provider
        self.upstream = upstream
        self.outages: list[Outage] = []

    @asynccontextmanager
    async def fault(self, statuses: frozenset[int] = frozenset({503}), *, breaks: bool = False) -> AsyncIterator[None]:
        """Mark the time of a fault, and go on for as long as the recovery may take, and a little longer."""
        began = now()
        yield
        self.outages.append(Outage(began=began, ended=now(), statuses=statuses, breaks=breaks))
        await asyncio.sleep(RECOVERY_SECONDS + 1.5)

    async def judge(self, **exceptions: Any) -> list[str]:
        history, ledger = self.population.history, await self.provider.ledger()
        found = violations(
            history, ledger, self.upstream.received, outages=self.outages, log=self.broker.log_path, **exceptions
        )
        print(f"{dict(history.statuses())} hung up: {history.hung_up}, refreshes: {ledger.count('refresh_token')}")
        return found[:20]


@asynccontextmanager
async def scene(
    directory: Path, provider: RemoteLedgerServer, upstream: Upstream, *, logs_in_again: bool = False, **changes: Any
) -> AsyncIterator[Scene]:
    """Start everything, and let ten users work for a second before the block begins."""
    await provider.configure(access_token_seconds=TOKEN_SECONDS, rotation="grace", rotation_grace_seconds=600)
    changes["corp"] = {"rotation_grace": "10m", **changes.get("corp", {})}
    async with (
        BrokerProcess(directory, **settings(provider, upstream, **changes)) as broker,
        Population(broker.url, users=10, logs_in_again=logs_in_again) as population,
        population.at_work(),
    ):
        await asyncio.sleep(1)
        yield Scene(broker, population, provider, upstream)


def redis_store(port: int) -> dict[str, Any]:
    return {"url": f"redis://127.0.0.1:{port}/0", "timeout": "500ms"}


DURABLE = ("appendonly yes", "appendfsync always")


async def test_ft_01_redis_killed_and_started_again(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """A Redis that is gone for six seconds, longer than a token lives, logs nobody out."""
    async with (
        redis_of_its_own(tmp_path, *DURABLE) as redis,
        scene(tmp_path, provider, upstream, store=redis_store(redis.port)) as play,
        play.fault(),
    ):
        redis.kill()
        await asyncio.sleep(6)
        redis.start()

    assert [] == await play.judge()


async def test_ft_02_redis_paused(tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream) -> None:
    """A Redis that hangs for ten seconds holds nobody up for long, piles nothing up, and logs nobody out."""
    async with (
        redis_of_its_own(tmp_path) as redis,
        scene(tmp_path, provider, upstream, store=redis_store(redis.port)) as play,
    ):
        # As many connections as users ever keep at once: what is counted afterwards is the broker's own doing.
        await asyncio.gather(*(play.population.everybody_calls() for _ in range(PARALLEL_CALLS)))
        before = await play.broker.metrics()
        async with play.fault():
            redis.pause()
            await asyncio.sleep(10)
            redis.resume()
        after = await play.broker.metrics()

    assert [] == await play.judge()
    assert after["process_open_fds"] < before["process_open_fds"] + 32
    assert [] == [call for call in play.population.history.calls if call.ended - call.began > 8]


async def test_ft_04_redis_flushed(tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream) -> None:
    """After FLUSHALL everybody logs in once more, and nobody sees a 500 or another's data."""
    async with (
        redis_of_its_own(tmp_path) as redis,
        scene(tmp_path, provider, upstream, store=redis_store(redis.port), logs_in_again=True) as play,
        play.fault(),
    ):
        redis.command("FLUSHALL")
    everybody = {user.name for user in play.population.users}

    assert [] == await play.judge(may_log_in_again=everybody)
    assert {2} == set(play.population.history.logins.values())


async def test_ft_05_redis_refuses_writes(tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream) -> None:
    """While Redis is read-only, or out of memory, no refresh token is spent; then all goes on."""
    async with (
        redis_of_its_own(tmp_path) as redis,
        scene(tmp_path, provider, upstream, store=redis_store(redis.port)) as play,
    ):
        async with play.fault():
            redis.command("REPLICAOF", "127.0.0.1", 1)
            await asyncio.sleep(5)
            redis.command("REPLICAOF", "NO", "ONE")
        async with play.fault():
            redis.command("CONFIG", "SET", "maxmemory", 1)
            await asyncio.sleep(5)
            redis.command("CONFIG", "SET", "maxmemory", 0)

    assert [] == await play.judge()


async def test_ft_03_sentinel_failover_under_load(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """When the master dies, writes go to the next one within five seconds, and no family is lost."""
    sentinels = SentinelSetup(tmp_path)
    sentinels.start()
    try:
        store = {"url": sentinels.url, "timeout": "500ms", "wait_replicas": 1}
        async with scene(tmp_path, provider, upstream, store=store) as play:
            old = sentinels.master()
            async with play.fault():
                await asyncio.to_thread(_fail_over, sentinels, old)
                # It comes back empty, and as a master until a Sentinel demotes it.
                old.start()
                await asyncio.to_thread(wait_until, lambda: _replicas(sentinels) == 1, what="the old master's return")
    finally:
        sentinels.stop()

    assert [] == await play.judge()


def _fail_over(sentinels: SentinelSetup, old: RedisServer) -> None:
    old.kill()
    wait_until(lambda: sentinels.master() is not old, what="the failover")


def _replicas(sentinels: SentinelSetup) -> int:
    return int(sentinels.master().command("INFO", "replication")["connected_slaves"])


@pytest.mark.parametrize("fault", ["locked", "full", "read-only"])
async def test_ft_16_sqlite_in_trouble(
    fault: str, tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """A file that is locked, can't grow, or can't be written at all for five seconds, ends no session."""
    store = {"url": f"sqlite://{tmp_path}/broker.db"}
    trouble = locked(tmp_path / "broker.db") if fault == "locked" else None
    async with scene(tmp_path, provider, upstream, store=store) as play, play.fault():
        began = now()
        with trouble or no_writes(play.broker.worker_pid, SIZES[fault]):
            await asyncio.sleep(5)

    assert [] == await play.judge()
    assert {200, 503} == play.population.history.statuses(since=began).keys() - {401}, "401: without a session"


SIZES = {"full": 4096, "read-only": 0}
"""Up to which offset a process may write into any file."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def no_writes(pid: int, size: int) -> Iterator[None]:
    """Let every write of a process beyond *size* fail, as on a disk that is full or was mounted again read-only."""
    limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


PROVIDER_FAULTS: Mapping[str, dict[str, Any]] = {
    "an error": {"status": 500, "body": "oops"},
    "told to wait": {"status": 429, "headers": {"Retry-After": "1"}},
    "a firewall's page": {"status": 403, "body": "<html>You have been blocked</html>"},
    "no answer": {"how": "hang"},
    "half an answer": {"how": "garbage"},
}


async def test_ft_07_a_provider_in_trouble(tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream) -> None:
    """A provider that fails in every way logs nobody out, and isn't run over when it is back."""
    async with scene(tmp_path, provider, upstream) as play, play.fault():
        for fault in PROVIDER_FAULTS.values():
            await provider.fail_next(**{"count": None, **fault})
            await asyncio.sleep(3)
            await provider.clear_faults()
        calls = (await provider.ledger()).count("refresh_token")
    ledger = await provider.ledger()

    assert [] == await play.judge()
    # Back-off, breaker and leases bound it: some refreshes for each user.
    assert calls < 300
    assert ledger.count("refresh_token") - calls < 80


async def test_ft_08_answers_that_are_lost(tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream) -> None:
    """For six seconds the server rotates and its answers never arrive: with a grace that is sat out."""
    async with scene(tmp_path, provider, upstream) as play, play.fault():
        await provider.fail_next("close", when="after", count=None, grant_type="refresh_token")
        await asyncio.sleep(6)
        await provider.clear_faults()

    assert [] == await play.judge()
    assert (await provider.ledger()).lost_answers()


async def test_tk_03_ten_thousand_mixed_requests_never_carry_another_users_token(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream, redis_server: RedisServer
) -> None:
    """Callers hang up, the store's connections break and stall, tokens rotate: each token is its caller's own."""
    rng = random.Random(3)
    await provider.configure(access_token_seconds=TOKEN_SECONDS, rotation="grace", rotation_grace_seconds=600)
    async with TcpProxy(redis_server.port) as network:
        installation = settings(
            provider,
            upstream,
            corp={"rotation_grace": "10m"},
            store=redis_store(network.port),
            session={"cache_ttl": "100ms"},
        )
        async with (
            BrokerProcess(tmp_path, **installation) as broker,
            Population(broker.url, users=("a", "b"), seed=3) as population,
        ):
            history, began = population.history, now()
            async with asyncio.TaskGroup() as group:
                crowd = [
                    group.create_task(_mixed(population, random.Random(f"3:{number}"), 10_000 // 40))
                    for number in range(40)
                ]
                while not all(task.done() for task in crowd):
                    await asyncio.sleep(rng.uniform(0.05, 0.4))
                    network.delay_seconds = rng.choice([0.0, 0.0, 0.02, 0.3])
                    if rng.random() < 0.3:
                        network.cut()
                network.delay_seconds = 0.0
            outage = Outage(began=began, ended=now())
            await asyncio.sleep(RECOVERY_SECONDS)
            last = await population.everybody_calls()
    sent = len(history.calls) + history.hung_up
    print(f"{sent} requests in {now() - began:.0f} s, {history.hung_up} hung up: {dict(history.statuses())}")

    assert sent >= 10_000
    # Some 1,500 tried to; how many were still waiting when they did is the machine's speed.
    assert 100 < history.hung_up
    assert len(upstream.received) > 1_000
    assert {200} == {call.status for call in last}
    assert [] == violations(history, await provider.ledger(), upstream.received, outages=[outage], log=broker.log_path)


async def _mixed(population: Population, rng: random.Random, count: int) -> None:
    for _ in range(count):
        user = rng.choice(population.users)
        if rng.random() < 0.15:
            await user.hang_up("/api/hang-up", rng.uniform(0, 0.05))
        else:
            await user.call("/api/get")

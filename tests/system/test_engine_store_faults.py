"""Stores that fail under the engine: Redis paused, killed, emptied, read-only, cut off; SQLite locked, full, read-only."""

import asyncio
import resource
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from broker.core.outcome import Cause, LoginNeeded, Token, TokenResult, Unavailable
from broker.services.clock import SystemClock, SystemRandomness
from broker.stores.base import Store
from broker.stores.open import open_store
from broker.stores.options import StoreOptions, StoreUrl
from tests.support.authorization_server import LedgerServer, token_set
from tests.support.engine import PROVIDER, Engine, LeapingClock, Replica, authorization_server
from tests.support.redis_server import RedisServer
from tests.support.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.system, pytest.mark.slow]

LIFE = 300.0
RECOVERY_SECONDS = 5.0


def open_url(url: str) -> Store:
    return open_store(StoreOptions(url=StoreUrl.parse(url), timeout_seconds=1.0), SystemClock(), SystemRandomness())


class Installation:
    """Replicas on a real store, a real server, and users with dead and with living tokens."""

    def __init__(self, directory: Path) -> None:
        self.clock = LeapingClock()
        self.provider = LedgerServer(clock=self.clock, access_token_seconds=LIFE)
        self.engine = Engine(directory / "spool", self.clock, SystemRandomness(), {})
        self.dead: list[str] = []
        self.alive: list[str] = []

    async def replica(self, url: str) -> Replica:
        server = authorization_server(self.provider.url, clock=self.clock)
        return await self.engine.open(store=open_url(url), servers={PROVIDER: server})

    async def log_in(self, replica: Replica, count: int = 5) -> None:
        """Log users in; the first ones' access tokens die."""
        for group, late in ((self.dead, False), (self.alive, True)):
            for number in range(count):
                subject = f"{'late' if late else 'early'}{number}"
                tokens = token_set(self.provider.issue(subject), requested_at=self.clock.now())
                group.append((await replica.adopt(tokens, subject=subject)).id)
            if not late:
                self.clock.advance(LIFE)

    async def call(self, replica: Replica, grants: list[str]) -> list[TokenResult]:
        return await asyncio.gather(*(replica.broker.token(grant_id) for grant_id in grants))

    async def recovers(self, *replicas: Replica) -> float:
        """Return how long it takes until everybody has a token."""
        began = time.monotonic()
        while True:
            results = [result for replica in replicas for result in await self.call(replica, self.dead + self.alive)]
            assert not [result for result in results if isinstance(result, LoginNeeded)]
            if all(isinstance(result, Token) for result in results):
                return time.monotonic() - began
            assert time.monotonic() - began < RECOVERY_SECONDS, results
            await asyncio.sleep(0.1)

    def nothing_lost(self) -> None:
        assert [] == self.provider.ledger.families_revoked()

    async def close(self) -> None:
        await self.provider.stop()
        await self.engine.close()
        for replica in self.engine.replicas:
            for server in replica.servers.values():
                await server.close()


@pytest.fixture
async def installation(tmp_path: Path) -> AsyncIterator[Installation]:
    installation = Installation(tmp_path)
    await installation.provider.start()
    yield installation
    await installation.close()


def unavailable(results: list[TokenResult]) -> bool:
    return all(isinstance(each, Unavailable) and each.cause is Cause.STORE for each in results)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis").start()
    yield server
    server.stop()


async def test_ft_02_a_redis_that_hangs_for_ten_seconds(installation: Installation, own_redis: RedisServer) -> None:
    """Living tokens serve on, the others are told to come again, and all is well within five seconds of its return."""
    replica = await installation.replica(f"redis://127.0.0.1:{own_redis.port}/0")
    await installation.log_in(replica)
    own_redis.pause()
    paused = time.monotonic()
    while time.monotonic() - paused < 10:
        began = time.monotonic()
        assert all(isinstance(each, Token) for each in await installation.call(replica, installation.alive))
        assert unavailable(await installation.call(replica, installation.dead))
        assert time.monotonic() - began < 4
        await asyncio.sleep(0.2)
    own_redis.resume()

    assert await installation.recovers(replica) < RECOVERY_SECONDS
    installation.nothing_lost()
    assert {} == installation.provider.ledger.sent_twice()


async def test_ft_01_a_redis_that_is_killed_and_comes_back_empty(
    installation: Installation, own_redis: RedisServer
) -> None:
    """503 while it is away; what it has forgotten needs one clean login; no error, no loop."""
    replica = await installation.replica(f"redis://127.0.0.1:{own_redis.port}/0")
    await installation.log_in(replica)
    own_redis.kill()
    assert unavailable(await installation.call(replica, installation.dead))
    assert all(isinstance(each, Token) for each in await installation.call(replica, installation.alive))
    own_redis.start()

    began = time.monotonic()
    while not all(isinstance(each, LoginNeeded) for each in await installation.call(replica, installation.dead)):
        assert time.monotonic() - began < RECOVERY_SECONDS
        await asyncio.sleep(0.1)
    installation.dead.clear()
    installation.alive.clear()
    await installation.log_in(replica)
    assert await installation.recovers(replica) < RECOVERY_SECONDS
    installation.nothing_lost()


async def test_ft_05_a_redis_that_takes_no_writes(installation: Installation, own_redis: RedisServer) -> None:
    """READONLY: no refresh token is spent that could not be saved."""
    replica = await installation.replica(f"redis://127.0.0.1:{own_redis.port}/0")
    await installation.log_in(replica)
    own_redis.command("REPLICAOF", "127.0.0.1", "1")
    assert unavailable(await installation.call(replica, installation.dead))
    assert 0 == installation.provider.ledger.count("refresh_token")
    own_redis.command("REPLICAOF", "NO", "ONE")

    assert await installation.recovers(replica) < RECOVERY_SECONDS
    installation.nothing_lost()


async def test_a_replica_that_is_cut_off_while_it_refreshes_loses_nothing(
    installation: Installation, own_redis: RedisServer
) -> None:
    """Its answers wait on the disk; the other replica of the host saves them, or it does when it is back."""
    async with TcpProxy(own_redis.port) as proxy:
        one = await installation.replica(f"redis://127.0.0.1:{proxy.port}/0")
        two = await installation.replica(f"redis://127.0.0.1:{own_redis.port}/0")
        await installation.log_in(two)
        installation.provider.configure(latency_seconds=(2.0, 2.0))  # all are asked for before the first is answered
        calls = asyncio.gather(*(one.broker.token(grant_id) for grant_id in installation.dead))
        while installation.provider.ledger.count("refresh_token") < len(installation.dead):
            await asyncio.sleep(0.01)
        proxy.partition()
        assert all(isinstance(result, Token) for result in await calls)
        assert len(installation.dead) == len(one.spool)

        assert await installation.recovers(two) < RECOVERY_SECONDS
        proxy.heal()
        assert await installation.recovers(one, two) < RECOVERY_SECONDS
        installation.nothing_lost()
        assert {} == installation.provider.ledger.sent_twice()


# --- SQLite


async def test_ft_16_an_sqlite_file_that_another_process_has_locked(installation: Installation, tmp_path: Path) -> None:
    """Its readers read on; nothing is spent that can't be written; all is well once it is let go."""
    path = tmp_path / "broker.db"
    replica = await installation.replica(f"sqlite://{path}")
    await installation.log_in(replica)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        assert all(isinstance(each, Token) for each in await installation.call(replica, installation.alive))
        assert unavailable(await installation.call(replica, installation.dead))
        assert 0 == installation.provider.ledger.count("refresh_token")
        other.execute("ROLLBACK")
    other.close()

    assert await installation.recovers(replica) < RECOVERY_SECONDS
    installation.nothing_lost()


async def test_ft_16_a_disk_that_is_full(installation: Installation, tmp_path: Path) -> None:
    """503 for those who need a refresh, no partial record, and service again as soon as there is room."""
    path = tmp_path / "broker.db"
    replica = await installation.replica(f"sqlite://{path}")
    await installation.log_in(replica)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))  # no file grows any more
    try:
        assert all(isinstance(each, Token) for each in await installation.call(replica, installation.alive))
        assert unavailable(await installation.call(replica, installation.dead))
        assert 0 == installation.provider.ledger.count("refresh_token")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert await installation.recovers(replica) < RECOVERY_SECONDS
    installation.nothing_lost()


async def test_ft_16_a_store_that_can_not_save_what_a_server_has_answered(
    installation: Installation, tmp_path: Path
) -> None:
    """The file is locked between intent and answer: callers get their token, and the answer is saved later."""
    path = tmp_path / "broker.db"
    replica = await installation.replica(f"sqlite://{path}")
    await installation.log_in(replica)
    installation.provider.configure(latency_seconds=(2.0, 2.0))  # all are asked for before the first is answered
    calls = asyncio.gather(*(replica.broker.token(grant_id) for grant_id in installation.dead))
    while installation.provider.ledger.count("refresh_token") < len(installation.dead):
        await asyncio.sleep(0.01)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        assert all(isinstance(result, Token) for result in await calls)
        assert len(installation.dead) == len(replica.spool)
        other.execute("ROLLBACK")
    other.close()

    assert await installation.recovers(replica) < RECOVERY_SECONDS
    began = time.monotonic()
    while len(replica.spool):
        assert time.monotonic() - began < RECOVERY_SECONDS
        await asyncio.sleep(0.05)
    installation.nothing_lost()
    assert {} == installation.provider.ledger.sent_twice()

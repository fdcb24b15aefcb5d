"""FT-23: a process stands still for longer than its lease, and goes on as if nothing had been."""

import asyncio
import os
import signal
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker_process import BrokerProcess
from tests.support.engine_worker import EngineProcess
from tests.support.population import Population
from tests.support.redis_server import RedisServer
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.upstream import Upstream
from tests.support.waiting import until, until_async
from tests.system.test_faults_load import settings

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(240)]

DRIVER = (sys.executable, "-m", "tests.support.kill_driver")
TIMEOUT_SECONDS = 1.0
"""Of the token endpoint: the lease is much longer."""
LONG_TIMEOUT_SECONDS = 3.0
"""Twenty requests that are sent at once, and wait a second each, are answered in time by a busy machine too."""
BATCH = 12
MOST_BATCHES = 8


@dataclass
class Stopped:
    """A process that is stopped at one moment of the refresh of its grant."""

    worker: EngineProcess
    grant_id: str
    call: "asyncio.Task[dict[str, Any]]"

    def stands_still(self) -> bool:
        return self.worker.is_stopped() or self.call.done()


class Stage:
    """Processes that stop in mid-refresh, and one that goes on."""

    def __init__(self, stack: AsyncExitStack, provider: RemoteLedgerServer, **options: Any) -> None:
        self.stack = stack
        self.provider = provider
        self.options = {"provider": provider.url, "token_endpoint_timeout_seconds": TIMEOUT_SECONDS, **options}

    async def worker(self) -> EngineProcess:
        return await self.stack.enter_async_context(EngineProcess(command=DRIVER, **self.options))

    async def adopt(self, worker: EngineProcess, subject: str) -> str:
        """Make a grant whose access token is dead."""
        tokens = await self.provider.issue(subject)
        login = {"subject": subject, "tokens": tokens, "requested_at": time.time() - 301}
        (grant_id,) = await worker.ask("adopt", [login])
        return str(grant_id)

    async def stop_at(self, moment: int) -> Stopped:
        worker = await self.worker()
        grant_id = await self.adopt(worker, f"user{moment}")
        await worker.ask("arm", moment, signal.SIGSTOP)
        return Stopped(worker, grant_id, asyncio.create_task(worker.ask("call", [grant_id], 1)))


@pytest.mark.parametrize("rotation", ["grace", "strict"])
async def test_ft_23_a_process_that_stood_still_presents_nothing_that_another_has_presented(
    rotation: str, tmp_path: Path, provider: RemoteLedgerServer, redis_server: RedisServer
) -> None:
    """
    It is stopped at every moment of a refresh, another process refreshes, and it goes on.

    With grace nobody logs in again; with strict only those whose answer the stopped process had on the wire. (SQLite
    isn't asked: a process that is stopped inside a transaction holds the file's lock, and the others answer 503.)
    """
    await provider.configure(rotation=rotation, rotation_grace_seconds=600, omit_at_refresh=frozenset({"id_token"}))
    late: list[str | None] = []
    kept: list[str] = []
    failed: list[str] = []
    moments, logins_needed = 0, 0
    async with AsyncExitStack() as stack:
        options = {"rotation": rotation, "rotation_grace_seconds": 600.0}
        stage = Stage(
            stack, provider, store=f"redis://127.0.0.1:{redis_server.port}/0", spool=tmp_path / "spool", **options
        )
        # On another host, so to speak: it can't see what the stopped ones have on their disk.
        other = await stack.enter_async_context(EngineProcess(**{**stage.options, "spool": tmp_path / "other"}))
        for batch in range(MOST_BATCHES):
            first = 1 + batch * BATCH
            stopped = await asyncio.gather(*(stage.stop_at(moment) for moment in range(first, first + BATCH)))
            for each in stopped:
                await until(each.stands_still, what="the stop")
            moments += sum(not each.call.done() for each in stopped)
            done = all(each.call.done() for each in stopped)
            grants = [each.grant_id for each in stopped]
            await other.ask("call", grants, 1)
            went_on_at = time.monotonic()
            for each in stopped:
                each.worker.send_signal(signal.SIGCONT)
            answers = [await each.call for each in stopped]
            held = await other.ask("held", grants)
            logins_needed += sum(grant["ended"] is not None for grant in held)
            ledger = await provider.ledger()
            sent_before = {call.refresh_token for call in ledger.calls if call.received_at < went_on_at}
            late += [
                call.refresh_token
                for call in ledger.token_calls("refresh_token")
                if call.received_at >= went_on_at and call.refresh_token in sent_before
            ]
            kept += [grant["refresh_token"] for grant in held if grant["refresh_token"]]
            failed += [reason for answer in answers for reason in answer["failed"]]
            if done:
                break
        await stack.aclose()
    ledger = await provider.ledger()
    print(f"{rotation}: {moments} moments, {logins_needed} logins needed, sent twice {len(ledger.sent_twice())}")

    assert 10 < moments < MOST_BATCHES * BATCH - BATCH
    assert [] == late
    assert set(ledger.sent_twice().values()) <= {2}
    assert [] == ledger.lost_tokens(kept)
    assert len(ledger.families_revoked()) == logins_needed
    assert {"invalid_grant"} >= set(failed)
    assert logins_needed <= (moments / 4 if rotation == "strict" else 0)


async def test_ft_23_an_answer_that_came_while_the_process_stood_still_is_read(
    tmp_path: Path, provider: RemoteLedgerServer
) -> None:
    """Every deadline has passed when it goes on, and yet the only copy of the new refresh token isn't dropped."""
    await provider.configure(rotation="strict", latency_seconds=(1.0, 1.0), omit_at_refresh=frozenset({"id_token"}))
    async with AsyncExitStack() as stack:
        stage = Stage(
            stack,
            provider,
            store=f"sqlite://{tmp_path}/broker.db",
            spool=tmp_path / "spool",
            token_endpoint_timeout_seconds=LONG_TIMEOUT_SECONDS,
        )
        worker = await stage.worker()
        grants = [await stage.adopt(worker, f"user{number}") for number in range(20)]
        calling = asyncio.create_task(worker.ask("call", grants, 3))

        async def is_asked() -> bool:
            return (await provider.ledger()).count("refresh_token") == len(grants)

        await until_async(is_asked, what="the token requests")
        worker.send_signal(signal.SIGSTOP)
        await asyncio.sleep(LONG_TIMEOUT_SECONDS + 1)
        worker.send_signal(signal.SIGCONT)
        answers = await calling
        held = await worker.ask("held", grants)
    ledger = await provider.ledger()

    assert [] == answers["failed"]
    assert {} == ledger.sent_twice()
    assert [] == ledger.lost_tokens(grant["refresh_token"] for grant in held)
    assert {2} == {grant["generation"] for grant in held}


async def test_ft_23_a_stall_is_reported_and_loses_nobody(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """The watchdog logs how long it was and counts it; whoever calls afterwards is served."""
    await provider.configure(access_token_seconds=4)
    async with (
        BrokerProcess(tmp_path, **settings(provider, upstream)) as broker,
        Population(broker.url, users=8) as population,
    ):
        os.killpg(broker.pid, signal.SIGSTOP)
        stopped_at = time.monotonic()
        waiting = asyncio.gather(*(user.call("/api/during") for user in population.users))
        await asyncio.sleep(2)
        os.killpg(broker.pid, signal.SIGCONT)
        stood_still = time.monotonic() - stopped_at
        calls = [*await waiting, *await population.everybody_calls()]

        def longest_stall() -> float:
            # A machine that is busy may have caused shorter ones.
            lines = [record for record in broker.log() if record["event"] == "event_loop_stalled"]
            return max((record["seconds"] for record in lines), default=0.0)

        await until(lambda: longest_stall() > 1.4, what="the watchdog's line")
        counted = (await broker.metrics())["event_loop_stalled_seconds_total"]
        seconds = longest_stall()
    ledger = await provider.ledger()

    assert {200} == {call.status for call in calls}
    assert stood_still - 0.6 < seconds < stood_still + 1.5
    assert counted >= seconds - 0.01
    assert [] == ledger.families_revoked()

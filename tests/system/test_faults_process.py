"""Faults of the broker's own processes: signals, a worker that dies, a log that can't be written, too few descriptors."""

import asyncio
import os
import signal
import socket
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from broker.web.server import IMPATIENT_SECONDS
from tests.support.broker_process import BrokerProcess
from tests.support.checker import RECOVERY_SECONDS, Outage, now, violations
from tests.support.population import Population, User
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.upstream import Introspection, Upstream
from tests.support.waiting import until, until_async
from tests.system.test_faults_load import TOKEN_SECONDS, settings

pytestmark = [pytest.mark.system, pytest.mark.slow]


async def test_ft_12_sigterm_under_load_ends_nothing_that_began(tmp_path: Path, provider: RemoteLedgerServer) -> None:
    """At some hundred requests a second with streams open: all that began is answered, the rest isn't taken, exit 0."""
    await provider.configure(access_token_seconds=TOKEN_SECONDS)
    async with (
        Introspection(provider.url, cache_seconds=0.5) as check,
        Upstream(check=check) as upstream,
        BrokerProcess(tmp_path, **settings(provider, upstream)) as broker,
        Population(broker.url, users=16, pace_seconds=0.01) as population,
    ):
        began = now()
        streams = [
            asyncio.create_task(user.call("/api/delay/2.5?stream", headers={"Accept": "text/event-stream"}))
            for user in population.users[:4]
        ]
        async with population.at_work():
            await asyncio.sleep(3)
            streams += [asyncio.create_task(user.call("/api/delay/1.5")) for user in population.users[:8]]
            await until(lambda: upstream.running >= 8, what="the streams")
            asked = now()
            code = await broker.stop(signal.SIGTERM)
            lasted = now() - asked
        streamed = await asyncio.gather(*streams)
    history = population.history
    rate = sum(call.began < asked for call in history.calls) / (asked - began)
    broken = [call for call in history.calls if call.status is None]
    # What had not arrived when the broker was told to end needn't have got in: the callers are busy, too.
    reached = {mark for request in upstream.received for mark in request.header("x-call")}
    early = [call for call in broken if call.began < asked - 0.5 and "ClientConnectorError" not in call.error]
    cut = [call for call in broken if call.mark in reached or call in early]
    print(f"{rate:.0f} requests/s, ended after {lasted:.1f} s, exit code {code}; {dict(history.statuses())}")

    assert 0 == code
    assert lasted < 6
    assert {200} == {call.status for call in streamed}
    assert [] == cut
    outage = Outage(began=asked, ended=now(), breaks=True)
    assert [] == violations(history, await provider.ledger(), upstream.received, outages=[outage], log=broker.log_path)


async def test_ft_13_a_second_sigterm_ends_at_once(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """Whoever doesn't want to wait for a call that is under way needn't, and no fault is logged for it."""
    async with (
        BrokerProcess(tmp_path, **settings(provider, upstream, drain_timeout="30s")) as broker,
        Population(broker.url, users=1) as population,
    ):
        call = asyncio.create_task(population.users[0].call("/api/delay/20"))
        await until(lambda: upstream.running == 1, what="the request at the upstream")
        os.kill(broker.pid, signal.SIGTERM)
        await until(lambda: "stopping" in broker.log_path.read_text(), what="the drain")
        await asyncio.sleep(IMPATIENT_SECONDS)  # what comes sooner belongs to the first
        began = now()
        code = await broker.stop(signal.SIGTERM)
        lasted = now() - began
        answer = await call

    assert 1 == code
    assert lasted < 3
    assert answer.status is None
    assert [] == [record for record in broker.log() if record["level"] == "error" or "exception" in record]


async def test_ft_13_a_storm_of_sighups_is_a_few_reloads(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """Two thousand SIGHUPs while users work are some reloads, which nobody notices."""
    await provider.configure(access_token_seconds=TOKEN_SECONDS)
    async with (
        BrokerProcess(tmp_path, **settings(provider, upstream)) as broker,
        Population(broker.url) as population,
    ):
        async with population.at_work():
            for _ in range(2000):
                os.kill(broker.pid, signal.SIGHUP)
                await asyncio.sleep(0.001)
        code = await broker.stop()

    assert 0 == code
    assert [] == violations(population.history, await provider.ledger(), upstream.received)


def children(pid: int) -> list[int]:
    """Return the processes that *pid* forked, oldest first."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_ft_24_a_worker_that_is_killed_takes_nobody_along(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """One of three dies in the middle of refreshes: its connections break, and that is all; another takes its place."""
    await provider.configure(
        access_token_seconds=TOKEN_SECONDS, rotation="grace", rotation_grace_seconds=600, latency_seconds=(0.0, 0.3)
    )
    installation = settings(provider, upstream, workers=3, corp={"rotation_grace": "10m"})
    async with (
        BrokerProcess(tmp_path, **installation) as broker,
        Population(broker.url, users=16, pace_seconds=0.05) as population,
    ):
        outages = []
        async with population.at_work():
            for victim in (0, 1):
                await asyncio.sleep(1.7)
                before = children(broker.pid)
                began = now()
                os.kill(before[victim], signal.SIGKILL)
                has_all = partial(_has_children, broker.pid, len(before))
                await until_async(has_all, seconds=RECOVERY_SECONDS, what="the next worker")
                # A lease that died with its holder is free within the lease's time, and its waiters go on.
                outages.append(Outage(began=began, ended=now(), breaks=True))
                await asyncio.sleep(RECOVERY_SECONDS + 1)
        last = await population.everybody_calls()
    history = population.history
    broken = [call for call in history.calls if call.status is None]
    late = [call for call in broken if all(call.ended > outage.began + 1 for outage in outages)]
    print(f"{len(broken)} of {len(history.calls)} calls broke: {dict(history.statuses())}")

    assert {200} == {call.status for call in last}
    assert len(broken) < len(history.calls) / 10
    assert [] == late
    ledger = await provider.ledger()
    assert [] == violations(history, ledger, upstream.received, outages=outages, log=broker.log_path)


async def _has_children(pid: int, count: int) -> bool:
    return len(children(pid)) == count


async def _answers(broker: BrokerProcess) -> bool:
    with suppress(aiohttp.ClientError, OSError):
        async with aiohttp.ClientSession() as http, http.get(f"{broker.admin_url}/readyz") as response:
            return response.status == 200
    return False


@pytest.mark.parametrize("trouble", ["closed", "blocked", "full"])
async def test_ft_17_a_log_that_cannot_be_written_stops_nothing(
    trouble: str, tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """With stdout closed, blocked, or on a full disk, everything goes on, down to a clean end."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    held = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    target = {"closed": "1>&- 2>&-", "blocked": f"1>{pipe} 2>&1", "full": "1>/dev/full 2>&1"}[trouble]
    command = ("sh", "-c", f'exec "$@" {target}', "sh", sys.executable, "-m", "broker")
    broker = BrokerProcess(tmp_path, command=command, **settings(provider, upstream, log={"level": "debug"}))
    try:
        await broker.start(wait_ready=False)
        await until_async(lambda: _answers(broker), what="readiness")
        async with Population(broker.url, pace_seconds=0.01) as population:
            async with population.at_work():
                await asyncio.sleep(3)
            last = await population.everybody_calls()
        code = await broker.stop()
    finally:
        os.close(held)
        await broker.__aexit__()

    assert {200} == {call.status for call in last}
    assert len(population.history.calls) > 50
    assert [] == violations(population.history, await provider.ledger(), upstream.received)
    assert 0 == code


async def test_ft_20_too_few_descriptors_are_no_busy_loop(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """With 256 descriptors and 400 connections old clients are served, the processor rests, and new ones get in later."""
    command = ("prlimit", "--nofile=256:256", sys.executable, "-m", "broker")
    crowd: list[socket.socket] = []
    async with (
        BrokerProcess(tmp_path, command=command, **settings(provider, upstream)) as broker,
        Population(broker.url, users=2) as population,
    ):
        old = population.users[0]
        warm = [await old.call("/api/before") for _ in range(3)]
        try:
            for _ in range(400):
                each = socket.socket()
                each.setblocking(False)
                each.connect_ex(("127.0.0.1", broker.port))
                crowd.append(each)
            await asyncio.sleep(1)
            used = _cpu_seconds(broker.worker_pid)
            during = [await old.call("/api/during") for _ in range(10)]
            await asyncio.sleep(2)
            used = _cpu_seconds(broker.worker_pid) - used
        finally:
            for each in crowd:
                each.close()
        recovered = now()
        gets_in = partial(_gets_in, broker.url, population)
        await until_async(gets_in, what="room for a new client")
        recovered = now() - recovered
    print(f"{used:.2f} s of processor time in 2 s; room again after {recovered:.1f} s")

    assert {200} == {call.status for call in (*warm, *during)}
    assert used < 1.0
    assert recovered < RECOVERY_SECONDS


async def _gets_in(origin: str, population: Population) -> bool:
    newcomer = User("newcomer", origin, population.history)
    try:
        call = await newcomer.call("/public/x", timeout=aiohttp.ClientTimeout(total=2))
        return call.status == 200
    finally:
        await newcomer.close()


def _cpu_seconds(pid: int) -> float:
    fields: list[Any] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

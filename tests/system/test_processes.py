"""The processes of an installation: who ends with whom, and what is left of them."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.support.broker_process import BrokerProcess
from tests.support.raw_upstream import OK, RawRequest, RawUpstream, Wire
from tests.support.waiting import until

pytestmark = pytest.mark.system

ROUTES = [{"path": "/", "upstream": "http://127.0.0.1:1", "token": "none"}]


async def slowly(_request: RawRequest, wire: Wire) -> None:
    await asyncio.sleep(1.5)  # longer than after which a second signal would end the call
    await wire.send(OK)


async def status_of(http: aiohttp.ClientSession, url: str) -> int:
    async with http.get(url) as response:
        await response.read()
        return response.status


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_a_broker_outlives_the_shell_that_started_it(tmp_path: Path) -> None:
    """`token-broker run … &` in a script that ends, or under nohup: it serves on."""
    shell = ("sh", "-c", f'"{sys.executable}" -m broker "$@" & echo $! > "{tmp_path}/pid"; wait', "sh")
    broker = BrokerProcess(tmp_path, command=shell, routes=ROUTES)
    await broker.start()
    os.kill(broker.pid, signal.SIGKILL)
    await asyncio.sleep(2.5)  # longer than a worker takes to miss its supervisor

    assert listens(broker.port)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    await until(lambda: not listens(broker.port), seconds=10)


async def test_workers_end_with_their_supervisor(tmp_path: Path) -> None:
    """A supervisor that is killed leaves no workers behind that would hold the port."""
    broker = BrokerProcess(tmp_path, routes=ROUTES, workers=2)
    await broker.start()
    os.kill(broker.pid, signal.SIGKILL)

    await until(lambda: not listens(broker.port), seconds=10)


async def test_ft_12_a_signal_to_every_process_ends_what_runs_well(tmp_path: Path) -> None:
    """A service manager like systemd sends SIGTERM to all processes, and the supervisor forwards its own: that is one stop."""
    async with RawUpstream() as upstream:
        upstream.script = slowly
        routes = [{"path": "/", "upstream": f"http://127.0.0.1:{upstream.port}", "token": "none"}]
        broker = BrokerProcess(tmp_path, routes=routes)
        await broker.start()
        async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
            call = group.create_task(status_of(http, broker.url))
            await until(lambda: len(upstream.requests) > 0, what="the call's way up")
            os.killpg(broker.pid, signal.SIGTERM)
            code = await broker.ended()

    assert 200 == call.result()
    assert 0 == code


async def test_nothing_is_left_in_the_temporary_directory(tmp_path: Path) -> None:
    """What the workers share their metrics by goes with them."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    async with BrokerProcess(tmp_path, routes=ROUTES, workers=2, environment={"TMPDIR": str(temporary)}):
        assert ["token-broker-metrics-"] == [path.name[:21] for path in temporary.iterdir()]

    assert [] == list(temporary.iterdir())

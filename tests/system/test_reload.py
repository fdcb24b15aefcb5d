"""SIGHUP: a new configuration, and nobody notices the change but by what it says."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.broker_process import BrokerProcess, Browser
from tests.support.checker import violations
from tests.support.population import Population
from tests.support.ports import free_port
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.upstream import Upstream
from tests.support.waiting import until, until_async
from tests.system.test_faults_load import TOKEN_SECONDS, settings

pytestmark = pytest.mark.system


def marked(broker: BrokerProcess, mark: str) -> None:
    """Let the configuration say something that the upstream sees."""
    broker.settings["routes"][0]["headers"] = {"set": {"X-Mark": mark}}


def mark_of(upstream: Upstream) -> list[str]:
    return upstream.received[-1].header("x-mark")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
async def test_a_reload_under_load_fails_nothing(
    workers: int, tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """Four reloads, to more and to fewer workers too: every call is answered as before, no login or token is lost."""
    await provider.configure(access_token_seconds=TOKEN_SECONDS)
    async with (
        BrokerProcess(tmp_path, **settings(provider, upstream, workers=workers)) as broker,
        Population(broker.url, users=16, pace_seconds=0.01, hangs_up=False) as population,
    ):
        async with population.at_work():
            for number, count in enumerate((workers, workers + 1, 1, workers)):
                await asyncio.sleep(0.7)
                broker.settings["workers"] = count
                old = set(broker.worker_pids())
                marked(broker, f"mark-{number}")
                await broker.reload()
            await asyncio.sleep(TOKEN_SECONDS / 2)
        # A browser may still keep a connection to a process that only waits for one more call on it.
        await until(lambda: not old & set(broker.worker_pids()), seconds=15, what="the end of the old processes")
        last = await population.everybody_calls()
        marks = {tuple(each.header("x-mark")) for each in upstream.received[-len(last) :]}
        code = await broker.stop()
    history = population.history
    print(f"{len(history.calls)} calls: {dict(history.statuses())}")

    assert {200} == {call.status for call in last}
    assert {("mark-3",)} == marks
    assert [] == [call for call in history.calls if call.status is None or call.status >= 500]
    assert {1} == set(history.logins.values())
    assert [] == violations(history, await provider.ledger(), upstream.received, log=broker.log_path)
    assert 0 == code


async def test_a_reload_lets_sessions_streams_and_uploads_end_by_themselves(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """A WebSocket and an upload that began before go on in the old process; new calls are the new one's, as is login."""
    async with BrokerProcess(tmp_path, **settings(provider, upstream)) as broker, Browser(broker.url) as browser:
        await browser.log_in()
        old = broker.worker_pid
        more = asyncio.Event()

        async def body() -> Any:
            yield b"begun "
            await more.wait()
            yield b"ended"

        async with browser.http.ws_connect(f"{broker.url}/api/socket", origin=broker.url) as socket:
            await socket.send_str("before")
            assert "before" == (await socket.receive(5)).data
            upload = asyncio.create_task(browser.request("POST", "/api/echo", data=body()))
            await until(lambda: upstream.running == 2, what="the socket and the upload")
            await browser.get("/api/x")  # on a third connection, which is kept
            marked(broker, "new")
            await broker.reload()
            await until(lambda: "stopping" in broker.log_path.read_text(), what="the drain")
            last = await browser.get("/api/x")
            during = await browser.get("/api/x")
            mark = mark_of(upstream)
            await socket.send_str("after")
            assert "after" == (await socket.receive(5)).data
            assert old in broker.worker_pids()
            more.set()
            uploaded = await upload
        await until(lambda: old not in broker.worker_pids(), seconds=15, what="the end of the old process")

    assert (200, "close") == (last.status, last.headers["Connection"])
    assert (200, ["new"]) == (during.status, mark)
    assert (200, b"begun ended") == (uploaded.status, uploaded.body)


async def test_ad_02_ft_18_a_reload_that_is_refused_keeps_the_old_configuration(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """The log names the key; the processes are the same; the next good configuration is taken."""
    async with BrokerProcess(tmp_path, **settings(provider, upstream)) as broker, Browser(broker.url) as browser:
        await browser.log_in()
        marked(broker, "good")
        await broker.reload()
        await until(lambda: len(broker.worker_pids()) == 1, seconds=15, what="the end of the old process")
        before = broker.worker_pids()
        good = json.dumps(broker.settings)
        for change, named in (
            ({"public_urk": "x"}, "public_urk"),
            ({"keys": [{"file": str(tmp_path / "gone")}]}, "keys[0]"),
            ({"store": {"url": "memory:"}}, "store.url"),
            ({"listen": "192.0.2.1:80"}, "listen"),
            ({"workers": 0}, "workers"),
        ):
            broker.settings = {**json.loads(good), **change}
            await broker.reload("reload_refused")
            refusal = [record for record in broker.log() if record["event"] == "reload_refused"][-1]
            assert named in str(refusal.get("problems", refusal.get("reason")))
            call = await browser.get("/api/x")
            assert (200, ["good"]) == (call.status, mark_of(upstream))
        (tmp_path / f"config-{broker.port}.yaml").write_text(good[: len(good) // 2])
        broker.send_signal(signal.SIGHUP)
        await until(lambda: broker.log_path.read_text().count("reload_refused") == 6, what="the half-written file")
        same = broker.worker_pids()
        broker.settings = json.loads(good)
        marked(broker, "better")
        await broker.reload()
        await browser.get("/api/last-of-a-connection")
        await until(lambda: not set(same) & set(broker.worker_pids()), seconds=15, what="the end of the old process")
        call = await browser.get("/api/x")

    assert before == same
    assert (200, ["better"]) == (call.status, mark_of(upstream))


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_metrics_tell_of_reloads(
    workers: int, tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """Those of old and new processes alike; whoever watches them hears of a configuration that isn't served."""
    names = (
        'config_reloads_total{result="success"}', 'config_reloads_total{result="refused"}', "config_last_reload_successful",
    )  # fmt: skip
    async with BrokerProcess(tmp_path, **settings(provider, upstream, workers=workers)) as broker:

        async def told(*expected: float) -> None:
            async def is_told() -> bool:
                measured = await broker.metrics()
                return expected == tuple(measured[name] for name in names)

            await until_async(is_told, what=f"{expected}")

        await told(0, 0, 1)
        good = json.dumps(broker.settings)
        broker.settings["public_urk"] = "x"
        await broker.reload("reload_refused")
        await told(0, 1, 0)
        broker.settings = json.loads(good)
        (tmp_path / "ca.pem").write_text("none")
        broker.settings["providers"]["corp"]["tls"] = {"ca_file": str(tmp_path / "ca.pem")}
        await broker.reload("reload_refused")
        await told(0, 2, 0)
        broker.settings = json.loads(good)
        await broker.reload()
        await told(1, 2, 1)


async def test_a_reload_that_can_not_serve_keeps_the_old_configuration(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """A certificate that is none is told with its whole key, and is no end of the old one either."""
    async with BrokerProcess(tmp_path, **settings(provider, upstream)) as broker, Browser(broker.url) as browser:
        await browser.log_in()
        before = broker.worker_pids()
        (tmp_path / "ca.pem").write_text("none")
        broker.settings["providers"]["corp"]["tls"] = {"ca_file": str(tmp_path / "ca.pem")}
        await broker.reload("reload_refused")

        assert 200 == (await browser.get("/api/x")).status
        assert before == broker.worker_pids()
    assert "providers.corp.tls.ca_file: expected certificates in PEM form" in broker.log_path.read_text()


async def test_a_reload_moves_to_another_address(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """The new address answers at once, the old one no more."""
    async with BrokerProcess(tmp_path, **settings(provider, upstream)) as broker:
        old = broker.port
        broker.settings["listen"] = f"127.0.0.1:{(port := free_port())}"
        # The file keeps its name.
        await broker.reload()
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://127.0.0.1:{port}/public/x", headers={"Host": f"127.0.0.1:{old}"}) as answer:
                assert 200 == answer.status

            async def is_gone() -> bool:
                try:
                    async with http.get(f"http://127.0.0.1:{old}/public/x"):
                        return False
                except aiohttp.ClientConnectorError:
                    return True

            await until_async(is_gone, seconds=10, what="the end of the old address")

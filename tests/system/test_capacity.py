"""How much passes, from how many at once, and what it takes: the whole broker with one worker."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker_process import BrokerProcess, provider_options
from tests.support.crowd import Crowd
from tests.support.raw_upstream import OK, RawRequest, RawUpstream, Script, Wire

pytestmark = [pytest.mark.system, pytest.mark.slow]

GIBIBYTE = 1 << 30
BLOCK = bytes(256 << 10)
CHUNK = b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK)
LAST_CHUNK = b"0\r\n\r\n"


@asynccontextmanager
async def broker_before(upstream: RawUpstream, directory: Path, **settings: Any) -> AsyncIterator[BrokerProcess]:
    routes = [{"path": "/open", "upstream": upstream.url, "token": "none", "max_body": "2GiB"}]
    nobody = provider_options("http://127.0.0.1:9")
    async with BrokerProcess(directory, providers={"corp": nobody}, routes=routes, **settings) as broker:
        yield broker


def memory_of(pid: int, what: str) -> int:
    """Return ``VmRSS`` or ``VmHWM``, its highest value, in bytes."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def forget_highest(pid: int) -> None:
    """Begin to measure ``VmHWM`` anew (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def request_head(port: int, method: str, *fields: str) -> bytes:
    return "\r\n".join([f"{method} /open/x HTTP/1.1", f"Host: 127.0.0.1:{port}", *fields, "", ""]).encode()


# --- 1 GiB


def pouring(*, chunked: bool) -> Script:
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % GIBIBYTE

    async def script(request: RawRequest, wire: Wire) -> None:
        if request.line.startswith(b"HEAD"):
            await wire.send(b"HTTP/1.1 204 No Content\r\n\r\n")
            return
        await wire.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        for _ in range(GIBIBYTE // len(BLOCK)):
            await wire.send(CHUNK if chunked else BLOCK)
        if chunked:
            await wire.send(LAST_CHUNK)

    return script


async def count(reader: asyncio.StreamReader, *, pause_seconds: float) -> int:
    """Read a GiB, sized or chunked, a MiB at a time. Returns how many bytes there were, without the framing."""
    taken, pause_at = 0, 1 << 20
    while taken < GIBIBYTE:
        data = await asyncio.wait_for(reader.read(1 << 20), 30)
        assert data
        # Content is zeros, and framing holds none but the last chunk's.
        taken += data.count(0)
        if pause_seconds and taken > pause_at:
            pause_at += 1 << 20
            await asyncio.sleep(pause_seconds)
    return taken


@pytest.mark.parametrize("pause_seconds", [0.0, 0.01], ids=["fast", "slow"])
@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
async def test_up_08_a_gibibyte_down_takes_no_memory(chunked: bool, pause_seconds: float, tmp_path: Path) -> None:
    """However fast it is taken, the worker never grows by 10 MiB."""
    async with RawUpstream(pouring(chunked=chunked)) as upstream, broker_before(upstream, tmp_path) as broker:
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.port, limit=1 << 20)
        writer.write(request_head(broker.port, "HEAD"))
        await reader.readuntil(b"\r\n\r\n")
        before = memory_of(broker.worker_pid, "VmRSS")
        forget_highest(broker.worker_pid)
        writer.write(request_head(broker.port, "GET"))
        await reader.readuntil(b"\r\n\r\n")
        assert GIBIBYTE == await count(reader, pause_seconds=pause_seconds)
        grown = memory_of(broker.worker_pid, "VmHWM") - before
        writer.close()

    print(f"\n1 GiB down: {grown / 2**20:.1f} MiB")
    assert 10 << 20 > grown


@pytest.mark.parametrize("pause_seconds", [0.0, 0.01], ids=["fast", "slow"])
@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
async def test_ds_02_a_gibibyte_up_takes_no_memory(chunked: bool, pause_seconds: float, tmp_path: Path) -> None:
    """However fast the upstream takes it, the worker never grows by 10 MiB."""
    taken = 0

    async def take(request: RawRequest, wire: Wire) -> None:
        nonlocal taken
        if not request.line.startswith(b"HEAD"):
            taken = await count(wire.reader, pause_seconds=pause_seconds)
        await wire.send(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    async with RawUpstream(take, read_body=False) as upstream, broker_before(upstream, tmp_path) as broker:
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
        writer.write(request_head(broker.port, "HEAD"))
        await reader.readuntil(b"\r\n\r\n")
        before = memory_of(broker.worker_pid, "VmRSS")
        forget_highest(broker.worker_pid)
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {GIBIBYTE}"
        writer.write(request_head(broker.port, "POST", framing))
        for _ in range(GIBIBYTE // len(BLOCK)):
            writer.write(CHUNK if chunked else BLOCK)
            await writer.drain()
        if chunked:
            writer.write(LAST_CHUNK)
        assert b"204" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        grown = memory_of(broker.worker_pid, "VmHWM") - before
        writer.close()

    print(f"\n1 GiB up: {grown / 2**20:.1f} MiB")
    assert GIBIBYTE == taken
    assert 10 << 20 > grown


# --- many


async def test_ft_21_ten_thousand_idle_and_a_thousand_active_callers(tmp_path: Path) -> None:
    """All who ask are answered, those who don't stay, and an idle connection takes a few KiB."""
    idle, active, rounds = 10_000, 1_000, 10
    async with RawUpstream() as upstream, broker_before(upstream, tmp_path) as broker:
        before = memory_of(broker.worker_pid, "VmRSS")
        async with Crowd("keeping", broker.port, idle, active, rounds) as crowd:
            assert {"200": idle} == (await crowd.report())["outcomes"]
            each = (memory_of(broker.worker_pid, "VmRSS") - before) / idle
            crowd.go_on()
            busy = await crowd.report()
            crowd.go_on()
            again = await crowd.report()

    print(f"\n{each / 1024:.1f} KiB for an idle connection; p99 of {active} active ones {busy['p99_seconds']:.2f} s")
    assert {"200": active * rounds} == busy["outcomes"]
    assert {"200": idle} == again["outcomes"]
    assert 1 << 10 < each < 24 << 10


async def test_ds_05_more_connections_than_may_be_are_told_at_once(tmp_path: Path) -> None:
    """Those beyond the cap are turned away without waiting, those within are served, and the log takes a line each."""
    within, beyond = 500, 300
    settings = {"limits": {"max_connections": within}}
    async with RawUpstream() as upstream, broker_before(upstream, tmp_path, **settings) as broker:
        async with Crowd("keeping", broker.port, within, beyond, 1) as crowd:
            assert {"200": within} == (await crowd.report())["outcomes"]
            crowd.go_on()
            turned_away = await crowd.report()
            crowd.go_on()
            assert {"200": within} == (await crowd.report())["outcomes"]

        lines = [record for record in broker.log() if record["event"] == "too_many_connections"]

    assert "200" not in turned_away["outcomes"]
    assert beyond == sum(turned_away["outcomes"].values())
    assert beyond >= len(lines) > 0


# --- slow


async def pour_or_answer(request: RawRequest, wire: Wire) -> None:
    if request.target.endswith(b"/large"):
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % GIBIBYTE)
        for _ in range(GIBIBYTE // len(BLOCK)):
            await wire.send(BLOCK)
    else:
        await wire.send(OK)


async def waits(port: int, seconds: float) -> list[float]:
    """Ask again and again, on one connection; return how long the answers took, in order of length."""
    found = []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began_at = time.monotonic()
        writer.write(request_head(port, "GET"))
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\nok"), 30)
        assert answer.startswith(b"HTTP/1.1 200 ")
        found.append(time.monotonic() - began_at)
        await asyncio.sleep(0.005)
    writer.close()
    return sorted(found)


def p99(found: list[float]) -> float:
    return found[len(found) * 99 // 100]


async def test_ds_01_a_thousand_slow_callers_slow_nobody_down(tmp_path: Path) -> None:
    """Heads that drip, bodies that stop and answers that nobody takes: others wait no 250 ms longer at p99."""
    limits = {"header_timeout": "3s", "body_timeout": "3s", "reader_timeout": "3s"}
    async with RawUpstream(pour_or_answer) as upstream, broker_before(upstream, tmp_path, limits=limits) as broker:
        alone = await waits(broker.port, 5)
        async with Crowd("slow", broker.port, 999) as crowd:
            first = (await crowd.report())["connected"]
            among_them = await waits(broker.port, 10)
            crowd.go_on()
            last = (await crowd.report())["connected"]
        afterwards = await waits(broker.port, 5)
        cut = {record["event"] for record in broker.log()}

    print(f"\np99 {p99(alone) * 1e3:.1f} ms alone, {p99(among_them) * 1e3:.1f} ms among them")
    assert p99(among_them) < max(p99(alone), p99(afterwards)) + 0.25
    assert {"slow_head", "slow_body", "slow_reader"} <= cut
    assert all(last[kind] > first[kind] for kind in ("head", "body")), "those who were cut didn't come again"

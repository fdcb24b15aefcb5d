"""What is too much for the whole broker: bodies nobody reads, sizes beyond every limit, signals, no descriptors left."""

import asyncio
import os
import re
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker_process import BrokerProcess, provider_options
from tests.support.raw_upstream import RawUpstream
from tests.support.waiting import until_async

pytestmark = pytest.mark.system

LIMIT = 1 << 20


def broker_for(directory: Path, upstream: RawUpstream, **settings: Any) -> BrokerProcess:
    routes = [
        {"path": "/open", "upstream": upstream.url, "token": "none", "max_body": "1MiB"},
        {"path": "/app", "upstream": upstream.url, "token": "user", "max_body": "1MiB"},
    ]
    nobody = provider_options("http://127.0.0.1:9")  # no test here gets as far as to ask it
    return BrokerProcess(directory, providers={"corp": nobody}, routes=routes, **settings)


def resident_bytes(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


async def exchange(port: int, data: bytes, *, then: bytes = b"") -> bytes:
    """Send bytes, and more of them as long as they are taken; return what comes until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    pump = asyncio.create_task(_pump(writer, then))
    try:
        return await asyncio.wait_for(reader.read(), 15)
    except ConnectionError:
        return b""
    finally:
        pump.cancel()
        await asyncio.wait([pump])
        writer.close()


async def _pump(writer: asyncio.StreamWriter, data: bytes) -> None:
    try:
        while data:
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass


def head(method: str, target: str, port: int, *fields: str) -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{port}", *fields, "", ""]).encode()


async def test_sm_04_a_body_that_nobody_reads_is_never_a_request(tmp_path: Path) -> None:
    """Where no endpoint takes the body, it is drained or the connection ends; a request inside it isn't heard."""
    async with RawUpstream() as upstream, broker_for(tmp_path, upstream) as broker:
        port = broker.port
        inner = head("GET", "/open/smuggled", port)
        last = head("GET", "/open/last", port, "Connection: close")
        for target in ("/bff/login", "/bff/user", "/bff/nothing", "/nowhere", "/app/x", "/app/%2e%2e/x"):
            for fields, body in (
                ((f"Content-Length: {len(inner)}",), inner),
                (("Transfer-Encoding: chunked",), b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner)),
            ):
                answers = await exchange(port, head("POST", target, port, *fields) + body + last)
                first = int(answers[9:12])
                assert first in {400, 401, 403, 404, 405}, (target, answers)
                # Its own answer, and one for the last request if the connection lived that long.
                assert answers.count(b"HTTP/1.1 ") in {1, 2}, (target, answers)

    assert {b"/open/last"} == {request.target for request in upstream.requests}


async def test_ds_02_what_is_too_big_is_refused_before_it_is_kept(tmp_path: Path) -> None:
    """Declared or not, a body beyond the limit, a head, a field and a target beyond theirs take no memory."""
    async with RawUpstream() as upstream, broker_for(tmp_path, upstream) as broker:
        port = broker.port
        await exchange(port, head("GET", "/open/x", port, "Connection: close"))
        before = resident_bytes(broker.worker_pid)
        declared = [
            await exchange(port, head("POST", "/open/x", port, f"Content-Length: {length}"))
            for length in (LIMIT + 1, 8 << 20, (1 << 63) - 1, 1 << 63, 1 << 64, 10**40)
        ]
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        streamed = await exchange(port, head("POST", "/open/x", port, "Transfer-Encoding: chunked"), then=chunk)
        heads = [
            await exchange(port, f"GET /{'a' * (1 << 20)} HTTP/1.1\r\nHost: x\r\n\r\n".encode()),
            await exchange(port, head("GET", "/open/x", port, f"X: {'a' * (1 << 20)}")),
            await exchange(port, head("GET", "/open/x", port, f"Cookie: {'a' * (1 << 20)}")),
        ]
        grown = resident_bytes(broker.worker_pid) - before

    assert all(answer[9:12] in {b"400", b"413"} for answer in declared), declared
    assert streamed[9:12] in {b"413", b""}, "a reset may overtake the answer"
    assert all(answer[9:12] in {b"400", b"414", b"431"} for answer in heads), heads
    assert grown < 8 << 20
    assert all(len(request.body) <= LIMIT for request in upstream.requests)


async def test_ft_13_a_storm_of_signals_ends_it_once(tmp_path: Path) -> None:
    """Further SIGTERMs, SIGINTs and SIGHUPs while it ends block nothing and fail nothing."""
    async with RawUpstream() as upstream, broker_for(tmp_path, upstream) as broker:
        for _ in range(20):
            os.kill(broker.pid, signal.SIGHUP)
        await until_async(broker.is_ready, what="a broker that lives after its SIGHUPs")
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(broker.pid, number)
        code = await broker.stop(signal.SIGTERM)

    assert 0 == code
    assert "Traceback" not in broker.log_path.read_text()


async def test_ft_20_without_descriptors_it_goes_on_with_whom_it_has(tmp_path: Path) -> None:
    """More callers than descriptors: the old ones are served, the processor isn't burnt, and afterwards all is well."""
    async with RawUpstream() as upstream, broker_for(tmp_path, upstream) as broker:
        port = broker.port
        resource.prlimit(broker.worker_pid, resource.RLIMIT_NOFILE, (96, 96))
        reader, old = await asyncio.open_connection("127.0.0.1", port)
        old.write(head("GET", "/open/x", port))
        assert b"200" in await reader.readuntil(b"ok")
        crowd = [await asyncio.open_connection("127.0.0.1", port) for _ in range(150)]
        spent = processor_seconds(broker.worker_pid)
        await asyncio.sleep(1.0)  # the time over which a busy loop would show
        spent = processor_seconds(broker.worker_pid) - spent
        old.write(head("GET", "/open/x", port))
        assert b"200" in await asyncio.wait_for(reader.readuntil(b"ok"), 5)
        for _, writer in crowd:
            writer.close()
        old.close()

        async def serves() -> bool:
            return b"200" in await exchange(port, head("GET", "/open/x", port, "Connection: close"))

        await until_async(serves, seconds=10, what="a call after the crowd has gone")

    assert spent < 0.7
    assert len(broker.log()) < 500


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

"""What wrk can't do: WebSockets, idle connections, a slow reader. Run as a program it is the WebSocket load."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import cast

from benchmarks.data_plane import HOST
from benchmarks.machine import LOAD_CORE, memory_kib

SOCKETS = 16
PAYLOAD = b"\x5a" * 100
FRAME = b"\x82" + bytes([0x80 | len(PAYLOAD)]) + b"\0\0\0\0" + PAYLOAD  # masked with zeros


def echoes(port: int, fields: Sequence[str], *, seconds: float) -> int:
    """Send messages over 16 WebSockets, one at a time each, from the core of the load; return how many came back."""
    arguments = json.dumps([port, list(fields), seconds])
    command = ["taskset", "-c", LOAD_CORE, sys.executable, "-m", "benchmarks.connections", arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


class _Client(asyncio.Protocol):
    """One WebSocket: as soon as an echo is whole, the next message goes out."""

    def __init__(self, head: bytes) -> None:
        self._head = head
        self._pending = b""
        self.opened = asyncio.get_running_loop().create_future()
        self.count = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self.transport.write(self._head)

    def data_received(self, data: bytes) -> None:
        self._pending += data
        if not self.opened.done():
            head, end, rest = self._pending.partition(b"\r\n\r\n")
            if not end:
                return
            assert b" 101 " in head.partition(b"\r\n")[0], head
            self._pending = rest
            self.opened.set_result(None)
        elif len(self._pending) >= 2 + len(PAYLOAD) + (4 if self._pending[1] & 0x80 else 0):
            self._pending = b""
            self.count += 1
            self.transport.write(FRAME)


async def _load(port: int, fields: Sequence[str], seconds: float) -> int:
    loop = asyncio.get_running_loop()
    head = "\r\n".join(
        [
            "GET /socket HTTP/1.1",
            f"Host: {HOST}:{port}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            f"Origin: http://{HOST}:{port}",
            *fields,
            "\r\n",
        ]
    )
    clients = [(await loop.create_connection(lambda: _Client(head.encode()), HOST, port))[1] for _ in range(SOCKETS)]
    for client in clients:
        await asyncio.wait_for(client.opened, 5)
        client.transport.write(FRAME)
    await asyncio.sleep(seconds)
    count = sum(client.count for client in clients)
    for client in clients:
        client.transport.abort()
    return count


def _request(port: int, path: str, fields: Sequence[str]) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {HOST}:{port}", *fields, "\r\n"]).encode()


def idle_kib(port: int, pid: int, fields: Sequence[str], *, connections: int) -> float:
    """The memory that each idle keep-alive connection takes which was used once."""
    with ExitStack() as stack:
        before = memory_kib(pid)
        for _ in range(connections):
            connection = stack.enter_context(socket.create_connection((HOST, port), timeout=10))
            connection.sendall(_request(port, "/small.json", fields))
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        return (memory_kib(pid) - before) / connections


def slow_reader_mib(port: int, pid: int, fields: Sequence[str]) -> float:
    """How far memory grows while one caller takes 64 MiB at its leisure."""
    before = peak = memory_kib(pid)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        connection.settimeout(10)
        connection.connect((HOST, port))
        connection.sendall(_request(port, "/64m", fields))
        for _ in range(20):
            assert connection.recv(32 << 10)
            time.sleep(0.05)
            peak = max(peak, memory_kib(pid))
    return (peak - before) / 1024


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(runner.run(_load(*json.loads(sys.argv[1]))))

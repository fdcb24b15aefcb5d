"""An upstream that opens WebSockets and sends every byte back as it came."""

import asyncio
import base64
import hashlib
import re
import signal
import sys
from typing import cast

from benchmarks.data_plane import HOST

_KEY = re.compile(rb"\r\nsec-websocket-key: *([^\r\n]+)\r\n", re.IGNORECASE)
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self.head = b""
        self.open = False

    def data_received(self, data: bytes) -> None:
        if self.open:
            self.transport.write(data)
            return
        self.head += data
        if not self.head.endswith(b"\r\n\r\n"):
            return
        key = _KEY.search(self.head)
        if key is None:
            self.transport.close()
            return
        accept = base64.b64encode(hashlib.sha1(key[1] + _GUID).digest())
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        self.open = True


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, HOST, int(sys.argv[1]))
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())

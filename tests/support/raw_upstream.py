"""An upstream that is told byte for byte what to answer, and keeps byte for byte what it was sent."""

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self


@dataclass(slots=True)
class RawRequest:
    """
    One request as it came.

    Attributes:
        head: The head with its empty line.
        body: The body without its framing.
        connection: Which connection it came on, counted from 0.
    """

    head: bytes
    body: bytes
    connection: int

    @property
    def line(self) -> bytes:
        """The request line."""
        return self.head.partition(b"\r\n")[0]

    @property
    def target(self) -> bytes:
        """The request target."""
        return self.line.split(b" ")[1]

    def fields(self, name: bytes) -> list[bytes]:
        """The values of every field of this name, in any case."""
        lines = (line.partition(b":") for line in self.head.split(b"\r\n")[1:])
        return [value.strip() for key, _, value in lines if key.lower() == name.lower()]

    @property
    def names(self) -> list[bytes]:
        """The names of all fields, as they came."""
        return [line.partition(b":")[0] for line in self.head.split(b"\r\n")[1:-2]]


@dataclass(slots=True)
class Wire:
    """One connection, for a script that writes to it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Cut the connection."""
        self.writer.transport.abort()


Script = Callable[[RawRequest, Wire], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def answer_ok(request: RawRequest, wire: Wire) -> None:
    await wire.send(OK)


def answering(data: bytes, *, close: bool = False) -> Script:
    """Return a script that answers every request with *data*."""

    async def script(request: RawRequest, wire: Wire) -> None:
        await wire.send(data)
        if close:
            wire.writer.close()

    return script


@dataclass(slots=True)
class RawUpstream:
    """
    A server on 127.0.0.1 (or a Unix socket) that runs *script* for each request.

    Attributes:
        script: Answers; may be changed at any time.
        read_body: Whether the body is read before the script runs.
        requests: What came.
        connections: How many connections were opened.
    """

    script: Script = answer_ok
    read_body: bool = True
    tls: ssl.SSLContext | None = None
    unix_path: str | None = None
    requests: list[RawRequest] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    _server: asyncio.Server | None = None
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    @property
    def url(self) -> str:
        if self.unix_path is not None:
            return f"unix:{self.unix_path}"
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        if self.unix_path is not None:
            self._server = await asyncio.start_unix_server(self._serve, self.unix_path)
        else:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls, limit=1 << 20)
            self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Close the listener and every connection."""
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        number = self.connections
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                request = RawRequest(head, b"", number)
                self.requests.append(request)
                if self.read_body:
                    request.body = await _read_body(head, reader)
                await self.script(request, Wire(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()


async def _read_body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)\r\n", head)
    if length is not None:
        return await reader.readexactly(int(length[1]))
    if re.search(rb"(?i)\r\ntransfer-encoding: *chunked\r\n", head) is None:
        return b""
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        assert b"\r\n" == await reader.readexactly(2)
    assert b"\r\n" == await reader.readline(), "no trailers are passed on"
    return body

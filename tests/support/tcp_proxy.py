"""A TCP proxy that a test makes slow, deaf or broken: the network between a client and a real server."""

import asyncio
import contextlib
import ssl
from types import TracebackType
from typing import Self


class TcpProxy:
    """Forwards bytes to ``127.0.0.1:<target>``, as long as the test lets it."""

    def __init__(self, target: int, *, tls: ssl.SSLContext | None = None) -> None:
        """
        Args:
            target: The port of the server.
            tls: Makes it speak TLS to its clients; the server is spoken to in plain text.
        """
        self.target = target
        self._tls = tls
        self.port = 0
        self.delay_seconds = 0.0
        """How late answers arrive."""
        self.accepted = 0
        self._lose_requests = 0
        self._lose_answers = 0
        self._about = b""
        self._open = asyncio.Event()
        self._open.set()
        self._refuses = False
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._forgotten: set[asyncio.StreamWriter] = set()
        self._doomed: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def connections(self) -> int:
        """How many connections to it are open."""
        return len(self._writers) // 2

    def partition(self) -> None:
        """Let nothing through, and tell nobody, like a cable that was pulled."""
        self._open.clear()

    def heal(self) -> None:
        self._open.set()
        self._refuses = False

    def forget(self) -> None:
        """Go silent on the connections that are open now; new ones work."""
        self._forgotten |= self._writers

    def lose_requests(self, count: int, about: bytes = b"") -> None:
        """Break the connection in place of forwarding each of the next *count* requests that hold *about*."""
        self._lose_requests, self._about = count, about

    def lose_answers(self, count: int, about: bytes = b"") -> None:
        """Forward the next *count* requests that hold *about*, and break the connection in place of their answer."""
        self._lose_answers, self._about = count, about

    def refuse(self) -> None:
        """Break all connections, and every new one at once."""
        self._refuses = True
        self.cut()

    def cut(self) -> None:
        """Break all connections."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if not self._refuses:
                await self._forward(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
        pair = {writer, there_writer}
        self._writers |= pair
        try:
            ways = (self._carry_requests(reader, there_writer), self._carry_answers(there_reader, writer, there_writer))
            tasks = [asyncio.get_running_loop().create_task(way) for way in ways]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._writers -= pair
            self._forgotten -= pair
            self._doomed -= pair
            there_writer.transport.abort()

    async def _carry_requests(self, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while block := await reader.read(65536):
                await self._open.wait()
                if server in self._forgotten:
                    continue
                if self._about in block:
                    if self._lose_requests:
                        self._lose_requests -= 1
                        return
                    if self._lose_answers:
                        self._lose_answers -= 1
                        self._doomed.add(server)
                server.write(block)
                await server.drain()

    async def _carry_answers(
        self, reader: asyncio.StreamReader, client: asyncio.StreamWriter, server: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while block := await reader.read(65536):
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                await self._open.wait()
                if server in self._doomed:
                    return
                if client not in self._forgotten:
                    client.write(block)
                    await client.drain()

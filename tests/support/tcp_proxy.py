"""A TCP proxy that a test makes slow, deaf or broken: the network between a client and a real server."""

import asyncio
import contextlib
from types import TracebackType
from typing import Self


class TcpProxy:
    """Forwards bytes to ``127.0.0.1:<target>``, as long as the test lets it."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.delay_seconds = 0.0
        """How late answers arrive."""
        self.accepted = 0
        self._open = asyncio.Event()
        self._open.set()
        self._refuses = False
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
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
            ways = (self._pump(reader, there_writer, answers=False), self._pump(there_reader, writer, answers=True))
            tasks = [asyncio.get_running_loop().create_task(way) for way in ways]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._writers -= pair
            there_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while block := await reader.read(65536):
                if answers and self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                await self._open.wait()
                writer.write(block)
                await writer.drain()

"""A wire that keeps every byte: what a client sent, and what it was sent."""

import asyncio
import contextlib
from typing import Self


class Wire:
    """
    Forwards connections to a port of 127.0.0.1.

    Attributes:
        port: Where it listens.
        sent: What clients sent, over all connections.
        received: What they got.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.sent = bytearray()
        self.received = bytearray()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
            await asyncio.gather(
                self._copy(reader, there_writer, self.sent), self._copy(there_reader, writer, self.received)
            )
        except OSError:
            writer.transport.abort()
        finally:
            self._tasks.discard(task)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: bytearray) -> None:
        with contextlib.suppress(OSError):
            while block := await reader.read(65536):
                record += block
                writer.write(block)
                await writer.drain()
        writer.close()

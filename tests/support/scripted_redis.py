"""Servers that speak Redis' protocol by a script: Sentinels and cluster nodes that say what a test wants."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from broker.stores.options import Address


class Scripted:
    """A server that answers every command alike, or not at all."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.asked = 0
        self.address = Address("", 0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while block := await reader.read(65536):
                is_setname = b"SETNAME" in block
                self.asked += not is_setname
                if self.answer is not None or is_setname:
                    writer.write(b"+OK\r\n" if is_setname else self.answer or b"")
        writer.close()


@contextlib.asynccontextmanager
async def scripted(*answers: bytes | None) -> AsyncIterator[list[Scripted]]:
    servers = [Scripted(answer) for answer in answers]
    async with contextlib.AsyncExitStack() as stack:
        for one in servers:
            listener = await asyncio.start_server(one.serve, "127.0.0.1", 0)
            stack.callback(listener.close)
            one.address = Address("127.0.0.1", listener.sockets[0].getsockname()[1])
        yield servers


def bulk(*texts: str | bytes) -> bytes:
    items = [text.encode() if isinstance(text, str) else text for text in texts]
    return b"*%d\r\n" % len(items) + b"".join(b"$%d\r\n%b\r\n" % (len(item), item) for item in items)

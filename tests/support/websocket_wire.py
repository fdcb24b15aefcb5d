"""A WebSocket client that sends whatever bytes a case wants, and keeps every frame that comes back (RFC 6455)."""

import asyncio
import ssl
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

KEY = bytes.fromhex("37fa213d")
"""The mask of RFC 6455 section 5.7."""


class Frame(NamedTuple):
    """A frame as a server sends it: unmasked."""

    fin: bool
    rsv: int
    opcode: int
    payload: bytes


class Pieces(NamedTuple):
    """Bytes that are sent in pieces of so many bytes."""

    data: bytes
    size: int


class Seen(NamedTuple):
    """Wait until so many frames have come, or the connection has ended."""

    frames: int


Step = bytes | Pieces | Seen


def masked(payload: bytes) -> bytes:
    """Return *payload* under :data:`KEY`."""
    length = len(payload)
    key = (KEY * (length // 4 + 1))[:length]
    return (int.from_bytes(payload) ^ int.from_bytes(key)).to_bytes(length)


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
    """Return a client's frame; *rsv* are the three reserved bits as a number."""
    first = fin << 7 | rsv << 4 | opcode
    length = len(payload)
    if length < 126:
        head = struct.pack("!BB", first, 0x80 | length)
    elif length < 1 << 16:
        head = struct.pack("!BBH", first, 0x80 | 126, length)
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, length)
    return head + KEY + masked(payload)


def closing(code: int | None = 1000, reason: bytes = b"") -> bytes:
    """Return a client's Close frame."""
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


def read_frame(data: bytes | bytearray) -> tuple[Frame, int] | None:
    """Return the first frame in *data*, and its length; None if it isn't whole."""
    if len(data) < 2:
        return None
    at, length = 2, data[1] & 0x7F
    if length == 126:
        at, length = 4, int.from_bytes(data[2:4])
    elif length == 127:
        at, length = 10, int.from_bytes(data[2:10])
    if len(data) < at + length:
        return None
    return Frame(bool(data[0] & 0x80), data[0] >> 4 & 7, data[0] & 15, bytes(data[at : at + length])), at + length


@dataclass(slots=True)
class Heard:
    """
    What a server said.

    Attributes:
        head: The answer to the handshake.
        frames: Its frames.
        rest: What isn't a whole frame.
        ended: Whether it ended the connection.
    """

    head: bytes = b""
    frames: list[Frame] = field(default_factory=list)
    rest: bytearray = field(default_factory=bytearray)
    ended: bool = False


def handshake(port: int, *fields: str, target: str = "/") -> bytes:
    """Return a client's opening handshake, with further fields."""
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Origin: http://127.0.0.1:{port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *fields,
        "",
        "",
    ]
    return "\r\n".join(lines).encode()


class WebSocketWire:
    """One connection after its handshake."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.heard = Heard()
        self._reader = reader
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls, port: int, *fields: str, target: str = "/", tls: ssl.SSLContext | None = None
    ) -> "WebSocketWire":
        """Connect and shake hands. Fails if the server doesn't."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20, ssl=tls)
        writer.write(handshake(port, *fields, target=target))
        wire = cls(reader, writer)
        wire.heard.head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert wire.heard.head.startswith(b"HTTP/1.1 101 "), wire.heard.head
        wire._task = asyncio.create_task(wire._listen())
        return wire

    async def _listen(self) -> None:
        heard = self.heard
        try:
            while data := await self._reader.read(1 << 20):
                heard.rest += data
                while (found := read_frame(heard.rest)) is not None:
                    heard.frames.append(found[0])
                    del heard.rest[: found[1]]
                self._news.set()
        except ConnectionError:
            pass
        heard.ended = True
        self._news.set()

    async def seen(self, count: int) -> None:
        """Wait until *count* frames have come, or the connection has ended."""
        async with asyncio.timeout(60):
            while len(self.heard.frames) < count and not self.heard.ended:
                self._news.clear()
                await self._news.wait()

    async def send(self, step: Step) -> None:
        """Do one step of a case."""
        match step:
            case Seen(frames):
                await self.seen(frames)
            case Pieces(data, size):
                for at in range(0, len(data), size):
                    await self._write(data[at : at + size])
            case bytes():
                await self._write(step)

    async def _write(self, data: bytes) -> None:
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            pass  # what the server said before it went counts

    async def end(self) -> Heard:
        """Wait for the server's end of the connection. Returns what it said."""
        assert self._task is not None
        await asyncio.wait_for(self._task, 60)
        self.writer.close()
        return self.heard


async def play(port: int, steps: Sequence[Step], *fields: str, tls: ssl.SSLContext | None = None) -> Heard:
    """Do the steps on a connection of their own, close it if nobody else did, and return what the server said."""
    wire = await WebSocketWire.open(port, *fields, tls=tls)
    for step in steps:
        await wire.send(step)
    return await wire.end()

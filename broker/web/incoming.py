"""A body between the caller's connection, which brings it, and whoever sends it on."""

import asyncio
from typing import Final, Protocol, Self

from broker.core.chunks import ChunkReader
from broker.errors import BadRequest

MAX_WAITING_BYTES: Final = 128 << 10
"""How much may wait for whoever sends it on; then the caller is not read from."""


class Content(Protocol):
    """Where the content of a body comes from: this module's :class:`IncomingBody`, or aiohttp's ``StreamReader``."""

    def is_eof(self) -> bool:
        """Whether all of it has come, taken or not."""
        ...

    def exception(self) -> BaseException | None:
        """Why no more of it comes."""
        ...

    def set_exception(self, exc: BaseException) -> None:
        """Let no more of it come, and have whoever waits hear why."""
        ...

    def read_nowait(self) -> bytes:
        """Take what has come."""
        ...

    async def readany(self) -> bytes:
        """Take what has come, after waiting for something; nothing is the end."""
        ...


class Source(Protocol):
    """The connection that a body comes on."""

    def pause_body(self) -> None: ...

    def resume_body(self) -> None: ...


class _Nowhere:
    """Where a body came from that is here."""

    def pause_body(self) -> None:
        """There is nothing to pause."""

    def resume_body(self) -> None:
        """Nor to resume."""


_NOWHERE = _Nowhere()


class IncomingBody:
    """
    One body, without its framing.

    Attributes:
        is_whole: Whether all of it has come.
    """

    __slots__ = (
        "_chunks",
        "_fault",
        "_is_discarded",
        "_is_lost",
        "_is_paused",
        "_left",
        "_pieces",
        "_source",
        "_waiting",
        "_waiting_bytes",
        "is_whole",
    )

    def __init__(self, source: Source, *, content_length: int | None) -> None:
        """
        Args:
            source: Stops reading when too much waits.
            content_length: The length of the body in bytes; None if it is chunked.
        """
        self._source = source
        self._left = content_length or 0
        self._chunks = ChunkReader() if content_length is None else None
        self._pieces: list[bytes] = []
        self._waiting_bytes = 0
        self._waiting: asyncio.Future[None] | None = None
        self._fault: BaseException | None = None
        self._is_paused = False
        self._is_discarded = False
        self._is_lost = False  # where it ends isn't known
        self.is_whole = content_length == 0

    @classmethod
    def of(cls, content: bytes) -> Self:
        """Return a body of which all has come."""
        body = cls(_NOWHERE, content_length=len(content))
        _ = body.feed(content)
        return body

    # --- for the connection

    def feed(self, data: bytes) -> bytes:
        """
        Take the next bytes of the connection. Returns those that don't belong to the body.

        After a fault in the framing nobody knows where the body ends: nothing that follows is read.
        """
        if self._is_lost:
            return b""
        try:
            content, rest = self._read(data)
        except BadRequest as fault:
            self._is_lost = True
            self.set_exception(fault)
            return b""
        if content and not self._is_discarded and self._fault is None:
            self._pieces.append(content)
            self._waiting_bytes += len(content)
            if not self.is_whole and not self._is_paused and self._waiting_bytes > MAX_WAITING_BYTES:
                self._is_paused = True
                self._source.pause_body()
        if content or self.is_whole:
            self._wake()
        return rest

    def _read(self, data: bytes) -> tuple[bytes, bytes]:
        if self._chunks is not None:
            content, rest = self._chunks.feed(data)
            self.is_whole = self._chunks.ended
            return content, rest
        content, rest = (data, b"") if len(data) <= self._left else (data[: self._left], data[self._left :])
        self._left -= len(content)
        self.is_whole = not self._left
        return content, rest

    def discard(self) -> None:
        """Let what is still to come go nowhere."""
        self._is_discarded = True
        self._pieces.clear()
        self._waiting_bytes = 0
        self._go_on()

    # --- for who sends it on

    def is_eof(self) -> bool:
        return self.is_whole

    def exception(self) -> BaseException | None:
        return self._fault

    def set_exception(self, exc: BaseException) -> None:
        self._fault = exc
        self._wake()

    def read_nowait(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        self._waiting_bytes = 0
        self._go_on()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def readany(self) -> bytes:
        """
        Take what has come, after waiting for something; nothing is the end.

        Raises:
            BadRequest: If the framing is malformed.
        """
        while not self._pieces and not self.is_whole and self._fault is None:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        if self._fault is not None:
            raise self._fault
        return self.read_nowait()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _go_on(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._source.resume_body()

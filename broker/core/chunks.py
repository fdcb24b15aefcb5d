"""
Takes the framing off a chunked body, strictly.

    size ▸ content ▸ CRLF ▸ size … ▸ trailers ▸ end

Extensions and trailers go no further: a recipient may drop both, and nobody has judged them (SECURITY SM-03).

Source: RFC 9112 sections 7.1, 7.1.1 and 7.1.2.
"""

import re
from enum import Enum
from typing import Final

from broker.core.headers import FIELD_LINE
from broker.errors import BadRequest

MAX_OVERHEAD_BYTES: Final = 64 << 10
"""More framing, extensions and trailers than this without one byte of content are refused."""

CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[^\r\n\x00]*)?")
"""The line before a chunk."""
_ONLY_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,6})\r\n")
_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"
NO_TRAILERS: Final = frozenset({b"content-length", b"transfer-encoding"})
"""Fields that would frame the body anew, after its end."""


class _Part(Enum):
    """What the next byte belongs to."""

    SIZE = "the line before a chunk"
    CONTENT = "a chunk"
    CHUNK_END = "the line end after a chunk"
    TRAILERS = "the fields after the last chunk"
    NOTHING = "something behind the body"


_SIZE, _CONTENT, _CHUNK_END, _TRAILERS, _NOTHING = _Part


def read_only_chunk(data: bytes) -> tuple[bytes, bytes] | None:
    """
    Read a body that is one plain chunk and has come whole, as most small ones are.

    Returns:
        What a :class:`ChunkReader` makes of it, which takes several times as long: the content, and what comes behind
        the body's end; None if *data* doesn't begin with such a body.
    """
    line = _ONLY_LINE.match(data)
    if line is None:
        return None
    begin = line.end()
    end = begin + int(line[1], 16)
    if end == begin or not data.startswith(_LAST_CHUNK, end):
        return None
    return data[begin:end], data[end + len(_LAST_CHUNK) :]


class ChunkReader:
    """Reads one body."""

    __slots__ = ("_held", "_left", "_overhead", "_part")

    def __init__(self) -> None:
        self._part = _SIZE
        self._held = b""
        self._left = 0
        self._overhead = 0

    @property
    def ended(self) -> bool:
        """Whether all of the body has come."""
        return self._part is _NOTHING

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """
        Read the next bytes.

        Returns:
            The content in them, and what comes behind the body's end.

        Raises:
            BadRequest: If they are no chunks. Where the body ends isn't known then.
        """
        if self._held:
            data, self._held = self._held + data, b""
        pieces: list[bytes] = []
        at, size = 0, len(data)
        while at < size and self._part is not _NOTHING:
            if self._part is _CONTENT:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                self._overhead = 0
                if not self._left:
                    self._part = _CHUNK_END
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                self._held = data[at:]
                self._count(len(self._held))
                at = size
            else:
                self._count(end + 2 - at)
                self._line(data, at, end)
                at = end + 2
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), data[at:]

    def _count(self, overhead: int) -> None:
        if self._part is _CHUNK_END and overhead > 2:
            raise BadRequest("a chunk is longer than its size")
        if self._overhead + overhead > MAX_OVERHEAD_BYTES:
            raise BadRequest("the body has more framing than content")
        if not self._held:
            self._overhead += overhead

    def _line(self, data: bytes, at: int, end: int) -> None:
        if self._part is _CHUNK_END:
            self._part = _SIZE
        elif self._part is _SIZE:
            line = CHUNK_LINE.fullmatch(data, at, end)
            if line is None:
                raise BadRequest("the size of a chunk is malformed")
            self._left = int(line[1], 16)
            self._part = _CONTENT if self._left else _TRAILERS
        elif end == at:
            self._part = _NOTHING
        else:
            field = FIELD_LINE.fullmatch(data, at, end)
            if field is None or field[1].lower() in NO_TRAILERS:
                raise BadRequest("a trailer is malformed")

"""
Where requests begin and end in what a caller sends, read beside llhttp and more strictly.

    line ▸ fields ▸ line | body ▸ line | size ▸ chunk ▸ size … ▸ trailers ▸ line

llhttp takes several spaces for one in a request line, as RFC 9112 section 3 lets it, and doesn't say that it did. But
the bytes that are judged are to be the bytes that were sent. And only who counts along knows, after a body, whether the
next byte begins a request.

Source: RFC 9112 sections 2.2, 3, 6.3 and 7.1.
"""

import re
from collections.abc import Sequence
from enum import Enum
from typing import Final

_REQUEST_LINE = re.compile(rb"[A-Z-]+ [^\x00-\x20\x7f]+ HTTP/1\.[01]")
_READ = re.compile(rb"\r\n(content-length|transfer-encoding|upgrade):[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)")
_MARKS = (b"\r\ncontent-length:", b"\r\ntransfer-encoding:", b"\r\nupgrade:")
_LENGTH = re.compile(rb"[0-9]{1,19}")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[^\r\n\x00]*)?")
_END_OF_HEAD = b"\r\n\r\n"
_NO_PARSER_TAKES = b"\0"


class _Part(Enum):
    """What the next byte belongs to."""

    LINE = "a request line"
    FIELDS = "the fields of a head"
    BODY = "so many bytes of a body, or of a chunk"
    SIZE = "the line before a chunk"
    TRAILERS = "the fields after the last chunk"
    LOST = "unknown: the request is one that is refused"
    BROKEN = "nothing: the connection is refused"


_ENDS: Final = {
    _Part.LINE: b"\r\n",
    _Part.FIELDS: _END_OF_HEAD,
    _Part.SIZE: b"\r\n",
    _Part.TRAILERS: _END_OF_HEAD,
}
"""How the parts end whose length isn't known before."""


class RequestStream:
    """
    Follows one connection.

    Attributes:
        heads: How many heads have come whole.
    """

    __slots__ = ("_after", "_fields", "_held", "_left", "_max_line_bytes", "_part", "_upgrades", "heads")

    def __init__(self, max_line_bytes: int) -> None:
        """
        Args:
            max_line_bytes: A longer line is malformed.
        """
        self.heads = 0
        self._max_line_bytes = max_line_bytes
        self._part = _Part.LINE
        self._held = bytearray()
        self._fields: list[tuple[bytes, bytes]] = []
        self._left = 0
        self._after = _Part.LINE
        self._upgrades = False

    @property
    def is_between_requests(self) -> bool:
        """Whether the next byte begins a request, for certain."""
        return self._part is _Part.LINE and not self._held

    @property
    def is_broken(self) -> bool:
        """Whether a request line or a chunk's size was malformed. Nothing that follows is read."""
        return self._part is _Part.BROKEN

    def follow(self, data: bytes) -> Sequence[bytes]:
        """
        Return what llhttp may see of *data*, the next bytes of the connection.

        That is all of it, until something is malformed. There it ends, with a NUL, which llhttp refuses at that place.
        It comes in pieces where a request with ``Upgrade`` ends: aiohttp forgets what follows one in the same piece.
        """
        if self._part is _Part.BODY and self._left > len(data):
            self._left -= len(data)
            return (data,)
        if self.is_broken:
            return ()
        read, held = data, len(self._held)
        if held:
            self._held += data
            # Whoever sends byte by byte makes no more work than others.
            if self._held.find(b"\r\n", held - 1) < 0 and len(self._held) <= self._max_line_bytes:
                return (data,)
            read = bytes(self._held)
            self._held.clear()
        at, cut = 0, 0
        pieces: list[bytes] = []
        while at < len(read):
            at = self._step(read, at)
            if self._part is _Part.BROKEN:
                return [*pieces, data[cut : max(at - held, cut)] + _NO_PARSER_TAKES]
            if self._upgrades and self._part is _Part.LINE:
                self._upgrades = False
                pieces.append(data[cut : at - held])
                cut = at - held
        return [*pieces, data[cut:]] if pieces else (data,)

    def _step(self, read: bytes, at: int) -> int:
        """Read one part, or what there is of it. Returns where the next begins, or what is broken ends."""
        match self._part:
            case _Part.BODY:
                step = min(self._left, len(read) - at)
                self._left -= step
                if not self._left:
                    self._part = self._after
                return at + step
            case _Part.LOST | _Part.BROKEN:
                return len(read)
            case part:
                end = read.find(_ENDS[part], at)
                return self._wait(read, at) if end < 0 else self._take(read, at, end)

    def _wait(self, read: bytes, at: int) -> int:
        """Keep the line that hasn't come whole."""
        if _ENDS[self._part] == _END_OF_HEAD:
            last = read.rfind(b"\r\n", at)
            if self._part is _Part.FIELDS:
                self._read(read[at : last + 2])
            at = last
        self._held += read[at:]
        if len(self._held) > self._max_line_bytes:
            self._held.clear()
            self._part = _Part.BROKEN
        return len(read)

    def _take(self, read: bytes, at: int, end: int) -> int:
        match self._part:
            case _Part.LINE:
                return self._line(read, at, end)
            case _Part.SIZE:
                return self._size(read, at, end)
            case _Part.FIELDS:
                self.heads += 1
                self._part = _Part.LINE
                self._read(read[at : end + 2])
                if self._fields:
                    self._judge()
            case _:
                self._part = _Part.LINE
        return end + len(_END_OF_HEAD)

    def _read(self, fields: bytes) -> None:
        lower = fields.lower()
        for mark in _MARKS:
            if mark in lower:
                self._fields += _READ.findall(lower)
                break

    def _line(self, read: bytes, at: int, end: int) -> int:
        if end == at:
            return at + 2  # empty lines before a request are ignored (RFC 9112 section 2.2)
        # The line's end stays: it may be the first half of the end of the head.
        self._part = _Part.FIELDS if _REQUEST_LINE.fullmatch(read, at, end) else _Part.BROKEN
        return end

    def _judge(self) -> None:
        framing = [(name, value) for name, value in self._fields if name != b"upgrade"]
        self._upgrades = len(framing) < len(self._fields)
        self._fields.clear()
        if not framing:
            return
        name, value = framing[0]
        if len(framing) > 1:
            self._part = _Part.LOST
        elif name == b"transfer-encoding":
            self._part = _Part.SIZE if value == b"chunked" else _Part.LOST
        elif not _LENGTH.fullmatch(value):
            self._part = _Part.LOST
        elif length := int(value):
            self._part, self._left, self._after = _Part.BODY, length, _Part.LINE

    def _size(self, read: bytes, at: int, end: int) -> int:
        line = _CHUNK_LINE.fullmatch(read, at, end)
        if line is None:
            self._part = _Part.BROKEN
            return end
        size = int(line[1], 16)
        if not size:
            self._part = _Part.TRAILERS  # the line's end may be the first half of their end
            return end
        self._part, self._left, self._after = _Part.BODY, size + 2, _Part.SIZE
        return end + 2

"""
The head of an upstream's answer, judged.

An upstream is trusted less than its operator trusts it: an answer whose end two readers could see in different places
would let one user's bytes into another user's answer. What isn't framed in exactly one way is refused with 502.

Source: RFC 9112 sections 4, 6.3 and 9.3; RFC 9110 sections 5.5, 6.4.1 and 15.2.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from broker.core.headers import FIELD_LINE, Known, remember
from broker.core.request_head import MAX_CONTENT_LENGTH
from broker.errors import UpstreamUnavailable

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")
_CONTENT_LENGTH = re.compile(rb"0|[1-9][0-9]{0,18}")
_NO_OPTIONS: frozenset[bytes] = frozenset()
_READ = frozenset({b"content-length", b"transfer-encoding", b"connection", b"upgrade"})


@dataclass(slots=True)
class ResponseHead:
    """
    An answer that may be relayed.

    Attributes:
        status: The status code.
        reason: The reason phrase, as it came.
        lines: Every field line, as ``name: value``.
        declared_length: What ``Content-Length`` says; it is about another answer where there is no body (HEAD, 304).
        body_length: The length of the body in bytes; None if it is chunked or ends with the connection.
        chunked: Whether the body is chunked.
        until_close: Whether the body ends with the connection.
        reusable: Whether the connection may carry another request after the body.
        connection: The options of ``Connection``, in lower case.
        upgrade: The protocol that a 101 switches to, in lower case; empty if none.
    """

    status: int
    reason: bytes
    lines: list[bytes]
    declared_length: int | None
    body_length: int | None
    chunked: bool
    until_close: bool
    reusable: bool
    connection: frozenset[bytes]
    upgrade: bytes


class ResponseHeads:
    """Reads heads. Like requests' lines, answers' lines are remembered by their bytes (broker.core.headers)."""

    def __init__(self) -> None:
        self._remembered: dict[bytes, Known] = {}

    def read(self, head: bytes, request_method: str) -> ResponseHead:
        """
        Judge the head of an answer.

        Args:
            head: The status line and the field lines, without the empty line at the end.
            request_method: The method of the request that it answers.

        Raises:
            UpstreamUnavailable: If its end isn't certain, or it holds what no answer may hold.
        """
        lines = head.split(b"\r\n")
        status_line = _STATUS_LINE.fullmatch(lines[0])
        if status_line is None:
            raise UpstreamUnavailable("the answer's status line is malformed")
        passed: list[bytes] = []
        read: dict[bytes, list[bytes]] = {}
        remembered = self._remembered
        for line in lines[1:]:
            passes, name, value = remembered.get(line) or self._judge(line)
            assert passes is not None
            passed.append(passes)
            if name is not None:
                read.setdefault(name, []).append(value)
        minor, status, reason = status_line.groups(b"")
        return _frame(int(status), reason, passed, read, request_method, is_http11=minor == b"1")

    def _judge(self, line: bytes) -> Known:
        parts = FIELD_LINE.fullmatch(line)
        if parts is None:
            raise UpstreamUnavailable("a field line of the answer is malformed")
        name, value = parts.groups()
        lower = name.lower()
        known = Known(b"%b: %b" % (name, value), lower if lower in _READ else None, value)
        remember(self._remembered, line, known)
        return known


def _frame(
    status: int,
    reason: bytes,
    lines: list[bytes],
    read: dict[bytes, list[bytes]],
    request_method: str,
    *,
    is_http11: bool,
) -> ResponseHead:
    """RFC 9112 section 6.3, without what it tolerates."""
    lengths = read.get(b"content-length")
    codings = read.get(b"transfer-encoding")
    connection = _options(read[b"connection"]) if b"connection" in read else _NO_OPTIONS
    declared_length = None if lengths is None else _declared_length(lengths)
    bodyless = request_method == "HEAD" or status in {204, 304} or status < 200
    chunked = False
    if codings is not None:
        if lengths is not None:
            raise UpstreamUnavailable("the answer is framed twice")
        if len(codings) > 1 or codings[0].lower() != b"chunked" or not is_http11:
            raise UpstreamUnavailable("the answer has a transfer coding other than chunked")
        chunked = not bodyless
    until_close = not (bodyless or chunked or lengths is not None)
    return ResponseHead(
        status,
        reason,
        lines,
        declared_length,
        0 if bodyless else declared_length,
        chunked,
        until_close,
        is_http11 and not until_close and b"close" not in connection,
        connection,
        read[b"upgrade"][0].lower() if len(read.get(b"upgrade", ())) == 1 else b"",
    )


def _declared_length(lengths: Sequence[bytes]) -> int:
    if len(lengths) > 1 or not _CONTENT_LENGTH.fullmatch(lengths[0]):
        raise UpstreamUnavailable("the answer's Content-Length is not one plain number")
    length = int(lengths[0])
    if length > MAX_CONTENT_LENGTH:
        raise UpstreamUnavailable("the answer's Content-Length is not one plain number")
    return length


def _options(connections: Sequence[bytes]) -> frozenset[bytes]:
    return frozenset(option.strip(b" \t").lower() for value in connections for option in value.split(b",")) - {b""}

"""
The head of a request, judged: what aiohttp's parser lets through and RFC 9112 doesn't is refused here.

Two readers of one connection must agree on where a request ends. So a request is either framed by exactly one plain
``Content-Length``, or by exactly one ``Transfer-Encoding: chunked``, or has no body; everything else is refused.

Source: RFC 9112 sections 2.3, 3.2, 6 and 9.3; RFC 9110 sections 5.3 and 8.6.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from broker.core.headers import RequestFields, name_of
from broker.core.paths import Target, read_target
from broker.errors import BadRequest

MAX_CONTENT_LENGTH = (1 << 63) - 1

_METHOD = re.compile(r"[A-Z][A-Z-]{0,31}")
_CONTENT_LENGTH = re.compile(rb"0|[1-9][0-9]{0,18}")
_NONE: tuple[bytes, ...] = ()
_NO_OPTIONS: frozenset[bytes] = frozenset()
_KNOWN_CONNECTIONS = {
    b"keep-alive": frozenset({b"keep-alive"}),
    b"Keep-Alive": frozenset({b"keep-alive"}),
    b"close": frozenset({b"close"}),
    b"Upgrade": frozenset({b"upgrade"}),
}
_ABOUT_CONNECTION = frozenset({b"close", b"keep-alive", b"upgrade", b"te", b"http2-settings"})


@dataclass(slots=True)
class RequestHead:
    """
    A request that may be answered.

    Attributes:
        method: The method, as it came.
        target: The judged request target.
        authority: The Host header field's value; empty on HTTP/1.0 without one.
        is_http11: Whether the caller speaks HTTP/1.1; otherwise HTTP/1.0.
        lines: The field lines that pass on; cookies are not among them.
        read: Values of the fields that the broker reads, by their names in lower case.
        content_length: The length of the body in bytes; None if there is none, or it is chunked.
        chunked: Whether the body is chunked.
        keep_alive: Whether the caller wants to use the connection again.
        upgrade: The protocol that the caller asks for, in lower case; empty if none.
        expects_continue: Whether the caller waits for ``100 Continue`` before it sends the body.
    """

    method: str
    target: Target
    authority: bytes
    is_http11: bool
    lines: list[bytes]
    read: dict[bytes, list[bytes]]
    content_length: int | None
    chunked: bool
    keep_alive: bool
    upgrade: bytes
    expects_continue: bool

    @property
    def has_body(self) -> bool:
        """Whether bytes follow the head."""
        return self.chunked or bool(self.content_length)

    def values(self, name: bytes) -> Sequence[bytes]:
        """Return the values of a field that the broker reads; *name* is in lower case."""
        return self.read.get(name, _NONE)

    def getall(self, key: str, default: Sequence[str], /) -> Sequence[str]:
        """Return the values of a field that the broker reads as text (broker.core.csrf)."""
        values = self.read.get(key.lower().encode())
        return default if values is None else [value.decode("latin-1") for value in values]


def read_head(
    *,
    method: str,
    target: bytes,
    version: tuple[int, int],
    lines: Iterable[bytes],
    rules: RequestFields,
) -> RequestHead:
    """
    Judge the head of a request.

    Args:
        method: The method, as it came.
        target: The request target, as it came.
        version: The HTTP version.
        lines: The header field lines, as they came, without their CRLF.
        rules: What becomes of each field.

    Raises:
        BadRequest: If it isn't a request of RFC 9112, or one that two readers could take for two different ones.
        AmbiguousPath: If its path can be read in several ways.
    """
    if version == (1, 1):
        is_http11 = True
    elif version == (1, 0):
        is_http11 = False
    else:
        raise BadRequest("the HTTP version is neither 1.0 nor 1.1")
    if not _METHOD.fullmatch(method):
        raise BadRequest("the method is not in capitals")
    passed, read = rules.sort(lines)
    authority = _authority(read, is_http11=is_http11)
    content_length, chunked = _framing(read, is_http11=is_http11)
    connection = _connection_options(read[b"connection"]) if b"connection" in read else _NO_OPTIONS
    named = connection - _ABOUT_CONNECTION
    if named:
        passed = [line for line in passed if name_of(line) not in named]
    return RequestHead(
        method,
        read_target(target, authority),
        authority,
        is_http11,
        passed,
        read,
        content_length,
        chunked,
        b"close" not in connection and (is_http11 or b"keep-alive" in connection),
        _upgrade(read, connection) if b"upgrade" in read else b"",
        b"expect" in read and is_http11 and _expects_continue(read[b"expect"][0]),
    )


def _authority(read: dict[bytes, list[bytes]], *, is_http11: bool) -> bytes:
    hosts = read.get(b"host")
    if hosts is None:
        if is_http11:
            raise BadRequest("the Host header field is missing")
        return b""
    if not hosts[0]:
        raise BadRequest("the Host header field is empty")
    return hosts[0]


def _framing(read: dict[bytes, list[bytes]], *, is_http11: bool) -> tuple[int | None, bool]:
    lengths = read.get(b"content-length")
    codings = read.get(b"transfer-encoding")
    if codings is not None:
        if lengths is not None:
            raise BadRequest("the body is framed twice")
        if codings[0].lower() != b"chunked" or not is_http11:
            raise BadRequest("the only transfer coding that is taken is chunked, of HTTP/1.1")
        return None, True
    if lengths is None:
        return None, False
    if not _CONTENT_LENGTH.fullmatch(lengths[0]):
        raise BadRequest("the Content-Length is not a plain number")
    length = int(lengths[0])
    if length > MAX_CONTENT_LENGTH:
        raise BadRequest("the Content-Length is not a plain number")
    return length, False


def _connection_options(values: Sequence[bytes]) -> frozenset[bytes]:
    """The options of the Connection fields, in lower case."""
    if len(values) == 1 and values[0] in _KNOWN_CONNECTIONS:
        return _KNOWN_CONNECTIONS[values[0]]
    return frozenset(option.strip(b" \t").lower() for value in values for option in value.split(b",")) - {b""}


def _upgrade(read: dict[bytes, list[bytes]], connection: frozenset[bytes]) -> bytes:
    """The protocol asked for; an Upgrade that Connection doesn't name is ignored (RFC 9110 section 7.8)."""
    values = read[b"upgrade"]
    return values[0].lower() if b"upgrade" in connection and len(values) == 1 else b""


def _expects_continue(value: bytes) -> bool:
    if value.lower() != b"100-continue":
        raise BadRequest("the only expectation that is met is 100-continue")
    return True

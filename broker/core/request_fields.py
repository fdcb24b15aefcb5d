"""
The field lines of a request, judged as one block: what passes on, what the broker reads, how the body is framed.

Callers send the same block again and again on one connection, so what was read of a block can be kept and used again:
it depends on nothing but its bytes.

Source: RFC 9112 sections 3.2, 6 and 9.3; RFC 9110 sections 5.3, 7.6.1 and 8.6.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from broker.core.cookies import read_cookie, strip_cookies
from broker.core.headers import (
    CONNECTION_FIELDS,
    FIELD_LINE,
    IDENTITY_FIELDS,
    IDENTITY_PREFIXES,
    ROUTING_FIELDS,
    Known,
    canonical,
    name_of,
    remember,
)
from broker.errors import BadRequest

MAX_CONTENT_LENGTH: Final = (1 << 63) - 1
MAX_REMEMBERED_COOKIES: Final = 1024
MAX_REMEMBERED_COOKIE: Final = 2048

# What the broker reads: the name, and whether the field also passes on.
_READ: Final[dict[bytes, bool]] = {
    b"accept": True,
    b"authorization": False,
    b"client-cert": False,
    b"connection": False,
    b"content-length": False,
    b"content-location": True,
    b"content-range": True,
    b"content-type": True,
    b"cookie": False,
    b"etag": True,
    b"expect": False,
    b"forwarded": False,
    b"host": False,
    b"max-forwards": True,
    b"origin": True,
    b"sec-fetch-dest": True,
    b"sec-fetch-mode": True,
    b"sec-fetch-site": True,
    b"sec-websocket-key": True,
    b"sec-websocket-key1": True,
    b"sec-websocket-version": True,
    b"server": True,
    b"transfer-encoding": False,
    b"upgrade": False,
    b"user-agent": True,
    b"x-csrf": True,
    b"x-forwarded-for": False,
    b"x-request-id": False,
}

# Of these there can be only one: two readers could each believe another one (RFC 9110 section 5.3).
_SINGLE: Final = frozenset(
    {
        b"content-length",
        b"content-location",
        b"content-range",
        b"content-type",
        b"etag",
        b"expect",
        b"host",
        b"max-forwards",
        b"origin",
        b"server",
        b"transfer-encoding",
        b"user-agent",
        b"x-request-id",
    }
)

_CONTENT_LENGTH = re.compile(rb"0|[1-9][0-9]{0,18}")
_NO_OPTIONS: frozenset[bytes] = frozenset()
_KNOWN_CONNECTIONS = {
    word: frozenset({word.lower()})
    for word in (b"close", b"Close", b"keep-alive", b"Keep-Alive", b"upgrade", b"Upgrade")
}
_ABOUT_CONNECTION = frozenset({b"close", b"keep-alive", b"upgrade", b"te", b"http2-settings"})


@dataclass(slots=True)
class FieldBlock:
    """
    What was read of a request's field lines.

    Attributes:
        lines: The lines that pass on, cookies last.
        passed: The same, as they are written, each with its CRLF.
        read: Values of the fields that the broker reads, by their names in lower case.
        authority: The Host field's value; empty if there is none.
        content_length: The length of the body in bytes; None if there is none, or it is chunked.
        chunked: Whether the body is chunked.
        closes: Whether the caller wants the connection closed.
        keeps_alive: Whether the caller says that it wants to use the connection again, as HTTP/1.0 has to.
        upgrade: The protocol that the caller asks for, in lower case; empty if none.
        expects_continue: Whether the caller waits for ``100 Continue`` before it sends the body.
        session_id: What the session cookie holds; None if there is none.
        is_session_ambiguous: Whether the session cookie came twice.
    """

    lines: list[bytes]
    passed: bytes
    read: dict[bytes, list[bytes]]
    authority: bytes
    content_length: int | None
    chunked: bool
    closes: bool
    keeps_alive: bool
    upgrade: bytes
    expects_continue: bool
    session_id: bytes | None
    is_session_ambiguous: bool


class _Cookies(NamedTuple):
    """What was read of the cookies: the lines that pass on, and the session id; both are in a FieldBlock, too."""

    lines: tuple[bytes, ...]
    session_id: bytes | None
    is_ambiguous: bool


_NO_COOKIES = _Cookies((), None, is_ambiguous=False)


class FieldRules:
    """
    Reads the field lines of requests.

    Most lines come again and again (``Accept-Encoding: gzip, deflate, br``), from many callers; what was judged about a
    line is remembered by its bytes, so that the next time costs one look-up.
    """

    def __init__(
        self,
        *,
        session_cookie: bytes = b"session",
        is_own_cookie: Callable[[bytes], bool] = lambda _: False,
        own_names: Iterable[str] = (),
    ) -> None:
        """
        Args:
            session_cookie: The name of the session cookie.
            is_own_cookie: Whether a cookie of this name is the broker's own, and goes no further.
            own_names: Names that some route sets. What callers send under them is dropped everywhere.
        """
        self._session_cookie = session_cookie
        self._is_own_cookie = is_own_cookie
        self._own = frozenset(canonical(name.encode()) for name in own_names)
        self._remembered: dict[bytes, Known] = {}
        self._names: dict[bytes, tuple[bool, bytes | None]] = {}
        self._cookies: dict[bytes, _Cookies] = {}

    def read(self, lines: Iterable[bytes]) -> FieldBlock:
        """
        Judge the field lines of one request.

        Args:
            lines: The lines as they came, without their CRLF.

        Raises:
            BadRequest: If a line isn't one, a field came twice of which there can be only one, or the body's end is
                uncertain.
        """
        passed: list[bytes] = []
        read: dict[bytes, list[bytes]] = {}
        remembered = self._remembered
        for line in lines:
            passes, name, value = remembered.get(line) or self._judge(line)
            if passes is not None:
                passed.append(passes)
            if name is not None:
                if name not in read:
                    read[name] = [value]
                elif name in _SINGLE:
                    raise BadRequest(f"the {name.decode()} field came twice")
                else:
                    read[name].append(value)
        return self._block(passed, read)

    def _block(self, passed: list[bytes], read: dict[bytes, list[bytes]]) -> FieldBlock:
        connection = connection_options(read[b"connection"]) if b"connection" in read else _NO_OPTIONS
        named = connection - _ABOUT_CONNECTION
        if named:
            passed = [line for line in passed if name_of(line) not in named]
        content_length, chunked = _framing(read.get(b"content-length"), read.get(b"transfer-encoding"))
        cookies = _NO_COOKIES
        if b"cookie" in read:
            values = read[b"cookie"]
            cookies = (self._cookies.get(values[0]) if len(values) == 1 else None) or self._read_cookies(values)
            passed += cookies.lines
        return FieldBlock(
            passed,
            b"\r\n".join([*passed, b""]),
            read,
            _authority(read.get(b"host")),
            content_length,
            chunked,
            b"close" in connection,
            b"keep-alive" in connection,
            _upgrade(read[b"upgrade"], connection) if b"upgrade" in read else b"",
            b"expect" in read and _expects_continue(read[b"expect"][0]),
            cookies.session_id,
            cookies.is_ambiguous,
        )

    def _read_cookies(self, values: Sequence[bytes]) -> "_Cookies":
        session_id, is_ambiguous = None, False
        try:
            session_id = read_cookie(values, self._session_cookie)
        except BadRequest:
            is_ambiguous = True  # that matters only where a session is looked at
        lines = tuple(b"Cookie: " + line for line in strip_cookies(values, self._is_own_cookie))
        cookies = _Cookies(lines, session_id, is_ambiguous)
        if len(values) == 1 and len(values[0]) <= MAX_REMEMBERED_COOKIE:
            if len(self._cookies) >= MAX_REMEMBERED_COOKIES:
                self._cookies.clear()
            self._cookies[values[0]] = cookies
        return cookies

    def _judge(self, line: bytes) -> Known:
        parts = FIELD_LINE.fullmatch(line)
        if parts is None:
            raise BadRequest("a header field line is malformed")
        name, value = parts.groups()
        passes, read = self._names.get(name) or self._judge_name(name)
        known = (b"%b: %b" % (name, value) if passes else None, read, value)
        remember(self._remembered, line, known)
        return known

    def _judge_name(self, name: bytes) -> tuple[bool, bytes | None]:
        """Whether fields of this name pass on, and the name in lower case if the broker reads them."""
        lower = name.lower()
        if lower == b"sec-websocket-key1":
            raise BadRequest("WebSockets older than RFC 6455 aren't spoken here")
        judged = (self._passes(lower), lower if lower in _READ else None)
        remember(self._names, name, judged)
        return judged

    def _passes(self, lower: bytes) -> bool:
        twin = canonical(lower)
        return not (
            twin in self._own
            # Content_Length, Transfer.Encoding: never what the broker read
            or not _READ.get(twin, True)
            or twin in CONNECTION_FIELDS
            or twin in IDENTITY_FIELDS
            or twin in ROUTING_FIELDS
            or twin.startswith((*IDENTITY_PREFIXES, b"proxy-"))
        )


def _authority(hosts: Sequence[bytes] | None) -> bytes:
    if hosts is None:
        return b""
    if not hosts[0]:
        raise BadRequest("the Host header field is empty")
    return hosts[0]


def _framing(lengths: Sequence[bytes] | None, codings: Sequence[bytes] | None) -> tuple[int | None, bool]:
    """The length of the body, and whether it is chunked (RFC 9112 section 6.3, without what it tolerates)."""
    if codings is not None:
        if lengths is not None:
            raise BadRequest("the body is framed twice")
        if codings[0].lower() != b"chunked":
            raise BadRequest("the only transfer coding that is taken is chunked")
        return None, True
    if lengths is None:
        return None, False
    if not _CONTENT_LENGTH.fullmatch(lengths[0]):
        raise BadRequest("the Content-Length is not a plain number")
    length = int(lengths[0])
    if length > MAX_CONTENT_LENGTH:
        raise BadRequest("the Content-Length is too large to be true")
    return length, False


def connection_options(values: Sequence[bytes]) -> frozenset[bytes]:
    """Return the options of ``Connection`` fields, in lower case."""
    if len(values) == 1 and values[0] in _KNOWN_CONNECTIONS:
        return _KNOWN_CONNECTIONS[values[0]]
    return frozenset(option.strip(b" \t").lower() for value in values for option in value.split(b",")) - {b""}


def _upgrade(values: Sequence[bytes], connection: frozenset[bytes]) -> bytes:
    """The protocol asked for; an Upgrade that Connection doesn't name is ignored (RFC 9110 section 7.8)."""
    return values[0].lower() if b"upgrade" in connection and len(values) == 1 else b""


def _expects_continue(value: bytes) -> bool:
    if value.lower() != b"100-continue":
        raise BadRequest("the only expectation that is met is 100-continue")
    return True

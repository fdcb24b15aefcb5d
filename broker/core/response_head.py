"""
The head of an upstream's answer, judged, and made ready for the caller.

An upstream is trusted less than its operator trusts it: an answer whose end two readers could see in different places
would let one user's bytes into another user's answer. What isn't framed in exactly one way is refused with 502.

Source: RFC 9112 sections 4, 6.3 and 9.3; RFC 9110 sections 5.5, 6.4.1, 7.6.1 and 15.2; SECURITY UP-03, UP-05, UP-06.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from broker.core.cookies import set_cookie_name
from broker.core.headers import CONNECTION_FIELDS, FIELD_LINE, Known, name_of, remember
from broker.core.request_fields import MAX_CONTENT_LENGTH, connection_options
from broker.errors import UpstreamUnavailable

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")
_CONTENT_LENGTH = re.compile(rb"0|[1-9][0-9]{0,18}")
_NO_OPTIONS: frozenset[bytes] = frozenset()
_ABOUT_CONNECTION = frozenset({b"close", b"keep-alive", b"upgrade"})

_READ = frozenset({b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"dpop-nonce"})
_JUDGED_BY_VALUE = frozenset({b"set-cookie", b"www-authenticate"})

_TOKEN_ROUTE_FIELDS = frozenset(
    {
        b"access-control-allow-credentials",
        b"access-control-allow-headers",
        b"access-control-allow-methods",
        b"access-control-allow-origin",
        b"access-control-allow-private-network",
        b"access-control-expose-headers",
        b"access-control-max-age",
    }
)
"""On routes that use a session no other origin may read an answer, whatever the upstream thinks (SECURITY UP-06)."""

_CACHE_FIELDS = frozenset(
    {b"cache-control", b"edge-control", b"expires", b"pragma", b"surrogate-control", b"x-accel-expires"}
)
_CACHE_SUFFIX = b"-cache-control"
"""What caches obey. Some put their own field before ``Cache-Control``: nginx (X-Accel-Expires) and delivery networks
(CDN-Cache-Control of RFC 9213, and theirs with a name before it)."""

_NEVER_PASSED = frozenset(
    {b"clear-site-data", b"content-length", b"dpop-nonce", b"proxy-authenticate", b"strict-transport-security"}
)
"""The broker's cookies, transport and proofs are the broker's business; it writes the length itself."""

_ANOTHER_ANSWER_FIELDS = frozenset(
    {
        b"x-accel-redirect",
        b"x-litespeed-location",
        b"x-lighttpd-send-file",
        b"x-reproxy-file",
        b"x-reproxy-url",
        b"x-sendfile",
        b"x-sendfile2",
    }
)
"""By these an upstream has a server in front send a file, or the answer of another path, in place of its own answer.
That server means them for upstreams of its own, not for whoever is behind the broker."""

_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*("?)')
"""A quoted string, or the rest of the value if it has no end: so each byte is looked at once."""
_PASSWORD_PROMPT = re.compile(rb"(?:^|,)[ \t]*(?:basic|digest|negotiate|ntlm)(?:[ \t,]|$)", re.IGNORECASE)
"""Any challenge of a list: browsers look for one that they know."""


@dataclass(slots=True)
class ResponseHead:
    """
    An answer that may be relayed.

    Attributes:
        status: The status code.
        passed: The status line and the field lines that pass to the caller, as they are written, each with its CRLF.
        ready: The same with length and empty line, for a caller of HTTP/1.1 whose connection stays open; empty if the
            length isn't known.
        declared_length: What ``Content-Length`` says; it is about another answer where there is no body (HEAD, 304).
        body_length: The length of the body in bytes; None if it is chunked or ends with the connection.
        has_body: Whether its status and method allow a body.
        chunked: Whether the body is chunked.
        until_close: Whether the body ends with the connection.
        reusable: Whether the connection may carry another request after the body.
        upgrade: The protocol that a 101 switches to, in lower case; empty if none, or if ``Connection`` doesn't say so.
        dpop_nonce: The nonce that proofs of possession must hold (RFC 9449 section 9); empty if it says none.
    """

    status: int
    passed: bytes
    ready: bytes
    declared_length: int | None
    body_length: int | None
    has_body: bool
    chunked: bool
    until_close: bool
    reusable: bool
    upgrade: bytes
    dpop_nonce: bytes


class ResponseRules:
    """
    Reads the heads of a route's answers.

    Like those of requests, lines are remembered by their bytes (broker.core.headers), and so is the last head: an
    upstream that is asked the same again often says the same again.
    """

    def __init__(
        self,
        *,
        with_token: bool = False,
        no_store: bool = False,
        internal_redirects: bool = False,
        is_own_cookie: Callable[[bytes], bool] = lambda _: False,
    ) -> None:
        """
        Args:
            with_token: Whether the route's requests carry a token.
            no_store: Whether answers are the user's alone and must not be stored, whatever the upstream says.
            internal_redirects: Whether the upstream may have a server in front answer in its place.
            is_own_cookie: Whether a cookie of this name is the broker's own, which no upstream may set.
        """
        self._with_token = with_token
        self._no_store = no_store
        self._internal_redirects = internal_redirects
        self._is_own_cookie = is_own_cookie
        self._remembered: dict[bytes, Known] = {}
        self._names: dict[bytes, tuple[bool, bytes | None]] = {}
        self._last: tuple[bytes, str] = (b"", "")
        self._last_head: ResponseHead | None = None

    def read(self, head: bytes, request_method: str) -> ResponseHead:
        """
        Judge the head of an answer.

        Args:
            head: The status line and the field lines, without the empty line at the end.
            request_method: The method of the request that it answers.

        Raises:
            UpstreamUnavailable: If its end isn't certain, or it holds what no answer may hold.
        """
        key = (head, request_method)
        if key == self._last and self._last_head is not None:
            return self._last_head
        read = self._read(head, request_method)
        self._last, self._last_head = key, read
        return read

    def _read(self, head: bytes, request_method: str) -> ResponseHead:
        lines = head.split(b"\r\n")
        status_line = _STATUS_LINE.fullmatch(lines[0])
        if status_line is None:
            raise UpstreamUnavailable("the answer's status line is malformed")
        minor, code, reason = status_line.groups(b"")
        passed: list[bytes] = [b"HTTP/1.1 %b %b" % (code, reason)]
        read: dict[bytes, list[bytes]] = {}
        remembered = self._remembered
        for line in lines[1:]:
            passes, name, value = remembered.get(line) or self._judge(line)
            if passes is not None:
                passed.append(passes)
            if name is not None:
                read.setdefault(name, []).append(value)
        connection = connection_options(read[b"connection"]) if b"connection" in read else _NO_OPTIONS
        named = connection - _ABOUT_CONNECTION
        if named:
            passed[1:] = [line for line in passed[1:] if name_of(line) not in named]
        status = int(code)
        if self._no_store and status >= 200:
            passed.append(b"Cache-Control: private, no-store")
        return _frame(status, passed, read, connection, request_method, is_http11=minor == b"1")

    def _judge(self, line: bytes) -> Known:
        parts = FIELD_LINE.fullmatch(line)
        if parts is None:
            raise UpstreamUnavailable("a field line of the answer is malformed")
        name, value = parts.groups()
        passes, read = self._names.get(name) or self._judge_name(name)
        if passes and read in _JUDGED_BY_VALUE:
            passes = self._passes_with(read, value)
        known = (b"%b: %b" % (name, value) if passes else None, read, value)
        remember(self._remembered, line, known)
        return known

    def _judge_name(self, name: bytes) -> tuple[bool, bytes | None]:
        """Whether fields of this name may pass, and the name in lower case if more is read of them."""
        lower = name.lower()
        dropped = (
            lower in CONNECTION_FIELDS
            or lower in _NEVER_PASSED
            or (not self._internal_redirects and lower in _ANOTHER_ANSWER_FIELDS)
            or (self._with_token and lower in _TOKEN_ROUTE_FIELDS)
            or (self._no_store and (lower in _CACHE_FIELDS or lower.endswith(_CACHE_SUFFIX)))
        )
        judged = (not dropped, lower if lower in _READ or lower in _JUDGED_BY_VALUE else None)
        remember(self._names, name, judged)
        return judged

    def _passes_with(self, name: bytes | None, value: bytes) -> bool:
        if name == b"set-cookie":
            return not self._is_own_cookie(set_cookie_name(value))
        return not (self._with_token and _asks_for_password(value))


def _asks_for_password(challenges: bytes) -> bool:
    """Whether a list of challenges has one at which browsers ask for a password. A list that is malformed may have."""
    if any(not quoted[1] for quoted in _QUOTED.finditer(challenges)):
        return True
    return _PASSWORD_PROMPT.search(_QUOTED.sub(b"", challenges)) is not None


def _frame(
    status: int,
    passed: list[bytes],
    read: dict[bytes, list[bytes]],
    connection: frozenset[bytes],
    request_method: str,
    *,
    is_http11: bool,
) -> ResponseHead:
    """RFC 9112 section 6.3, without what it tolerates."""
    lengths = read.get(b"content-length")
    codings = read.get(b"transfer-encoding")
    declared_length = None if lengths is None else _declared_length(lengths)
    has_body = not (request_method == "HEAD" or status in {204, 304} or status < 200)
    if codings is not None:
        if lengths is not None:
            raise UpstreamUnavailable("the answer is framed twice")
        if len(codings) > 1 or codings[0].lower() != b"chunked" or not is_http11:
            raise UpstreamUnavailable("the answer has a transfer coding other than chunked")
    until_close = has_body and codings is None and lengths is None
    block = b"\r\n".join([*passed, b""])
    ready = b""
    if declared_length is not None and status != 204 and status >= 200:
        ready = b"%bContent-Length: %d\r\n\r\n" % (block, declared_length)
    elif not has_body:
        ready = block + b"\r\n"
    upgrades = read.get(b"upgrade", ())
    nonces = read.get(b"dpop-nonce", ())
    return ResponseHead(
        status,
        block,
        ready,
        declared_length,
        declared_length if has_body else 0,
        has_body,
        has_body and codings is not None,
        until_close,
        is_http11 and not until_close and b"close" not in connection,
        upgrades[0].lower() if len(upgrades) == 1 and b"upgrade" in connection else b"",
        nonces[0] if len(nonces) == 1 else b"",
    )


def _declared_length(lengths: Sequence[bytes]) -> int:
    if len(lengths) > 1 or not _CONTENT_LENGTH.fullmatch(lengths[0]):
        raise UpstreamUnavailable("the answer's Content-Length is not one plain number")
    length = int(lengths[0])
    if length > MAX_CONTENT_LENGTH:
        raise UpstreamUnavailable("the answer's Content-Length is not one plain number")
    return length

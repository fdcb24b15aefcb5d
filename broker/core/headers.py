"""
Which header fields pass through the broker, in either direction.

Names are compared in any case, and with every character but letters and digits read as ``-``: CGI, WSGI, PHP and their
like can't tell ``X_Forwarded_User`` or ``X.Forwarded.User`` from ``X-Forwarded-User``. Names and values that pass keep
their case, order and bytes.

Fields are handled as whole lines. Most lines come again and again (``Accept-Encoding: gzip, deflate, br``), from many
callers; what was judged about a line is remembered by its bytes, so that the next time costs one look-up.

Source: RFC 9110 sections 5.1, 5.5, 7.6.1 and 10.1.1; Envoy, "Edge best practices"; CVE-2025-64484.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, TypeVar

from broker.errors import BadRequest

T = TypeVar("T")

MAX_REMEMBERED: Final = 4096
"""How many lines are remembered. When there are more, all are forgotten: that costs little, and is hard to abuse."""
MAX_REMEMBERED_LINE: Final = 256
"""Longer lines, which hardly come twice, aren't."""

FIELD_LINE: Final = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*"
    rb"((?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*"
)
"""A field line: a name, and a value without controls and without the white space around it (RFC 9112 section 5)."""

_NOT_ALPHANUMERIC = re.compile(rb"[^a-z0-9]")

CONNECTION_FIELDS = frozenset(
    {
        b"connection",
        b"expect",
        b"http2-settings",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields that mean only this connection (RFC 9110 section 7.6.1), and ``Expect``, which the broker answers itself."""

IDENTITY_FIELDS = frozenset(
    {
        b"authenticated-user",
        b"authorization",
        b"oidc-access-token",
        b"remote-email",
        b"remote-groups",
        b"remote-name",
        b"remote-user",
        b"ssl-client-cert",
        b"ssl-client-s-dn",
        b"ssl-client-subject-dn",
        b"ssl-client-verify",
        b"x-access-token",
        b"x-authenticated-groups",
        b"x-authenticated-user",
        b"x-authenticated-userid",
        b"x-client-cert",
        b"x-credential-identifier",
        b"x-credential-username",
        b"x-email",
        b"x-groups",
        b"x-id-token",
        b"x-jwt-assertion",
        b"x-remote-email",
        b"x-remote-groups",
        b"x-remote-user",
        b"x-roles",
        b"x-ssl-client-cert",
        b"x-ssl-client-verify",
        b"x-user",
        b"x-user-email",
        b"x-user-groups",
        b"x-user-id",
        b"x-user-name",
        b"x-user-roles",
        b"x-userid",
        b"x-userinfo",
        b"x-username",
        b"x-webauth-user",
    }
)
"""Fields by which upstreams are told who the caller is. Only a broker may set them."""

IDENTITY_PREFIXES = (
    b"cf-access-",
    b"oidc-claim-",
    b"tailscale-",
    b"x-amzn-oidc-",
    b"x-auth-request-",
    b"x-authentik-",
    b"x-consumer-",
    b"x-forwarded-",
    b"x-goog-authenticated-user-",
    b"x-goog-iap-",
    b"x-ms-client-principal",
    b"x-ms-token-",
    b"x-pomerium-",
    b"x-vouch-",
)
"""Beginnings of such names."""

ROUTING_FIELDS = frozenset(
    {
        b"cf-connecting-ip",
        b"client-ip",
        b"fastly-client-ip",
        b"forwarded",
        b"proxy",
        b"true-client-ip",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-envoy-external-address",
        b"x-envoy-internal",
        b"x-envoy-original-path",
        b"x-host",
        b"x-http-host-override",
        b"x-http-method",
        b"x-http-method-override",
        b"x-method-override",
        b"x-original-host",
        b"x-original-method",
        b"x-original-uri",
        b"x-original-url",
        b"x-proxyuser-ip",
        b"x-real-ip",
        b"x-rewrite-url",
    }
)
"""Fields that would tell the upstream another peer, path, host or method than the one that was judged."""

_SINGLE = frozenset(
    {b"content-length", b"content-type", b"expect", b"host", b"origin", b"transfer-encoding", b"x-request-id"}
)

# What the broker reads: the name, and whether the field also passes on.
_READ: dict[bytes, bool] = {
    b"accept": True,
    b"authorization": False,
    b"connection": False,
    b"content-length": False,
    b"content-type": True,
    b"cookie": False,
    b"expect": False,
    b"host": False,
    b"origin": True,
    b"sec-fetch-dest": True,
    b"sec-fetch-mode": True,
    b"sec-fetch-site": True,
    b"sec-websocket-key": True,
    b"sec-websocket-version": True,
    b"transfer-encoding": False,
    b"upgrade": False,
    b"x-csrf": True,
    b"x-forwarded-for": False,
    b"x-request-id": False,
}


def canonical(name: bytes) -> bytes:
    """Return *name* as the most lenient reader takes it: lower case, with ``-`` for whatever is no letter or digit."""
    return _NOT_ALPHANUMERIC.sub(b"-", name.lower())


class Known(NamedTuple):
    """
    What is known of a field line.

    Attributes:
        passes: The line as it passes on, ``name: value``; None if it doesn't.
        read: The field's name in lower case if the broker reads it; None if it doesn't.
        value: The field's value.
    """

    passes: bytes | None
    read: bytes | None
    value: bytes


class RequestFields:
    """Sorts the fields of requests: what passes on, what is dropped, what the broker reads."""

    def __init__(self, own_names: Iterable[str] = ()) -> None:
        """
        Args:
            own_names: Names that some route sets. What callers send under them is dropped everywhere.
        """
        self._own = frozenset(canonical(name.encode()) for name in own_names)
        self._remembered: dict[bytes, Known] = {}

    def sort(self, lines: Iterable[bytes]) -> tuple[list[bytes], dict[bytes, list[bytes]]]:
        """
        Sort the field lines of one request.

        Returns:
            The lines that pass on, but for those named by ``Connection``; and the values of the fields that the broker
            reads, by their names in lower case.

        Raises:
            BadRequest: If a line isn't one, or a field came twice of which there can be only one.
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
        return passed, read

    def _judge(self, line: bytes) -> Known:
        parts = FIELD_LINE.fullmatch(line)
        if parts is None:
            raise BadRequest("a header field line is malformed")
        name, value = parts.groups()
        lower = name.lower()
        passes = b"%b: %b" % (name, value) if self._passes(lower) else None
        known = Known(passes, lower if lower in _READ else None, value)
        remember(self._remembered, line, known)
        return known

    def _passes(self, lower: bytes) -> bool:
        twin = canonical(lower)
        return not (
            twin in self._own
            # Content_Length, Transfer.Encoding: never what the broker read
            or not _READ.get(twin, True)
            or twin in CONNECTION_FIELDS
            or twin in IDENTITY_FIELDS
            or twin in ROUTING_FIELDS
            or twin.startswith(IDENTITY_PREFIXES)
            or twin.startswith(b"proxy-")
        )


def remember(remembered: dict[bytes, T], line: bytes, known: T) -> None:
    """Remember what is known of a line, within bounds."""
    if len(line) <= MAX_REMEMBERED_LINE:
        if len(remembered) >= MAX_REMEMBERED:
            remembered.clear()
        remembered[line] = known


def name_of(line: bytes) -> bytes:
    """Return the name of a field line, in lower case."""
    return line[: line.find(b":")].lower()


def without(lines: Sequence[bytes], names: frozenset[bytes]) -> list[bytes]:
    """Return *lines* without those whose canonical name is among *names*."""
    return [line for line in lines if canonical(name_of(line)) not in names]


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

_CACHE_FIELDS = frozenset({b"cache-control", b"expires", b"pragma", b"surrogate-control", b"cdn-cache-control"})

_NEVER_ANSWERED = frozenset(
    {b"clear-site-data", b"content-length", b"proxy-authenticate", b"strict-transport-security"}
)
"""The broker's cookies and transport are the broker's business; it writes the length itself."""

_PASSWORD_PROMPTS = (b"basic", b"digest", b"negotiate", b"ntlm")


class ResponseFields:
    """Sorts the fields of a route's answers."""

    def __init__(self, *, with_token: bool, no_store: bool, is_own_cookie: Callable[[bytes], bool]) -> None:
        """
        Args:
            with_token: Whether the route's requests carry a token.
            no_store: Whether the upstream's caching fields give way to the broker's.
            is_own_cookie: Whether the value of a ``Set-Cookie`` sets a cookie that is the broker's own.
        """
        self._with_token = with_token
        self._no_store = no_store
        self._is_own_cookie = is_own_cookie
        self._remembered: dict[bytes, bool] = {}

    def sort(self, lines: Iterable[bytes], named_by_connection: frozenset[bytes]) -> list[bytes]:
        """Return the lines that pass to the caller, each ``name: value``."""
        passed = []
        remembered = self._remembered
        for line in lines:
            passes = remembered.get(line)
            if passes is None:
                passes = self._judge(line)
            if passes:
                passed.append(line)
        if named_by_connection:
            passed = [line for line in passed if name_of(line) not in named_by_connection]
        return passed

    def _judge(self, line: bytes) -> bool:
        passes = self._passes(name_of(line), line)
        remember(self._remembered, line, passes)
        return passes

    def _passes(self, name: bytes, line: bytes) -> bool:
        value = line.partition(b": ")[2]
        if name == b"set-cookie":
            return not self._is_own_cookie(value)
        if name == b"www-authenticate":
            return not (self._with_token and value.lower().startswith(_PASSWORD_PROMPTS))
        return not (
            name in CONNECTION_FIELDS
            or name in _NEVER_ANSWERED
            or (self._with_token and name in _TOKEN_ROUTE_FIELDS)
            or (self._no_store and name in _CACHE_FIELDS)
        )

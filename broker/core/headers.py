"""
Which header fields pass through the broker, in either direction.

Names are compared in any case, and with every character but letters and digits read as ``-``: CGI, WSGI, PHP and their
like can't tell ``X_Forwarded_User`` or ``X.Forwarded.User`` from ``X-Forwarded-User``. Names and values that pass keep
their case, order and bytes.

Source: RFC 9110 sections 5.3, 7.6.1 and 10.1.1; Envoy, "Edge best practices"; CVE-2025-64484.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from enum import Enum

from broker.errors import BadRequest

Field = tuple[bytes, bytes]
"""A field's name and value, as they came."""

_FIELD_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NOT_ALPHANUMERIC = re.compile(rb"[^a-z0-9]")
_MAX_REMEMBERED = 2048
_MAX_REMEMBERED_NAME = 64

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

FRAMING_FIELDS = frozenset({b"content-length", b"host"})
"""Fields that the broker writes itself."""

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


class Verdict(Enum):
    """What becomes of a field that the broker itself doesn't read."""

    PASS = "pass"
    DROP = "drop"


class RequestFields:
    """Sorts the fields of requests: what passes on, what is dropped, what the broker reads."""

    def __init__(self, own_names: Iterable[str] = ()) -> None:
        """
        Args:
            own_names: Names that some route sets. What callers send under them is dropped everywhere.
        """
        self._own = frozenset(canonical(name.encode()) for name in own_names)
        self._rules: dict[bytes, Verdict | tuple[bytes, bool]] = {}

    def sort(self, fields: Iterable[Field]) -> tuple[list[Field], dict[bytes, list[bytes]]]:
        """
        Sort the fields of one request.

        Returns:
            The fields that pass on, but for those named by ``Connection``; and the values of the fields that the broker
            reads, by their names in lower case.

        Raises:
            BadRequest: If a name isn't a token (RFC 9110 section 5.1).
        """
        passed: list[Field] = []
        read: dict[bytes, list[bytes]] = {}
        rules = self._rules
        for field in fields:
            rule = rules.get(field[0])
            if rule is None:
                rule = self._rule(field[0])
            if rule is Verdict.PASS:
                passed.append(field)
            elif rule is not Verdict.DROP:
                assert isinstance(rule, tuple)
                name, passes = rule
                if name in read:
                    read[name].append(field[1])
                else:
                    read[name] = [field[1]]
                if passes:
                    passed.append(field)
        return passed, read

    def _rule(self, name: bytes) -> Verdict | tuple[bytes, bool]:
        if not _FIELD_NAME.fullmatch(name):
            raise BadRequest("a header field's name holds a byte that no name may hold")
        rule = self._judge(name)
        if len(name) <= _MAX_REMEMBERED_NAME:
            if len(self._rules) >= _MAX_REMEMBERED:
                self._rules.clear()
            self._rules[name] = rule
        return rule

    def _judge(self, name: bytes) -> Verdict | tuple[bytes, bool]:
        lower = name.lower()
        twin = canonical(name)
        if lower in _READ:
            return lower, _READ[lower] and twin not in self._own
        if twin in _READ and not _READ[twin]:
            return Verdict.DROP  # Content_Length, Transfer.Encoding: never what the broker read
        dropped = (
            twin in CONNECTION_FIELDS
            or twin in IDENTITY_FIELDS
            or twin in ROUTING_FIELDS
            or twin in FRAMING_FIELDS
            or twin in self._own
            or twin.startswith(IDENTITY_PREFIXES)
            or twin.startswith(b"proxy-")
        )
        return Verdict.DROP if dropped else Verdict.PASS


def without(fields: Sequence[Field], names: frozenset[bytes]) -> list[Field]:
    """Return *fields* without those whose canonical name is among *names*."""
    return [field for field in fields if canonical(field[0]) not in names]


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
            is_own_cookie: Whether a ``Set-Cookie`` value sets a cookie that is the broker's own.
        """
        self._with_token = with_token
        self._no_store = no_store
        self._is_own_cookie = is_own_cookie
        self._rules: dict[bytes, bool | None] = {}

    def sort(self, fields: Sequence[Field], named_by_connection: frozenset[bytes]) -> list[Field]:
        """Return the fields that pass to the caller."""
        passed = []
        rules = self._rules
        for field in fields:
            name = field[0]
            passes = rules.get(name)
            if passes is True or (passes is None and self._passes(name, field[1])):
                passed.append(field)
        if named_by_connection:
            passed = [field for field in passed if field[0].lower() not in named_by_connection]
        return passed

    def _passes(self, name: bytes, value: bytes) -> bool:
        lower = name.lower()
        if lower == b"set-cookie":
            return not self._is_own_cookie(value)
        if lower == b"www-authenticate":
            return not (self._with_token and value.lower().startswith(_PASSWORD_PROMPTS))
        passes = not (
            lower in CONNECTION_FIELDS
            or lower in _NEVER_ANSWERED
            or (self._with_token and lower in _TOKEN_ROUTE_FIELDS)
            or (self._no_store and lower in _CACHE_FIELDS)
        )
        if len(name) <= _MAX_REMEMBERED_NAME:
            if len(self._rules) >= _MAX_REMEMBERED:
                self._rules.clear()
            self._rules[name] = passes
        return passes

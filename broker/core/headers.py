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
from collections.abc import Sequence
from typing import Final, TypeVar

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
        b"dpop",
        b"oidc-access-token",
        b"remote-email",
        b"remote-groups",
        b"remote-name",
        b"remote-user",
        b"x-access-token",
        b"x-arr-clientcert",
        b"x-auth-user",
        b"x-authenticated-email",
        b"x-authenticated-groups",
        b"x-authenticated-user",
        b"x-authenticated-userid",
        b"x-client-dn",
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
    b"client-cert",
    b"oidc-claim-",
    b"ssl-client-",
    b"tailscale-",
    b"x-amzn-mtls-",
    b"x-amzn-oidc-",
    b"x-auth-request-",
    b"x-authentik-",
    b"x-client-cert",
    b"x-consumer-",
    b"x-forwarded-",
    b"x-goog-authenticated-user-",
    b"x-goog-iap-",
    b"x-ms-client-principal",
    b"x-ms-token-",
    b"x-pomerium-",
    b"x-ssl-client-",
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
        b"x-original-path",
        b"x-original-uri",
        b"x-original-url",
        b"x-proxyuser-ip",
        b"x-real-ip",
        b"x-rewrite-url",
    }
)
"""Fields that would tell the upstream another peer, path, host or method than the one that was judged."""


def canonical(name: bytes) -> bytes:
    """Return *name* as the most lenient reader takes it: lower case, with ``-`` for whatever is no letter or digit."""
    return _NOT_ALPHANUMERIC.sub(b"-", name.lower())


Known = tuple[bytes | None, bytes | None, bytes]
"""
What is known of a field line: the line as it passes on, ``name: value``, or None if it doesn't; the field's name in
lower case if the broker reads it, or None; its value. (A plain tuple: one is made for each line that is new.)
"""


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

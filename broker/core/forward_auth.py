"""
Forward-auth: what a gateway says of a request that it holds, and what it must say.

The gateway stays the data plane. For each request it asks the broker, by a request of its own, whether the *original*
request may go on and with which fields. Whoever could put words into the gateway's mouth would choose what is judged,
so everything that isn't said once, plainly, and in the one way of this kind of gateway is refused:

    the gateway shows no secret, or another            403, and nothing is looked at
    method, target, host or scheme missing, or twice   400
    two fields that speak of the same and differ       400: one of them is the caller's
    a field that the gateway would hand on, and the    400: the broker can't take it out, and the upstream would
    proxy would have taken out                         believe it

Source: nginx, ngx_http_auth_request_module; Traefik, ForwardAuth; Caddy, forward_auth; Envoy, HTTP ext_authz filter;
CVE-2026-40575, CVE-2026-34457, CVE-2026-30851.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from types import MappingProxyType
from typing import Final

from broker.core.headers import CONNECTION_FIELDS, IDENTITY_FIELDS, IDENTITY_PREFIXES, canonical
from broker.core.options import OptionError, option
from broker.core.secret import SHARED_SECRET, Secret, is_shared_secret
from broker.errors import BadRequest

SECRET_FIELD: Final = b"x-gateway-secret"
"""By which a gateway shows that it is one."""

_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9])?")

Fields = Sequence[tuple[bytes, bytes]]
"""Header fields: names and values, as they came."""


class Gateway(StrEnum):
    """A kind of gateway."""

    NGINX = "nginx"
    HAPROXY = "haproxy"
    TRAEFIK = "traefik"
    CADDY = "caddy"
    ENVOY = "envoy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """
    How a kind of gateway asks, and which answers it understands.

    Attributes:
        method: The field that names the original method; None if the gateway asks by that very method.
        target: The field that holds the original target; None if it stands behind the endpoint's own path.
        host: The field that names the original host.
        scheme: The field that names the original scheme; None if the gateway doesn't say.
        allowed_status: The status that lets a request on.
        knows_only_401_and_403: Whether any other refusal is a fault to it.
        takes_removals: Whether it takes a list of fields to remove (``X-Envoy-Auth-Headers-To-Remove``).
    """

    method: bytes | None = b"x-original-method"
    target: bytes | None = b"x-original-uri"
    host: bytes = b"host"
    scheme: bytes | None = None
    allowed_status: int = 202
    knows_only_401_and_403: bool = False
    takes_removals: bool = False


_FORWARDED = Dialect(
    method=b"x-forwarded-method",
    target=b"x-forwarded-uri",
    host=b"x-forwarded-host",
    scheme=b"x-forwarded-proto",
)

DIALECTS: Mapping[Gateway, Dialect] = MappingProxyType(
    {
        Gateway.NGINX: Dialect(knows_only_401_and_403=True),
        Gateway.HAPROXY: Dialect(),
        Gateway.TRAEFIK: _FORWARDED,
        Gateway.CADDY: _FORWARDED,
        Gateway.ENVOY: Dialect(method=None, target=None, allowed_status=200, takes_removals=True),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardAuthOptions:
    """Answering gateways that ask whether a request may go on, at `/bff/auth`."""

    gateway: Gateway = option("The kind of gateway: how it asks, and which answers it understands.")
    secrets: tuple[Secret, ...] = option(
        "What the gateway shows in `X-Gateway-Secret`. Any of them is taken, so that they can be rotated.",
        default=(),
        example="[{file: /run/secrets/gateway}]",
    )
    certificate_names: tuple[str, ...] = option(
        "The DNS names of gateways' client certificates, by `tls.client_ca_file`. Whoever shows one needs no secret.",
        default=(),
        example="[gateway.internal]",
    )
    networks: tuple[IPv4Network | IPv6Network, ...] = option(
        "The networks of the gateways; without it, whoever shows a secret or a certificate is one.",
        default=(),
        example="[10.0.1.0/24]",
    )
    client_certificates: bool = option(
        "Whether the gateway asks clients for certificates and says in `Client-Cert` which one was shown, in place of "
        "whatever the client sent under that name. Otherwise a request that has the field is refused.",
        default=False,
    )
    release_token: bool = option(
        "Whether a gateway is given access tokens, for the routes that say `release_token: true`.", default=False
    )

    def __post_init__(self) -> None:
        if not self.secrets and not self.certificate_names:
            raise OptionError("secrets", "at least one secret, or certificate_names")
        for index, name in enumerate(self.certificate_names):
            if not _NAME.fullmatch(name):
                raise OptionError(f"certificate_names[{index}]", "a DNS name in lower case, without a wildcard")
        for index, secret in enumerate(self.secrets):
            if not is_shared_secret(secret):
                raise OptionError(f"secrets[{index}]", SHARED_SECRET)
        if len(set(self.secrets)) != len(self.secrets):
            raise OptionError("secrets", "each secret once")
        for index, network in enumerate(self.networks):
            if network.prefixlen == 0:
                raise OptionError(f"networks[{index}]", "the networks of your gateways, not everybody's")


def shows_secret(fields: Fields, secrets: Iterable[Secret]) -> bool:
    """Return whether *fields* show one of *secrets*, exactly once."""
    shown = [value for name, value in fields if name.lower() == SECRET_FIELD]
    if len(shown) != 1:
        return False
    candidate = Secret(shown[0].decode("latin-1"))
    # All are compared, each in constant time.
    return sum(candidate == secret for secret in secrets) > 0


def shows_certificate(certificate: Mapping[str, object] | None, names: Collection[str]) -> bool:
    """
    Return whether *certificate* has one of *names*.

    Args:
        certificate: A peer's certificate that TLS has verified, as ``ssl.SSLSocket.getpeercert`` gives it.
        names: DNS names in lower case. A wildcard in the certificate is none of them.

    Source: RFC 9525 section 6 (the common name says nothing).
    """
    if not certificate:
        return False
    alternatives = certificate.get("subjectAltName", ())
    assert isinstance(alternatives, tuple)
    return any(kind == "DNS" and value.lower() in names for kind, value in alternatives)


@dataclass(frozen=True, slots=True)
class OriginalRequest:
    """
    The request that a gateway holds.

    Attributes:
        method: Its method.
        target: Its target.
        lines: Its field lines, as far as the broker judges them.
        is_websocket: Whether it opens a WebSocket.
    """

    method: str
    target: bytes
    lines: list[bytes]
    is_websocket: bool


def original_request(
    dialect: Dialect, fields: Fields, *, method: str, below: bytes, scheme: str, own_names: frozenset[bytes]
) -> OriginalRequest:
    """
    Return the request that a gateway asks about.

    Args:
        dialect: How it asks.
        fields: The fields of the gateway's request.
        method: The method of the gateway's request.
        below: What its target has behind the endpoint's path.
        scheme: The scheme of ``public_url``.
        own_names: The canonical names that only the broker may set, or nobody.

    Raises:
        BadRequest: If that isn't said once and plainly, or the request has a field that must not go on.
    """
    said: dict[bytes, bytes] = {}
    lines = []
    for name, value in fields:
        lower = name.lower()
        if lower in _WORDS:
            if lower in said:
                raise BadRequest(f"{lower.decode()} came twice")
            said[lower] = value
        elif lower not in _BETWEEN_US:
            _check_handed_on(lower, own_names)
            lines.append(b"%b: %b" % (name, value))
    original = OriginalRequest(
        _the_one(said, _METHOD_WORDS, dialect.method, method.encode()).decode("latin-1"),
        _the_one(said, _TARGET_WORDS, dialect.target, below),
        lines,
        _is_websocket(fields),
    )
    host = _the_one(said, _HOST_WORDS | {dialect.host}, dialect.host, b"")
    _check_scheme(said, dialect, scheme)
    lines.append(b"Host: " + host)
    if original.is_websocket:
        # Gateways keep these two fields to themselves, and without them nothing tells a WebSocket from a call.
        lines += [b"Connection: Upgrade", b"Upgrade: websocket"]
    return original


def _the_one(said: Mapping[bytes, bytes], words: frozenset[bytes], decisive: bytes | None, otherwise: bytes) -> bytes:
    """What the *decisive* field says, and no other one of *words* denies."""
    value = otherwise if decisive is None else said.get(decisive, b"")
    if not value:
        raise BadRequest("nothing is asked about" if decisive is None else f"{decisive.decode()} is missing")
    for word in words & said.keys():
        if said[word] != value:
            raise BadRequest(f"{word.decode()} denies what the gateway says")
    return value


def _check_scheme(said: Mapping[bytes, bytes], dialect: Dialect, scheme: str) -> None:
    if dialect.scheme is not None and dialect.scheme not in said:
        raise BadRequest(f"{dialect.scheme.decode()} is missing")
    for word in _SCHEME_WORDS & said.keys():
        named = said[word].lower()
        # Traefik says ws for http, where it is a WebSocket.
        if {b"ws": b"http", b"wss": b"https"}.get(named, named) != scheme.encode():
            raise BadRequest(f"{word.decode()} is not the scheme of public_url")


def _is_websocket(fields: Fields) -> bool:
    """Whether a handshake's own field is there (RFC 6455 section 4.1). No script can set it."""
    return any(name.lower() == b"sec-websocket-key" for name, _ in fields)


def _check_handed_on(lower: bytes, own_names: frozenset[bytes]) -> None:
    """Refuse a field that would reach the upstream, and tell it another user, path or method."""
    twin = canonical(lower)
    if (
        twin in own_names
        or twin in _REFUSED
        or (twin.startswith(IDENTITY_PREFIXES) and twin not in _OF_PROXIES)
        # X_Forwarded_For, Cookie.: what the gateway sets or removes, in a spelling that it doesn't know
        or (lower != twin and (twin in _OF_PROXIES or twin in _WORDS or twin in _MADE_HERE))
    ):
        raise BadRequest(f"the gateway would hand on {twin[:64].decode()}")


_METHOD_WORDS = frozenset({b"x-original-method", b"x-forwarded-method"})
_TARGET_WORDS = frozenset({b"x-original-uri", b"x-forwarded-uri"})
_HOST_WORDS = frozenset({b"x-original-host", b"x-forwarded-host"})
_SCHEME_WORDS = frozenset({b"x-original-proto", b"x-original-scheme", b"x-forwarded-proto", b"x-forwarded-scheme"})
_WORDS = _METHOD_WORDS | _TARGET_WORDS | _HOST_WORDS | _SCHEME_WORDS | {b"host"}
"""Fields that speak of the original request."""

_BETWEEN_US = CONNECTION_FIELDS | {b"content-length", SECRET_FIELD}
"""Fields of the gateway's own request."""

CERTIFICATE_FIELDS: Final = frozenset({b"client-cert", b"client-cert-chain"})
"""What a gateway that ends TLS says of the caller's certificate (RFC 9440)."""

_OF_PROXIES = CERTIFICATE_FIELDS | {b"x-forwarded-for", b"x-forwarded-port", b"x-forwarded-server", b"x-forwarded-ssl"}
"""What proxies add about themselves and the caller."""

_MADE_HERE = frozenset({b"authorization", b"cookie", SECRET_FIELD})
"""What the gateway takes from the answer, or keeps to itself."""

_REFUSED = (IDENTITY_FIELDS - _MADE_HERE) | {
    b"x-host",
    b"x-http-host-override",
    b"x-http-method",
    b"x-http-method-override",
    b"x-method-override",
    b"x-original-path",
    b"x-original-url",
    b"x-rewrite-url",
}
"""Fields by which an upstream would take the request for somebody else's, or for another one than was judged."""

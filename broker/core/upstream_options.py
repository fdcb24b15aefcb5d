"""Where a route's requests go, and how its upstream is spoken to, as the operator configures it."""

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from broker.core.client_auth import TlsOptions
from broker.core.options import OptionError, option

_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"  # of at most 63 characters (RFC 1035 section 2.3.4)
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_VISIBLE = re.compile(r"[!-~]+")
_URL_EXPECTED = "http://HOST[:PORT], https://HOST[:PORT] or unix:/PATH, without a path, query or credentials"


@dataclass(frozen=True, slots=True)
class UpstreamAddress:
    """
    One host of an upstream.

    Attributes:
        host: The host's name or address, in lower case; empty for a Unix socket.
        port: The TCP port; 0 for a Unix socket.
        tls: Whether it is spoken to over TLS.
        socket_path: The path of the Unix socket; empty for TCP.
    """

    host: str
    port: int
    tls: bool
    socket_path: str = ""

    @classmethod
    def parse(cls, url: str) -> "UpstreamAddress":
        """
        Read one URL of an upstream.

        Raises:
            OptionError: If it isn't one.
        """
        if url.startswith("unix:"):
            path = url.removeprefix("unix:")
            if not path.startswith("/") or "\0" in path:
                raise OptionError("urls", _URL_EXPECTED)
            return cls("", 0, tls=False, socket_path=path)
        if not _VISIBLE.fullmatch(url):
            raise OptionError("urls", _URL_EXPECTED)  # urlsplit() drops line ends silently
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise OptionError("urls", _URL_EXPECTED) from None
        host = parts.hostname or ""
        bare = parts.path in {"", "/"} and not (parts.query or parts.fragment or "@" in parts.netloc)
        if parts.scheme not in {"http", "https"} or not bare or port == 0 or not _is_host(host):
            raise OptionError("urls", _URL_EXPECTED)
        tls = parts.scheme == "https"
        return cls(host, port or (443 if tls else 80), tls)

    @property
    def authority(self) -> str:
        """What the Host header field says to it (RFC 9112 section 3.2)."""
        if self.socket_path:
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    @property
    def label(self) -> str:
        """Its name in logs and metrics."""
        return (
            f"unix:{self.socket_path}" if self.socket_path else f"{'https' if self.tls else 'http'}://{self.authority}"
        )

    @property
    def is_private_channel(self) -> bool:
        """Whether nobody between here and there can read along: TLS, loopback, or a Unix socket."""
        if self.tls or self.socket_path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return _HOST.fullmatch(host) is not None
    return True


class Balance(StrEnum):
    """How one of several hosts is chosen."""

    ROUND_ROBIN = "round_robin"
    LEAST_CONNECTIONS = "least_connections"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamOptions:
    """The hosts of a route's upstream. A plain URL, or a list of them, is short for ``urls``."""

    urls: tuple[str, ...] = option(
        f"Its hosts, each as {_URL_EXPECTED}.",
        example="[https://orders-1.internal:8443, https://orders-2.internal:8443]",
    )
    balance: Balance = option("How one of several hosts is chosen.", default=Balance.ROUND_ROBIN)
    tls: TlsOptions = option("TLS towards the hosts.", default_factory=TlsOptions)
    sni: str | None = option(
        "The name that the hosts' certificates must hold and that TLS asks for, where it isn't the host of the URL.",
        default=None,
    )
    preserve_host: bool = option(
        "Send the caller's Host header field on, instead of the host of the URL.", default=False
    )
    max_connections: int = option(
        "How many connections one process opens to each host. A caller who is slow with its body, or with taking its "
        "answer, holds one; so it should be more than there may be of these.",
        default=1024,
    )
    max_idle_connections: int = option("How many of them are kept open while idle.", default=64)
    max_waiting: int = option(
        "How many requests wait for a connection, for each host; further ones are refused with 503.", default=1024
    )
    keepalive_timeout_seconds: float = option(
        "An idle connection is closed after this long. It must be shorter than the hosts' own limit.", default=30.0
    )
    max_failures: int = option(
        "After so many failures in a row a host is given a rest, while another one works.", default=3
    )
    rest_seconds: float = option("How long that rest is.", default=10.0, key="rest")

    def __post_init__(self) -> None:
        if not self.urls:
            raise OptionError("urls", "at least one URL")
        addresses = self.addresses
        if len(set(addresses)) != len(addresses):
            raise OptionError("urls", "each host once")
        if len({address.tls for address in addresses}) != 1:
            raise OptionError("urls", "either only https hosts or none")
        if not addresses[0].tls and (self.tls != TlsOptions() or self.sni is not None):
            raise OptionError("tls", "https URLs beside it")
        if self.sni is not None and not _HOST.fullmatch(self.sni):
            raise OptionError("sni", "a host name in lower case")
        for key, least in (
            ("max_connections", 1),
            ("max_idle_connections", 0),
            ("max_waiting", 0),
            ("max_failures", 1),
        ):
            if getattr(self, key) < least:
                raise OptionError(key, f"a number of at least {least}")
        if not 0 < self.keepalive_timeout_seconds <= 3600:
            raise OptionError("keepalive_timeout", "a duration above 0 and at most 1h")
        if not 0 < self.rest_seconds <= 3600:
            raise OptionError("rest", "a duration above 0 and at most 1h")

    @property
    def addresses(self) -> tuple[UpstreamAddress, ...]:
        """The hosts, parsed."""
        return tuple(UpstreamAddress.parse(url) for url in self.urls)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutOptions:
    """How long an upstream and its callers may take. None of it limits how long a healthy stream lasts."""

    connect_seconds: float = option(
        "Until a connection to the upstream stands, TLS and waiting for a free one included. Of several hosts each has "
        "its share of it, so that there is time left for the next one.",
        default=5.0,
    )
    response_header_seconds: float = option(
        "From the end of the request until the answer's header section is there.", default=60.0
    )
    idle_seconds: float = option("Between two reads or writes of a body that is under way.", default=300.0)

    def __post_init__(self) -> None:
        for key in ("connect", "response_header", "idle"):
            if not 0 < getattr(self, f"{key}_seconds") <= 86400:
                raise OptionError(key, "a duration above 0 and at most 1d")

"""Where the broker listens, and where the world finds it."""

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address
from typing import Self
from urllib.parse import urlsplit

from broker.core.options import OptionError

_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_ADDRESS = re.compile(r"(\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[^:\[\]/]+)):(?P<port>[0-9]{1,5})")


def is_loopback(host: str) -> bool:
    """
    Return whether *host* is this machine alone.

    Source: RFC 6761 section 6.3 (``localhost`` and what ends with it).
    """
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        name = host.lower().rstrip(".")
        return name == "localhost" or name.endswith(".localhost")


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """
    A TCP address to listen on.

    Attributes:
        host: An address or a name.
        port: 0 lets the system choose.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.host)

    @classmethod
    def from_option(cls, value: object) -> Self:
        """Read ``HOST:PORT`` or ``[IPv6]:PORT``. Raises OptionError."""
        refusal = OptionError("", str(cls.option_schema()["description"]))
        match = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
        if match is None or int(match["port"]) > 65535:
            raise refusal
        return cls(host=_host(match["name"], match["six"], refusal), port=int(match["port"]))

    @classmethod
    def option_schema(cls) -> dict[str, object]:
        return {
            "type": "string",
            "description": "an address such as 127.0.0.1:8080 or [::1]:8080",
        }


@dataclass(frozen=True, slots=True)
class PublicUrl:
    """
    The origin under which browsers reach the broker (RFC 6454).

    Attributes:
        scheme: ``https``, or ``http`` on this machine.
        host: In lower case; an IPv6 address stands in brackets.
        port: None for the scheme's own.
    """

    scheme: str
    host: str
    port: int | None = None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """What the Host header of its requests says (RFC 9110 section 7.2)."""
        return self.host if self.port is None else f"{self.host}:{self.port}"

    @property
    def origin(self) -> str:
        """What the Origin header of its pages says (RFC 6454 section 6.2)."""
        return str(self)

    @property
    def is_secure(self) -> bool:
        """Whether cookies may be Secure and have the ``__Host-`` prefix."""
        return self.scheme == "https"

    @classmethod
    def from_option(cls, value: object) -> Self:
        """Read an origin. Raises OptionError."""
        refusal = OptionError("", str(cls.option_schema()["description"]))
        if not isinstance(value, str) or not value.isascii() or not value.isprintable() or "\\" in value:
            raise refusal
        try:
            parts = urlsplit(value)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise refusal from None
        beyond = parts.path not in {"", "/"} or "?" in value or "#" in value or "@" in value
        if parts.scheme not in {"http", "https"} or beyond or parts.netloc.endswith(":"):
            raise refusal
        six = host if ":" in host else None
        host = _host(None if six else host, six, refusal)
        if parts.scheme == "http" and not is_loopback(host):
            raise OptionError("", "an https URL: without TLS, cookies and tokens are open to everybody on the way")
        port = None if port == {"http": 80, "https": 443}[parts.scheme] else port
        return cls(parts.scheme, f"[{host}]" if six else host, port)

    @classmethod
    def option_schema(cls) -> dict[str, object]:
        return {"type": "string", "description": "an origin such as https://app.example.com, without a path"}


def _host(name: str | None, six: str | None, refusal: OptionError) -> str:
    """Return a host in its normal form. Raises *refusal*."""
    try:
        if six is not None:
            return str(IPv6Address(six))
        assert name is not None
        if name.rpartition(".")[2].isdigit():  # WHATWG URL section 3.5: what ends in a number is an IPv4 address
            return str(IPv4Address(name))
    except AddressValueError:
        raise refusal from None
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise refusal
    return name.lower()

"""Which hosts are served: the Host header field against what the configuration names, and nothing else."""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from broker.errors import BadRequest, UnknownHost

_AUTHORITY = re.compile(rb"([A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]+\])(\.?)(?::([0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": b"80", "https": b"443"}


class KnownHosts:
    """The hosts of ``public_url`` and of the routes, all on the port of ``public_url``."""

    def __init__(self, public_url: str, route_hosts: Iterable[str] = ()) -> None:
        """
        Args:
            public_url: The URL under which browsers reach the broker.
            route_hosts: Further hosts, without ports.
        """
        parts = urlsplit(public_url)
        default = _DEFAULT_PORTS[parts.scheme]
        port = str(parts.port).encode() if parts.port else default
        own = parts.hostname or ""
        self.own_host = f"[{own}]" if ":" in own else own
        self._known: dict[bytes, str] = {}
        for host in (self.own_host, *route_hosts):
            self._known[host.encode() + b":" + port] = host
            if port == default:
                self._known[host.encode()] = host

    def match(self, authority: bytes) -> str:
        """
        Return the host that a Host header field names: in lower case, without its port.

        Raises:
            BadRequest: If the field doesn't hold a host (RFC 9112 section 3.2).
            UnknownHost: If the host isn't served here.
        """
        known = self._known.get(authority)
        return known if known is not None else self._match_other_spelling(authority)

    def _match_other_spelling(self, authority: bytes) -> str:
        spelled = _AUTHORITY.fullmatch(authority)
        if spelled is None:
            raise BadRequest("the Host header field holds no host")
        host, _dot, port = spelled.groups(b"")
        known = self._known.get(host.lower() + (b":" + port if port else b""))
        if known is None:
            raise UnknownHost("the Host header field names a host that is not served here")
        return known

"""
Who the caller is behind the proxies in front of the broker, and what the upstream is told about it.

Forwarding fields are believed only as far as trusted proxies wrote them: read from the right, the first address that
isn't a trusted proxy is the caller, and whatever stands to its left is its own claim.

Source: RFC 7239 section 8.1; MDN, X-Forwarded-For, "Selecting an IP address".
"""

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network

from broker.core.forwarded_field import address_of, read_elements
from broker.errors import BadRequest

MAX_HOPS = 16
"""More hops than this are refused: nobody has that many proxies."""

_MAX_REMEMBERED = 4096


class ForwardingField(StrEnum):
    """In which field trusted proxies say where a request came from."""

    X_FORWARDED_FOR = "x-forwarded-for"
    FORWARDED = "forwarded"
    """As RFC 7239 has it."""


@dataclass(frozen=True, slots=True)
class Caller:
    """
    Who sent the request.

    Attributes:
        address: The caller's IP address, for rate limits and logs.
        hops: The trusted proxies that the request came through, the nearest last.
        forwarded_for: The ``X-Forwarded-For`` that tells the upstream.
    """

    address: str
    hops: tuple[str, ...] = ()
    forwarded_for: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "forwarded_for", ", ".join((self.address, *self.hops)).encode())


class TrustedProxies:
    """
    The networks whose forwarding fields are believed.

    Attributes:
        field: The name of the field that is believed, in lower case. The other one is a caller's word: a proxy that
            writes one of them passes the other one on as it came.
    """

    def __init__(
        self,
        networks: Iterable[str | IPv4Network | IPv6Network] = (),
        field: ForwardingField = ForwardingField.X_FORWARDED_FOR,
    ) -> None:
        """
        Args:
            networks: Addresses and networks: ``10.0.0.0/8``, ``fd00::/8``.
            field: The field that is believed.

        Raises:
            ValueError: If one isn't a network.
        """
        self._networks = tuple(ipaddress.ip_network(str(network)) for network in networks)
        self.field = field.value.encode()
        self._is_standard = field is ForwardingField.FORWARDED
        self._remembered: dict[str, bool] = {}
        self._callers: dict[str, Caller] = {}

    def trusts(self, peer: str) -> bool:
        """Return whether *peer*, the address at the other end of the connection, is a trusted proxy."""
        if not self._networks:
            return False
        known = self._remembered.get(peer)
        if known is None:
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            known = self._remembered[peer] = self._is_inside(peer)
        return known

    def _direct(self, peer: str) -> Caller:
        if len(self._callers) >= _MAX_REMEMBERED:
            self._callers.clear()
        caller = self._callers[peer] = Caller(peer)
        return caller

    def _is_inside(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)

    def caller(self, peer: str, claims: Sequence[bytes]) -> Caller:
        """
        Return who sent a request.

        Args:
            peer: The address at the other end of the connection; empty for a Unix socket.
            claims: The values of its fields :attr:`field`.

        Raises:
            BadRequest: If a trusted proxy passed on something that isn't a list of addresses.
        """
        if not claims or not self.trusts(peer):
            return self._callers.get(peer) or self._direct(peer)
        hops = [peer]
        for address in self._addresses(claims):
            if not self.trusts(address):
                return Caller(address, tuple(hops))
            hops.insert(0, address)
        return Caller(hops[0], tuple(hops[1:]))

    def _addresses(self, claims: Sequence[bytes]) -> Iterator[str]:
        """Yield what is claimed from the right. What is to the left of the caller is never read as an address."""
        if self._is_standard:
            elements = [element for value in claims for element in read_elements(value)]
            _check_hops(len(elements))
            yield from map(address_of, reversed(elements))
        else:
            claimed = [hop.strip() for value in claims for hop in value.split(b",")]
            _check_hops(len(claimed))
            yield from map(_address, reversed(claimed))


def _check_hops(count: int) -> None:
    if count > MAX_HOPS:
        raise BadRequest("the request came through too many proxies")


def _address(hop: bytes) -> str:
    text = hop.decode("latin-1")
    # Some proxies write the port too: 192.0.2.1:4711, [2001:db8::1]:4711.
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise BadRequest("a trusted proxy passed on an X-Forwarded-For that holds no address") from None

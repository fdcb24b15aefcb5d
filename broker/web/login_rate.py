"""How often logins are begun and answered: by each client, and by all of them (SECURITY DS-04, LG-03)."""

from ipaddress import IPv6Address, ip_address

from broker.core.login import LoginOptions
from broker.errors import TooManyRequests
from broker.services.limits import EVERYBODY, Rates

_CLIENT_BITS = 64


class LoginRate:
    """Counts one step of the logins."""

    def __init__(self, step: str, options: LoginOptions, rates: Rates) -> None:
        """
        Args:
            step: Its name.
            options: The rates.
            rates: Makes the buckets.
        """
        self._clients = rates(f"{step} client", options.client_rate_limit)
        self._everybody = rates(f"{step} everybody", options.rate_limit)

    def count(self, address: str) -> None:
        """
        Count a request against the rates.

        Args:
            address: The true address of the client.

        Raises:
            TooManyRequests: If one is exceeded. A client that exceeds its own takes nothing of everybody's.
        """
        if wait := self._clients.take(client_of(address)):
            raise TooManyRequests("login.client_rate_limit is exceeded", retry_after_seconds=wait)
        if wait := self._everybody.take(EVERYBODY):
            raise TooManyRequests("login.rate_limit is exceeded", retry_after_seconds=wait)


def client_of(address: str) -> str:
    """
    Return what one client has for itself: an IPv4 address, or the IPv6 network of 64 bits that one line is given.

    Source: RFC 6177 section 2; RFC 4291 section 2.5.5.2 (IPv4-mapped addresses).
    """
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(IPv6Address(int(parsed) >> _CLIENT_BITS << _CLIENT_BITS))

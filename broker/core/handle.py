"""Handles: opaque credentials by which callers without a browser name a grant."""

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from broker.core.paths import Target

PREFIX = b"tbh_"
"""Lets secret scanners, and the broker itself, tell a handle from a token."""

_HANDLE = re.compile(rb"tbh_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """
    What a handle stands for. The handle itself is nowhere kept, only an HMAC of it.

    Attributes:
        id: Names it to operators and in the log.
        grant_id: The grant whose tokens its calls carry.
        label: What it is for, in the operator's words.
        routes: The paths it may be used for, each with everything below it; empty for all.
        networks: The networks it may be used from; empty for all.
        created_at: Unix seconds.
        ends_at: Unix seconds from which it isn't taken; None for never.
    """

    id: str
    grant_id: str
    label: str = ""
    routes: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    created_at: float
    ends_at: float | None = None


def is_handle(credential: bytes) -> bool:
    """Return whether *credential* has the form of a handle: ``tbh_`` and 256 bits in base64url."""
    return _HANDLE.fullmatch(credential) is not None


def permits(handle: Handle, *, target: Target, address: str) -> bool:
    """
    Return whether *handle*, which hasn't ended, may be used.

    Args:
        handle: The handle.
        target: What is asked for. Every reading of its path must be permitted; routes don't tell cases apart.
        address: The caller's true address.
    """
    if handle.routes:
        routes = [route.lower() for route in handle.routes]
        for path in (target.folded, *target.readings):
            if not any(_is_below(path.decode("latin-1"), route) for route in routes):
                return False
    return not handle.networks or _is_within(address, handle.networks)


def _is_below(path: str, route: str) -> bool:
    return path == route or path.startswith(route if route.endswith("/") else f"{route}/")


def _is_within(address: str, networks: tuple[str, ...]) -> bool:
    try:
        caller = ip_address(address)
    except ValueError:
        return False
    # A socket that takes both families names an IPv4 caller so (RFC 4291 section 2.5.5.2).
    caller = getattr(caller, "ipv4_mapped", None) or caller
    return any(caller in _network(network) for network in networks)


@lru_cache(maxsize=1024)
def _network(network: str) -> IPv4Network | IPv6Network:
    return ip_network(network)

"""Which URLs of authorization servers the broker calls, be they from the configuration or from metadata."""

import ipaddress
from urllib.parse import urlsplit

METADATA_SERVICES = frozenset({"fd00:ec2::254", "100.100.100.200"})
"""Clouds' metadata services (AWS, Alibaba) whose addresses are not link-local ones."""


def url_refusal(url: str, *, insecure: bool) -> str | None:
    """
    Return why *url* must not be called, as a phrase; None if it may be.

    Only https, and http to loopback or where the operator allows it. Never a link-local address, where clouds keep
    their metadata services (CVE-2026-41413).
    """
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        return "is no URL"
    if (
        not host
        or parts.username is not None
        or parts.password is not None
        or not url.isascii()
        or not url.isprintable()
    ):
        return "is no URL of a host"
    if is_forbidden(host):
        return "is a link-local address"
    if parts.scheme == "https" or (parts.scheme == "http" and (insecure or is_loopback(host))):
        return None
    return "is not https"


def is_loopback(host: str) -> bool:
    """Return whether *host* names this machine by an address of it or as ``localhost``."""
    address = _address(host)
    return host == "localhost" or host.endswith(".localhost") or (address is not None and address.is_loopback)


def is_forbidden(host: str) -> bool:
    """Return whether *host* is an address that is never called, in any spelling."""
    address = _address(host)
    if address is None:
        return False
    return address.is_link_local or address.is_multicast or address.is_unspecified or str(address) in METADATA_SERVICES


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address

"""
``Forwarded``: what proxies say about a request in one field, read strictly and written.

    Forwarded: for=192.0.2.43, for="[2001:db8:cafe::17]:4711";proto=https;host=app.example.com

A proxy appends its element to whatever the caller sent, so the caller's part is in front, and might be made to swallow
the proxy's: by a quote that isn't closed, say. Hence nothing is forgiven: a field that isn't by the grammar from its
first byte to its last is refused as a whole.

Source: RFC 7239 sections 4 to 6; RFC 9110 section 5.6.
"""

import re
from collections.abc import Sequence
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from broker.errors import BadRequest

MAX_BYTES = 4096
"""Longer fields are refused."""

_PAIR = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+)="
    rb"(?:([!#$%&'*+\-.^_`|~0-9A-Za-z]+)"
    rb'|"((?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*)")'
)
_COMMA = re.compile(rb"[ \t]*,[ \t]*")
_QUOTED_PAIR = re.compile(rb"\\(.)", re.DOTALL)
_NODE = re.compile(
    r"(?:(?P<four>[0-9.]{7,15})|\[(?P<six>[0-9A-Fa-f:.]{2,45})\]|(?P<hidden>unknown|_[A-Za-z0-9._-]+))"
    r"(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?",
    re.ASCII | re.IGNORECASE,
)
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

Element = dict[bytes, bytes]
"""What one proxy says: values by the names of parameters in lower case, without quotes."""


def read_elements(value: bytes) -> list[Element]:
    """
    Read one ``Forwarded`` field.

    Raises:
        BadRequest: If it isn't by the grammar, or says something twice in one element.
    """
    if len(value) > MAX_BYTES:
        raise BadRequest("the Forwarded field is too long")
    elements: list[Element] = [{}]
    at = 0
    while True:
        pair = _PAIR.match(value, at)
        if pair is None:
            raise BadRequest("the Forwarded field is malformed")
        name, plain, quoted = pair[1].lower(), pair[2], pair[3]
        if name in elements[-1]:
            raise BadRequest("the Forwarded field says something twice")
        elements[-1][name] = plain if quoted is None else _QUOTED_PAIR.sub(rb"\1", quoted)
        at = pair.end()
        if at == len(value):
            return elements
        if value[at : at + 1] == b";":
            at += 1
        elif (comma := _COMMA.match(value, at)) is not None:
            elements.append({})
            at = comma.end()
        else:
            raise BadRequest("the Forwarded field is malformed")


def address_of(element: Element) -> str:
    """
    Return the IP address for which a proxy forwarded.

    Raises:
        BadRequest: If it says none: it doesn't know, or hides it (RFC 7239 sections 6.2 and 6.3).
    """
    node = _NODE.fullmatch(element.get(b"for", b"").decode("latin-1"))
    if node is None or node["hidden"] is not None:
        raise BadRequest("a trusted proxy passed on a Forwarded element without an address")
    try:
        return str(IPv4Address(node["four"]) if node["four"] is not None else IPv6Address(node["six"]))
    except AddressValueError:
        raise BadRequest("a trusted proxy passed on a Forwarded element without an address") from None


def write_elements(addresses: Sequence[bytes], *, host: bytes, proto: bytes) -> bytes:
    """
    Return the value of ``Forwarded``.

    Args:
        addresses: The caller's and the proxies' addresses, the nearest last; an empty one is a Unix socket.
        host: The ``Host`` that the nearest asked for.
        proto: The scheme by which.
    """
    elements = [b"for=" + _value(b"[%b]" % each if b":" in each else each or b"unknown") for each in addresses]
    elements[-1] += b";host=%b;proto=%b" % (_value(host), proto)
    return b", ".join(elements)


def _value(text: bytes) -> bytes:
    if _TOKEN.fullmatch(text):
        return text
    return b'"%b"' % text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')

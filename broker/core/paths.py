"""
Which request targets are taken, and how else a reader behind the broker might read them.

The bytes that are judged are the bytes that are forwarded: nothing is decoded, normalized or joined in between. A path
that another reader could take for a path of a different route is refused, not repaired: the broker and the upstream
would otherwise decide about two different resources.

- What no honest client sends is refused outright: encoded slashes and controls, dot segments, empty segments, double
  encoding, anything outside ASCII.
- What is legal but read differently by tolerant servers (``%61`` for ``a``, ``;parameters``, trailing dots, the case
  of letters) is listed in :attr:`Target.readings`; the route table refuses the path unless all readings reach the same
  route (broker.core.routing).

Source: RFC 3986 sections 3.3 and 6.2, RFC 9112 section 3.2, RFC 9700 section 4.1.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from broker.errors import AmbiguousPath, BadRequest

MAX_REMEMBERED: Final = 4096
"""So many targets are remembered: frontends ask for the same ones again and again."""
MAX_REMEMBERED_BYTES: Final = 128
"""Longer targets, which hardly come twice, aren't."""

# What browsers send in a path without encoding it: pchar without ";" and "%" (RFC 3986), and "|[]" (WHATWG URL).
_PLAIN = rb"A-Za-z0-9\-_~!$&'()*+,=:@|\[\]"
# Segments of plain characters and inner dots: "a.b" but neither "." nor "..", ".a." nor "a.".
_SEGMENT = rb"\.{0,2}[" + _PLAIN + rb"]+(?:\.+[" + _PLAIN + rb"]+)*"
_QUERY = rb"\?[\x21\x22\x24-\x7e]*"
_PLAIN_TARGET = re.compile(rb"(/(?:" + _SEGMENT + rb"/)*(?:" + _SEGMENT + rb")?)(" + _QUERY + rb")?")
_PATH_BYTES = re.compile(rb"/(?:[./;" + _PLAIN + rb"]|%[0-9A-Fa-f]{2})*")
_QUERY_BYTES = re.compile(_QUERY)
_ABSOLUTE = re.compile(rb"https?://([^/?#\\]*)(.*)", re.IGNORECASE | re.DOTALL)
_ESCAPE = re.compile(rb"%[0-9A-Fa-f]{2}")


class Target(NamedTuple):
    """
    A request target that may be matched and forwarded.

    Attributes:
        path: The path, as it came.
        query: The query with its ``?``, as it came; empty if there is none.
        folded: The path in lower case, by which routes are found.
        readings: Other paths, in lower case, for which tolerant readers could take this one.
    """

    path: bytes
    query: bytes
    folded: bytes
    readings: frozenset[bytes] = frozenset()


def read_target(target: bytes, host: bytes) -> Target:
    """
    Judge a request target.

    Args:
        target: The request target, as it came.
        host: The Host header field's value, with which an absolute-form target must agree (RFC 9112 section 3.2.2).

    Raises:
        AmbiguousPath: If two readers could take the path for two different ones.
        BadRequest: If the target isn't an origin-form of RFC 9112 section 3.2.1, nor an absolute-form for this host.
    """
    plain = (_remembered if len(target) <= MAX_REMEMBERED_BYTES else _read_plain)(target)
    if plain is not None:
        return plain
    if not target.startswith(b"/"):
        target = _origin_form(target, host)
    return _read_origin_form(target)


def _read_plain(target: bytes) -> Target | None:
    """Read a target that every reader reads alike; None if it isn't one."""
    plain = _PLAIN_TARGET.fullmatch(target)
    if plain is None:
        return None
    path, query = plain.groups(b"")
    return Target(path, query, path.lower())


_remembered = lru_cache(maxsize=MAX_REMEMBERED)(_read_plain)
"""The same, for targets that came before."""


def _origin_form(target: bytes, host: bytes) -> bytes:
    """The origin-form of an absolute-form target for *host*."""
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise BadRequest("the request target is neither a path nor an absolute URL")
    authority, rest = absolute.groups()
    if not authority or authority.lower() != host.lower():
        raise BadRequest("the request target names another host than the Host header field")
    if not rest.startswith(b"/"):
        raise BadRequest("the absolute request target has no path")
    return rest


def _read_origin_form(target: bytes) -> Target:
    path, mark, query = target.partition(b"?")
    if mark and not _QUERY_BYTES.fullmatch(mark + query):
        raise BadRequest("the query holds a byte that must be encoded")
    if b"//" in path:
        raise AmbiguousPath("the path has an empty segment")
    if not _PATH_BYTES.fullmatch(path):
        raise AmbiguousPath("the path holds a byte that must be encoded, or a broken escape")
    _check_decoded(unquote_to_bytes(path))
    readings = _readings(path)
    for reading in (path, *readings):
        _check_segments(reading)
    folded = path.lower()
    return Target(path, mark + query, folded, readings - {folded})


def _check_decoded(decoded: bytes) -> None:
    """Refuse what only shows after one decoding."""
    if any(byte < 0x20 or byte == 0x7F for byte in decoded):
        raise AmbiguousPath("the path encodes a control character")
    if b"\\" in decoded:
        raise AmbiguousPath("the path encodes a backslash")
    if _ESCAPE.search(decoded):
        raise AmbiguousPath("the path is encoded twice")
    try:
        decoded.decode()
    except UnicodeDecodeError:
        # Overlong forms (%c0%af) are a slash to a careless decoder (RFC 3629 section 10).
        raise AmbiguousPath("the path encodes bytes that are not UTF-8") from None


def _decode(path: bytes) -> bytes:
    """Decode the path once; an encoded slash is refused, since readers differ on whether it separates."""
    decoded = unquote_to_bytes(path)
    if decoded.count(b"/") != path.count(b"/"):
        raise AmbiguousPath("the path encodes a slash")
    return decoded


def _compatible(path: bytes) -> bytes:
    """Fold what looks like ASCII into ASCII, as readers with "best fit" tables do."""
    folded = unicodedata.normalize("NFKC", _decode(path).decode()).encode()
    if folded.count(b"/") != path.count(b"/") or b"\\" in folded:
        raise AmbiguousPath("the path encodes a look-alike of a slash")
    return folded


def _cut(path: bytes) -> bytes:
    """What a reader that splits after decoding takes for the path."""
    return re.split(rb"[?#]", path, maxsplit=1)[0]


def _without_parameters(path: bytes) -> bytes:
    """The path without ``;parameters``, as servlet containers read it."""
    return re.sub(rb";[^/]*", b"", path)


def _without_trailing_dots(path: bytes) -> bytes:
    """The path as a Windows file system reads it."""
    return re.sub(rb"(?<=[^/. ])[. ]+(?=/|\Z)", b"", path)


_HABITS: tuple[tuple[Callable[[bytes], bytes], ...], ...] = (
    (_decode, _compatible),
    (_cut,),
    (_without_parameters,),
    (_without_trailing_dots,),
)


def _readings(path: bytes) -> frozenset[bytes]:
    """Every way of reading *path* that some of the habits above make, in lower case."""
    found = {path}
    for alternatives in _HABITS:
        found |= {habit(reading) for reading in found for habit in alternatives}
    return frozenset(reading.lower() for reading in found)


def _check_segments(reading: bytes) -> None:
    segments = reading.split(b"/")[1:]
    if any(not segment for segment in segments[:-1]):
        raise AmbiguousPath("a reading of the path has an empty segment")
    if any(segment and not segment.strip(b". ") for segment in segments):
        raise AmbiguousPath("the path has a dot segment")

"""
Cookies, read as the bytes that came and written by one hand.

Lenient readers are how one cookie passes for another: a name behind U+2000 is read as ours, of two equal names the
last wins, quotes and case are smoothed away. This reader knows only what browsers send: pairs between semicolons,
spaces and tabs around them, a name up to the first ``=``, and nothing decoded. Whoever takes cookies out of a request
is lenient instead: a twin that any reader could take for ours goes no further.

Source: RFC 6265 section 4.2.1 and 5.4; draft-ietf-httpbis-rfc6265bis section 4.1.3 (prefixes).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self
from urllib.parse import unquote_to_bytes

from broker.core.session import SameSite
from broker.errors import BadRequest

MAX_COOKIE_BYTES = 4096
"""Browsers drop a cookie whose name and value are longer (rfc6265bis section 5.6)."""

_MAX_JUDGED = 1024
_WHITE_SPACE = b" \t"
_LOOSE = bytes(set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))
_VALUE = re.compile(r"[A-Za-z0-9_.~-]*")


@dataclass(frozen=True, slots=True)
class CookieNames:
    """
    What the broker calls its cookies.

    ``__Host-`` has the browser demand Secure, Path=/ and no Domain, so that no sibling host and no plain-text
    connection can set them; ``Http-`` that no script can. Plain-text loopback can't have either.

    Attributes:
        prefix: ``__Host-Http-``, or nothing on plain-text loopback.
        secure: Whether they carry the Secure attribute.
    """

    prefix: str
    secure: bool

    @classmethod
    def for_public_url(cls, public_url: str) -> Self:
        """Return the names for a broker that browsers reach under *public_url*."""
        secure = public_url.startswith("https:")
        return cls("__Host-Http-" if secure else "", secure)

    @property
    def session(self) -> str:
        """The name of the session cookie."""
        return f"{self.prefix}session"

    def login(self, attempt: str) -> str:
        """Return the name of the transaction cookie of one login attempt; *attempt* is eight hexadecimal digits."""
        return f"{self.prefix}login-{attempt}"

    def matcher(self) -> Callable[[bytes], bool]:
        """Return what tells whether a cookie's name is ours, or could be taken for ours by some reader."""
        fullmatch = re.compile(
            rb"%b(?:session|login-[0-9a-f]{8})" % re.escape(self.prefix.lower()).encode(), re.IGNORECASE
        ).fullmatch
        judged: dict[bytes, bool] = {}

        def is_ours(name: bytes) -> bool:
            # Browsers send the same few names with every request.
            known = judged.get(name)
            if known is None:
                if len(judged) >= _MAX_JUDGED:
                    judged.clear()
                plain = unquote_to_bytes(name) if b"%" in name else name
                known = judged[name] = fullmatch(plain.translate(None, _LOOSE)) is not None
            return known

        return is_ours


def read_cookie(header_values: Sequence[bytes], name: bytes) -> bytes | None:
    """
    Return the value of the cookie *name*, as it came.

    Args:
        header_values: Every ``Cookie`` line of the request.
        name: The exact name.

    Returns:
        The bytes after the first ``=``, or None if no such cookie came.

    Raises:
        BadRequest: If it came more than once. One of the two was planted, and nobody can say which: browsers send a
            cookie of a ``__Host-`` name once.
    """
    found: bytes | None = None
    for line in header_values:
        if name not in line:
            continue
        for value in _values_of(name)(line):
            if found is not None:
                raise BadRequest("the cookie came twice")
            found = value.strip(_WHITE_SPACE)
    return found


@lru_cache(maxsize=16)
def _values_of(name: bytes) -> Callable[[bytes], list[bytes]]:
    return re.compile(rb"(?:^|;)[ \t]*%b[ \t]*=([^;]*)" % re.escape(name)).findall


def read_cookies(header_values: Sequence[bytes], name: re.Pattern[bytes]) -> list[tuple[bytes, bytes]]:
    """Return every cookie whose whole name matches *name*, in the order they came, duplicates included."""
    found = []
    for line in header_values:
        for pair in line.split(b";"):
            key, equals, value = pair.partition(b"=")
            if equals and name.fullmatch(key.strip(_WHITE_SPACE)):
                found.append((key.strip(_WHITE_SPACE), value.strip(_WHITE_SPACE)))
    return found


def strip_cookies(header_values: Sequence[bytes], is_ours: Callable[[bytes], bool]) -> list[bytes]:
    """
    Return the ``Cookie`` lines as they may go upstream: without ours, and otherwise byte for byte as they came.

    Args:
        header_values: Every ``Cookie`` line of the request.
        is_ours: Judges a name; see :meth:`CookieNames.matcher`.
    """
    stripped = []
    for line in header_values:
        pairs = line.split(b";")
        kept = [pair for pair in pairs if not is_ours(pair.partition(b"=")[0])]
        if len(kept) == len(pairs):
            stripped.append(line)
        elif rest := b";".join(kept).strip(_WHITE_SPACE):
            stripped.append(rest)
    return stripped


def set_cookie_name(header_value: bytes) -> bytes:
    """
    Return the name that a ``Set-Cookie`` line sets, for :meth:`CookieNames.matcher` (SECURITY UP-05).

    A cookie without a name is sent back as its value alone, which servers read as a name and a value.
    """
    name, _, value = header_value.partition(b";")[0].partition(b"=")
    return name if name.strip() else value.partition(b"=")[0]


def set_cookie(name: str, value: str, *, secure: bool, same_site: SameSite, max_age_seconds: int | None = None) -> str:
    """
    Return a ``Set-Cookie`` line with every attribute that keeps the cookie to this origin and away from scripts.

    Args:
        name: A name of :class:`CookieNames`.
        value: Characters that need no quoting.
        secure: False only on plain-text loopback.
        same_site: Strict or Lax.
        max_age_seconds: How long the browser keeps it; None for as long as the browser runs.

    Raises:
        ValueError: If *value* would need quoting, or browsers would drop the cookie for its size.
    """
    if not _VALUE.fullmatch(value):
        raise ValueError("a cookie's value must need no quoting")
    if len(name) + len(value) > MAX_COOKIE_BYTES:
        raise ValueError(f"a cookie of {len(name) + len(value)} bytes would be dropped")
    age = "" if max_age_seconds is None else f"; Max-Age={max_age_seconds}"
    return f"{name}={value}{age}; {_attributes(secure=secure, same_site=same_site)}"


def expire_cookie(name: str, *, secure: bool, same_site: SameSite) -> str:
    """
    Return the ``Set-Cookie`` line that removes a cookie.

    It repeats the attributes: browsers refuse a ``__Host-`` cookie without them, even to delete it.
    """
    past = "Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT"
    return f"{name}=; {past}; {_attributes(secure=secure, same_site=same_site)}"


def _attributes(*, secure: bool, same_site: SameSite) -> str:
    return f"Path=/; {'Secure; ' if secure else ''}HttpOnly; SameSite={same_site.capitalize()}"

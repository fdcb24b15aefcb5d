"""
How servers behind a proxy read a path, each with the habits of its kind: the oracle for the broker's own reading.

They are written without regard to broker.core.paths, so that the two can disagree.
"""

import ntpath
import posixpath
import unicodedata
from collections.abc import Callable
from urllib.parse import unquote_to_bytes, urlsplit

from yarl import URL

Reader = Callable[[bytes], str]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def literally(path: bytes) -> str:
    """A proxy that compares bytes."""
    return _text(path)


def decoding(path: bytes) -> str:
    """Most frameworks: decode once, and look up the result."""
    return _text(unquote_to_bytes(path))


def decoding_then_normalizing(path: bytes) -> str:
    """Location matching of nginx: decode, merge slashes, resolve dot segments."""
    merged = _text(unquote_to_bytes(path))
    while "//" in merged:
        merged = merged.replace("//", "/")
    return posixpath.normpath(merged)


def decoding_twice(path: bytes) -> str:
    """A chain of two that each decode."""
    return posixpath.normpath(_text(unquote_to_bytes(unquote_to_bytes(path))))


def servlet_container(path: bytes) -> str:
    """Tomcat and Jetty: drop ;parameters of each segment, decode, normalize."""
    segments = [segment.split(b";", 1)[0] for segment in path.split(b"/")]
    return posixpath.normpath(_text(unquote_to_bytes(b"/".join(segments))) or "/")


def servlet_container_after_decoding(path: bytes) -> str:
    """The same in the other order."""
    segments = [segment.split(";", 1)[0] for segment in _text(unquote_to_bytes(path)).split("/")]
    return posixpath.normpath("/".join(segments) or "/")


def windows_file_system(path: bytes) -> str:
    """IIS and friends: backslashes, letters of any case, trailing dots and spaces."""
    decoded = _text(unquote_to_bytes(path)).replace("\\", "/")
    segments = [segment.rstrip(". ") or segment for segment in decoded.split("/")]
    return ntpath.normpath("/".join(segments)).replace("\\", "/").lower()


def best_fit(path: bytes) -> str:
    """Readers that fold look-alikes into ASCII."""
    return posixpath.normpath(unicodedata.normalize("NFKC", _text(unquote_to_bytes(path))).replace("\\", "/"))


def splitting_after_decoding(path: bytes) -> str:
    """Readers that decode the whole target before they look for ? and #."""
    return posixpath.normpath(_text(unquote_to_bytes(path)).split("?", 1)[0].split("#", 1)[0] or "/")


def c_string(path: bytes) -> str:
    """Readers that stop at NUL."""
    return posixpath.normpath(_text(unquote_to_bytes(path).split(b"\0", 1)[0]) or "/")


def standard_library(path: bytes) -> str:
    """``urllib``: ``//host/path`` has a host."""
    return posixpath.normpath(urlsplit(_text(path)).path or "/")


def yarl_url(path: bytes) -> str:
    """The URL type of aiohttp, on which applications match."""
    try:
        return URL("http://up" + _text(path)).path
    except ValueError:
        return _text(path)


READERS: tuple[Reader, ...] = (
    literally,
    decoding,
    decoding_then_normalizing,
    decoding_twice,
    servlet_container,
    servlet_container_after_decoding,
    windows_file_system,
    best_fit,
    splitting_after_decoding,
    c_string,
    standard_library,
    yarl_url,
)


def route_of(reading: str, routes: list[str]) -> str:
    """The longest of *routes* that a reading is at or below, without regard to case."""
    lower = reading.lower()
    for route in sorted(routes, key=len, reverse=True):
        if route == "/" or lower == route.lower() or lower.startswith(route.lower() + "/"):
            return route
    return ""

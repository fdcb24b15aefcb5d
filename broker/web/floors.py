"""What the libraries must be like before a socket is opened."""

import aiohttp
from aiohttp import http

from broker.errors import OperatorError

AIOHTTP_FLOOR = (3, 14, 5)
"""Below it a HEAD's body could be taken for a second request (SECURITY SM-02)."""


class UnsafeLibrary(OperatorError):
    """A library that the broker's safety rests on is too old, or isn't the part that was checked."""

    code = "unsafe_library"
    title = "A library is not safe to use"


def check_libraries() -> None:
    """
    Refuse libraries that let requests be smuggled.

    Raises:
        UnsafeLibrary: If aiohttp is older than its floor, or runs on its pure-Python parser, which is laxer than the
            parser in C (``AIOHTTP_NO_EXTENSIONS``, or a build without extensions).
    """
    version = tuple(int(part) for part in aiohttp.__version__.split(".")[:3] if part.isdigit())
    if version < AIOHTTP_FLOOR:
        floor = ".".join(map(str, AIOHTTP_FLOOR))
        raise UnsafeLibrary(f"aiohttp must be {floor} or newer, not {aiohttp.__version__}")
    if http.HttpRequestParser.__module__ != "aiohttp._http_parser":
        raise UnsafeLibrary("aiohttp must run on its parser in C: unset AIOHTTP_NO_EXTENSIONS, or install a wheel")

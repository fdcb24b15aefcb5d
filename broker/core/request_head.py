"""
The head of a request, judged: what aiohttp's parser lets through and RFC 9112 doesn't is refused here.

Two readers of one connection must agree on where a request ends. So a request is either framed by exactly one plain
``Content-Length``, or by exactly one ``Transfer-Encoding: chunked``, or has no body; everything else is refused.

Source: RFC 9112 sections 2.3, 3.2, 6 and 9.3; SECURITY SM-03.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from broker.core.paths import Target, read_target
from broker.core.request_fields import FieldBlock
from broker.errors import BadRequest

_METHOD = re.compile(r"[A-Z][A-Z-]{0,31}")
_USUAL_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_NONE: tuple[bytes, ...] = ()


@dataclass(slots=True)
class RequestHead:
    """
    A request that may be answered.

    Attributes:
        method: The method, as it came.
        target: The judged request target.
        is_http11: Whether the caller speaks HTTP/1.1; otherwise HTTP/1.0.
        block: Its field lines.
        keep_alive: Whether the caller wants to use the connection again.
        upgrade: The protocol that the caller asks for and may get, in lower case; empty if none.
    """

    method: str
    target: Target
    is_http11: bool
    block: FieldBlock
    keep_alive: bool
    upgrade: bytes

    @property
    def has_body(self) -> bool:
        """Whether bytes follow the head."""
        return self.block.chunked or bool(self.block.content_length)

    @property
    def expects_continue(self) -> bool:
        """Whether the caller waits for ``100 Continue`` before it sends the body."""
        return self.is_http11 and self.block.expects_continue

    def values(self, name: bytes) -> Sequence[bytes]:
        """Return the values of a field that the broker reads; *name* is in lower case."""
        return self.block.read.get(name, _NONE)

    def getall(self, key: str, default: Sequence[str], /) -> Sequence[str]:
        """Return the values of a field that the broker reads as text (broker.core.csrf)."""
        values = self.block.read.get(key.lower().encode())
        return default if values is None else [value.decode("latin-1") for value in values]


def read_head(*, method: str, target: bytes, version: tuple[int, int], block: FieldBlock) -> RequestHead:
    """
    Judge the head of a request.

    Args:
        method: The method, as it came.
        target: The request target, as it came.
        version: The HTTP version.
        block: Its field lines.

    Raises:
        BadRequest: If it isn't a request of RFC 9112, or one that two readers could take for two different ones.
        AmbiguousPath: If its path can be read in several ways.
    """
    is_http11 = version == (1, 1)
    if not is_http11 and version != (1, 0):
        raise BadRequest("the HTTP version is neither 1.0 nor 1.1")
    if method not in _USUAL_METHODS and not _METHOD.fullmatch(method):
        raise BadRequest("the method is not in capitals")
    if is_http11:
        if not block.authority:
            raise BadRequest("the Host header field is missing")
    elif block.chunked:
        raise BadRequest("HTTP/1.0 has no chunks")
    keep_alive = not block.closes and (is_http11 or block.keeps_alive)
    return RequestHead(method, read_target(target, block.authority), is_http11, block, keep_alive, block.upgrade)

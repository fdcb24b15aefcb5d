"""
How much a caller takes of what waits for it.

The loop says when its own buffer is full, and when it has become nearly empty; in between a steady reader takes nothing
as far as it can see, for minutes if the network is slow, since the kernel has a buffer of megabytes. So the kernel is
asked how much the other end has acknowledged (Linux, tcp(7), ``tcpi_bytes_acked``). Where it doesn't know, what leaves
the loop's buffer counts.
"""

import asyncio
import socket
import struct
from typing import Final

from broker.core.limit_options import MIN_BYTES_PER_SECOND
from broker.services.transports import unsent_bytes

_ACKED: Final = struct.Struct("=120xQ")
_TCP_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None)


class Taking:
    """Judges a caller from the moment on at which something waits for it."""

    __slots__ = ("_began_at", "_counted_bytes", "_taken_at", "_taken_bytes", "_transport")

    def __init__(self, transport: asyncio.Transport, now: float) -> None:
        """
        Args:
            transport: Where it takes from.
            now: The loop's time.
        """
        self._transport = transport
        self._began_at = now
        self._taken_at = now
        self._taken_bytes = 0
        self._counted_bytes = _count(transport)

    def is_late(self, now: float, patience_seconds: float) -> bool:
        """
        Return whether the caller, at *now* on the loop's clock, has taken nothing or too little for too long.

        Args:
            now: The loop's time.
            patience_seconds: How long it may take nothing; and how long, at the beginning, less than it has to.
        """
        counted = _count(self._transport)
        if counted > self._counted_bytes:
            self._taken_bytes += counted - self._counted_bytes
            self._taken_at = now
        self._counted_bytes = counted
        due = (now - self._began_at - patience_seconds) * MIN_BYTES_PER_SECOND
        return now - self._taken_at > patience_seconds or self._taken_bytes < due


def _count(transport: asyncio.Transport) -> int:
    """Return a number that grows by what is taken."""
    raw = transport.get_extra_info("socket")
    if _TCP_INFO is not None and raw is not None:
        try:
            told = raw.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _ACKED.size)
            return int(_ACKED.unpack(told)[0])
        except (OSError, ValueError, struct.error):  # a Unix socket, or one that uvloop has closed
            pass
    return -unsent_bytes(transport)

"""
The end of a connection whose caller may still be sending.

A connection that is closed with something unread is reset, with all that is under way to the caller (RFC 9112 section
9.6): the answer that says why, or a tunnel's last words. So what still comes is read, and goes nowhere.
"""

import asyncio
from collections.abc import Callable
from typing import Final

LINGER_SECONDS: Final = 5.0
"""How long a caller may go on sending."""
QUIET_SECONDS: Final = 0.1
"""Over TLS a caller that sends nothing for so long isn't waited for."""


class Lingering:
    """Takes what is read until the caller has heard the last words (a ``connection.Tunnel``)."""

    ended = False

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, done: Callable[[], None]) -> None:
        """
        Args:
            transport: The caller's, to which all is written.
            loop: Runs it.
            done: Called when it may be closed, unless :meth:`stop` is.
        """
        self._done = done
        self._loop = loop
        self._has_heard = False
        transport.resume_reading()
        if transport.can_write_eof():
            # The caller reads that this was all, and then closes its own half.
            transport.write_eof()
            self._timer = loop.call_later(LINGER_SECONDS, done)
        else:
            # TLS has no halves, and a caller of WebSockets leaves the first close to the server.
            self._give_up_at = loop.time() + LINGER_SECONDS
            self._timer = loop.call_later(QUIET_SECONDS, self._look)

    def write(self, _data: bytes) -> None:
        """Take what the caller still sends."""
        self._has_heard = True

    def stop(self) -> None:
        """Wait no more."""
        self._timer.cancel()

    def _look(self) -> None:
        if self._has_heard and self._loop.time() < self._give_up_at:
            self._has_heard = False
            self._timer = self._loop.call_later(QUIET_SECONDS, self._look)
        else:
            self._done()

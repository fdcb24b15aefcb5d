"""
The end of a tunnel whose upstream has gone, while the caller may still be sending.

A connection that is closed with something unread is reset, with all that is under way to the caller (RFC 9112 section
9.6): the upstream's last words, which may say why. So what still comes is read, and goes nowhere.
"""

from collections.abc import Callable
from typing import Final

from broker.web.connection import CallerConnection

LINGER_SECONDS: Final = 5.0
"""How long a caller may go on sending."""
QUIET_SECONDS: Final = 0.1
"""Over TLS a caller that sends nothing for so long isn't waited for."""


class Lingering:
    """Reads on until the caller has heard the last words (a ``connection.Tunnel``)."""

    ended = False

    def __init__(self, connection: CallerConnection, done: Callable[[], None]) -> None:
        """
        Args:
            connection: The caller's, to which all is written.
            done: Called when it may be closed, unless :meth:`stop` is.
        """
        self._done = done
        self._loop = connection.loop
        self._has_heard = False
        transport = connection.transport
        assert transport is not None
        transport.resume_reading()
        if transport.can_write_eof():
            # The caller reads that this was all, and then closes its own half.
            transport.write_eof()
            self._timer = self._loop.call_later(LINGER_SECONDS, done)
        else:
            # TLS has no halves, and a caller of WebSockets leaves the first close to the server.
            connection.begin_tunnel(self)
            self._give_up_at = self._loop.time() + LINGER_SECONDS
            self._timer = self._loop.call_later(QUIET_SECONDS, self._look)

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

"""
Whose turn it is on a caller's connection: aiohttp's, or that of what serves requests past it.

aiohttp has the connection, and must not be given a byte of a request that another serves, nor miss one of those that it
serves itself. So a request is only taken past aiohttp while that is idle and its parser is between two messages; what a
caller sends meanwhile is held; and a body that nobody waits for any more is read to its end before the next request.

This reads aiohttp's private attributes. They are listed in :data:`INSIDES`; where aiohttp lacks one, nothing is taken
past it.
"""

import asyncio
import math
from typing import Any, Final

import aiohttp
from aiohttp.web_protocol import RequestHandler

from broker.web.connection import CallerConnection, Tunnel
from broker.web.incoming import IncomingBody
from broker.web.lingering import LINGER_SECONDS

AIOHTTP: Final = "3.14."
"""The minor version whose insides are known."""
INSIDES: Final = (
    "_close",
    "_force_close",
    "_keepalive_handle",
    "_keepalive_timeout",
    "_messages",
    "_next_keepalive_close_time",
    "_payload_parser",
    "_process_keepalive",
    "_request_count",
    "_waiter",
)
MAX_HEAD_BYTES: Final = 16 << 10
"""A longer head is aiohttp's."""
MAX_AHEAD_BYTES: Final = 64 << 10
"""How much a caller may send while its last call is under way."""
BUSY_CHECK_SECONDS: Final = 5.0


def fits() -> bool:
    """Return whether this aiohttp is one whose insides are known."""
    return aiohttp.__version__.startswith(AIOHTTP) and all(hasattr(RequestHandler, name) for name in INSIDES)


class TurnTaking(CallerConnection):
    """A connection of whose requests some go past aiohttp."""

    __slots__ = ("_ahead", "_current", "_incoming", "_is_early", "_is_ours", "_keeps", "_lingering", "_tunnel")

    def __init__(self, server: Any, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._current: object | None = None  # the request that is being served past aiohttp
        self._incoming: IncomingBody | None = None  # a body of which not all has come
        self._tunnel: Tunnel | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._keeps = True  # what becomes of the connection when it has lingered
        self._is_early = False
        self._is_ours = False  # since aiohttp was seen to be idle, it has been given nothing
        self._ahead = b""

    # --- for what serves requests past aiohttp

    def _begin(self, _data: bytes) -> bool:
        """Serve the request that some bytes begin with. Returns False, with nothing done, if aiohttp has to."""
        return False

    def _wait_for_head(self, data: bytes) -> bool:
        """Keep the first part of a head. Returns False if it is longer than heads are here."""
        if len(data) >= MAX_HEAD_BYTES:
            return False
        self._ahead = data
        if self._head_since == math.inf:
            self._head_since = self._loop.time()
            self._watch.add(self)
        return True

    def _leave_to_aiohttp(self, data: bytes) -> None:
        self._is_ours = False
        super().data_received(data)

    def _answered(self, *, keeps: bool) -> None:
        """
        Go on with what the caller sends next, now that its request is answered; or close, unless *keeps*.

        If a body is still under way, its rest is read first, for a while: a connection that is closed with something
        unread is reset, and the answer with it (RFC 9112 section 9.6).
        """
        if self._incoming is not None:
            self._incoming.discard()
            self._keeps = keeps
            self._lingering = self._loop.call_later(LINGER_SECONDS, self.force_close)
        elif keeps:
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
            if self._ahead:
                self._go_on()
        else:
            self.force_close()

    def begin_tunnel(self, tunnel: Tunnel) -> None:
        if self._current is not None:
            self._tunnel = tunnel
            self._go_on()
        else:
            super().begin_tunnel(tunnel)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._current is None and self._incoming is None:
            self._go_on()

    # --- what comes

    def data_received(self, data: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel.write(data)
            return
        if self._incoming is not None:
            data = self._feed(self._incoming, data)
            if not data:
                return
        if self._current is not None or self._incoming is not None or self._is_early:
            self._hold(data)
        elif self._waiter is None and not self._is_ours and self._is_between_requests():
            # aiohttp waits for a request once its task has had its turn; a quick caller mustn't be slow for ever.
            self._is_early = True
            self._hold(data)
            self._loop.call_soon(self._after_a_turn)
        else:
            self._take(self._ahead + data if self._ahead else data)

    def _after_a_turn(self) -> None:
        self._is_early = False
        if self.transport is not None:
            self._take(self._release())

    def _take(self, data: bytes) -> None:
        """Take what begins with a request, or goes on with one of aiohttp's."""
        self._ahead = b""
        if not self._is_idle():
            self._leave_to_aiohttp(data)
        elif self.is_behind:
            self._hold(data)
        elif not self._begin(data):
            self._leave_to_aiohttp(data)

    def _hold(self, data: bytes) -> None:
        """Keep what a caller sends before it has its answer."""
        self._ahead += data
        if len(self._ahead) > MAX_AHEAD_BYTES and self.transport is not None:
            self.transport.pause_reading()

    def _release(self) -> bytes:
        """Return what was held."""
        ahead, self._ahead = self._ahead, b""
        if len(ahead) > MAX_AHEAD_BYTES and self.transport is not None:
            self.transport.resume_reading()
        return ahead

    def _go_on(self) -> None:
        """Take what the caller sent before it had its answer."""
        if self._ahead:
            self.data_received(self._release())

    # --- the body of a request that is served past aiohttp (incoming.Source)

    def _feed(self, body: IncomingBody, data: bytes) -> bytes:
        """Give the next bytes to a body. Returns what doesn't belong to it."""
        rest = body.feed(data)
        if body.is_whole:
            self._incoming = None
            if self._lingering is not None:
                self._lingering.cancel()
                self._lingering = None
                self._answered(keeps=self._keeps)
        return rest

    def pause_body(self) -> None:
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_body(self) -> None:
        if self.transport is not None:
            self.transport.resume_reading()

    # --- aiohttp's own state

    @property
    def is_busy(self) -> bool:
        is_ours = self._current is not None or self._incoming is not None or self._is_early or bool(self._ahead)
        return is_ours or super().is_busy

    def _is_idle(self) -> bool:
        """Whether aiohttp waits for a request, of which no byte has come."""
        if self._is_ours:
            return not (self._close or self._force_close)
        waiter = self._waiter
        self._is_ours = waiter is not None and not waiter.done() and self._is_between_requests()
        return self._is_ours

    def _is_between_requests(self) -> bool:
        return (
            not self._messages
            and self._stream.is_between_requests
            and self._request_count == self._stream.heads
            and not self._close
            and not self._force_close
            and self._payload_parser is None
        )

    def _process_keepalive(self) -> None:
        # While another serves a request, aiohttp believes that the connection is idle.
        if self._current is not None or self._incoming is not None:
            self._keepalive_handle = self._loop.call_later(BUSY_CHECK_SECONDS, self._process_keepalive)
        else:
            super()._process_keepalive()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
        super().connection_lost(exc)

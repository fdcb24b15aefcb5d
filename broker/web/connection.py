"""
A caller's connection: aiohttp's, with what a proxy needs besides.

A relay writes the upstream's answer straight to the transport. So it must hear when the caller is slow, and when it is
gone; aiohttp tells that only to its own writer.
"""

import logging
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

if TYPE_CHECKING:
    from broker.web.gate import Call
    from broker.web.relay import Relay

log = logging.getLogger(__name__)

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Relaying(Protocol):
    """What is being written to the connection."""

    def pause(self) -> None:
        """The caller reads more slowly than it is sent to."""
        ...

    def resume(self) -> None:
        """The caller has caught up."""
        ...

    def caller_lost(self) -> None:
        """The caller is gone."""
        ...


@dataclass(slots=True)
class Handover:
    """
    A call that was sent on the fast path, and needs the slow one to go on.

    Attributes:
        call: The call.
        relay: What came of sending it.
    """

    call: "Call"
    relay: "Relay"


class CallerConnection(RequestHandler):
    """
    One connection of a caller.

    Attributes:
        relay: What is being written to it past aiohttp; None while aiohttp writes itself.
        handover: What the fast path leaves to the slow one, for the request that comes next.
    """

    __slots__ = ("handover", "relay")

    def __init__(self, server: web.Server, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self.relay: Relaying | None = None
        self.handover: Handover | None = None

    @property
    def peer(self) -> str:
        """The address at the other end; empty for a Unix socket."""
        peername = self.peername
        return peername[0] if isinstance(peername, tuple) else ""

    @property
    def closes(self) -> bool:
        """Whether the connection is closed after the request that is being answered."""
        return self._close or self._force_close

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.relay is not None:
            self.relay.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.relay is not None:
            self.relay.resume()

    def connection_lost(self, exc: BaseException | None) -> None:
        relay, self.relay = self.relay, None
        if relay is not None:
            relay.caller_lost()
        super().connection_lost(exc)

    def reset(self) -> None:
        """End the connection so that the caller can't take what it got for the whole answer (SECURITY UP-04)."""
        transport = self.transport
        if transport is not None:
            raw = transport.get_extra_info("socket")
            if raw is not None and raw.family != socket.AF_UNIX:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp refused, with one line in the log and no byte of it (SECURITY M7, LK-03)."""
        self.handover = None
        if not isinstance(exc, HttpProcessingError | ValueError):
            return super().handle_error(request, status, exc, message)
        log.info("malformed_request", extra={"status": status, "error": type(exc).__name__})
        response = web.Response(status=status, text="", content_type="text/plain")
        response.force_close()
        return response

"""
A caller's connection: aiohttp's, with what a proxy needs besides.

A relay writes the upstream's answer straight to the transport. So it must hear when the caller is slow, and when it is
gone; aiohttp tells that only to its own writer.
"""

import logging
import socket
import struct
from typing import Any, Protocol

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

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


class CallerConnection(RequestHandler):
    """
    One connection of a caller.

    Attributes:
        relay: What is being written to it past aiohttp; None while aiohttp writes itself.
    """

    __slots__ = ("relay",)

    def __init__(self, server: web.Server, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self.relay: Relaying | None = None

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
        if not isinstance(exc, HttpProcessingError | ValueError):
            return super().handle_error(request, status, exc, message)
        log.info("malformed_request", extra={"status": status, "error": type(exc).__name__})
        response = web.Response(status=status, text="", content_type="text/plain")
        response.force_close()
        return response


class ConnectionServer(web.Server):
    """Makes the connections."""

    def __init__(self, server: web.Server) -> None:
        """
        Args:
            server: aiohttp's server of an application, whose handler and settings are taken over.
        """
        super().__init__(
            server.request_handler,
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            loop=server._loop,  # noqa: SLF001 - aiohttp has no public way to derive a server
            **server._kwargs,  # noqa: SLF001
        )

    def __call__(self) -> CallerConnection:
        return CallerConnection(self, loop=self._loop, **self._kwargs)


class ProxyRunner(web.AppRunner):
    """Runs an application on :class:`CallerConnection`."""

    def __init__(self, app: web.Application, *, shutdown_timeout_seconds: float = 30.0, **kwargs: Any) -> None:
        """
        Args:
            app: The application.
            shutdown_timeout_seconds: How long requests may take to end.
            kwargs: Further arguments of ``web.AppRunner``.
        """
        super().__init__(
            app,
            access_log=None,
            # Bodies pass as they are.
            auto_decompress=False,
            # Slow handlers are cancelled with their callers; token requests are shielded from that.
            handler_cancellation=True,
            keepalive_timeout=75.0,
            max_line_size=16 << 10,
            max_field_size=16 << 10,
            lingering_time=5.0,
            shutdown_timeout=shutdown_timeout_seconds,
            **kwargs,
        )

    async def _make_server(self) -> web.Server:
        return ConnectionServer(await super()._make_server())

"""A socket that is served on."""

import asyncio
import socket
from ssl import SSLContext

from aiohttp import web

from broker.web.listening import BACKLOG


class Site(web.BaseSite):
    """
    aiohttp's ``SockSite``, but for two things that can't be told to that: it waits a minute for the end of a TLS
    handshake, which no limit of connections counts, and it shortens the queue of those who wait to be accepted.
    """

    def __init__(
        self, runner: web.BaseRunner, listening: socket.socket, *, tls: SSLContext | None, handshake_seconds: float
    ) -> None:
        """
        Args:
            runner: Serves. It is set up.
            listening: The socket.
            tls: How callers are spoken to by TLS; None for plain HTTP.
            handshake_seconds: How long the handshake of TLS may take.
        """
        super().__init__(runner)
        self._listening = listening
        self._tls = tls
        self._handshake_seconds = handshake_seconds

    @property
    def name(self) -> str:
        """Where it listens, as a URL."""
        host, port = self._listening.getsockname()[:2]
        return f"{'http' if self._tls is None else 'https'}://{f'[{host}]' if ':' in host else host}:{port}"

    async def start(self) -> None:
        """Serve."""
        await super().start()
        server = self._runner.server
        assert server is not None  # BaseSite has looked
        self._server = await asyncio.get_running_loop().create_server(
            server,
            sock=self._listening,
            ssl=self._tls,
            ssl_handshake_timeout=None if self._tls is None else self._handshake_seconds,
            backlog=BACKLOG,
        )

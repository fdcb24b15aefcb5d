"""
The server of callers' connections: aiohttp's, which gives proxied requests a way past the application's router.

    what is proxied and plainly written: the fast path
    else: aiohttp's parser ▸ /bff: the application ▸ everything else: the proxy
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

from aiohttp import web

from broker.core.limit_options import LimitOptions
from broker.web.connection import CallerConnection, Watch
from broker.web.fast_path import FastConnection
from broker.web.proxy import Proxy
from broker.web.turn_taking import fits

DRAIN_CHECK_SECONDS = 0.05

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
Outer: TypeAlias = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)


class ConnectionServer(web.Server):
    """Makes the connections, and hands their requests on."""

    def __init__(self, server: web.Server, *, proxy: Proxy, outermost: Outer, limits: LimitOptions, fast: bool) -> None:
        """
        Args:
            server: aiohttp's server of the application, whose settings are taken over.
            proxy: Takes every request that isn't for the broker's own endpoints.
            outermost: The middleware around the proxy; the application brings its own.
            limits: How long callers may take, and how many there may be.
            fast: Whether the fast path is on.
        """
        self._application = server.request_handler
        self._proxy = proxy
        self._outermost = outermost
        self._own = proxy.base_path
        self._below_own = (f"{self._own}/", f"{self._own}?")
        self._watch = watch = Watch(limits)
        self._connection: Callable[..., CallerConnection] = partial(CallerConnection, watch=watch, limits=limits)
        if fast:
            self._connection = partial(FastConnection, proxy=proxy, watch=watch, limits=limits)
        super().__init__(
            self._dispatch,
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            loop=server._loop,  # noqa: SLF001 - aiohttp has no public way to derive a server
            **server._kwargs,  # noqa: SLF001
        )
        watch.count_connections = self._connections.__len__
        watch.shedding = proxy.gate.shedding

    def __call__(self) -> CallerConnection:
        return self._connection(self, loop=self._loop, **self._kwargs)

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        assert isinstance(request, web.Request)
        connection = request.protocol
        assert isinstance(connection, CallerConnection)
        if connection.transport is None:
            # It was closed for what came in the same read. How far aiohttp gets before it hears of that depends on the
            # version of Python.
            raise asyncio.CancelledError
        await connection.caught_up()
        target = request.raw_path
        if target == self._own or target.startswith(self._below_own):
            response = await self._application(request)
        else:
            response = await self._outermost(request, self._proxy.handle)
        if not response.prepared and connection.closes:
            response.force_close()
        return response

    async def drain(self, timeout_seconds: float, *, linger_seconds: float) -> None:
        """
        Let every connection end with the answer that is being given on it, or is given next.

        Args:
            timeout_seconds: How long answers may take.
            linger_seconds: How long to wait for callers that keep a connection and ask nothing.
        """
        self._watch.is_draining = True
        began_at = self._loop.time()
        while self._connections and self._loop.time() < began_at + timeout_seconds:
            is_busy = any(each.is_busy for each in self._connections if isinstance(each, CallerConnection))
            if not is_busy and self._loop.time() >= began_at + linger_seconds:
                return
            await asyncio.sleep(DRAIN_CHECK_SECONDS)


class ProxyRunner(web.AppRunner):
    """Runs an application and a proxy on one port."""

    def __init__(
        self,
        app: web.Application,
        *,
        proxy: Proxy,
        outermost: Outer,
        shutdown_timeout_seconds: float = 30.0,
        limits: LimitOptions | None = None,
        fast: bool = True,
    ) -> None:
        """
        Args:
            app: Serves the broker's own endpoints, below the proxy's base path.
            proxy: Serves everything else.
            outermost: The middleware around the proxy. *app* has it too.
            shutdown_timeout_seconds: How long requests may take to end.
            limits: What callers may take.
            fast: Whether the fast path is used, if this aiohttp is one whose insides are known.
        """
        self._limits = limits = limits or LimitOptions()
        super().__init__(
            app,
            access_log=None,
            # Bodies pass as they are.
            auto_decompress=False,
            # A handler is cancelled with its caller; token requests are shielded from that.
            handler_cancellation=True,
            keepalive_timeout=limits.keepalive_timeout_seconds,
            max_line_size=limits.max_header_field_bytes,
            max_field_size=limits.max_header_field_bytes,
            lingering_time=5.0,
            shutdown_timeout=shutdown_timeout_seconds,
        )
        self._proxy = proxy
        self._outermost = outermost
        self._fast = fast and fits()
        if fast and not self._fast:
            log.warning("fast_path_off", extra={"reason": "another aiohttp than the one whose insides are known"})

    async def drain(self, *, linger_seconds: float = 0.0) -> None:
        """
        Take no more connections, and let those that there are end well. :meth:`cleanup` then ends the rest.

        aiohttp's own way of ending drops what comes of the bodies of running requests.

        Args:
            linger_seconds: How long to wait for callers that keep a connection and ask nothing.
        """
        for site in self.sites:
            await site.stop()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._shutdown_timeout
        await asyncio.sleep(0)  # connections that were accepted are made
        if isinstance(self.server, ConnectionServer):
            await self.server.drain(self._shutdown_timeout, linger_seconds=linger_seconds)
        # aiohttp takes 0 for any time.
        self._shutdown_timeout = max(deadline - loop.time(), 0.1)

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return ConnectionServer(
            server, proxy=self._proxy, outermost=self._outermost, limits=self._limits, fast=self._fast
        )

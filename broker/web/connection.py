"""
A caller's connection: aiohttp's, with what a proxy needs besides.

A relay writes the upstream's answer straight to the transport. So it must hear when the caller is slow, and when it is
gone; aiohttp tells that only to its own writer. And no caller may keep a connection busy by being slow: with its head,
with its body, or with taking the answer. aiohttp has a timer for none of these (SECURITY M6, DS-01).
"""

import asyncio
import logging
import math
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from broker.core.limit_options import LimitOptions
from broker.core.request_fields import FieldBlock, FieldRules
from broker.core.request_stream import RequestStream
from broker.services import metrics
from broker.services.memory import Shedding
from broker.services.transports import unsent_bytes
from broker.web.lingering import Lingering
from broker.web.taking import Taking

WATCH_SECONDS = 1.0

RawHeaders: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""Names and values as aiohttp gives them."""

log = logging.getLogger(__name__)

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Tunnel(Protocol):
    """What takes the bytes of a caller whose connection isn't HTTP any more: an exchange (``services.upstream``)."""

    @property
    def ended(self) -> bool: ...

    def write(self, data: bytes) -> None: ...


class Relaying(Protocol):
    """What is being written to the connection."""

    def pause(self) -> None:
        """The caller reads more slowly than it is sent to."""
        ...

    def resume(self) -> None:
        """The caller has caught up."""
        ...

    def caller_finished(self) -> bool:
        """The caller sends no more. Returns whether it may still be sent something."""
        ...

    def caller_lost(self) -> int:
        """The caller is gone. Returns the status of the answer that it had a part of; 0 if it had none."""
        ...


@dataclass(slots=True)
class Failure:
    """
    What came of a call that was served past aiohttp, and is for aiohttp's handler to tell.

    Attributes:
        error: What went wrong. Nothing of an answer is written.
        request_id: The call's id; empty if it has none yet.
        route: The name of the route that it went by.
        closes: Whether the connection ends with it.
    """

    error: Exception
    request_id: str
    route: str
    closes: bool


class Awaited(Protocol):
    """A body that is being received."""

    def is_late(self, now: float) -> bool:
        """Whether it should have come by *now*, on the loop's clock."""
        ...

    def give_up(self) -> None:
        """Stop waiting for it."""
        ...


class Watch:
    """
    Looks after connections whose caller may be too slow: once a second, at those alone where something is due.

    Attributes:
        limits: How long is too long.
        is_draining: Whether every connection is to end with its next answer.
        shedding: Whether connections are refused because memory is nearly out.
    """

    def __init__(self, limits: LimitOptions) -> None:
        """
        Args:
            limits: How long is too long.
        """
        self.limits = limits
        self.is_draining = False
        self.shedding = Shedding()
        self.count_connections: Callable[[], int] = lambda: 0
        self._watched: set[CallerConnection] = set()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def has_room(self) -> bool:
        """Whether one more connection may be taken. One that may not is counted."""
        if self.shedding.connections:  # the log told of it when it began
            reason = "overloaded"
        elif self.count_connections() > self.limits.max_connections:
            log.warning("too_many_connections")
            reason = "too_many"
        else:
            return True
        metrics.CONNECTIONS_REFUSED.labels(reason).inc()
        return False

    def add(self, connection: "CallerConnection") -> None:
        """Look after *connection*."""
        self._watched.add(connection)
        if self._timer is None:
            self._timer = self._loop.call_later(WATCH_SECONDS, self._look)

    def discard(self, connection: "CallerConnection") -> None:
        """Look after it no more."""
        self._watched.discard(connection)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        # To end one may add it anew, and start the timer.
        looked_at, self._watched = self._watched, set()
        self._watched |= {connection for connection in looked_at if connection.check(now)}
        if self._watched and self._timer is None:
            self._timer = self._loop.call_later(WATCH_SECONDS, self._look)


class CallerConnection(RequestHandler):
    """
    One connection of a caller.

    Attributes:
        relay: What is being written to it past aiohttp; None while aiohttp writes itself.
        begun_status: The status of the answer that the caller had a part of when it went away; 0 if it had none.
        failure: What the next request that aiohttp hands on is answered with.
        body: The body that is being received; None if there is none.
    """

    __slots__ = (
        "_fields",
        "_head_since",
        "_last_block",
        "_last_words",
        "_leaving",
        "_limits",
        "_lingers",
        "_stream",
        "_taking",
        "_watch",
        "begun_status",
        "body",
        "failure",
        "relay",
    )

    def __init__(self, server: web.Server, *, watch: "Watch", limits: LimitOptions, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._watch = watch
        self._limits = limits
        self._head_since = math.inf
        self._taking: Taking | None = None  # while something waits for the caller
        self._leaving: asyncio.Transport | None = None
        self._fields: RawHeaders = ()
        self._last_block: FieldBlock | None = None
        self._stream = RequestStream(3 * limits.max_header_field_bytes)  # a name, a value, and more
        self._lingers = False  # after the answer that is being written
        self._last_words: Lingering | None = None
        self.begun_status = 0
        self.body: Awaited | None = None
        self.relay: Relaying | None = None
        self.failure: Failure | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """What runs it. To ask asyncio for it takes a call of the kernel (``getpid``)."""
        return self._loop

    @property
    def peer(self) -> str:
        """The address at the other end; empty for a Unix socket."""
        peername = self.peername
        return peername[0] if isinstance(peername, tuple) else ""

    @property
    def certificate(self) -> Mapping[str, object] | None:
        """The certificate that the other end has shown, and TLS has verified, as ``ssl`` gives it; None if none."""
        return None if self.transport is None else self.transport.get_extra_info("peercert")

    @property
    def closes(self) -> bool:
        """Whether the connection is closed after the request that is being answered."""
        return self._close or self._force_close or self._watch.is_draining

    @property
    def is_closing(self) -> bool:
        """Whether no further byte is read from it."""
        return self._close or self._force_close

    @property
    def is_behind(self) -> bool:
        """
        Whether the caller has yet to take what was written. Nothing more is begun for it then: a connection says once
        that its buffer is full, and whoever writes the next answer would not hear it, and fill the memory.
        """
        return self._taking is not None

    async def caught_up(self) -> None:
        """Wait until the caller has taken what was written. Raises ``ConnectionError`` if it goes away."""
        if self.is_behind:
            await self._drain_helper()

    @property
    def is_busy(self) -> bool:
        """Whether a request is being served on it, or arriving."""
        return self._request_in_progress or bool(self._messages) or self._head_since < math.inf

    def block_of(self, fields: RawHeaders, rules: FieldRules) -> FieldBlock:
        """
        Read the fields of a request. Those of the last request are often those of this one.

        Raises:
            BadRequest: If they are refused.
        """
        if self._last_block is None or fields != self._fields:
            self._last_block = rules.read([b"%b: %b" % field for field in fields])
            self._fields = fields
        return self._last_block

    # --- what happens to it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self._watch.has_room():
            self.force_close()

    def data_received(self, data: bytes) -> None:
        if self._last_words is not None:
            self._last_words.write(data)
            return
        for piece in self._stream.follow(data) if self._payload_parser is None and not self.closes else (data,):
            super().data_received(piece)
        if self._stream.is_broken and self._upgraded:
            # aiohttp keeps what follows for a tunnel; but who asks for one has to wait for it (RFC 6455 section 4.1).
            self.force_close()
        waiter = self._waiter
        if waiter is None or waiter.done():
            self._head_since = math.inf
        elif data and self._head_since == math.inf:
            # aiohttp still waits for a request: this is a part of its head.
            self._head_since = self._loop.time()
            self._watch.add(self)

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's signature
        # aiohttp's reader of bodies calls it at each read, paused or not, and has the parser look at nothing.
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def pause_writing(self) -> None:
        super().pause_writing()
        transport = self.transport or self._leaving
        if transport is not None:
            self._await_taking(transport)
        if self.relay is not None:
            self.relay.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._leaving is None:
            self._taking = None
        if self.relay is not None:
            self.relay.resume()

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp never leaves it open
        has_halves = self.transport is not None and self.transport.can_write_eof()  # TLS has none
        return has_halves and self.relay is not None and self.relay.caller_finished()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._watch.discard(self)
        self._leaving = self._taking = None
        relay, self.relay = self.relay, None
        if relay is not None:
            self.begun_status = relay.caller_lost()
        super().connection_lost(exc)

    def begin_tunnel(self, tunnel: Tunnel) -> None:
        """Pass whatever comes from now on to *tunnel*, as it is; in place of another, if there is one."""
        self._payload_parser = None  # aiohttp gives it one once
        self.set_parser(_TunnelReader(tunnel))  # type: ignore[arg-type]  # it has all that is called

    # --- patience

    def receive(self, body: "Awaited") -> None:
        """Watch the body of the request that is being served."""
        self.body = body
        self._watch.add(self)

    def check(self, now: float) -> bool:
        """End what takes too long at *now*, on the loop's clock. Returns whether there is anything left to watch."""
        if now - self._head_since > self._limits.header_timeout_seconds:
            log.info("slow_head", extra={"peer": self.peer})
            self.refuse_head()
        elif self._taking is not None and self._taking.is_late(now, self._limits.reader_timeout_seconds):
            log.info("slow_reader", extra={"peer": self.peer})
            self.reset()
        elif self.body is not None and self.body.is_late(now):
            log.info("slow_body", extra={"peer": self.peer})
            self.body.give_up()
            self.body = None
        return self._head_since < math.inf or self._taking is not None or self.body is not None

    def refuse_head(self) -> None:
        """Answer a head that doesn't come to its end."""
        self._head_since = math.inf
        if self.transport is not None:
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        self.force_close()

    # --- its end

    def close_soon(self) -> None:
        """Close it after the answer. Its caller may still be sending the request, at which nobody looks any more."""
        self._lingering_time = 0.0  # aiohttp's own way, which reads a body that it understands
        self._lingers = True
        self.close()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        written = await super().finish_response(request, resp, start_time)
        if self._lingers and self.transport is not None and not self.transport.is_closing():
            await self._linger(self.transport)
        return written

    async def _linger(self, transport: asyncio.Transport) -> None:
        """Read on, for a while, until the caller has its answer: closing with something unread would take it away."""
        heard = self._loop.create_future()
        self._last_words = Lingering(transport, self._loop, lambda: heard.set_result(None))
        try:
            await heard
        finally:
            self._last_words.stop()

    async def start(self) -> None:
        transport = self.transport
        await super().start()
        if transport is not None and transport.is_closing():
            self._leave(transport)

    def force_close(self) -> None:
        transport = self.transport
        if transport is not None:
            self._leave(transport)
        super().force_close()  # it forgets the transport

    def _leave(self, transport: asyncio.Transport) -> None:
        """Watch a connection that is being closed: until its caller has taken what was written, it is held."""
        if unsent_bytes(transport):
            self._leaving = transport
            self._await_taking(transport)

    def _await_taking(self, transport: asyncio.Transport) -> None:
        """Watch how the caller takes what waits for it."""
        if self._taking is None:
            self._taking = Taking(transport, self._loop.time())
        self._watch.add(self)

    def reset(self) -> None:
        """End the connection so that the caller can't take what it got for the whole answer (SECURITY UP-04)."""
        transport = self.transport or self._leaving
        if transport is None:
            return
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family != socket.AF_UNIX:
            with suppress(OSError, ValueError):  # uvloop shows no descriptor of one that is being closed
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
        self.failure = None
        if not isinstance(exc, HttpProcessingError | ValueError):
            return super().handle_error(request, status, exc, message)
        log.info("malformed_request", extra={"status": status, "error": type(exc).__name__, "peer": self.peer})
        self.close_soon()
        response = web.Response(
            status=status,
            body=b'{"type":"urn:token-broker:problem:bad_request","title":"The request is malformed","status":%d,'
            b'"code":"bad_request"}' % status,
            content_type="application/problem+json",
            headers={"Cache-Control": "no-store", "Connection": "close", "X-Content-Type-Options": "nosniff"},
        )
        response.force_close()
        return response


class _TunnelReader:
    """Passes what a caller sends after a 101 on, as it is. aiohttp feeds it in place of a WebSocket parser."""

    __slots__ = ("_tunnel",)

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Take bytes. Returns whether the connection is over, and what was not taken."""
        self._tunnel.write(data)
        return self._tunnel.ended, b""

    def feed_eof(self) -> None:
        """The caller is gone; the connection's own end tells the exchange."""

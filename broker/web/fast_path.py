"""
The fast path: a plain call with a live session and a live token, without a task, a future or a request object.

    data_received ▸ gate ▸ idle upstream connection ▸ relay ▸ the caller's transport

It takes what is simple: a whole request in one read on an idle connection, its body sized if it has one, for which this
process knows session and token, and the pool has an idle connection. Everything else falls through to aiohttp, with no
byte changed and nothing done. The gate, the lane and the relay are the slow path's own, so that both forward and refuse
the same; a call that fails after it was sent is handed to the slow path as it stands.

It reads aiohttp's private attributes, to know that the connection is idle and its parser between two messages. They are
listed in :data:`INSIDES`; where aiohttp lacks one, the fast path is off.
"""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp.web_protocol import RequestHandler

from broker.core.request_fields import FieldBlock
from broker.errors import BadRequest, BrokerError
from broker.services.upstream import Exchange
from broker.web.connection import CallerConnection, Handover
from broker.web.relay import Relay

if TYPE_CHECKING:
    from broker.web.proxy import Proxy

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
MAX_FIELDS: Final = 100
MAX_AHEAD_BYTES: Final = 64 << 10
"""How much a caller may send while its last call is under way."""
BUSY_CHECK_SECONDS: Final = 5.0

_METHODS = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}


def fits() -> bool:
    """Return whether this aiohttp is one whose insides are known."""
    return aiohttp.__version__.startswith(AIOHTTP) and all(hasattr(RequestHandler, name) for name in INSIDES)


class FastConnection(CallerConnection):
    """A connection with the fast path."""

    __slots__ = (
        "_ahead",
        "_busy",
        "_last_raw",
        "_last_raw_block",
        "_peer",
        "_proxy",
        "_sent",
    )

    def __init__(self, server: Any, *, proxy: "Proxy", **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._proxy = proxy
        self._busy: Handover | None = None
        self._sent = b""
        self._ahead = b""
        self._peer: str | None = None
        self._last_raw = b""
        self._last_raw_block: FieldBlock | None = None

    def data_received(self, data: bytes) -> None:
        if self._busy is not None:
            self._hold(data)
        elif not (self._is_idle() and self._begin(data)):
            super().data_received(data)

    @property
    def is_busy(self) -> bool:
        return self._busy is not None or super().is_busy

    def _is_idle(self) -> bool:
        waiter = self._waiter
        return (
            waiter is not None
            and not waiter.done()
            and not self._messages
            and self._stream.is_between_requests
            and self._request_count == self._stream.heads
            and not self._close
            and not self._force_close
            and self._payload_parser is None
        )

    def _begin(self, data: bytes) -> bool:
        """Send a call up. Returns False, with nothing done, if it isn't one for the fast path."""
        end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
        if end < 0:
            return False
        line_end = data.find(b"\r\n")
        request_line = data[:line_end].split(b" ")
        if len(request_line) != 3:
            return False
        name, target, version = request_line
        method = _METHODS.get(name)
        if method is None or version != b"HTTP/1.1" or not target.startswith(b"/"):
            return False
        if self._peer is None:
            self._peer = self.peer
        proxy = self._proxy
        gate = proxy.gate
        body = data[end + 4 :]
        try:
            block = self._block(data[line_end:end])
            if block.chunked or len(body) != (block.content_length or 0):
                return False
            call = gate.judge(method=method, target=target, version=(1, 1), block=block, peer=self._peer)
            head, lane = call.head, call.lane
            if head.upgrade or lane.route.scrub:
                return False
            if not gate.admit_at_once(call) or call.is_bound:
                return False
            gate.limit(call)
            call.request_id = proxy.request_id(call, self._peer)
            watched = proxy.watched(call)
            relay = Relay(self, head, hold_401=call.token is not None, watched=watched, done=self._done)
            exchange = Exchange(head.method, call.compose(), relay, lane.answers, lane.route.timeout)
        except BrokerError:
            self.relay = None
            return False
        exchange.body = body
        relay.exchange = exchange
        self._busy = Handover(call, relay, self._loop.time())
        self._sent = data
        if lane.upstream.try_start(exchange):
            return True
        gate.unlimit(call)
        self._busy = self.relay = None
        return False

    def _block(self, raw: bytes) -> FieldBlock:
        """Read the field lines. Those of the last request are often those of this one."""
        if raw != self._last_raw or self._last_raw_block is None:
            lines = raw.split(b"\r\n")[1:]
            if len(lines) > MAX_FIELDS:
                raise BadRequest("too many fields for the fast path")
            self._last_raw_block = self._proxy.gate.fields.read(lines)
            self._last_raw = raw
        return self._last_raw_block

    def _done(self) -> None:
        """Nothing more comes of the call's exchange."""
        busy, self._busy = self._busy, None
        if busy is None:
            return
        relay = busy.relay
        if not relay.started and self.transport is not None and not self.is_closing:
            # A fault, or a 401 that a newer token may cure: the slow path goes on from here.
            self.handover = busy
            super().data_received(self._sent)
        else:
            self._end(busy)
        self._sent = b""
        if self._ahead:
            self._go_on()

    def _end(self, ended: Handover) -> None:
        relay = ended.relay
        if relay.rejected:
            relay.release()
        now = self._loop.time()
        self._proxy.finished(ended.call, relay, now - ended.began_at)
        if relay.keep_alive and relay.started and not self.closes:
            self._next_keepalive_close_time = now + self._keepalive_timeout
        else:
            self.force_close()

    def _go_on(self) -> None:
        """Take what the caller sent before it had its answer."""
        ahead, self._ahead = self._ahead, b""
        if len(ahead) > MAX_AHEAD_BYTES and self.transport is not None:
            self.transport.resume_reading()
        self.data_received(ahead)

    def _hold(self, data: bytes) -> None:
        """Keep what a caller sends before it has its answer."""
        self._ahead += data
        if len(self._ahead) > MAX_AHEAD_BYTES and self.transport is not None:
            self.transport.pause_reading()

    # --- while a call is under way aiohttp believes that the connection is idle

    def _process_keepalive(self) -> None:
        if self._busy is None:
            super()._process_keepalive()
        else:
            self._keepalive_handle = self._loop.call_later(BUSY_CHECK_SECONDS, self._process_keepalive)

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - aiohttp's signature
        if self._busy is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._busy.relay.wait(), timeout)
        await super().shutdown(timeout)

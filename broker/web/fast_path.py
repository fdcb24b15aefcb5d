"""
The fast path: a plain call with a live session and a live token, without a task, a future or a request object.

    data_received ▸ gate ▸ idle upstream connection ▸ relay ▸ the caller's transport

It takes what is simple: a whole request in one read on an idle connection, its body sized if it has one, when the pool
has an idle connection. Everything else falls through to aiohttp, with no byte changed and nothing done. Where this
process doesn't know session or token, a task asks the gate for them. The gate, the lane and the relay are the slow
path's own, so that both forward and refuse the same; a call that is refused, or fails after it was sent, is handed to
the slow path as it stands.

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
    from broker.web.gate import Call
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
        "_is_early",
        "_last_raw",
        "_last_raw_block",
        "_looking",
        "_peer",
        "_proxy",
        "_sent",
    )

    def __init__(self, server: Any, *, proxy: "Proxy", **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._proxy = proxy
        self._busy: Handover | None = None
        self._looking: asyncio.Task[None] | None = None
        self._is_early = False
        self._sent = b""
        self._ahead = b""
        self._peer: str | None = None
        self._last_raw = b""
        self._last_raw_block: FieldBlock | None = None

    def data_received(self, data: bytes) -> None:
        if self._busy is not None or self._looking is not None or self._is_early:
            self._hold(data)
        elif self._waiter is None and self._is_between_requests():
            # aiohttp waits for a request once its task has had its turn; a quick caller mustn't be slow for ever.
            self._is_early = True
            self._hold(data)
            self._loop.call_soon(self._after_a_turn)
        else:
            self._take(data)

    def _after_a_turn(self) -> None:
        self._is_early = False
        ahead, self._ahead = self._ahead, b""
        if self.transport is not None:
            if len(ahead) > MAX_AHEAD_BYTES:
                self.transport.resume_reading()
            self._take(ahead)

    def _take(self, data: bytes) -> None:
        if not (self._is_idle() and self._begin(data)):
            super().data_received(data)

    @property
    def is_busy(self) -> bool:
        return self._busy is not None or self._looking is not None or self._is_early or super().is_busy

    def _is_idle(self) -> bool:
        waiter = self._waiter
        return waiter is not None and not waiter.done() and self._is_between_requests()

    def _is_between_requests(self) -> bool:
        return (
            not self._messages
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
        gate = self._proxy.gate
        body = data[end + 4 :]
        try:
            block = self._block(data[line_end:end])
            if block.chunked or len(body) != (block.content_length or 0):
                return False
            call = gate.judge(method=method, target=target, version=(1, 1), block=block, peer=self._peer)
            if call.head.upgrade or call.lane.route.scrub:
                return False
            is_admitted = gate.admit_at_once(call)
        except BrokerError:
            return False
        began_at = self._loop.time()
        if is_admitted:
            return self._send(call, data, body, began_at)
        self._looking = self._proxy.tasks.spawn(self._look_up(call, data, body, began_at), name="fast_path:look_up")
        return True

    async def _look_up(self, call: "Call", data: bytes, body: bytes, began_at: float) -> None:
        """Find what this process doesn't know, and go on; what the caller sends meanwhile is held."""
        refusal = None
        try:
            await self._proxy.gate.find_out(call)
        except BrokerError as error:
            refusal = error
        self._looking = None
        if refusal is None and self._send(call, data, body, began_at):
            return
        if self.is_closing:  # aiohttp takes nothing more
            self.force_close()
            return
        self.handover = Handover(call, began_at, refusal=refusal)
        super().data_received(data)
        if self._ahead:
            self._go_on()

    def _send(self, call: "Call", data: bytes, body: bytes, began_at: float) -> bool:
        """Send an admitted call up. Returns False, with nothing done, if the slow path has to."""
        if call.is_bound:
            return False
        proxy, lane = self._proxy, call.lane
        try:
            proxy.gate.limit(call)
            call.request_id = proxy.request_id(call, self._peer or "")
            relay = Relay(
                self,
                call.head,
                hold_401=call.token is not None,
                streams=proxy.streams,
                session=call.session,
                done=self._done,
            )
            exchange = Exchange(call.head.method, call.compose(), relay, lane.answers, lane.route.timeout)
        except BrokerError:
            self.relay = None
            return False
        exchange.body = body
        relay.exchange = exchange
        self._busy = Handover(call, began_at, relay)
        self._sent = data
        if lane.upstream.try_start(exchange):
            return True
        proxy.gate.unlimit(call)
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
        assert relay is not None
        if not relay.started and self.transport is not None and not self.is_closing:
            # A fault, or a 401 that a newer token may cure: the slow path goes on from here.
            self.handover = busy
            super().data_received(self._sent)
        else:
            self._end(busy, relay)
        self._sent = b""
        if self._ahead:
            self._go_on()

    def _end(self, ended: Handover, relay: Relay) -> None:
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

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._looking is not None:
            self._looking.cancel()
        super().connection_lost(exc)

    # --- while a call is under way aiohttp believes that the connection is idle

    def _process_keepalive(self) -> None:
        if self._busy is None and self._looking is None:
            super()._process_keepalive()
        else:
            self._keepalive_handle = self._loop.call_later(BUSY_CHECK_SECONDS, self._process_keepalive)

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - aiohttp's signature
        if self._looking is not None:
            await asyncio.wait([self._looking], timeout=timeout)
        if self._busy is not None and self._busy.relay is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._busy.relay.wait(), timeout)
        await super().shutdown(timeout)

"""
The fast path: proxied requests past aiohttp's parser, its handler and its request objects.

    data_received ▸ gate ▸ idle upstream connection ▸ relay ▸ the caller's transport

What is simple goes *directly*, without a task or a future: a whole request, with or without a body, of a session and a
token that this process knows, when the pool has an idle connection. For everything else that is proxied a task waits:
for a look-up, a body that is still to come, a connection, a newer token, a WebSocket's end. Requests for the broker's
own endpoints, and such as aren't plainly written (below), fall through to aiohttp, with no byte changed and nothing
done. The gate, the relay and what becomes of a call are the slow path's own, so that both forward and refuse the same;
what is to be said of a call that failed, aiohttp's handler says.
"""

import asyncio
import math
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from broker.core.chunks import read_only_chunk
from broker.core.request_fields import FieldBlock
from broker.errors import BadRequest, BrokerError
from broker.services.logs import REQUEST_ID
from broker.services.upstream import Exchange
from broker.web.connection import Failure
from broker.web.incoming import IncomingBody
from broker.web.proxy import Proxy, is_fault_of_body
from broker.web.relay import Relay
from broker.web.scrub import scrub
from broker.web.turn_taking import MAX_HEAD_BYTES, TurnTaking

if TYPE_CHECKING:
    from broker.web.gate import Call

MAX_FIELDS: Final = 100

_METHODS = {
    name.encode(): name
    for name in [
        *("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"),
        *("PROPFIND", "PROPPATCH", "MKCOL", "MKCALENDAR", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT", "SEARCH"),
        *("PURGE", "LINK", "UNLINK", "BIND", "REBIND", "UNBIND", "ACL", "MKACTIVITY", "CHECKOUT", "MERGE"),
        *("M-SEARCH", "NOTIFY", "SUBSCRIBE", "UNSUBSCRIBE", "SOURCE"),
    ]
}
"""Those that llhttp takes, too; TRACE and CONNECT aren't proxied."""
_TARGETS = (b"/", b"http://", b"https://")
"""How a path begins, and an absolute URL (RFC 9112 section 3.2.2)."""
_VERSIONS = {b"HTTP/1.1": (1, 1), b"HTTP/1.0": (1, 0)}
_DISPUTED = re.compile(rb"(?i)\r\n(?:content-length|transfer-encoding|connection|expect|upgrade)[ \t]*:[^\r\n]*\t")
"""Tabs in the fields by which a message is framed: llhttp refuses some of them."""
_FRAMING = re.compile(rb"(?i)\r\n(?:content-length|transfer-encoding|expect|upgrade)[ \t]*:[^\r\n]*")


@dataclass(slots=True, repr=False)  # it holds cookies
class _Request:
    """
    A request that is served past aiohttp.

    Attributes:
        call: What was judged of it.
        head: What begins with its head, as it came.
        began_at: When it came, on the loop's clock.
        body: Its body, if all of it came at once.
        content: Its body otherwise.
        relay: What is written to its caller while it goes directly.
    """

    call: "Call"
    head: bytes
    began_at: float
    body: bytes = b""
    content: IncomingBody | None = None
    relay: Relay | None = None


class FastConnection(TurnTaking):
    """A connection with the fast path."""

    __slots__ = ("_known_block", "_known_fields", "_max_line_bytes", "_peer", "_proxy", "_serving")
    _current: _Request | None

    def __init__(self, server: Any, *, proxy: Proxy, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._proxy = proxy
        self._serving: asyncio.Task[None] | None = None  # serves the request, unless that goes directly
        self._peer: str | None = None
        self._max_line_bytes = self._limits.max_header_field_bytes  # aiohttp measures a longer line, and refuses it
        self._known_fields = b""
        self._known_block: FieldBlock | None = None

    # --- a request

    def _begin(self, data: bytes) -> bool:
        """Serve the request that *data* begins with. Returns False, with nothing done, if aiohttp has to."""
        line_end = data.find(b"\r\n")
        request_line = data[:line_end].split(b" ")
        if not 0 <= line_end <= self._max_line_bytes or len(request_line) != 3:
            return False
        name, target, said_version = request_line
        method, version = _METHODS.get(name), _VERSIONS.get(said_version)
        if method is None or version is None or not target.startswith(_TARGETS):
            return False
        # The fields of the last request are often those of this one.
        block = self._known_block if data.startswith(self._known_fields, line_end) else None
        end = line_end + len(self._known_fields)
        if block is None or end > MAX_HEAD_BYTES:
            block = None
            end = data.find(b"\r\n\r\n", line_end, MAX_HEAD_BYTES) + 4
            if end < 4:
                return self._wait_for_head(data)
        if self._peer is None:
            self._peer = self.peer
        gate = self._proxy.gate
        try:
            if block is None:
                block = self._read_fields(data[line_end:end])
            call = gate.judge(method=method, target=target, version=version, block=block, peer=self._peer)
            is_admitted = gate.admit_at_once(call)
            request = _Request(call, data, self._loop.time())
            if len(data) > end or block.content_length or block.chunked:
                self._take_body(request, data[end:])
        except BrokerError:
            return False
        self._head_since = math.inf
        self._current = request
        if not (is_admitted and self._send(request)):
            self._serve(request, is_admitted=is_admitted)
        return True

    def _take_body(self, request: _Request, rest: bytes) -> None:
        """
        Take of *rest*, which came behind the head, what belongs to the request, and keep what doesn't.

        Raises:
            BadRequest: If aiohttp has to say what is wrong with it. Nothing is done then.
        """
        block = request.call.head.block
        length = block.content_length or 0
        content = None
        if block.chunked and (whole := read_only_chunk(rest)) is not None:
            request.body, rest = whole
        elif block.chunked or length > len(rest):
            content = IncomingBody(self, content_length=block.content_length)
            rest = content.feed(rest)
            if content.exception() is not None:
                raise BadRequest("the body is malformed")
            if content.is_whole:
                request.body = content.read_nowait()
                content = None
        elif length:
            request.body, rest = rest[:length], rest[length:]
        if rest and b"upgrade" in block.read:
            raise BadRequest("who asks for an upgrade has to wait for the answer (RFC 6455 section 4.1)")
        self._ahead = rest
        request.content = self._incoming = content

    def _read_fields(self, fields: bytes) -> FieldBlock:
        """Read the field lines, given with the line breaks around them."""
        if fields.count(b"\r\n") > MAX_FIELDS + 2 or (b"\t" in fields and _DISPUTED.search(fields)):
            raise BadRequest("too many fields for the fast path, or white space about which parsers disagree")
        lines = fields.split(b"\r\n")[1:-2]
        if len(fields) > self._max_line_bytes and max(map(len, lines)) > self._max_line_bytes:
            raise BadRequest("a field is too long")
        block = self._proxy.gate.fields.read(lines)
        self._known_fields, self._known_block = fields, block
        return block

    # --- the direct way

    def _send(self, request: _Request) -> bool:
        """Send an admitted call up directly. Returns False, with nothing done, if that can't be."""
        call, body = request.call, request.body
        proxy, lane = self._proxy, call.lane
        if request.content is not None or len(body) > lane.max_body_bytes:
            return False
        if call.head.upgrade or call.is_bound:
            return False
        if not call.request_id:
            call.request_id = proxy.request_id(call, self._peer or "")
        if lane.is_limited:
            try:
                proxy.gate.limit(call)
            except BrokerError as refusal:
                self._fail(request, refusal)
                return True
        request.relay = relay = Relay(
            self,
            call,
            streams=proxy.streams,
            done=self._done,
        )
        try:
            exchange = Exchange(call.head.method, call.compose(), relay, lane.answers, lane.route.timeout)
            if call.head.block.chunked:
                exchange.carry(body, chunked=True)
            else:
                exchange.body = body
            if lane.route.scrub and call.token is not None:
                scrub(exchange, call.token)
            relay.exchange = exchange
            if lane.upstream.try_start(exchange):
                return True
        except BrokerError as fault:
            self._fail(request, fault)
            return True
        self._take_back(request)
        return False

    def _take_back(self, request: _Request) -> None:
        """Nothing was sent: the request begins anew."""
        self._proxy.gate.unlimit(request.call)
        self.relay = request.relay = None

    def _done(self) -> None:
        """Nothing more comes of the exchange of a request that went directly."""
        request = self._current
        if request is None or request.relay is None:
            return
        relay = request.relay
        if self.transport is None or self._close or self._force_close:
            self._end(request, relay)
        elif relay.is_outdated:
            self._take_back(request)
            self._serve(request, is_admitted=False)
        elif relay.rejected or (relay.status == 401 and request.call.token is not None):
            self._serve(request, is_admitted=True)
        else:
            self._settle(request, relay)

    # --- the way with a task

    def _serve(self, request: _Request, *, is_admitted: bool) -> None:
        serving = self._go_on_serving(request, is_admitted=is_admitted)
        self._serving = self._proxy.tasks.spawn(serving, name="fast_path:serve")

    async def _go_on_serving(self, request: _Request, *, is_admitted: bool) -> None:
        """Serve a request to its end, or until it can go directly; what the caller sends meanwhile is held."""
        proxy, call = self._proxy, request.call
        if not call.request_id:
            call.request_id = proxy.request_id(call, self._peer or "")
        REQUEST_ID.set(call.request_id)
        try:
            if not is_admitted:
                if not proxy.gate.is_outdated(call):
                    await proxy.gate.find_out(call)
                if proxy.gate.is_outdated(call):
                    await proxy.gate.admit_again(call)
                serving, self._serving = self._serving, None
                if self._send(request):
                    return
                self._serving = serving
            content = request.content or IncomingBody.of(request.body)
            if request.relay is None:
                proxy.gate.limit(call)
                relay = await proxy.carry(call, self, content)
            else:
                relay = await proxy.go_on(call, self, content, request.relay)
        except asyncio.CancelledError:
            proxy.finished(call, self.begun_status, self._loop.time() - request.began_at)
            raise
        except Exception as fault:  # noqa: BLE001 - aiohttp's handler tells it to the caller and, if it is ours, to the log
            self._serving = None
            self._fail(request, fault)
        else:
            self._serving = None
            self._settle(request, relay)

    # --- its end

    def _settle(self, request: _Request, relay: Relay) -> None:
        if relay.error is None or relay.started:
            self._end(request, relay)
            return
        self._fail(request, relay.error, closes=is_fault_of_body(relay.error))

    def _end(self, request: _Request, relay: Relay) -> None:
        """An answer was written, or the caller is gone."""
        self._current = None
        if relay.rejected:
            relay.release()
        self._proxy.finished(request.call, relay.status, self._loop.time() - request.began_at)
        if relay.started:
            self._answered(keeps=relay.keep_alive and not self.closes)
        else:
            self.force_close()

    def _fail(self, request: _Request, error: Exception, *, closes: bool = False) -> None:
        """Have aiohttp's handler say what went wrong. Nothing of an answer is written."""
        self.relay = self._current = None
        self._proxy.failed(request.call, error, self._loop.time() - request.began_at)
        if self.transport is None or self.is_closing:  # aiohttp takes nothing more
            self.force_close()
            return
        self.failure = Failure(error, request.call.request_id, request.call.lane.route.name, closes)
        end = request.head.find(b"\r\n\r\n") + 4
        # aiohttp needs no more of the request than who asked for what: its body is ours to read.
        self._leave_to_aiohttp(_FRAMING.sub(b"", request.head[:end]))
        self._answered(keeps=True)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._serving is not None:
            self._serving.cancel()
        super().connection_lost(exc)

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - aiohttp's signature
        if self._serving is not None:
            await asyncio.wait([self._serving], timeout=timeout)
        if self._current is not None and self._current.relay is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._current.relay.wait(), timeout)
        await super().shutdown(timeout)

"""
One connection to an upstream: an exchange at a time, its answer pushed on as it arrives.

    idle ──start──▶ head ──▶ body ──▶ idle | closed
                     └─101─▶ tunnel ─▶ closed

The head is read strictly (broker.core.response_head). A body with a length is counted, not parsed: that costs half as
much. A chunked one goes through llhttp (httptools), which takes framing, extensions and trailers off. Bytes that nobody
asked for, before an exchange or after its answer, close the connection: they would be taken for the next caller's
answer.

Source: RFC 9112 sections 6.3, 7.1, 9.3, 9.5 and 9.8; SECURITY UP-01, UP-03, UP-04, SM-05.
"""

import asyncio
import math
from typing import Protocol, cast

import httptools

from broker.core.response_head import ResponseHead
from broker.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from broker.services.transports import is_end_said, probe, unsent_bytes
from broker.services.upstream import Exchange

MAX_HEAD_BYTES = 64 << 10
"""A longer head is refused."""
MAX_INFORMATIONAL = 16
"""More 1xx answers to one request are refused."""
HALF_CLOSED_SECONDS = 5.0
"""How long a tunnel may stay open after the caller closed its half."""
MAX_CHUNK_OVERHEAD_BYTES = 64 << 10
"""More framing, extensions and trailers than this without one byte of body are refused."""


_CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Owner(Protocol):
    """Where a connection belongs."""

    def released(self, connection: "UpstreamConnection") -> None:
        """The connection is idle."""
        ...

    def lost(self, connection: "UpstreamConnection") -> None:
        """The connection is closed."""
        ...

    def answered(self) -> None:
        """The host answered."""
        ...

    def failed(self) -> None:
        """The host did not answer, or not in time."""
        ...

    def cut_off(self) -> None:
        """The connection broke in an answer that ends with it."""
        ...

    def restart(self, exchange: Exchange) -> None:
        """Send an exchange once more that a dead connection has swallowed."""
        ...


class UpstreamConnection(asyncio.Protocol):
    """
    A connection in a pool.

    Attributes:
        exchange: What it carries; None while it is idle.
        deadline: When, on the loop's clock, it is given up, or, while idle, closed.
        retires_at: When, on the loop's clock, it is no longer used again, so that changes of the DNS come through.
    """

    __slots__ = (
        "_body",
        "_buffer",
        "_drained",
        "_head",
        "_informational",
        "_is_end_said",
        "_is_tunnel",
        "_loop",
        "_message_complete",
        "_overhead",
        "_owner",
        "_parser",
        "_paused",
        "_reading_paused",
        "_remaining",
        "_surplus",
        "_transport",
        "_tunnel_seconds",
        "_used",
        "deadline",
        "exchange",
        "retires_at",
    )

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._buffer = b""
        self._head: ResponseHead | None = None
        self._remaining = 0
        self._body: list[bytes] = []
        self._message_complete = False
        self._surplus = False
        self._overhead = 0
        self._informational = 0
        self._paused = False
        self._reading_paused = False
        self._drained: asyncio.Future[None] | None = None
        self._used = False
        self._is_tunnel = False
        self._is_end_said = False
        self._tunnel_seconds = math.inf
        self.exchange: Exchange | None = None
        self.deadline = math.inf
        self.retires_at = math.inf

    # --- for the pool

    @property
    def is_usable(self) -> bool:
        """Whether an exchange may be started on it."""
        return self.exchange is None and self._transport is not None and not self._transport.is_closing()

    def start(self, exchange: Exchange) -> None:
        """Send *exchange*."""
        assert self._transport is not None
        self.exchange = exchange
        exchange.channel = self
        self._head = None
        self._informational = 0
        timeouts = exchange.timeouts
        self.deadline = self._loop.time() + (
            timeouts.response_header_seconds if exchange.complete else timeouts.idle_seconds
        )
        self._transport.write(exchange.head + exchange.body)

    def close(self) -> None:
        """Close the connection; an exchange on it fails."""
        if self._transport is not None:
            self._transport.abort()

    def expire(self) -> None:
        """The deadline has passed."""
        exchange = self.exchange
        if exchange is None:
            self.close()
        elif self._head is None:
            self._owner.failed()
            self._fail(UpstreamTimeout("the upstream did not answer in time"))
        else:
            self._fail(UpstreamTimeout("the upstream stopped in the middle of its answer"))

    # --- for the exchange (upstream.Channel)

    def write(self, data: bytes) -> None:
        assert self.exchange is not None
        if self._transport is not None:
            # A tunnel may be silent, and while the caller is slow its own timer runs.
            if not self.exchange.upgrade and not self._reading_paused:
                self.deadline = self._loop.time() + self.exchange.timeouts.idle_seconds
            self._transport.write(data)

    async def drain(self) -> None:
        if self._paused:
            if self._drained is None:
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)

    def finish_request(self) -> None:
        assert self.exchange is not None
        if self._head is None:
            self.deadline = self._loop.time() + self.exchange.timeouts.response_header_seconds

    def finish_tunnel(self) -> bool:
        if self._transport is None or not self._transport.can_write_eof():
            return False  # TLS has no half
        self._tunnel_seconds = HALF_CLOSED_SECONDS
        self.deadline = self._loop.time() + self._tunnel_seconds
        self._transport.write_eof()
        return True

    def pause(self) -> None:
        # The caller's own timers judge how slow it may be.
        self.deadline = math.inf
        self._reading_paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and self.exchange is not None:
            seconds = self._tunnel_seconds if self._is_tunnel else self.exchange.timeouts.idle_seconds
            self.deadline = self._loop.time() + seconds
            self._reading_paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        self.exchange = None
        self.close()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports don't descend from asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def pause_writing(self) -> None:
        self._paused = True
        if self.exchange is not None:
            self.exchange.receiver.on_write_paused()

    def resume_writing(self) -> None:
        self._paused = False
        if self.exchange is not None:
            self.exchange.receiver.on_write_resumed()
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None
        self._owner.lost(self)
        exchange, self.exchange = self.exchange, None
        if exchange is None or exchange.ended:
            return
        head = self._head
        if head is not None and exc is None and (self._is_tunnel or (head.until_close and self._is_end_said)):
            exchange.ended = True
            exchange.receiver.on_end()
        elif head is not None or not self._repeat(exchange):
            if head is None:
                self._owner.failed()
            elif head.until_close:
                self._owner.cut_off()
            exchange.ended = True
            exchange.receiver.on_failed(
                UpstreamUnavailable("the upstream closed the connection before its answer's end")
            )

    def eof_received(self) -> None:
        self._is_end_said = self._transport is not None and is_end_said(self._transport)

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self.close()
            return
        head = self._head
        if head is None:
            self._read_head(exchange, self._buffer + data if self._buffer else data)
            return
        if self._is_tunnel:
            exchange.receiver.on_body(data)
            return
        self.deadline = self._loop.time() + exchange.timeouts.idle_seconds
        if self._parser is not None:
            self._read_chunks(exchange, head, data)
        elif head.body_length is None:
            exchange.receiver.on_body(data)
        else:
            self._count(exchange, data)

    # --- the head

    def _read_head(self, exchange: Exchange, data: bytes) -> None:
        while data:
            end = data.find(b"\r\n\r\n") + 4
            if end < 4 or end > MAX_HEAD_BYTES:
                self._buffer = data
                if len(data) > MAX_HEAD_BYTES:
                    self._fail(UpstreamUnavailable("the answer's head is too large"))
                return
            self._buffer = b""
            try:
                head = exchange.answers.read(data[: end - 4], exchange.method)
            except UpstreamError as error:
                self._fail(error)
                return
            data = data[end:]
            if head.status >= 200:
                if head.status != 408 or head.reusable or not self._repeat(exchange):
                    self._begin_body(exchange, head, data)
                return
            if head.status == 101:
                self._switch(exchange, head, data)
                return
            self._inform(exchange, head)
            if self.exchange is not exchange:
                return

    def _repeat(self, exchange: Exchange) -> bool:
        """
        Have a request sent once more that crossed the end of an idle connection: its close, or the 408 that says it.

        Returns False, with nothing done, if that isn't how it ended, or if the request may not be repeated.

        Source: RFC 9112 section 9.3.1; RFC 9110 section 15.5.9.
        """
        if not self._used or self._buffer or self._informational or not exchange.replayable:
            return False
        exchange.replayable = False
        self.exchange = None
        self.close()
        self._owner.restart(exchange)
        return True

    def _inform(self, exchange: Exchange, head: ResponseHead) -> None:
        self._informational += 1
        if self._informational > MAX_INFORMATIONAL:
            self._fail(UpstreamUnavailable("the upstream sent too many informational answers"))
        elif head.status != 100:  # the broker sends no Expect: this answers nobody's question
            exchange.receiver.on_informational(head)

    # --- the body

    def _begin_body(self, exchange: Exchange, head: ResponseHead, data: bytes) -> None:
        self._owner.answered()
        self._head = head
        self._surplus = False
        length = head.body_length
        if length is None or length > len(data):
            self.deadline = self._loop.time() + exchange.timeouts.idle_seconds
        if head.chunked:
            self._overhead = 0
            self._message_complete = False
            # A parser for each body. It learns the framing, and nothing else, from a head of our own.
            self._parser = httptools.HttpResponseParser(self)
            self._parser.feed_data(_CHUNKED_HEAD)
            body = self._unchunk(data) if data else b""
            if body is None:
                return
            exchange.receiver.on_head(head, body, complete=self._message_complete)
            if self._message_complete:
                self._end(exchange, head)
            return
        if length is None:
            exchange.receiver.on_head(head, data, complete=False)
            return
        self._surplus = len(data) > length
        if self._surplus:
            data = data[:length]
        self._remaining = length - len(data)
        exchange.receiver.on_head(head, data, complete=not self._remaining)
        if not self._remaining:
            self._end(exchange, head)

    def _count(self, exchange: Exchange, data: bytes) -> None:
        if len(data) > self._remaining:
            self._surplus = True
            data = data[: self._remaining]
        self._remaining -= len(data)
        exchange.receiver.on_body(data)
        if not self._remaining and self._head is not None:
            self._end(exchange, self._head)

    def _read_chunks(self, exchange: Exchange, head: ResponseHead, data: bytes) -> None:
        body = self._unchunk(data)
        if body is None:
            return
        if body:
            exchange.receiver.on_body(body)
        if self._message_complete:
            self._end(exchange, head)

    def _unchunk(self, data: bytes) -> bytes | None:
        """The body in *data*; None if the framing is broken, and the exchange has failed with it."""
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            # What follows a complete answer isn't part of it, and ends the connection.
            self._surplus = True
            if not self._message_complete:
                self._fail(UpstreamUnavailable("the answer's chunks are malformed"))
                return None
        pieces, self._body = self._body, []
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._overhead = 0 if body else self._overhead + len(data)
        if self._overhead > MAX_CHUNK_OVERHEAD_BYTES:
            self._fail(UpstreamUnavailable("the answer has more framing than content"))
            return None
        return body

    def on_message_begin(self) -> None:
        """For httptools."""
        self._surplus = self._message_complete

    def on_body(self, body: bytes) -> None:
        """For httptools."""
        if not self._message_complete:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """For httptools."""
        self._message_complete = True

    # --- the end

    def _switch(self, exchange: Exchange, head: ResponseHead, data: bytes) -> None:
        if not exchange.upgrade or head.upgrade != exchange.upgrade:
            self._fail(UpstreamUnavailable("the upstream switched protocols without being asked"))
            return
        self._head = head
        self._parser = None
        self._is_tunnel = True
        self.deadline = math.inf
        if self._transport is not None:
            probe(self._transport)
        self._owner.answered()
        exchange.receiver.on_upgraded(head, data)

    def _end(self, exchange: Exchange, head: ResponseHead) -> None:
        if exchange.ended:
            return
        self._parser = None
        self.exchange = None
        self._used = True
        transport = self._transport
        # After an early answer the rest of the request may still be under way, and would be read as the next one.
        is_sent = exchange.complete and transport is not None and not unsent_bytes(transport)
        if head.reusable and is_sent and not self._surplus:
            if self._reading_paused and transport is not None:
                self._reading_paused = False
                transport.resume_reading()
            self._owner.released(self)
        else:
            self.close()
        exchange.ended = True
        exchange.receiver.on_end()

    def _fail(self, error: UpstreamError) -> None:
        exchange, self.exchange = self.exchange, None
        self.close()
        if exchange is not None and not exchange.ended:
            exchange.ended = True
            exchange.receiver.on_failed(error)

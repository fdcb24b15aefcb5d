"""
An upstream's answer on its way to the caller: one object per answer, no task, no queue.

Once a byte of the answer is written there is no other answer any more: what goes wrong then ends the connection, in a
way that the caller can't take for the end of the answer.
"""

import asyncio
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiohttp import web

from broker.core.response_head import ResponseHead
from broker.errors import BrokerError, UpstreamError
from broker.services.transports import probe
from broker.services.upstream import Exchange
from broker.web.connection import CallerConnection
from broker.web.lingering import Lingering
from broker.web.streams import Streams

if TYPE_CHECKING:
    from broker.web.gate import Call

MAX_HELD_BYTES = 64 << 10
"""A 401 is held back up to this size, while a newer token is sought."""

_CHALLENGE = re.compile(rb"^www-authenticate:([^\r\n]*)\r$", re.IGNORECASE | re.MULTILINE)


class Relay:
    """
    Writes one answer to the caller's connection (services.upstream.Receiver).

    Attributes:
        exchange: Whose answer it is; None once nothing more comes.
        status: The answer's status; 0 before it is known.
        started: Whether a byte of the answer is written.
        rejected: Whether a 401 came and is held back.
        proof_refused: Whether a 401 is about the request's proof of possession, and not about its token.
        nonce_given: Whether the answer brings a nonce for the next proof.
        is_outdated: Whether the request wasn't sent, since something has ended after its call was admitted.
        error: Why there is no answer, or no end of it.
        keep_alive: Whether the caller's connection can be used again.
        ended: Whether nothing more comes.
        sent_bytes: How much of the body was written.
    """

    # One is made for each request: what is usual costs nothing then.
    exchange: Exchange | None = None
    status = 0
    started = False
    rejected = False
    proof_refused = False
    nonce_given = False
    is_outdated = False
    error: BrokerError | None = None
    ended = False
    sent_bytes = 0
    _held: ResponseHead | None = None
    _held_bytes = b""
    _chunked = False
    _tunnel = False
    _lingering: Lingering | None = None
    _watched: str | None = None
    _waiter: asyncio.Future[None] | None = None

    def __init__(
        self,
        connection: CallerConnection,
        call: "Call",
        *,
        streams: Streams,
        done: Callable[[], None] | None = None,
    ) -> None:
        """
        Args:
            connection: Where the answer goes.
            call: What it answers.
            streams: End it with the leave by which it is given, if it takes longer than one read.
            done: Is called when nothing more comes, for whoever doesn't :meth:`wait`.
        """
        self._connection = connection
        self._call = call
        self._request = call.head
        self._hold_401 = call.token is not None  # the request may be sent again, with a newer one
        self._streams = streams
        self._done = done
        self.keep_alive = call.head.keep_alive
        connection.relay = self

    async def wait(self) -> None:
        """Return when nothing more comes."""
        if not self.ended:
            self._waiter = self._connection.loop.create_future()
            await self._waiter

    @property
    def challenges(self) -> list[str]:
        """The values of ``WWW-Authenticate`` in the 401 that is held back."""
        return [] if self._held is None else challenges_of(self._held)

    def release(self) -> None:
        """Write the 401 that was held back: no newer token is to be had."""
        assert self._held is not None
        self.rejected = False
        self._hold_401 = False
        self._begin(self._held, self._held_bytes, complete=True)

    def refuse(self, error: BrokerError) -> None:
        """End it: the request can't be sent whole."""
        if not self.ended:
            self.error = error
            self.keep_alive = False
            self._give_up()

    def cut(self) -> None:
        """End it: its session has ended."""
        if not self.ended:
            self.keep_alive = False
            self.started = True  # nothing else is written after this
            self._give_up()

    def leave(self) -> None:
        """Nobody waits any more."""
        if not self.ended:
            self.keep_alive = False
            self._give_up()

    def _give_up(self) -> None:
        if self.exchange is not None:
            self.exchange.abort()
        if self.started:
            self._connection.reset()
        self._finish()

    # --- from the caller's connection (connection.Relaying)

    def pause(self) -> None:
        if self.exchange is not None:
            self.exchange.pause()

    def resume(self) -> None:
        if self.exchange is not None:
            self.exchange.resume()

    def caller_finished(self) -> bool:
        # Of a request, that is the caller's leave (as nginx takes it); in a tunnel, it may wait for the last word.
        if self._lingering is not None:
            self._finish()
        return self._tunnel and self.exchange is not None and self.exchange.finish_tunnel()

    def caller_lost(self) -> int:
        if self.exchange is not None:
            self.exchange.abort()
        self.keep_alive = False
        self._finish()
        return self.status if self.started else 0

    # --- from the upstream (services.upstream.Receiver)

    def on_informational(self, head: ResponseHead) -> None:
        if self._request.is_http11:
            self._write(head.passed + b"\r\n")

    def on_head(self, head: ResponseHead, body: bytes, *, complete: bool) -> None:
        if head.status == 401 and self._hold_401:
            self._held = head
            self._held_bytes = body
        else:
            self._begin(head, body, complete=complete)
            if not complete:
                self.be_watched()

    def on_upgraded(self, head: ResponseHead, body: bytes) -> None:
        self.status = 101
        self.started = True
        self._tunnel = True
        self.keep_alive = False
        if self._connection.transport is not None:
            probe(self._connection.transport)
        self._write(b"%bConnection: Upgrade\r\nUpgrade: %b\r\n\r\n%b" % (head.passed, head.upgrade, body))
        self.be_watched()
        assert self.exchange is not None
        self._connection.begin_tunnel(self.exchange)

    def on_body(self, body: bytes) -> None:
        if self._held is not None and not self.started:
            self._held_bytes += body
            if len(self._held_bytes) > MAX_HELD_BYTES:
                self._begin(self._held, self._held_bytes, complete=False)
                self.be_watched()
            return
        self.sent_bytes += len(body)
        self._write(b"%x\r\n%b\r\n" % (len(body), body) if self._chunked else body)

    def on_end(self) -> None:
        if self._held is not None and not self.started:
            self.rejected = True
        elif self._chunked:
            self._write(b"0\r\n\r\n")
        if self._tunnel and self._connection.transport is not None:
            self._lingering = Lingering(self._connection.transport, self._connection.loop, self._finish)
            self._connection.begin_tunnel(self._lingering)
        else:
            self._finish()

    def on_failed(self, error: UpstreamError) -> None:
        self.error = error
        if self.started:
            self.keep_alive = False
            self._connection.reset()
        self._finish()

    def is_current(self) -> bool:
        return not self._streams.endings.outdate(self._call)

    def on_outdated(self) -> None:
        self.is_outdated = True
        self._finish()

    def on_write_paused(self) -> None:
        if self._tunnel and self._connection.transport is not None:
            self._connection.transport.pause_reading()

    def on_write_resumed(self) -> None:
        if self._tunnel and self._connection.transport is not None:
            self._connection.transport.resume_reading()

    # --- writing

    def _begin(self, head: ResponseHead, body: bytes, *, complete: bool) -> None:
        self.status = head.status
        self.started = True
        if self._connection.closes:
            self.keep_alive = False
        if head.ready and self.keep_alive and self._request.is_http11:
            self.sent_bytes = len(body)
            self._write(head.ready + body)
        else:
            self._write(self._framed(head, body, complete=complete))

    def _framed(self, head: ResponseHead, body: bytes, *, complete: bool) -> bytes:
        """The head with the framing that this caller understands, and the beginning of the body."""
        length = head.body_length
        if not head.has_body:
            length = None if head.status == 204 else head.declared_length
        elif complete:
            length = len(body)
        elif length is None and self._request.is_http11:
            self._chunked = True
        elif length is None:
            self.keep_alive = False
        lines = [head.passed]
        if self._chunked:
            lines.append(b"Transfer-Encoding: chunked\r\n")
        elif length is not None:
            lines.append(b"Content-Length: %d\r\n" % length)
        if not self.keep_alive:
            lines.append(b"Connection: close\r\n")
        elif not self._request.is_http11:
            lines.append(b"Connection: keep-alive\r\n")
        lines.append(b"\r\n")
        if body:
            self.sent_bytes = len(body)
            lines.append(b"%x\r\n%b\r\n" % (len(body), body) if self._chunked else body)
        return b"".join(lines)

    def _write(self, data: bytes) -> None:
        transport = self._connection.transport
        if transport is not None:
            transport.write(data)

    def be_watched(self) -> None:
        """Have it end with the leave by which it is given, from now on."""
        if not self.ended and self._watched is None:
            self._watched = self._streams.watch(self, self._call)

    def _finish(self) -> None:
        self.ended = True
        if self._lingering is not None:
            self._lingering.stop()
        self.exchange = None
        if self._watched is not None:
            self._streams.remove(self, self._watched)
        if self._connection.relay is self:
            self._connection.relay = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._done is not None:
            done, self._done = self._done, None
            done()


def challenges_of(head: ResponseHead) -> list[str]:
    """Return the values of ``WWW-Authenticate`` that pass to the caller."""
    return [value.strip(b" \t").decode("latin-1") for value in _CHALLENGE.findall(head.passed)]


class RelayedResponse(web.StreamResponse):
    """Tells aiohttp that the answer is written already, and nothing else of it; so two do for all answers."""

    _eof_sent = True

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._keep_alive = keep_alive


KEPT = RelayedResponse(keep_alive=True)
"""The connection can be used again."""
CLOSED = RelayedResponse(keep_alive=False)
"""It can't."""

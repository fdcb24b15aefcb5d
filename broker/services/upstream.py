"""
What the broker needs of an upstream: to send one request, and to be told what comes back.

An :class:`Exchange` is one request and its answer. The answer is *pushed* into a :class:`Receiver` as it arrives, on
the event loop, without a task or a queue in between: a relay that only passes bytes on needs neither.
"""

from collections.abc import Callable
from typing import Protocol

from broker.core.response_head import ResponseHead, ResponseRules
from broker.core.upstream_options import TimeoutOptions
from broker.errors import UpstreamError

IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
"""Methods whose repetition does nothing more (RFC 9110 section 9.2.2), of those that upstreams see."""


class Receiver(Protocol):
    """Takes an answer. Calls come in this order: informational…, head, body…, then end or failed, once."""

    def on_informational(self, head: ResponseHead) -> None:
        """A 1xx other than 100 and 101 (RFC 9110 section 15.2)."""
        ...

    def on_head(self, head: ResponseHead, body: bytes, *, complete: bool) -> None:
        """The head of the answer, and what of its body came with it, without the framing; perhaps all of it."""
        ...

    def on_upgraded(self, head: ResponseHead, body: bytes) -> None:
        """Instead of a head: the 101 that was asked for. From now on bytes pass as they are, both ways."""
        ...

    def on_body(self, body: bytes) -> None:
        """More of the body, never empty."""
        ...

    def on_end(self) -> None:
        """The answer is complete."""
        ...

    def on_write_paused(self) -> None:
        """The upstream takes less than it is sent."""
        ...

    def on_write_resumed(self) -> None:
        """The upstream takes more again."""
        ...

    def on_failed(self, error: UpstreamError) -> None:
        """No answer comes, or, after the head, no more of it."""
        ...

    def is_current(self) -> bool:
        """Whether a request that a dead connection has swallowed may be sent once more as it is."""
        ...

    def on_outdated(self) -> None:
        """It may not, and it wasn't. The exchange may be started anew; else nothing more comes."""
        ...


class Channel(Protocol):
    """The connection that carries an exchange."""

    def write(self, data: bytes) -> None: ...

    async def drain(self) -> None: ...

    def finish_request(self) -> None: ...

    def finish_tunnel(self) -> bool: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def abort(self) -> None: ...


class Exchange:
    """
    One request and its answer.

    Attributes:
        method: The request's method.
        head: The request's head.
        body: What goes out with it in one write: all of the body as it is framed, or nothing.
        receiver: Takes the answer.
        answers: How the answer's head is read.
        timeouts: How long the upstream may take.
        chunked: Whether the body is sent chunked.
        complete: Whether the whole request is written.
        upgrade: The protocol that was asked for; empty if none.
        replayable: Whether it may be sent once more on another connection, if the first dies before it answers.
        recompose: Makes the head anew for that; None if the same head may be sent twice.
        renew: Brings its head up to date once it has waited for a connection, or returns False if that takes longer;
            None if there is nothing to renew.
        ended: Whether the receiver was told the end, or the exchange was aborted.
    """

    # One is made for each request: what is usual costs nothing then.
    body = b""
    complete = True
    chunked = False
    upgrade = b""
    ended = False
    channel: Channel | None = None
    recompose: Callable[[], bytes] | None = None
    renew: Callable[[], bool] | None = None

    def __init__(
        self, method: str, head: bytes, receiver: Receiver, answers: ResponseRules, timeouts: TimeoutOptions
    ) -> None:
        self.method = method
        self.head = head
        self.receiver = receiver
        self.answers = answers
        self.timeouts = timeouts
        self.replayable = method in IDEMPOTENT_METHODS

    def carry(self, body: bytes, *, chunked: bool) -> None:
        """Say, before it is started, that *body* is all of the body."""
        if chunked:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        self.body = body

    def expect_body(self, *, chunked: bool) -> None:
        """Say, before it is started, that a body follows by :meth:`write` and :meth:`finish`."""
        self.complete = False
        self.chunked = chunked
        # A request that was only begun can't be repeated by the pool, which doesn't keep bodies.
        self.replayable = False

    def write(self, data: bytes) -> None:
        """Send a part of the body, or, after an upgrade, bytes as they are. Ignored after the end."""
        if self.channel is not None and data and not self.ended:
            self.channel.write(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)

    async def drain(self) -> None:
        """Wait until more may be written."""
        if self.channel is not None and not self.ended:
            await self.channel.drain()

    def finish(self) -> None:
        """The body is written."""
        if self.channel is None or self.ended or self.complete:
            return
        self.complete = True
        if self.chunked:
            self.channel.write(b"0\r\n\r\n")
        self.channel.finish_request()

    def finish_tunnel(self) -> bool:
        """After an upgrade: say that nothing more is written. Returns whether the upstream may still say something."""
        return self.channel is not None and not self.ended and self.channel.finish_tunnel()

    def pause(self) -> None:
        """Stop reading the answer: whoever takes it is slower than the upstream."""
        if self.channel is not None and not self.ended:
            self.channel.pause()

    def resume(self) -> None:
        """Go on reading."""
        if self.channel is not None and not self.ended:
            self.channel.resume()

    def abort(self) -> None:
        """Give up: the receiver hears nothing more, and the connection is closed unless the exchange had ended."""
        if not self.ended:
            self.ended = True
            if self.channel is not None:
                self.channel.abort()


class Upstream(Protocol):
    """The hosts that serve a route."""

    @property
    def authority(self) -> bytes:
        """What the Host header field says to them."""
        ...

    def try_start(self, exchange: Exchange) -> bool:
        """Send *exchange* at once on an idle connection. Returns False, with nothing done, if there is none."""
        ...

    async def start(self, exchange: Exchange) -> bool:
        """
        Send *exchange*, after waiting for a connection where needed.

        Returns:
            False, with nothing sent, if it has waited and can't be renewed at once.

        Raises:
            UpstreamBusy: If too many wait already.
            UpstreamTimeout: If no connection came about in time.
            UpstreamUnavailable: If no host takes a connection.
        """
        ...

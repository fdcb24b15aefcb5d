"""
Refuses answers that hold the very token that was sent: an upstream that echoes headers would show it to scripts.

It sees what is written plainly, in the head or in the body, also across the seams of reads; not what is compressed.
What may be the beginning of the token waits for what follows: all but its last character is as good as the token.
"""

from typing import Final

from broker.core.outcome import Token
from broker.core.response_head import ResponseHead
from broker.errors import UpstreamError, UpstreamUnavailable
from broker.services.upstream import Exchange, Receiver

SHORTEST_HELD: Final = 8
"""Fewer characters of the token pass: a message that ends like it begins shall not wait for the next one."""


def scrub(exchange: Exchange, token: Token) -> None:
    """Have the answer to *exchange*, which hasn't been started, not show *token*, which it carries."""
    exchange.receiver = Scrubber(exchange, token.access_token.reveal().encode())


class Scrubber:
    """A receiver in front of the one that an exchange has (services.upstream.Receiver)."""

    def __init__(self, exchange: Exchange, secret: bytes) -> None:
        """
        Args:
            exchange: Whose answer it is.
            secret: What no answer may hold.
        """
        self._exchange: Exchange | None = exchange  # None once it is over: they hold each other
        self._receiver: Receiver = exchange.receiver
        self._secret = secret
        self._tail = b""  # what may hold the beginning of the secret, passed on or not
        self._held = b""

    def on_informational(self, head: ResponseHead) -> None:
        if self._is_clean(head.passed):
            self._receiver.on_informational(head)

    def on_head(self, head: ResponseHead, body: bytes, *, complete: bool) -> None:
        if not self._is_clean(head.passed):
            return
        if complete:
            if self._is_clean(body):
                self._receiver.on_head(head, body, complete=True)
        elif (safe := self._safe(body)) is not None:
            self._receiver.on_head(head, safe, complete=False)

    def on_upgraded(self, head: ResponseHead, body: bytes) -> None:
        if self._is_clean(head.passed) and (safe := self._safe(body)) is not None:
            self._receiver.on_upgraded(head, safe)

    def on_body(self, body: bytes) -> None:
        if safe := self._safe(body):
            self._receiver.on_body(safe)

    def on_end(self) -> None:
        self._exchange = None
        if self._held:
            self._receiver.on_body(self._held)
        self._receiver.on_end()

    def on_failed(self, error: UpstreamError) -> None:
        self._exchange = None
        self._receiver.on_failed(error)

    def is_current(self) -> bool:
        return self._receiver.is_current()

    def on_outdated(self) -> None:
        self._exchange = None
        self._receiver.on_outdated()

    def on_write_paused(self) -> None:
        self._receiver.on_write_paused()

    def on_write_resumed(self) -> None:
        self._receiver.on_write_resumed()

    def _safe(self, data: bytes) -> bytes | None:
        """Return what may pass of what was held and *data*, perhaps nothing; None if the exchange is over."""
        seen = self._tail + data
        if not self._is_clean(seen):
            return None
        waiting = self._held + data
        begun = min(_begun(seen, self._secret), len(waiting))
        safe, self._held = waiting[: len(waiting) - begun], waiting[len(waiting) - begun :]
        self._tail = seen[-(len(self._secret) - 1) :] if len(self._secret) > 1 else b""
        return safe

    def _is_clean(self, data: bytes) -> bool:
        """Whether *data* is without the secret. If not, the exchange is over."""
        if self._exchange is None or self._exchange.ended:
            return False
        if self._secret in data:
            self._exchange.abort()
            self.on_failed(UpstreamUnavailable("the answer holds the access token that was sent"))
            return False
        return True


def _begun(data: bytes, secret: bytes) -> int:
    """Return how many of the last bytes of *data* may be the beginning of *secret*."""
    mark = secret[:SHORTEST_HELD]
    at = data.find(mark, max(0, len(data) - len(secret) + 1))
    while at >= 0:
        if secret.startswith(data[at:]):
            return len(data) - at
        at = data.find(mark, at + 1)
    return 0

"""
Refuses answers that hold the very token that was sent: an upstream that echoes headers would show it to scripts.

It sees what is written plainly, in the head or in the body, also across the seams of reads; not what is compressed.
"""

from broker.core.outcome import Token
from broker.core.response_head import ResponseHead
from broker.errors import UpstreamError, UpstreamUnavailable
from broker.services.upstream import Exchange, Receiver


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
        self._tail = b""

    def on_informational(self, head: ResponseHead) -> None:
        if self._is_clean(head.passed, seam=False):
            self._receiver.on_informational(head)

    def on_head(self, head: ResponseHead, body: bytes, *, complete: bool) -> None:
        if self._is_clean(head.passed, seam=False) and self._is_clean(body):
            self._receiver.on_head(head, body, complete=complete)

    def on_upgraded(self, head: ResponseHead, body: bytes) -> None:
        if self._is_clean(head.passed, seam=False) and self._is_clean(body):
            self._receiver.on_upgraded(head, body)

    def on_body(self, body: bytes) -> None:
        if self._is_clean(body):
            self._receiver.on_body(body)

    def on_end(self) -> None:
        self._exchange = None
        self._receiver.on_end()

    def on_failed(self, error: UpstreamError) -> None:
        self._exchange = None
        self._receiver.on_failed(error)

    def on_write_paused(self) -> None:
        self._receiver.on_write_paused()

    def on_write_resumed(self) -> None:
        self._receiver.on_write_resumed()

    def _is_clean(self, data: bytes, *, seam: bool = True) -> bool:
        """Whether *data* may pass. If not, the exchange is over."""
        if self._exchange is None or self._exchange.ended:
            return False
        looked_at = self._tail + data if seam else data
        if self._secret in looked_at:
            self._exchange.abort()
            self.on_failed(UpstreamUnavailable("the answer holds the access token that was sent"))
            return False
        if seam:
            self._tail = looked_at[-(len(self._secret) - 1) :] if len(self._secret) > 1 else b""
        return True

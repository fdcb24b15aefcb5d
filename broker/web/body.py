"""A caller's body on its way to the upstream: counted, and kept as long as it may have to be sent again."""

from aiohttp import StreamReader, web

from broker.errors import BadRequest, BrokerError, PayloadTooLarge
from broker.services.upstream import Exchange


class RequestBody:
    """
    The body of one request.

    Attributes:
        received_bytes: How much of it has come.
    """

    __slots__ = ("_content", "_ended", "_kept", "_max_bytes", "_max_kept_bytes", "received_bytes")

    def __init__(self, content: StreamReader, *, max_bytes: int, max_kept_bytes: int) -> None:
        """
        Args:
            content: Where it comes from.
            max_bytes: A larger one is refused.
            max_kept_bytes: One of at most this size is kept.
        """
        self._content = content
        self._max_bytes = max_bytes
        self._max_kept_bytes = max_kept_bytes
        self._kept: bytearray | None = bytearray()
        self._ended = False
        self.received_bytes = 0

    @property
    def is_replayable(self) -> bool:
        """Whether all that has come is kept."""
        return self._kept is not None

    @property
    def is_here(self) -> bool:
        """Whether all of it has come, so that sending it waits for nobody."""
        return self._content.is_eof()

    async def send(self, exchange: Exchange) -> BrokerError | None:
        """
        Send it, from its beginning.

        Returns:
            Why it can't be sent whole; None if it was.
        """
        if self._kept:
            exchange.write(bytes(self._kept))
        try:
            while not self._ended:
                data = await self._content.readany()
                if not data:
                    self._ended = True
                    break
                self.received_bytes += len(data)
                if self.received_bytes > self._max_bytes:
                    return PayloadTooLarge("the body is larger than the route allows")
                self._keep(data)
                exchange.write(data)
                await exchange.drain()
        except (web.RequestPayloadError, ConnectionError) as error:
            return BadRequest(f"the body broke off or is malformed ({type(error).__name__})")
        exchange.finish()
        return None

    def _keep(self, data: bytes) -> None:
        if self._kept is not None:
            if len(self._kept) + len(data) > self._max_kept_bytes:
                self._kept = None
            else:
                self._kept += data

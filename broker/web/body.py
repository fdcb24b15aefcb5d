"""A caller's body on its way to the upstream: counted, and kept as long as it may have to be sent again."""

import asyncio
import math

from aiohttp import web

from broker.core.limit_options import GRACE_SECONDS, MIN_BYTES_PER_SECOND
from broker.errors import BadRequest, BrokerError, PayloadTooLarge, RequestTimeout
from broker.services.upstream import Exchange
from broker.web.incoming import Content


class _GivenUpError(Exception):
    """The caller is too slow."""


_FAULTS = (_GivenUpError, BadRequest, web.RequestPayloadError, ConnectionError)
"""What may come in place of more of it."""


class RequestBody:
    """
    The body of one request.

    Attributes:
        received_bytes: How much of it has come.
    """

    __slots__ = (
        "_began_at",
        "_content",
        "_ended",
        "_gathered",
        "_kept",
        "_loop",
        "_max_bytes",
        "_max_kept_bytes",
        "_pause_seconds",
        "_waiting_since",
        "received_bytes",
    )

    def __init__(
        self,
        content: Content,
        loop: asyncio.AbstractEventLoop,
        *,
        max_bytes: int,
        max_kept_bytes: int,
        pause_seconds: float,
    ) -> None:
        """
        Args:
            content: Where it comes from.
            loop: What it comes on.
            max_bytes: A larger one is refused.
            max_kept_bytes: One of at most this size is kept.
            pause_seconds: How long the caller may send nothing.
        """
        self._content = content
        self._max_bytes = max_bytes
        self._max_kept_bytes = max_kept_bytes
        self._pause_seconds = pause_seconds
        self._kept: bytearray | None = bytearray()
        self._ended = False
        self._gathered = b""
        self._loop = loop
        self._began_at = self._loop.time()
        self._waiting_since = math.inf
        self.received_bytes = 0

    @property
    def is_replayable(self) -> bool:
        """Whether all that has come is kept."""
        return self._kept is not None

    @property
    def is_here(self) -> bool:
        """Whether all of it has come, so that sending it waits for nobody."""
        return self._content.is_eof() and self._content.exception() is None

    def is_late(self, now: float) -> bool:
        """Return whether the caller, at *now* on the loop's clock, has sent nothing or too little for too long."""
        if now - self._waiting_since > self._pause_seconds:
            return True
        due = (now - self._began_at - GRACE_SECONDS) * MIN_BYTES_PER_SECOND
        return self._waiting_since < math.inf and self.received_bytes < due

    def give_up(self) -> None:
        """Stop waiting for the caller; :meth:`send` then returns ``RequestTimeout``."""
        self._content.set_exception(_GivenUpError())

    def take(self) -> bytes | BrokerError:
        """
        Take the whole of a body that :attr:`is_here`, for a first attempt or for another one.

        Returns:
            The body, or why it can't be sent.
        """
        kept = bytes(self._kept or b"")
        if self._ended:
            return kept
        rest = self._content.read_nowait()
        self._ended = True
        self.received_bytes += len(rest)
        rest, self._gathered = self._gathered + rest, b""
        if self.received_bytes > self._max_bytes:
            return PayloadTooLarge("the body is larger than the route allows")
        self._keep(rest)
        return kept + rest

    async def gather(self) -> BrokerError | None:
        """
        Wait until all of it has come, for :meth:`take`.

        Returns:
            Why it can't be sent whole; None if it can.
        """
        try:
            while not self.is_here:
                data = await self._receive()
                self.received_bytes += len(data)
                self._gathered += data
        except _FAULTS as fault:
            return _error_of(fault)
        return None

    async def _receive(self) -> bytes:
        self._waiting_since = self._loop.time()
        data = await self._content.readany()
        self._waiting_since = math.inf
        return data

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
                data = await self._receive()
                if not data:
                    self._ended = True
                    break
                self.received_bytes += len(data)
                if self.received_bytes > self._max_bytes:
                    return PayloadTooLarge("the body is larger than the route allows")
                self._keep(data)
                exchange.write(data)
                await self._drain(exchange)
        except _FAULTS as fault:
            return _error_of(fault)
        exchange.finish()
        return None

    async def _drain(self, exchange: Exchange) -> None:
        """Wait for the upstream; that is not the caller's fault."""
        began_at = self._loop.time()
        await exchange.drain()
        self._began_at += self._loop.time() - began_at

    def _keep(self, data: bytes) -> None:
        if self._kept is not None:
            if len(self._kept) + len(data) > self._max_kept_bytes:
                self._kept = None
            else:
                self._kept += data


def _error_of(fault: Exception) -> BrokerError:
    if isinstance(fault, _GivenUpError):
        return RequestTimeout("the body came too slowly")
    return BadRequest(f"the body broke off or is malformed ({type(fault).__name__})")

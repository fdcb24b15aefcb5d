"""A document of an authorization server, fetched by one task for everybody and kept while newer ones can't be had."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from broker.errors import ProviderError
from broker.services.clock import Clock
from broker.services.tasks import Tasks

T = TypeVar("T")

log = logging.getLogger(__name__)

FAILURE_REST_SECONDS = 2.0
"""After a failed fetch nobody asks again for so long: short enough that service is normal 5 s after an outage."""


class LastGood(Generic[T]):
    """
    A value that is fetched when it is first needed, and again when it is old.

    Concurrent callers share one fetch, which no caller's cancellation stops. A fetch that fails leaves the last good
    value in use.
    """

    def __init__(
        self,
        name: str,
        fetch: Callable[[], Awaitable[T]],
        *,
        clock: Clock,
        ttl_seconds: float,
        cooldown_seconds: float,
        at: str,
    ) -> None:
        """
        Args:
            name: What it is, for the log.
            fetch: Gets a new value. It raises ``ProviderError`` if it can't.
            clock: For durations.
            ttl_seconds: The age at which it is fetched again.
            cooldown_seconds: How long after a :meth:`refetch` that brought a value there is no other.
            at: Where in the YAML the server is, such as ``providers.corp``, for the log.
        """
        self._name = name
        self._at = at
        self._fetch = fetch
        self._clock = clock
        self._ttl_seconds = ttl_seconds
        self._cooldown_seconds = cooldown_seconds
        self._tasks = Tasks()
        self._value: T | None = None
        self._fresh_until = float("-inf")
        self._refetch_from = float("-inf")
        self._failure: ProviderError | None = None
        self._rest_until = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    @property
    def known(self) -> T | None:
        """The value as far as it is known, without asking."""
        return self._value

    async def get(self) -> T:
        """
        Return the value, fetched if need be.

        Raises:
            ProviderError: If there is none, and none can be had.
        """
        if self._value is None or self._clock.monotonic() >= self._fresh_until:
            await self._fetch_once()
        return self._current()

    async def refetch(self) -> T:
        """
        Return the value anew, because something in it is missed: at most once per cooldown, else as it is.

        Raises:
            ProviderError: If the last fetch failed. What is missed may be in the value that couldn't be had.
        """
        if self._fetching is not None:
            await self._fetch_once()
        elif self._failure is not None or self._clock.monotonic() >= self._refetch_from:
            self._refetch_from = self._clock.monotonic() + self._cooldown_seconds
            await self._fetch_once()
        if self._failure is not None:
            raise self._unavailable(self._failure)
        return self._current()

    async def close(self) -> None:
        """Stop a fetch that is under way."""
        await self._tasks.cancel()

    def _current(self) -> T:
        if self._value is None:
            raise self._unavailable(self._failure or ProviderError("it was not fetched"))
        return self._value

    def _unavailable(self, failure: ProviderError) -> ProviderError:
        return type(failure)(
            f"no {self._name}: {failure}", retry_after_seconds=FAILURE_REST_SECONDS, look_at=failure.look_at
        )

    async def _fetch_once(self) -> None:
        if self._fetching is None:
            if self._clock.monotonic() < self._rest_until:
                return
            self._fetching = self._tasks.spawn(self._fetch_and_keep(), name=f"fetch {self._name}")
        await asyncio.shield(self._fetching)

    async def _fetch_and_keep(self) -> None:
        try:
            self._value = await self._fetch()
        except ProviderError as failure:
            self._failure = failure
            self._rest_until = self._clock.monotonic() + FAILURE_REST_SECONDS
            log.warning(
                "provider_document_not_fetched",
                extra={
                    "provider": self._at.removeprefix("providers."),
                    "document": self._name,
                    "reason": str(failure),
                    "look_at": failure.look_at and f"{self._at}.{failure.look_at}",
                    "last_good": self._value is not None,
                },
            )
        else:
            self._failure = None
            self._fresh_until = self._clock.monotonic() + self._ttl_seconds
        finally:
            self._fetching = None

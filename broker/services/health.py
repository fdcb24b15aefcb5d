"""How well each authorization server is, as this process and its replicas have seen it."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from broker.core.breaker import Breaker, failed, succeeded, told
from broker.core.grant import Grant
from broker.core.oauth import FailureKind, TokenFailure, TokenOutcome, TokenSet
from broker.errors import StoreError
from broker.services import metrics
from broker.services.clock import Clock, Randomness
from broker.services.provider import AuthorizationServer
from broker.services.register import about
from broker.stores.base import Event, Store, Topic

log = logging.getLogger(__name__)


class ProviderHealth:
    """
    The circuit breaker of one provider, shared with the replicas by events.

    It also bounds how many token requests run at once, so that a server that comes back isn't run over.
    """

    def __init__(
        self, name: str, store: Store, clock: Clock, randomness: Randomness, *, max_concurrent: int = 100
    ) -> None:
        self.name = name
        self.breaker = Breaker()
        self.degraded = False
        self._store = store
        self._clock = clock
        self._randomness = randomness
        self._permits = asyncio.Semaphore(max_concurrent)
        self._probe = asyncio.Lock()

    @asynccontextmanager
    async def permit(self) -> AsyncIterator[bool]:
        """
        Wait for the right to make one token request.

        Yields:
            False if the breaker opened while this caller waited: it must decide again.
        """
        async with self._permits:
            probing = await self._turn_to_probe()
            try:
                yield not self.breaker.is_open(self._clock.now())
            finally:
                if probing:
                    self._probe.release()

    async def _turn_to_probe(self) -> bool:
        """While the server is only probed, let one through and the others wait for what it finds."""
        if not self.breaker.is_probing(self._clock.now()):
            return False
        await self._probe.acquire()
        if self.breaker.is_probing(self._clock.now()):
            return True
        self._probe.release()
        return False

    async def observe(self, outcome: TokenOutcome) -> None:
        """Learn from the outcome of a token request, and tell the replicas what changed."""
        before, now = self.breaker, self._clock.now()
        if isinstance(outcome, TokenFailure) and outcome.kind in {FailureKind.TRANSIENT, FailureKind.IN_DOUBT}:
            self.breaker = failed(
                before,
                now=now,
                retry_after_seconds=outcome.retry_after_seconds,
                jitter=self._randomness.uniform(0, 1),
                status=outcome.status,
            )
        else:
            self.breaker = succeeded(before, now=now)
        self._note_degraded(outcome)
        if self.breaker.open_until != before.open_until:
            event = "provider_rests" if self.breaker.open_until else "provider_recovered"
            log.warning(event, extra={"provider": self.name, "failures": self.breaker.failures})
            await self._tell()

    def _note_degraded(self, outcome: TokenOutcome) -> None:
        degraded = isinstance(outcome, TokenFailure) and outcome.kind is FailureKind.OPERATOR
        if degraded and not self.degraded:
            assert isinstance(outcome, TokenFailure)
            log.error(
                "provider_refuses_the_broker",
                extra={"provider": self.name, "error": outcome.error, "look_at": outcome.look_at},
            )
        if degraded != self.degraded:
            metrics.PROVIDER_DEGRADED.labels(self.name).set(int(degraded))
        self.degraded = degraded

    async def _tell(self) -> None:
        # A duration: the replicas' clocks may differ.
        rest_seconds = self.breaker.open_until and max(self.breaker.open_until - self._clock.now(), 0.001)
        event = Event(Topic.PROVIDER, self.name, math.ceil(rest_seconds * 1000))
        try:
            await self._store.publish(event)
        except StoreError as fault:
            log.warning("publish_failed", extra={"provider": self.name, "error": str(fault)})

    def heard(self, event: Event) -> None:
        """Take what a replica says of this provider."""
        if event.topic is Topic.PROVIDER and event.key == self.name:
            self.breaker = told(self.breaker, now=self._clock.now(), rest_seconds=event.number / 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """An authorization server and what is known of its health."""

    server: AuthorizationServer
    health: ProviderHealth

    async def observe(self, grant: Grant, outcome: TokenOutcome, *, seconds: float) -> None:
        """
        Count, log and learn from a token request.

        Args:
            grant: Whose it was.
            outcome: What came of it.
            seconds: How long that took.
        """
        result = "success" if isinstance(outcome, TokenSet) else outcome.kind.value
        metrics.TOKEN_REFRESH.labels(grant.provider, result).inc()
        metrics.TOKEN_REFRESH_SECONDS.labels(grant.provider).observe(seconds)
        if isinstance(outcome, TokenFailure):
            log.warning("token_request_failed", extra={**about(grant), **outcome.logged()})
        await self.health.observe(outcome)

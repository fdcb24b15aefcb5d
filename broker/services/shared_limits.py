"""
Rates that several processes keep together, on one host or many.

No request waits for the store. Each process judges by what it knows of a bucket, tells the store soon afterwards what
was taken, and hears in the same answer what others took. So the rate holds for all of them together, but for what
they took before they had heard of each other: for each further process that is, once, at most one burst, and it is paid
back, since the bucket is full that much later for everybody.

While the store is down, each process keeps the rate by itself: no request fails for that, and none comes in free.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from broker.core.routing import RateLimitOptions
from broker.errors import StoreError
from broker.services.keyring import Keyring
from broker.services.limits import TokenBuckets, own_rates
from broker.services.tasks import Tasks

SHARE_SECONDS: Final = 0.05
"""How long what was taken is kept before the others are told."""
RETRY_SECONDS: Final = 1.0
"""How long it is kept after the store has failed."""
MAX_TOLD: Final = 1000
"""How many buckets are told of in one go."""

log = logging.getLogger(__name__)


class BucketStore(Protocol):
    """What is needed of ``stores.base.Store``."""

    async def draw(self, seconds: Mapping[str, float]) -> Mapping[str, float]: ...


class SharedLimits:
    """Makes buckets whose rates hold for all processes of an installation."""

    def __init__(self, store: BucketStore | None, keyring: Keyring, monotonic: Callable[[], float]) -> None:
        """
        Args:
            store: Where the processes meet; None for a process that is alone.
            keyring: Hides the callers' names from the store.
            monotonic: The clock, in seconds.
        """
        self._store = store
        self._keyring = keyring
        self._own = own_rates(monotonic)
        self._shared: dict[str, TokenBuckets] = {}
        self._tasks = Tasks()
        self._timer: asyncio.TimerHandle | None = None
        self._is_failing = False

    def buckets(self, name: str, rate: RateLimitOptions) -> TokenBuckets:
        """
        Return the buckets of one thing.

        Args:
            name: What it is, the same in every process.
            rate: How they are filled.
        """
        made = self._own(name, rate)
        if self._store is not None:
            # Another rate is another bucket: after a reload both are kept for a while.
            self._shared[f"{name} {rate.requests_per_second:g}/s"] = made
            made.share(self._tell_soon)
        return made

    async def close(self) -> None:
        """Tell nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
        await self._tasks.cancel()

    def _tell_soon(self, delay: float = SHARE_SECONDS) -> None:
        if self._timer is None and not len(self._tasks):
            self._timer = asyncio.get_running_loop().call_later(delay, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._tasks.spawn(self._tell(), name="rate-limits").add_done_callback(self._told)

    def _told(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and any(made.has_news for made in self._shared.values()):
            self._tell_soon(RETRY_SECONDS if self._is_failing else SHARE_SECONDS)

    async def _tell(self) -> None:
        assert self._store is not None
        meant: dict[str, tuple[TokenBuckets, str]] = {}
        seconds: dict[str, float] = {}
        for name, made in self._shared.items():
            for caller, taken in made.take_news(MAX_TOLD - len(meant)).items():
                key = self._keyring.lookup_keys("rate", f"{name} {caller}")[0]
                meant[key], seconds[key] = (made, caller), taken
        try:
            full_in = await self._store.draw(seconds)
        except StoreError as fault:
            # What wasn't told is lost to the others, and not to this process.
            if not self._is_failing:
                log.warning("rate_limits_not_shared", extra={"error": str(fault)})
            self._is_failing = True
            for made in self._shared.values():
                made.forget_news()
            return
        if self._is_failing:
            log.warning("rate_limits_shared_again")
        self._is_failing = False
        for key, wait in full_in.items():
            made, caller = meant[key]
            made.learn(caller, wait)

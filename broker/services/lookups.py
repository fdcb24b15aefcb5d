"""What the store was asked lately: trusted for a while, and, while the store is down, for longer."""

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import Final, Generic, TypeVar

from broker.errors import StoreError
from broker.services.clock import Clock
from broker.services.together import Together

MAX_KEPT: Final = 10_000
STORE_RETRY_SECONDS: Final = 1.0
"""How long a store that has just failed isn't asked about what is known: each caller would wait for its deadline."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")


class Lookups(Generic[K, V]):
    """
    Reads of the store, each shared by all who want the same at once, and remembered.

    That nothing was found is remembered, too, but apart: whoever asks for much that isn't there pushes out nothing of
    what others need while the store is down.
    """

    def __init__(self, clock: Clock, *, ttl_seconds: float, grace_seconds: float) -> None:
        """
        Args:
            clock: Time.
            ttl_seconds: How long what was found isn't read again while nothing is heard of it.
            grace_seconds: How long it may be used while the store is down.
        """
        self._clock = clock
        self._ttl_seconds = ttl_seconds
        self._grace_seconds = grace_seconds
        self._kept: OrderedDict[K, tuple[V, float]] = OrderedDict()
        self._absent: OrderedDict[K, float] = OrderedDict()
        self._reading: Together[K, V | StoreError | None] = Together()
        self._changes_heard = 0
        self._distrusted_at = -1.0
        self._store_rests_until = -1.0

    def peek(self, key: K) -> V | None:
        """Return what was found, if the store needn't be asked again; None if it must be, or if nothing was found."""
        kept = self._kept.get(key)
        return kept[0] if kept is not None and self._is_fresh(kept[1]) else None

    def last(self, key: K) -> V | None:
        """Return what was found last, however long ago; None if nothing was, or that isn't remembered."""
        kept = self._kept.get(key)
        return None if kept is None else kept[0]

    async def find(self, key: K, read: Callable[[], Awaitable[V | None]]) -> V | None:
        """
        Return what *read* finds, or has found lately.

        Args:
            key: What is looked for.
            read: Asks the store.

        Raises:
            StoreError: If the store is down and nothing that may still be used is known.
        """
        kept = self._kept.get(key)
        if kept is not None and self._is_fresh(kept[1]):
            return kept[0]
        if self._is_fresh(self._absent.get(key, -math.inf)):
            return None
        if self._clock.monotonic() < self._store_rests_until and (usable := self._through_outage(key)) is not None:
            return usable
        outcome = await self._reading.read(key, partial(self._read, key, read))
        if not isinstance(outcome, StoreError):
            return outcome
        usable = self._through_outage(key)
        if usable is None:
            raise StoreError(str(outcome))
        return usable

    def forget(self, is_gone: Callable[[V], bool]) -> None:
        """Forget what *is_gone*, and what is being read now: it may have been read before it went."""
        self._changes_heard += 1
        for key in [key for key, (found, _) in self._kept.items() if is_gone(found)]:
            del self._kept[key]

    def distrust(self) -> None:
        """Ask for everything anew: something may have gone unheard of. It serves on while the store is down."""
        self._changes_heard += 1
        self._distrusted_at = self._clock.monotonic()

    def _is_fresh(self, read_at: float) -> bool:
        return self._distrusted_at < read_at and self._clock.monotonic() < read_at + self._ttl_seconds

    def _through_outage(self, key: K) -> V | None:
        kept = self._kept.get(key)
        if kept is None or self._clock.monotonic() >= kept[1] + self._grace_seconds:
            return None
        return kept[0]

    async def _read(self, key: K, read: Callable[[], Awaitable[V | None]]) -> V | StoreError | None:
        """Read, and remember what came of it. A fault is returned: several may wait for it."""
        read_at, heard = self._clock.monotonic(), self._changes_heard
        try:
            found = await read()
        except StoreError as fault:
            self._store_rests_until = self._clock.monotonic() + STORE_RETRY_SECONDS
            return fault
        if heard == self._changes_heard:
            self._remember(key, found, read_at)
        return found

    def _remember(self, key: K, found: V | None, read_at: float) -> None:
        if found is None:
            self._kept.pop(key, None)
            _put(self._absent, key, read_at)
        else:
            self._absent.pop(key, None)
            _put(self._kept, key, (found, read_at))


def _put(kept: OrderedDict[K, T], key: K, value: T) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > MAX_KEPT:
        kept.popitem(last=False)

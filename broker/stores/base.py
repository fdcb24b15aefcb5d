"""
The store: expiring, versioned, sealed bytes, shared by all processes.

A store never sees a token in clear: values are sealed and keys are HMACs before they come here (services.keyring).
Every implementation runs the one conformance suite in ``tests/stores/store_contract.py``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Record:
    """
    A stored value.

    Attributes:
        value: The sealed bytes.
        version: Which write of this key this is, above 0. It grows with every write, by any amount, and no version is
            ever used twice under one key: not after a deletion, an expiry or a failover that lost writes.
    """

    value: bytes
    version: int


class Clock(Protocol):
    """What a store needs of ``services.clock.Clock``."""

    def now(self) -> float:
        """Return Unix time in seconds. It may jump."""
        ...

    def monotonic(self) -> float:
        """Return seconds since some moment, the same one for every process of a host. It never goes back."""
        ...


class Randomness(Protocol):
    """What a store needs of ``services.clock.Randomness``."""

    def token_bytes(self, count: int) -> bytes:
        """Return *count* random bytes."""
        ...


class Topic(StrEnum):
    """What an event tells."""

    GENERATION = "generation"
    """``key`` is a grant's id, ``number`` the generation that is now in the store."""
    GRANT_ENDED = "grant_ended"
    """
    ``key`` is a grant's id: it ended, or its record is gone. ``number`` is the generation that ended: a standing grant
    goes on with younger ones. 0 where that isn't known, or an older release tells it.
    """
    SESSION_ENDED = "session_ended"
    """``key`` is the store key of a session that ended or changed."""
    PROVIDER = "provider"
    """``key`` is a provider's name, ``number`` the milliseconds of rest it is given from now; 0: it works again."""
    RESYNC = "resync"
    """
    Events may have been missed: forget whatever was learned from the store. Made by a store, never published; ``key``
    is empty.
    """


@dataclass(frozen=True, slots=True)
class Event:
    """Something that every process should know within a second."""

    topic: Topic
    key: str
    number: int = 0


class Lease(Protocol):
    """
    A lease that is held. It ends by itself; an owner that was too slow may have lost it to another.

    It keeps others from doing the same work at the same time and no more: what must not be overwritten is guarded by
    the version of the record.
    """

    async def renew(self, ttl_seconds: float) -> bool:
        """
        Hold the lease for *ttl_seconds* from now.

        Returns:
            False if it ended, whether or not somebody else holds it now. It can't be had back by renewing.

        Raises:
            StoreError: If the store can't be asked; the lease may or may not still be held.
        """
        ...

    async def release(self) -> None:
        """Give the lease back if it is still held. Never raises: it would end by itself."""
        ...


@dataclass(frozen=True, slots=True)
class Busy:
    """Somebody else holds the lease."""


@dataclass(frozen=True, slots=True)
class StoreDown:
    """
    The store could not be asked.

    Attributes:
        detail: The reason, for the log.
    """

    detail: str


LeaseOutcome = Lease | Busy | StoreDown
"""What can come of asking for a lease."""


class Store(Protocol):
    """
    Expiring, versioned bytes with tags and due times, leases, and events.

    Every method has a deadline of its own (``timeout_seconds`` of the store's options) and raises ``StoreError`` when
    the store is down, slow, full, read-only or answers nonsense; :meth:`lease` returns :class:`StoreDown` instead.
    After a ``StoreError`` or a cancellation it is open whether a write was done: who must know reads again.
    A cancelled call leaves no connection in an unknown state. An expired record is as if it were not there.

    Keys look like ``kind:id`` where *id* is hexadecimal. ``kind`` is a short word such as ``session``. In a cluster
    the record and the lease of one id live together. Lifetimes are durations: a clock that is set forward or back
    neither ends a record early nor keeps it. A store belongs to the event loop on which it was started.
    """

    async def start(self) -> None:
        """
        Connect, and create what is missing. May be called again.

        Raises:
            StoreError: If that can't be done now. The store is usable all the same: each later call tries by itself.
        """
        ...

    async def close(self) -> None:
        """Release every resource, for good. Safe to call twice, or without a start. Calls that are under way fail."""
        ...

    async def ping(self) -> None:
        """Raise ``StoreError`` unless the store takes reads and writes."""
        ...

    async def get(self, key: str) -> Record | None:
        """Return the record, or None if there is none."""
        ...

    async def version(self, key: str) -> int | None:
        """Return the record's version, or None if there is none: all that whoever knows the record has to read."""
        ...

    async def create(
        self,
        key: str,
        value: bytes,
        *,
        ttl_seconds: float,
        tags: Sequence[str] = (),
        due_at: float | None = None,
    ) -> int | None:
        """
        Create a record.

        Args:
            key: Its key.
            value: Its sealed bytes.
            ttl_seconds: How long it lives, above 0.
            tags: Hashed words, without spaces, by which :meth:`find` finds it. They stay with the record for its life.
            due_at: Unix seconds at which :meth:`due` reports it; None for never.

        Returns:
            Its version, or None if a record with this key exists.
        """
        ...

    async def replace(
        self,
        key: str,
        value: bytes,
        version: int,
        *,
        ttl_seconds: float | None = None,
        due_at: float | None = None,
    ) -> int | None:
        """
        Replace the record if its version is still *version*.

        Args:
            key: Its key.
            value: The new sealed bytes.
            version: The version that was read.
            ttl_seconds: How long it lives from now, above 0; None keeps its end.
            due_at: The new due time, in place of the old one; None for never. The tags stay.

        Returns:
            The new version, or None if the record is gone or was written by somebody else.
        """
        ...

    async def delete(self, key: str, version: int | None = None) -> bool:
        """Delete the record, only if it has *version* where one is given. Returns whether a record was deleted."""
        ...

    async def touch(self, key: str, ttl_seconds: float) -> bool:
        """Let the record live *ttl_seconds* from now; all else stays, its version too. Returns whether it exists."""
        ...

    async def find(self, tag: str) -> list[str]:
        """Return the keys of the live records with *tag*, in no order."""
        ...

    async def due(self, kind: str, before: float, limit: int) -> list[str]:
        """Return up to *limit* keys of *kind* whose due time is at or before *before* (Unix seconds), oldest first."""
        ...

    async def lease(self, key: str, ttl_seconds: float) -> LeaseOutcome:
        """
        Try once to hold the lease *key* for *ttl_seconds*. Never waits for another holder, never raises.

        A lease is independent of a record of the same key. After :class:`StoreDown` or a cancellation the lease may be
        held by nobody until it ends by itself.
        """
        ...

    async def draw(self, seconds: Mapping[str, float]) -> Mapping[str, float]:
        """
        Take from buckets that fill steadily, and need no record while they are full.

        Args:
            seconds: By the keys of the buckets: what is taken, as the time in which as much is filled in, above 0.

        Returns:
            In how many seconds each will be full again.

        Raises:
            StoreError: If that can't be done. Where an answer is lost, it may have been done, and done twice.
        """
        ...

    async def publish(self, event: Event) -> None:
        """
        Tell every subscriber in every process, this one included, of *event*, soon after this returns.

        Whatever was written before is there for whoever hears it. An event may be lost, and then a RESYNC follows, or
        rarely be heard twice; so it says what is, never what to do once.
        """
        ...

    def subscribe(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """
        Call *listener*, on the event loop, for every event from now on.

        It also gets a RESYNC event each time the store can't rule out that events were lost, so that whatever was
        read from this store after subscribing is either still so or told about. *listener* must not raise.

        Returns:
            A function that ends the subscription. Safe to call twice.
        """
        ...

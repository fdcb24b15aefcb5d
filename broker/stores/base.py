"""
The store: expiring, versioned, sealed bytes, shared by all processes.

A store never sees a token in clear: values are sealed and keys are HMACs before they come here (services.keyring).
Every implementation runs the one conformance suite in ``tests/stores/store_contract.py``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Record:
    """
    A stored value.

    Attributes:
        value: The sealed bytes.
        version: Counts the writes of this record, from 1. A record that is created again after a deletion never has
            a version that an earlier record under this key had.
    """

    value: bytes
    version: int


class Topic(StrEnum):
    """What an event tells."""

    GENERATION = "generation"
    """``key`` is a grant's id, ``number`` the generation that is now in the store."""
    GRANT_ENDED = "grant_ended"
    """``key`` is a grant's id: it ended, or its record is gone."""
    SESSION_ENDED = "session_ended"
    """``key`` is the store key of a session that ended or changed."""
    PROVIDER = "provider"
    """``key`` is a provider's name, ``number`` Unix milliseconds until which it is given a rest; 0: it works again."""
    RESYNC = "resync"
    """Events may have been missed: forget whatever was learned from the store. Made by a store, never published."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that every process should know within a second."""

    topic: Topic
    key: str
    number: int = 0


class Lease(Protocol):
    """A lease that is held. It ends by itself; an owner that was too slow may have lost it to another."""

    async def renew(self, ttl_seconds: float) -> bool:
        """
        Hold the lease for *ttl_seconds* from now.

        Returns:
            False if it was lost.

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
    An expired record is as if it were not there. A cancelled call leaves no connection in an unknown state.

    Keys look like ``kind:id`` where *id* is hexadecimal. ``kind`` is a short word such as ``session``. In a cluster
    the record and the lease of one id live together.
    """

    async def start(self) -> None:
        """Connect, and create what is missing. Raises ``StoreError`` if that can't be done now; may be called again."""
        ...

    async def close(self) -> None:
        """Release every resource. Safe to call twice."""
        ...

    async def ping(self) -> None:
        """Raise ``StoreError`` unless the store takes reads and writes."""
        ...

    async def get(self, key: str) -> Record | None:
        """Return the record, or None if there is none."""
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
            tags: Hashed words by which :meth:`find` finds it. They stay with the record for its life.
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
            ttl_seconds: How long it lives from now; None keeps its end.
            due_at: The new due time; None for never.

        Returns:
            The new version, or None if the record is gone or was written by somebody else.
        """
        ...

    async def delete(self, key: str, version: int | None = None) -> bool:
        """Delete the record, only if it has *version* where one is given. Returns whether a record was deleted."""
        ...

    async def touch(self, key: str, ttl_seconds: float) -> bool:
        """Let the record live *ttl_seconds* from now; its value and version stay. Returns whether it exists."""
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

        A lease is independent of a record of the same key.
        """
        ...

    async def publish(self, event: Event) -> None:
        """Tell every subscriber in every process, this one included. Delivery is at most once; see RESYNC."""
        ...

    def subscribe(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """
        Call *listener*, on the event loop, for every event from now on.

        It also gets a RESYNC event each time the store can't rule out that events were lost.

        Returns:
            A function that ends the subscription.
        """
        ...

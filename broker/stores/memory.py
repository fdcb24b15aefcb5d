"""The store in memory: the reference for the others. Its records end with the process."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from broker.stores.base import Busy, Clock, Event, Lease, LeaseOutcome, Record
from broker.stores.listeners import Listeners


@dataclass(frozen=True, slots=True)
class _Kept:
    """A record and what is known about it. ``expires_at`` is on the monotonic clock."""

    record: Record
    expires_at: float
    tags: frozenset[str]
    due_at: float | None


@dataclass(slots=True)
class _Held:
    """A lease as its holder sees it. ``expires_at`` is on the monotonic clock."""

    backend: "MemoryBackend"
    key: str
    expires_at: float

    async def renew(self, ttl_seconds: float) -> bool:
        if not self._is_held():
            return False
        self.expires_at = self.backend.clock.monotonic() + ttl_seconds
        return True

    async def release(self) -> None:
        if self._is_held():
            del self.backend.leases[self.key]

    def _is_held(self) -> bool:
        return self.backend.lease(self.key) is self


@dataclass(slots=True)
class MemoryBackend:
    """What the replicas of a memory store share. All of them run on one event loop."""

    clock: Clock
    records: dict[str, _Kept] = field(default_factory=dict)
    leases: dict[str, _Held] = field(default_factory=dict)
    buckets: dict[str, float] = field(default_factory=dict)
    replicas: list[Listeners] = field(default_factory=list)
    versions: Iterator[int] = field(default_factory=lambda: count(1))
    sweep_at: int = 1024

    def kept(self, key: str) -> _Kept | None:
        """Return what is live under *key*, and forget it if it has expired."""
        kept = self.records.get(key)
        if kept is not None and kept.expires_at <= self.clock.monotonic():
            del self.records[key]
            return None
        return kept

    def lease(self, key: str) -> _Held | None:
        """Return the live lease *key*, and forget it if it has ended."""
        held = self.leases.get(key)
        if held is not None and held.expires_at <= self.clock.monotonic():
            del self.leases[key]
            return None
        return held

    def sweep(self) -> None:
        """Forget what has expired, each time the number of records and leases has doubled since the last sweep."""
        if len(self.records) + len(self.leases) < self.sweep_at:
            return
        for key in tuple(self.records):
            self.kept(key)
        for key in tuple(self.leases):
            self.lease(key)
        self.sweep_at = max(1024, 2 * (len(self.records) + len(self.leases)))


class MemoryStore:
    """A replica on a :class:`MemoryBackend`. It implements ``stores.base.Store`` and never fails."""

    def __init__(self, backend: MemoryBackend) -> None:
        """
        Args:
            backend: Holds the records. Stores that share it see each other's writes and events.
        """
        self._backend = backend
        self._listeners = Listeners()

    async def start(self) -> None:
        if self._listeners not in self._backend.replicas:
            self._backend.replicas.append(self._listeners)

    async def close(self) -> None:
        self._backend.replicas = [other for other in self._backend.replicas if other is not self._listeners]

    async def ping(self) -> None:
        return

    async def get(self, key: str) -> Record | None:
        kept = self._backend.kept(key)
        return None if kept is None else kept.record

    async def version(self, key: str) -> int | None:
        kept = self._backend.kept(key)
        return None if kept is None else kept.record.version

    async def create(
        self,
        key: str,
        value: bytes,
        *,
        ttl_seconds: float,
        tags: Sequence[str] = (),
        due_at: float | None = None,
    ) -> int | None:
        backend = self._backend
        if backend.kept(key) is not None:
            return None
        backend.sweep()
        record = Record(value, next(backend.versions))
        backend.records[key] = _Kept(record, backend.clock.monotonic() + ttl_seconds, frozenset(tags), due_at)
        return record.version

    async def replace(
        self,
        key: str,
        value: bytes,
        version: int,
        *,
        ttl_seconds: float | None = None,
        due_at: float | None = None,
    ) -> int | None:
        backend = self._backend
        kept = backend.kept(key)
        if kept is None or kept.record.version != version:
            return None
        record = Record(value, next(backend.versions))
        expires_at = kept.expires_at if ttl_seconds is None else backend.clock.monotonic() + ttl_seconds
        backend.records[key] = _Kept(record, expires_at, kept.tags, due_at)
        return record.version

    async def delete(self, key: str, version: int | None = None) -> bool:
        kept = self._backend.kept(key)
        if kept is None or version not in (None, kept.record.version):
            return False
        del self._backend.records[key]
        return True

    async def touch(self, key: str, ttl_seconds: float) -> bool:
        backend = self._backend
        kept = backend.kept(key)
        if kept is None:
            return False
        backend.records[key] = replace(kept, expires_at=backend.clock.monotonic() + ttl_seconds)
        return True

    async def find(self, tag: str) -> list[str]:
        backend = self._backend
        return [key for key in tuple(backend.records) if (kept := backend.kept(key)) is not None and tag in kept.tags]

    async def due(self, kind: str, before: float, limit: int) -> list[str]:
        backend = self._backend
        found = [
            (kept.due_at, key)
            for key in tuple(backend.records)
            if key.startswith(f"{kind}:")
            and (kept := backend.kept(key)) is not None
            and kept.due_at is not None
            and kept.due_at <= before
        ]
        return [key for _, key in sorted(found)[:limit]]

    async def lease(self, key: str, ttl_seconds: float) -> LeaseOutcome:
        backend = self._backend
        if backend.lease(key) is not None:
            return Busy()
        backend.sweep()
        held = _Held(backend, key, backend.clock.monotonic() + ttl_seconds)
        backend.leases[key] = held
        lease: Lease = held
        return lease

    async def draw(self, seconds: Mapping[str, float]) -> dict[str, float]:
        now, buckets = self._backend.clock.monotonic(), self._backend.buckets
        for key, taken in seconds.items():
            buckets[key] = max(buckets.get(key, now), now) + taken
        return {key: buckets[key] - now for key in seconds}

    async def publish(self, event: Event) -> None:
        loop = asyncio.get_running_loop()
        for listeners in self._backend.replicas:
            loop.call_soon(listeners.tell, event)

    def subscribe(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        return self._listeners.add(listener)

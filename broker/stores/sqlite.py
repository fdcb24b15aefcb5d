"""The store in one SQLite file, for any number of processes on one host. The embedded default."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from broker.errors import StoreError
from broker.stores.base import Busy, Clock, Event, Lease, LeaseOutcome, Randomness, Record, StoreDown
from broker.stores.listeners import Listeners
from broker.stores.sqlite_events import EventFeed
from broker.stores.sqlite_file import SqliteFile
from broker.stores.sqlite_worker import Effect, SqliteWorker, Transaction


class SqliteStore:
    """
    A store in a file, in SQLite's WAL mode. It implements ``stores.base.Store``.

    What was written is on the disk when the call returns (``synchronous=FULL``) and survives ``kill -9`` and a loss of
    power. The file must be on a local disk: WAL needs memory that the processes share.
    """

    def __init__(self, path: Path, clock: Clock, randomness: Randomness, *, timeout_seconds: float = 2.0) -> None:
        """
        Args:
            path: The file; it is created if its directory exists.
            clock: Its monotonic clock must be the same in every process of the host.
            randomness: For the owners of leases.
            timeout_seconds: The deadline of every call.
        """
        self._feed = EventFeed()
        self._listeners = Listeners()
        self._randomness = randomness
        self._worker = SqliteWorker(
            SqliteFile(path, clock), self._feed, self._listeners.tell, timeout_seconds=timeout_seconds
        )

    async def start(self) -> None:
        await self._worker.run(lambda _: None, Effect.READ)

    async def close(self) -> None:
        await self._worker.close()

    async def ping(self) -> None:
        await self._worker.run(_ping, Effect.WRITE)

    async def get(self, key: str) -> Record | None:
        return await self._worker.run(lambda opened: _get(opened, key), Effect.READ)

    async def version(self, key: str) -> int | None:
        return await self._worker.run(lambda opened: _version(opened, key), Effect.READ)

    async def create(
        self,
        key: str,
        value: bytes,
        *,
        ttl_seconds: float,
        tags: Sequence[str] = (),
        due_at: float | None = None,
    ) -> int | None:
        def work(opened: Transaction) -> int | None:
            opened.change("DELETE FROM records WHERE key = ? AND expires_at <= ?", key, opened.now)
            if opened.row("SELECT 1 FROM records WHERE key = ?", key) is not None:
                return None
            version = _next_version(opened)
            opened.change(
                "INSERT INTO records (key, kind, value, version, expires_at, due_at) VALUES (?, ?, ?, ?, ?, ?)",
                *(key, key.partition(":")[0], value, version, opened.now + ttl_seconds, due_at),
            )
            for tag in set(tags):
                opened.change("INSERT INTO tags (tag, key) VALUES (?, ?)", tag, key)
            return version

        return await self._worker.run(work, Effect.DURABLE_WRITE)

    async def replace(
        self,
        key: str,
        value: bytes,
        version: int,
        *,
        ttl_seconds: float | None = None,
        due_at: float | None = None,
    ) -> int | None:
        def work(opened: Transaction) -> int | None:
            written = _next_version(opened)
            ends_at = None if ttl_seconds is None else opened.now + ttl_seconds
            changed = opened.change(
                "UPDATE records SET value = ?, version = ?, expires_at = coalesce(?, expires_at), due_at = ?"
                " WHERE key = ? AND version = ? AND expires_at > ?",
                *(value, written, ends_at, due_at, key, version, opened.now),
            )
            return written if changed else None

        return await self._worker.run(work, Effect.DURABLE_WRITE)

    async def delete(self, key: str, version: int | None = None) -> bool:
        def work(opened: Transaction) -> bool:
            return opened.has_changed(
                "DELETE FROM records WHERE key = ? AND expires_at > ? AND version = coalesce(?, version)",
                *(key, opened.now, version),
            )

        return await self._worker.run(work, Effect.DURABLE_WRITE)

    async def touch(self, key: str, ttl_seconds: float) -> bool:
        def work(opened: Transaction) -> bool:
            return opened.has_changed(
                "UPDATE records SET expires_at = ? WHERE key = ? AND expires_at > ?",
                *(opened.now + ttl_seconds, key, opened.now),
            )

        return await self._worker.run(work, Effect.WRITE)

    async def find(self, tag: str) -> list[str]:
        def work(opened: Transaction) -> list[str]:
            rows = opened.rows(
                "SELECT key FROM tags JOIN records USING (key) WHERE tag = ? AND expires_at > ?", tag, opened.now
            )
            return [key for [key] in rows]

        return await self._worker.run(work, Effect.READ)

    async def due(self, kind: str, before: float, limit: int) -> list[str]:
        def work(opened: Transaction) -> list[str]:
            rows = opened.rows(
                "SELECT key FROM records WHERE kind = ? AND due_at <= ? AND expires_at > ?"
                " ORDER BY due_at, key LIMIT ?",
                *(kind, before, opened.now, limit),
            )
            return [key for [key] in rows]

        return await self._worker.run(work, Effect.READ)

    async def lease(self, key: str, ttl_seconds: float) -> LeaseOutcome:
        lease = _SqliteLease(self._worker, key, self._randomness.token_bytes(16))

        def work(opened: Transaction) -> bool:
            return opened.has_changed(
                "INSERT INTO leases (key, owner, expires_at) VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE"
                " SET owner = excluded.owner, expires_at = excluded.expires_at WHERE leases.expires_at <= ?",
                *(lease.key, lease.owner, opened.now + ttl_seconds, opened.now),
            )

        try:
            is_held = await self._worker.run(work, Effect.WRITE)
        except StoreError as fault:
            lease.give_up()
            return StoreDown(str(fault))
        except asyncio.CancelledError:
            lease.give_up()
            raise
        held: Lease = lease
        return held if is_held else Busy()

    async def draw(self, seconds: Mapping[str, float]) -> dict[str, float]:
        def work(opened: Transaction) -> dict[str, float]:
            return {key: _draw(opened, key, taken) for key, taken in seconds.items()}

        return await self._worker.run(work, Effect.WRITE)

    async def publish(self, event: Event) -> None:
        def work(opened: Transaction) -> None:
            opened.change(
                "INSERT INTO events (topic, key, number, created_at) VALUES (?, ?, ?, ?)",
                *(event.topic.value, event.key, event.number, opened.now),
            )
            self._feed.is_behind = True

        await self._worker.run(work, Effect.WRITE)

    def subscribe(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        remove = self._listeners.add(listener)
        self._listen()

        def stop() -> None:
            remove()
            self._listen()

        return stop

    def _listen(self) -> None:
        self._feed.is_wanted = len(self._listeners) > 0
        self._worker.wake()


@dataclass(frozen=True, slots=True)
class _SqliteLease:
    """A row that names its owner."""

    worker: SqliteWorker
    key: str
    owner: bytes

    async def renew(self, ttl_seconds: float) -> bool:
        def work(opened: Transaction) -> bool:
            return opened.has_changed(
                "UPDATE leases SET expires_at = ? WHERE key = ? AND owner = ? AND expires_at > ?",
                *(opened.now + ttl_seconds, self.key, self.owner, opened.now),
            )

        return await self.worker.run(work, Effect.WRITE)

    async def release(self) -> None:
        try:
            await self.worker.run(self._delete, Effect.WRITE)
        except StoreError:
            return

    def give_up(self) -> None:
        """Release the lease without waiting, in case it was had after all."""
        self.worker.send(self._delete, Effect.WRITE)

    def _delete(self, opened: Transaction) -> None:
        opened.change("DELETE FROM leases WHERE key = ? AND owner = ?", self.key, self.owner)


def _get(opened: Transaction, key: str) -> Record | None:
    row = opened.row("SELECT value, version FROM records WHERE key = ? AND expires_at > ?", key, opened.now)
    return None if row is None else Record(*row)


def _version(opened: Transaction, key: str) -> int | None:
    row = opened.row("SELECT version FROM records WHERE key = ? AND expires_at > ?", key, opened.now)
    return None if row is None else int(row[0])


def _draw(opened: Transaction, key: str, seconds: float) -> float:
    # A bucket is kept as a lease that nobody holds: it expires when it is full.
    row = opened.row(
        "INSERT INTO leases (key, owner, expires_at) VALUES (?, x'', ?) "
        "ON CONFLICT (key) DO UPDATE SET expires_at = max(expires_at, ?) + ? RETURNING expires_at",
        *(f"bucket:{key}", opened.now + seconds, opened.now, seconds),
    )
    assert row is not None
    return float(row[0]) - opened.now


def _ping(opened: Transaction) -> None:
    opened.change("UPDATE counters SET value = value + 1 WHERE name = 'ping'")


def _next_version(opened: Transaction) -> int:
    row = opened.row("UPDATE counters SET value = value + 1 WHERE name = 'version' RETURNING value")
    assert row is not None
    return int(row[0])

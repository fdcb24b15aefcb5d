"""
The one thread in which the SQLite store touches its file, so that no disk ever holds up the event loop.

Whatever is waiting is done in one go: first the reads, then all writes in one transaction, so that a hundred writers
share one fsync. While another process has the write lock, reads go on and the writes wait.
"""

import asyncio
import contextlib
import logging
import math
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from broker.errors import StoreError
from broker.stores.base import Event
from broker.stores.sqlite_events import KEPT_SECONDS, EventFeed
from broker.stores.sqlite_file import SqliteFile, is_busy, transaction

T = TypeVar("T")

BUSY_RETRY_SECONDS = 0.005
POLL_SECONDS = 0.025
"""How often other processes' events are looked for, while somebody listens and the store is used."""
QUIET_POLL_SECONDS = 0.2
"""And how often when it isn't."""
QUIET_POLLS = 4
"""After so many looks in which nothing was found or done the store isn't used."""
PRUNE_SECONDS = 10.0
BATCH = 1000
"""How many calls are taken up in one go at most, so that the first one needn't wait for all."""

log = logging.getLogger(__name__)


class Effect(Enum):
    """What a piece of work does to the file."""

    READ = 0
    WRITE = 1
    """It need not survive a loss of power: after one, nobody holds a lease or waits for an event."""
    DURABLE_WRITE = 2
    """It is on the disk when the call returns."""


@dataclass(slots=True)
class Transaction:
    """
    What a piece of work gets.

    Attributes:
        db: The connection.
        now: The store's time in seconds.
    """

    db: sqlite3.Connection
    now: float

    def row(self, sql: str, *values: object) -> tuple[Any, ...] | None:
        """Return the only row, or None."""
        rows = self.rows(sql, *values)
        return rows[0] if rows else None

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Return all rows."""
        return self.db.execute(sql, values).fetchall()

    def change(self, sql: str, *values: object) -> int:
        """Return how many rows were changed."""
        return self.db.execute(sql, values).rowcount

    def has_changed(self, sql: str, *values: object) -> bool:
        """Return whether a row was changed."""
        return self.change(sql, *values) > 0


@dataclass(slots=True, eq=False)
class _Job:
    work: Callable[[Transaction], object]
    effect: Effect
    future: "asyncio.Future[Any]"
    outcome: object = None
    fault: StoreError | None = None

    def settle(self) -> None:
        """Tell the caller. On the event loop."""
        if self.future.done():
            return
        if self.fault is None:
            self.future.set_result(self.outcome)
        else:
            self.future.set_exception(self.fault)


class SqliteWorker:
    """Runs pieces of work in a thread of its own, which begins with the first of them."""

    def __init__(
        self, file: SqliteFile, feed: EventFeed, tell: Callable[[Event], None], *, timeout_seconds: float
    ) -> None:
        """
        Args:
            file: The database. Only the thread touches it.
            feed: Finds the events that were committed. Only the thread touches it.
            tell: Called on the event loop with each of them.
            timeout_seconds: How long a caller waits for its work.
        """
        self._file = file
        self._feed = feed
        self._tell = tell
        self._timeout_seconds = timeout_seconds
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._waiting: list[_Job] = []
        self._prune_at = -math.inf
        self._polls_in_vain = 0
        self._ended: asyncio.Future[None] | None = None
        self._is_closed = False

    async def run(self, work: Callable[[Transaction], T], effect: Effect) -> T:
        """
        Return what *work* returns.

        Pieces of work that only read are done in the order in which they came, and so are those that write.

        Raises:
            StoreError: If it failed or is not done in time.
        """
        if self._is_closed:
            raise StoreError("the store is closed")
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._put(work, effect)
        except TimeoutError:
            detail = f"not done within {self._timeout_seconds} s: the file is locked or its disk hangs"
            raise StoreError(detail) from None

    def send(self, work: Callable[[Transaction], None], effect: Effect) -> None:
        """Do *work*, if it can be done. Nobody waits for it."""
        if not self._is_closed:
            self._put(work, effect).add_done_callback(lambda done: done.cancelled() or done.exception())

    def wake(self) -> None:
        """Let the thread look whether events are wanted. It begins by looking."""
        if self._ended is not None:
            self.send(lambda _: None, Effect.READ)

    async def close(self) -> None:
        """End the thread, for good. Work that has not begun fails."""
        self._is_closed = True
        self._inbox.put(None)
        if self._ended is not None:
            await asyncio.wait([self._ended], timeout=self._timeout_seconds)

    def _put(self, work: Callable[[Transaction], T], effect: Effect) -> "asyncio.Future[T]":
        loop = asyncio.get_running_loop()
        if self._ended is None:
            self._ended = loop.create_future()
            threading.Thread(target=self._run, args=(loop, self._ended), name="sqlite-store", daemon=True).start()
        future: asyncio.Future[T] = loop.create_future()
        self._inbox.put(_Job(work, effect, future))
        return future

    # Everything below runs in the thread.

    def _run(self, loop: asyncio.AbstractEventLoop, ended: "asyncio.Future[None]") -> None:
        while self._take():
            done, events = self._step()
            self._polls_in_vain += 1
            if done or events:
                self._polls_in_vain = 0
                _call(loop, self._settle, done, events)
        self._fail(self._waiting, StoreError("the store is closed"))
        self._file.close()
        _call(loop, self._settle, self._waiting, [])
        _call(loop, ended.set_result, None)

    def _take(self) -> bool:
        """Wait until there is something to do, and collect it. False at the end."""
        patience = None
        if self._feed.is_wanted:
            patience = POLL_SECONDS if self._polls_in_vain < QUIET_POLLS else QUIET_POLL_SECONDS
        if self._waiting:
            patience = BUSY_RETRY_SECONDS
        try:
            for _ in range(BATCH):
                job = self._inbox.get(timeout=patience)
                if job is None:
                    return False
                self._waiting.append(job)
                patience = 0
        except queue.Empty:
            pass
        return True

    def _step(self) -> tuple[list[_Job], list[Event]]:
        """
        Do what is waiting, and look for events. What finds the file locked goes on waiting.

        Returns:
            What is done or has failed, and the events.
        """
        jobs = [job for job in self._waiting if not job.future.cancelled()]
        self._waiting = []
        reads = [job for job in jobs if job.effect is Effect.READ]
        writes = [job for job in jobs if job.effect is not Effect.READ]
        events: list[Event] = []
        if self._attempt(jobs, self._open):
            for read in reads:
                self._attempt([read], self._read)
            self._attempt([], lambda _: self._file.note_time(is_written=bool(writes)))
            if writes:
                self._attempt(writes, self._write)
            self._attempt([], lambda _: events.extend(self._feed.poll(self._file.open().db)))
        waiting = {id(job) for job in self._waiting}
        return [job for job in jobs if id(job) not in waiting], events

    def _attempt(self, jobs: list[_Job], what: Callable[[list[_Job]], None]) -> bool:
        """Do *what*. Where it fails, *jobs* fail with it, or wait on if another process has the lock."""
        try:
            what(jobs)
        except StoreError as fault:
            self._fail(jobs, fault)
        except sqlite3.Error as fault:
            if is_busy(fault):
                self._waiting += jobs
            else:
                self._fail(jobs, self._file.failed(fault))
        except Exception as fault:  # a fault of ours must not end the thread, and with it the store
            log.exception("store_work_failed")
            self._fail(jobs, StoreError(f"the work failed: {type(fault).__name__}"))
        else:
            return True
        return False

    def _open(self, _jobs: list[_Job]) -> None:
        self._feed.follow(self._file.open().db)

    def _read(self, jobs: list[_Job]) -> None:
        opened = Transaction(self._file.open().db, self._file.now())
        for job in jobs:
            job.outcome = job.work(opened)

    def _write(self, jobs: list[_Job]) -> None:
        db = self._file.open().db
        # In WAL mode FULL syncs at every commit, all that was committed before included; NORMAL doesn't.
        durable = any(job.effect is Effect.DURABLE_WRITE for job in jobs)
        db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        with transaction(db):
            opened = Transaction(db, self._file.now())
            self._prune(opened)
            for job in jobs:
                job.outcome = job.work(opened)

    def _prune(self, opened: Transaction) -> None:
        """Delete some of what has ended. It isn't seen any more, and only takes room."""
        if opened.now < self._prune_at:
            return
        gone = opened.change(
            "DELETE FROM records WHERE key IN (SELECT key FROM records WHERE expires_at <= ? LIMIT ?)",
            opened.now,
            BATCH,
        )
        opened.change("DELETE FROM leases WHERE expires_at <= ?", opened.now)
        opened.change("DELETE FROM events WHERE created_at <= ?", opened.now - KEPT_SECONDS)
        self._prune_at = opened.now + (0.0 if gone == BATCH else PRUNE_SECONDS)

    def _fail(self, jobs: list[_Job], fault: StoreError) -> None:
        for job in jobs:
            job.fault = fault

    def _settle(self, jobs: list[_Job], events: list[Event]) -> None:
        """Let the callers of *jobs* go on, and the listeners hear *events*. On the event loop."""
        for job in jobs:
            job.settle()
        for event in events:
            self._tell(event)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *values: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(function, *values)

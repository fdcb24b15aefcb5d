"""The SQLite store's thread: it does all that touches the disk, many writes at a time."""

import asyncio
import sqlite3
import time
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from broker.errors import StoreError
from broker.services.clock import SystemClock
from broker.stores.base import Busy, Event, Topic
from broker.stores.sqlite import SqliteStore
from broker.stores.sqlite_worker import QUIET_POLL_SECONDS, QUIET_POLLS, Effect, Transaction
from tests.stores.conftest import recovers
from tests.stores.sqlite_process import LONG
from tests.stores.store_contract import KEY, held
from tests.support.clock import ManualClock, SeededRandomness
from tests.support.waiting import until


async def test_what_must_be_durable_is_synced(store: SqliteStore) -> None:
    """A record is on the disk when the call returns; leases and events, which no boot outlives, need not be."""

    async def level(effect: Effect) -> int:
        row = await store._worker.run(lambda opened: opened.row("PRAGMA synchronous"), effect)
        assert row is not None
        return int(row[0])

    assert 2 == await level(Effect.DURABLE_WRITE), "FULL"
    assert 1 == await level(Effect.WRITE), "NORMAL"
    [mode] = await store._worker.run(lambda opened: opened.row("PRAGMA journal_mode"), Effect.READ) or [""]
    assert "wal" == mode


async def test_the_event_loop_is_never_blocked(store: SqliteStore) -> None:
    """No call touches the disk, or waits for a lock, on the event loop."""
    with blockbuster_ctx():
        version = await store.create(KEY, b"1", ttl_seconds=LONG, tags=["user"], due_at=1)
        stop = store.subscribe(lambda _: None)
        await store.replace(KEY, b"2", version or 0)
        await store.find("user")
        await store.due("grant", 1, 1)
        await held(await store.lease(KEY, LONG)).release()
        await store.publish(Event(Topic.GRANT_ENDED, KEY))
        stop()
        await store.ping()


async def test_what_has_ended_is_pruned(path: Path) -> None:
    """Expired records, ended leases and old events leave the file as others are written."""
    clock = ManualClock()
    store = SqliteStore(path, clock, SeededRandomness())
    for number in range(50):
        await store.create(f"grant:{number:02x}", b"1", ttl_seconds=1, tags=["user"])
        await store.lease(f"grant:{number:02x}", 1)
        await store.publish(Event(Topic.GRANT_ENDED, f"grant:{number:02x}"))
    clock.advance(100)
    await store.ping()

    await store.close()
    db = sqlite3.connect(path)
    for table in ("records", "tags", "leases", "events"):
        assert (0,) == db.execute(f"SELECT count(*) FROM {table}").fetchone(), table  # noqa: S608
    db.close()


async def test_writers_share_a_transaction(store: SqliteStore) -> None:
    """A hundred writes at once are committed together, so that they wait for the disk a few times, and not a hundred."""
    commits = 0

    def count(statement: str) -> None:
        nonlocal commits
        commits += statement == "COMMIT"

    await store._worker.run(lambda opened: opened.db.set_trace_callback(count), Effect.READ)
    await asyncio.gather(*(store.create(f"grant:{n:02x}", b"1", ttl_seconds=LONG) for n in range(100)))
    assert 1 <= commits <= 5


async def test_work_that_fails_fails_alone_in_time(store: SqliteStore) -> None:
    """A fault of ours in a piece of work is told to those who share its transaction, and ends neither file nor thread."""

    def faulty(opened: Transaction) -> None:
        opened.change("INSERT INTO leases VALUES ('k', 'o', 1)")
        raise ZeroDivisionError

    with pytest.raises(StoreError, match="ZeroDivisionError"):
        await store._worker.run(faulty, Effect.WRITE)
    with pytest.raises(StoreError):
        await store.publish(Event(Topic.GENERATION, KEY, 2**70))  # SQLite has 64 bits
    assert None is await store._worker.run(lambda opened: opened.row("SELECT * FROM leases"), Effect.READ)
    await recovers(store)


async def test_a_cancelled_lease_is_given_back(store: SqliteStore, path: Path) -> None:
    """Who is cancelled while he asks for a lease leaves it free, whether he had it already or not."""
    for turn in range(20):
        call = asyncio.get_running_loop().create_task(store.lease(KEY, LONG))
        for _ in range(turn % 4):
            await asyncio.sleep(0)
        await asyncio.sleep(0.0002 * turn)
        if not call.cancel():
            await held(call.result()).release()
        await asyncio.gather(call, return_exceptions=True)
        lease = await store.lease(KEY, LONG)
        assert not isinstance(lease, Busy)
        await held(lease).release()


async def test_a_closed_store_fails_what_waits_and_what_comes(path: Path) -> None:
    """Closing ends the thread; calls fail, and none of them hangs."""
    store = SqliteStore(path, SystemClock(), SeededRandomness())
    loop = asyncio.get_running_loop()
    calls = [loop.create_task(store.create(f"grant:{n:02x}", b"1", ttl_seconds=LONG)) for n in range(50)]
    await asyncio.sleep(0)
    await store.close()
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, int | StoreError)
    with pytest.raises(StoreError, match="closed"):
        await store.get(KEY)
    await store.close()


async def test_a_store_that_is_not_used_looks_rarely_and_hears_soon(store: SqliteStore, path: Path) -> None:
    """At rest it takes little of the processor; what another process tells is heard well within a second all the same."""
    heard: list[Event] = []
    store.subscribe(heard.append)
    await store.ping()
    await until(lambda: store._worker._polls_in_vain > QUIET_POLLS, what="the quiet")
    looks, began_at = store._worker._polls_in_vain, time.monotonic()
    await asyncio.sleep(0.5)
    assert store._worker._polls_in_vain - looks <= (time.monotonic() - began_at) / QUIET_POLL_SECONDS + 1

    other = SqliteStore(path, SystemClock(), SeededRandomness())
    await other.publish(Event(Topic.SESSION_ENDED, "session:1"))
    await until(lambda: Event(Topic.SESSION_ENDED, "session:1") in heard, seconds=1.0, what="the event")
    await other.close()

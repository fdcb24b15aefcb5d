"""
Another process on the same SQLite store, as tests need it. Not a test.

    python -m tests.stores.sqlite_process write FILE NAME     records NAME-0, NAME-1, … for ever; prints each once written
    python -m tests.stores.sqlite_process raise FILE COUNT    raises the counter COUNT times, told of by events
    python -m tests.stores.sqlite_process half FILE           writes, and stays in the middle of a transaction
    python -m tests.stores.sqlite_process lock FILE           holds the write lock
"""

import asyncio
import sqlite3
import sys
from pathlib import Path

from broker.services.clock import SystemClock, SystemRandomness
from broker.stores.base import Event, Topic
from broker.stores.sqlite import SqliteStore

LONG = 600.0
COUNTER = "grant:c0"


def value_of(key: str) -> bytes:
    """Return a value that shows whether it is whole."""
    return key.encode() * 500


async def write(store: SqliteStore, name: str) -> None:
    lease = await store.lease(f"grant:{name}", LONG)
    print("lease", type(lease).__name__, flush=True)
    for number in range(10**9):
        keys = [f"grant:{name}-{number}-{part}" for part in range(5)]
        await asyncio.gather(*(store.create(key, value_of(key), ttl_seconds=LONG, tags=[name]) for key in keys))
        print("wrote", *keys, flush=True)


async def raise_counter(store: SqliteStore, count: int) -> None:
    for _ in range(count):
        while True:
            record = await store.get(COUNTER)
            assert record is not None
            number = int(record.value) + 1
            if await store.replace(COUNTER, b"%d" % number, record.version) is not None:
                await store.publish(Event(Topic.GENERATION, COUNTER, number))
                break


async def with_store(path: str, command: str, argument: str) -> None:
    store = SqliteStore(Path(path), SystemClock(), SystemRandomness(), timeout_seconds=20)
    await store.start()
    if command == "write":
        await write(store, argument)
    else:
        await raise_counter(store, int(argument))
    await store.close()


def main() -> None:
    command, path, *arguments = sys.argv[1:]
    if command in {"write", "raise"}:
        asyncio.run(with_store(path, command, arguments[0]))
        return
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    if command == "half":
        db.execute("PRAGMA cache_spill = 1")
        for number in range(5000):
            row = (f"grant:half-{number}", "grant", b"half" * 200, 10**9 + number, 1e12, None)
            db.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)", row)
    print("ready", flush=True)
    sys.stdin.read()
    db.execute("ROLLBACK")
    db.close()


if __name__ == "__main__":
    main()

"""What the SQLite store does while its file, its disk or another process fails: SECURITY rows FT-11 and FT-16."""

import asyncio
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.errors import StoreError
from broker.services.clock import SystemClock
from broker.stores.base import Busy, Event, Record, Store, StoreDown, Topic
from broker.stores.listeners import RESYNC
from broker.stores.sqlite import SqliteStore
from broker.stores.sqlite_worker import Effect
from tests.stores.conftest import TIMEOUT, recovers
from tests.stores.sqlite_process import COUNTER, LONG, value_of
from tests.stores.store_contract import KEY, Heard, listening
from tests.support.clock import SeededRandomness
from tests.support.waiting import awake, until, until_async


@contextmanager
def another_process(*arguments: str | Path) -> Iterator["subprocess.Popen[str]"]:
    """Run ``sqlite_process``, and kill it in the end if it hasn't ended."""
    command = [sys.executable, "-m", "tests.stores.sqlite_process", *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return (await asyncio.to_thread(process.stdout.readline)).strip()


async def assert_whole(path: Path) -> None:
    """The file is sound, and every record in it is whole."""
    check = (
        f"import sqlite3, sys; print(sqlite3.connect({str(path)!r}).execute('PRAGMA integrity_check').fetchone()[0])"
    )
    # In a process of its own: closing a descriptor here would drop the locks of the store's connection.
    result = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    assert "ok" == result.stdout.strip()


# -- the disk


async def test_ft_16_a_full_disk_refuses_writes_and_keeps_records(store: SqliteStore, path: Path) -> None:
    """When the database can't grow, writes fail, reads go on, nothing is half written, and room mends it."""
    version = await store.create(KEY, b"1", ttl_seconds=LONG)
    await limit_pages(store, 40)
    written, refusals = 0, set[str]()
    for number in range(60):
        try:
            await store.create(f"grant:{number:04x}", bytes(4000), ttl_seconds=LONG, tags=["user"])
            written += 1
        except StoreError as fault:
            refusals.add(str(fault))
    assert written
    assert any("SQLITE_FULL" in refusal for refusal in refusals)
    assert written == len(await store.find("user"))
    assert Record(b"1", version or 0) == await store.get(KEY)
    await limit_pages(store, 10_000)
    await recovers(store)
    await assert_whole(path)


async def limit_pages(store: SqliteStore, count: int) -> None:
    await store._worker.run(lambda opened: opened.rows(f"PRAGMA max_page_count = {count}"), Effect.READ)


@pytest.mark.parametrize("extra", [0, 3_000, 50_000])
async def test_ft_16_a_write_that_the_system_refuses_is_told(store: SqliteStore, path: Path, extra: int) -> None:
    """When the system lets the files grow no further, anywhere within a write, the write is not done at all."""
    version = await store.create(KEY, b"1", ttl_seconds=LONG)
    size = max(file.stat().st_size for file in path.parent.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + extra, hard))
    try:
        acknowledged = []
        for number in range(20):
            try:
                await store.create(f"grant:{number:04x}", bytes(9_000), ttl_seconds=LONG, tags=["user"])
                acknowledged.append(f"grant:{number:04x}")
            except StoreError:
                pass
        assert len(acknowledged) < 20
        await until_async(lambda: readable(store), what="reading")
        assert Record(b"1", version or 0) == await store.get(KEY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await recovers(store)
    assert set(acknowledged) <= set(await store.find("user"))
    await assert_whole(path)


async def readable(store: Store) -> bool:
    try:
        return await store.get(KEY) is not None
    except StoreError:
        return False


async def test_ft_16_a_read_only_database_is_told_and_recovered_from(store: SqliteStore) -> None:
    """When SQLite finds that it may not write, calls fail; they work once it may."""
    await store._worker.run(lambda opened: opened.rows("PRAGMA query_only = ON"), Effect.READ)
    with pytest.raises(StoreError, match="READONLY"):
        await store.create(KEY, b"1", ttl_seconds=LONG)
    assert isinstance(await store.lease(KEY, LONG), StoreDown)
    await recovers(store)


async def test_ft_16_a_corrupt_page_is_told_and_recovered_from(path: Path) -> None:
    """Garbage in the file is an error, never a record; when a copy is put in its place, the same store works."""
    store = SqliteStore(path, SystemClock(), SeededRandomness(), timeout_seconds=TIMEOUT)
    keys = [f"grant:{number:04x}" for number in range(200)]
    await asyncio.gather(*(store.create(key, value_of(key), ttl_seconds=LONG) for key in keys))
    await store.close()
    good = path.with_suffix(".good")
    shutil.copyfile(path, good)
    content = bytearray(path.read_bytes())
    page = 4096
    middle = len(content) // page // 2
    for number in range(middle, middle + 20):
        content[number * page : (number + 1) * page] = random.Random(number).randbytes(page)
    path.write_bytes(content)

    store = SqliteStore(path, SystemClock(), SeededRandomness(), timeout_seconds=TIMEOUT)
    try:
        faults = 0
        for key in keys:
            try:
                record = await store.get(key)
                assert record is None or value_of(key) == record.value
            except StoreError:
                faults += 1
        assert faults
        good.replace(path)
        await recovers(store)
        for key in keys:
            record = await store.get(key)
            assert record is not None
            assert value_of(key) == record.value
    finally:
        await store.close()


async def test_ft_16_power_that_fails_leaves_whole_records(path: Path, tmp_path: Path) -> None:
    """However much of the last writes reached the disk, what is there is whole, and the store starts."""
    store = SqliteStore(path, SystemClock(), SeededRandomness(), timeout_seconds=TIMEOUT)
    keys = [f"grant:{number:04x}" for number in range(30)]
    for key in keys:
        await store.create(key, value_of(key), ttl_seconds=LONG)
    copies = tmp_path / "after the power failed"
    copies.mkdir()
    copy = "import shutil, sys; [shutil.copy(name, sys.argv[1]) for name in sys.argv[2:]]"
    wal = path.with_name("broker.db-wal")
    subprocess.run([sys.executable, "-c", copy, str(copies), str(path), str(wal)], check=True)
    await store.close()
    torn = (copies / "broker.db-wal").read_bytes()
    main = (copies / "broker.db").read_bytes()
    seen = set()
    chance = random.Random(1)
    for length in [0, 1, 31, 32, 33, len(torn), *(chance.randrange(len(torn)) for _ in range(30))]:
        (copies / "broker.db").write_bytes(main)
        (copies / "broker.db-wal").write_bytes(torn[:length])
        (copies / "broker.db-shm").unlink(missing_ok=True)
        store = SqliteStore(copies / "broker.db", SystemClock(), SeededRandomness(), timeout_seconds=TIMEOUT)
        await store.start()
        records = [await store.get(key) for key in keys]
        count = sum(record is not None for record in records)
        assert all(
            record is not None and value_of(key) == record.value
            for key, record in zip(keys[:count], records, strict=False)
        ), "the first writes are there, and only they"
        seen.add(count)
        await store.close()
    assert {0, 30} <= seen
    assert len(seen) > 5


# -- other processes


async def test_ft_16_a_locked_database_is_read_on(store: SqliteStore, path: Path) -> None:
    """While another process has the write lock, reads go on at once, writes wait, fail in time, and work afterwards."""
    version = await store.create(KEY, b"1", ttl_seconds=LONG)
    with another_process("lock", path) as process:
        assert "ready" == await line(process)
        waiting = asyncio.get_running_loop().create_task(store.replace(KEY, b"2", version or 0))
        for _ in range(10):
            async with awake() as seconds:
                assert Record(b"1", version or 0) == await store.get(KEY)
                assert seconds() < TIMEOUT / 2
        with pytest.raises(StoreError, match="locked"):
            await waiting
        assert isinstance(await store.lease(KEY, LONG), StoreDown)
        with pytest.raises(StoreError):
            await store.ping()
        soon = asyncio.get_running_loop().create_task(store.replace(KEY, b"3", version or 0))
        await asyncio.sleep(0.05)
        process.communicate("")
        assert None is not await soon
    record = await store.get(KEY)
    assert record is not None
    assert b"3" == record.value, "what was refused was not done later"


async def test_ft_16_a_thousand_writers_wait_without_blocking_readers(store: SqliteStore, path: Path) -> None:
    """However many writes wait for the lock, a read doesn't wait behind them."""
    await store.create(KEY, b"1", ttl_seconds=LONG)
    with another_process("lock", path) as process:
        assert "ready" == await line(process)
        loop = asyncio.get_running_loop()
        writes = [loop.create_task(store.touch(KEY, LONG)) for _ in range(3000)]
        await asyncio.sleep(0.05)
        async with awake() as seconds:
            assert None is not await store.get(KEY)
            assert seconds() < TIMEOUT / 2
        process.communicate("")
        await asyncio.gather(*writes, return_exceptions=True)
    await recovers(store)


async def test_ft_16_a_process_killed_in_a_transaction_leaves_nothing(store: SqliteStore, path: Path) -> None:
    """Kill -9 in the middle of a transaction: none of it is there, and its lock is gone."""
    version = await store.create(KEY, b"1", ttl_seconds=LONG)
    with another_process("half", path) as process:
        assert "ready" == await line(process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert None is not await store.replace(KEY, b"2", version or 0)
    assert None is await store.get("grant:half-0")
    await assert_whole(path)


async def test_ft_11_a_process_killed_while_it_writes_loses_nothing_it_was_told(store: SqliteStore, path: Path) -> None:
    """Kill -9 at any moment: every write that was acknowledged is there and whole."""
    chance = random.Random(7)
    for turn in range(4):
        name = f"{turn:02x}"
        with another_process("write", path, name) as process:
            assert "lease _SqliteLease" == await line(process)
            acknowledged = set((await line(process)).split()[1:])
            await asyncio.sleep(chance.uniform(0.05, 0.4))
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            for text in process.stdout.read().splitlines():
                if text.startswith("wrote ") and len(text.split()) == 6 and text.endswith("-4"):
                    acknowledged |= set(text.split()[1:])
        for key in acknowledged:
            record = await store.get(key)
            assert record is not None
            assert value_of(key) == record.value
        for key in await store.find(name):
            record = await store.get(key)
            assert record is not None
            assert value_of(key) == record.value, "what was not acknowledged is whole too"
        assert isinstance(await store.lease(f"grant:{name}", LONG), Busy), "its lease ends by itself, not before"
    await assert_whole(path)


async def test_processes_share_a_counter_and_their_events(path: Path) -> None:
    """Three processes that raise one counter lose nothing, and a fourth hears of every step."""
    store = SqliteStore(path, SystemClock(), SeededRandomness(), timeout_seconds=20)
    await store.create(COUNTER, b"0", ttl_seconds=LONG)
    heard = await listening(store)
    try:
        with (
            another_process("raise", path, "100") as one,
            another_process("raise", path, "100") as two,
            another_process("raise", path, "100") as three,
        ):
            for process in (one, two, three):
                assert 0 == await asyncio.to_thread(process.wait, 60)
        record = await store.get(COUNTER)
        assert record is not None
        assert b"300" == record.value
        await heard.gets(*(Event(Topic.GENERATION, COUNTER, number) for number in range(1, 301)))
        assert RESYNC not in heard.events
    finally:
        await store.close()


async def test_a_listener_is_told_when_the_file_fails(store: SqliteStore) -> None:
    """After the file was opened anew, whoever listens knows that events may be missing."""
    heard = Heard(store)
    await store.ping()
    await store._worker.run(lambda opened: opened.rows("PRAGMA query_only = ON"), Effect.READ)
    with pytest.raises(StoreError):
        await store.ping()
    await recovers(store)
    await until(lambda: RESYNC in heard.events)

"""What the SQLite store does while its file, its disk or another process fails: SECURITY rows FT-15 and FT-16."""

import asyncio
import os
import random
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from broker.errors import StoreError
from broker.services.clock import SystemClock
from broker.stores.base import Busy, Event, Record, Store, StoreDown, Topic
from broker.stores.listeners import RESYNC
from broker.stores.sqlite import SqliteStore
from broker.stores.sqlite_worker import Effect
from tests.stores.sqlite_process import COUNTER, LONG, value_of
from tests.stores.store_contract import KEY, Heard, held, listening
from tests.support.clock import ManualClock, SeededRandomness
from tests.support.waiting import until, until_async

TIMEOUT = 0.5
RECOVERY = 5.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "broker.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, SystemClock(), SeededRandomness(), timeout_seconds=TIMEOUT)
    await store.start()
    yield store
    await store.close()


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


async def works(store: Store) -> bool:
    try:
        await store.ping()
    except StoreError:
        return False
    return True


async def recovers(store: Store) -> None:
    await until_async(lambda: works(store), seconds=RECOVERY, what="the recovery")
    assert None is not await store.create("grant:after", b"1", ttl_seconds=LONG)


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


async def test_ft_16_a_file_that_we_may_not_write_stops_the_start() -> None:
    """A file, or a directory, of another user is an error of the start, not of the first login."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        path = directory / "broker.db"
        path.touch()
        path.chmod(0o644)
        directory.chmod(0o755)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root may write everything
        else:
            path.chmod(0o444)
            directory.chmod(0o555)
        store = SqliteStore(path, SystemClock(), SeededRandomness(), timeout_seconds=TIMEOUT)
        try:
            with pytest.raises(StoreError):
                await store.start()
            with pytest.raises(StoreError):
                await store.ping()
        finally:
            await store.close()
            os.seteuid(user)
            directory.chmod(0o755)


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


@pytest.mark.parametrize("content", [b"not a database, but long enough to be looked at " * 100, b"\0" * 8192])
async def test_ft_16_a_file_that_is_no_database_is_left_alone(path: Path, content: bytes) -> None:
    """A file that isn't SQLite's is refused and not overwritten."""
    path.write_bytes(content)
    store = SqliteStore(path, SystemClock(), SeededRandomness(), timeout_seconds=TIMEOUT)
    with pytest.raises(StoreError):
        await store.start()
    await store.close()
    assert content == path.read_bytes()


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


# -- other processes


async def test_ft_16_a_locked_database_is_read_on(store: SqliteStore, path: Path) -> None:
    """While another process has the write lock, reads go on at once, writes wait, fail in time, and work afterwards."""
    version = await store.create(KEY, b"1", ttl_seconds=LONG)
    with another_process("lock", path) as process:
        assert "ready" == await line(process)
        waiting = asyncio.get_running_loop().create_task(store.replace(KEY, b"2", version or 0))
        for _ in range(10):
            began_at = time.monotonic()
            assert Record(b"1", version or 0) == await store.get(KEY)
            assert time.monotonic() - began_at < TIMEOUT / 2
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
        began_at = time.monotonic()
        assert None is not await store.get(KEY)
        assert time.monotonic() - began_at < TIMEOUT / 2
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


# -- clocks


async def test_ft_15_the_wall_clock_ends_nothing(path: Path) -> None:
    """A wall clock set forward or back an hour, before or after a restart, neither ends a record or lease nor keeps it."""
    clock = ManualClock()
    store = SqliteStore(path, clock, SeededRandomness())
    await store.create(KEY, b"1", ttl_seconds=LONG)
    held(await store.lease(KEY, LONG))
    for jump in (3600, -7200):
        clock.set_wall_clock(jump)
        await store.close()
        store = SqliteStore(path, clock, SeededRandomness())
        assert None is not await store.get(KEY)
        assert isinstance(await store.lease(KEY, LONG), Busy)
    clock.advance(LONG)
    assert None is await store.get(KEY)
    assert not isinstance(await store.lease(KEY, LONG), Busy)
    await store.close()


async def test_a_boot_ends_leases_and_keeps_records(path: Path) -> None:
    """After the host was started anew no lease is held, since no holder is left, and records live on by the wall clock."""
    before = ManualClock()
    before.advance(10_000)
    store = SqliteStore(path, before, SeededRandomness())
    await store.create(KEY, b"1", ttl_seconds=LONG)
    held(await store.lease(KEY, LONG))
    await store.close()
    after = ManualClock(before.now() + LONG / 2)  # its monotonic clock begins anew
    store = SqliteStore(path, after, SeededRandomness())
    assert None is not await store.get(KEY)
    assert not isinstance(await store.lease(KEY, LONG), Busy)
    after.advance(LONG / 2)
    assert None is await store.get(KEY)
    await store.close()


# -- the file


async def test_the_file_is_for_our_eyes_only(store: SqliteStore, path: Path) -> None:
    """Nobody else reads the database or what SQLite puts beside it."""
    await store.create(KEY, b"1", ttl_seconds=LONG)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert {"broker.db": 0o600, "broker.db-wal": 0o600, "broker.db-shm": 0o600} == modes


async def test_the_mode_of_a_file_that_others_read_is_narrowed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that others may read is taken from their eyes, and the log says so."""
    path.touch(mode=0o644)
    path.chmod(0o644)
    store = SqliteStore(path, SystemClock(), SeededRandomness())
    await store.start()
    await store.close()
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert ["store_file_mode_narrowed"] == [record.message for record in caplog.records]


async def test_a_directory_in_which_everybody_writes_is_refused(path: Path) -> None:
    """Where others could put another file in its place, the store does not start."""
    path.parent.chmod(0o777)
    store = SqliteStore(path, SystemClock(), SeededRandomness())
    with pytest.raises(StoreError, match="writable by everyone"):
        await store.start()
    path.parent.chmod(0o1777)  # as /tmp: nobody removes the files of others
    await until_async(lambda: works(store))
    await store.close()


async def test_a_missing_directory_is_told(path: Path) -> None:
    """The error names the directory; once it is there, the same store works."""
    inside = path.parent / "missing" / "broker.db"
    store = SqliteStore(inside, SystemClock(), SeededRandomness())
    with pytest.raises(StoreError, match="missing"):
        await store.start()
    inside.parent.mkdir(mode=0o700)
    await recovers(store)
    await store.close()


async def test_a_file_that_is_deleted_is_made_anew(store: SqliteStore, path: Path) -> None:
    """When the file goes away under the store, records are gone, listeners are told, and everything works."""
    await store.create(KEY, b"1", ttl_seconds=LONG)
    heard = await listening(store)
    for file in tuple(path.parent.iterdir()):
        file.unlink()
    assert None is await store.get(KEY)
    await heard.gets(RESYNC)
    await recovers(store)
    assert path.exists()


async def test_a_database_of_another_program_is_left_alone(path: Path) -> None:
    """A path to the wrong database is refused, and nothing is written into it."""
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    path.chmod(0o600)
    store = SqliteStore(path, SystemClock(), SeededRandomness())
    with pytest.raises(StoreError, match="another program"):
        await store.start()
    await store.close()
    db = sqlite3.connect(path)
    assert [("theirs",)] == db.execute("SELECT name FROM sqlite_master").fetchall()
    db.close()


async def test_ft_14_a_newer_format_is_left_alone(path: Path) -> None:
    """A file that a newer release wrote is refused unharmed."""
    store = SqliteStore(path, SystemClock(), SeededRandomness())
    await store.start()
    await store.close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    store = SqliteStore(path, SystemClock(), SeededRandomness())
    with pytest.raises(StoreError, match="newer release"):
        await store.start()
    await store.close()


async def test_deleted_records_leave_the_file(store: SqliteStore, path: Path) -> None:
    """What a logout deletes can't be read from the file afterwards."""
    await store.create(KEY, b"canary" * 100, ttl_seconds=LONG)
    await store.delete(KEY)
    await store.close()  # which moves the log into the file and removes it
    assert [path] == list(path.parent.iterdir())
    assert b"canary" not in path.read_bytes()


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


async def test_a_listener_is_told_when_the_file_fails(store: SqliteStore) -> None:
    """After the file was opened anew, whoever listens knows that events may be missing."""
    heard = Heard(store)
    await store.ping()
    await store._worker.run(lambda opened: opened.rows("PRAGMA query_only = ON"), Effect.READ)
    with pytest.raises(StoreError):
        await store.ping()
    await recovers(store)
    await until(lambda: RESYNC in heard.events)

"""The SQLite store's file: for our eyes only, never mistaken for another, and timed by a clock of its own."""

import os
import sqlite3
import stat
import tempfile
from contextlib import closing, suppress
from pathlib import Path

import pytest

from broker.errors import StoreError, StoreMisplaced
from broker.services.clock import SystemClock
from broker.stores import sqlite_file
from broker.stores.base import Busy
from broker.stores.listeners import RESYNC
from broker.stores.sqlite import SqliteStore
from tests.stores.conftest import TIMEOUT, recovers, works
from tests.stores.sqlite_process import LONG
from tests.stores.store_contract import KEY, held, listening
from tests.support.clock import ManualClock, SeededRandomness
from tests.support.grants import NOW
from tests.support.waiting import until, until_async


@pytest.mark.parametrize("mode", [0o644, 0o600])
async def test_ft_16_a_file_that_we_may_not_write_stops_the_start(mode: int) -> None:
    """A file, or a directory, of another user is an error of the start, not of the first login."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        path = directory / "broker.db"
        path.touch()
        path.chmod(mode)
        directory.chmod(0o755)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root may write everything
        else:
            path.chmod(0o444)
            directory.chmod(0o555)
        store = SqliteStore(path, SystemClock(), SeededRandomness(), timeout_seconds=TIMEOUT)
        try:
            with pytest.raises(StoreMisplaced, match=f"^{path}: .*(can't be written by this user|not permitted)"):
                await store.start()
            with pytest.raises(StoreError):
                await store.ping()
        finally:
            await store.close()
            os.seteuid(user)
            directory.chmod(0o755)


@pytest.mark.parametrize("content", [b"not a database, but long enough to be looked at " * 100, b"\0" * 8192])
async def test_ft_16_a_file_that_is_no_database_is_left_alone(path: Path, content: bytes) -> None:
    """A file that isn't SQLite's is refused and not overwritten."""
    path.write_bytes(content)
    store = SqliteStore(path, SystemClock(), SeededRandomness(), timeout_seconds=TIMEOUT)
    with pytest.raises(StoreMisplaced):
        await store.start()
    await store.close()
    assert content == path.read_bytes()


@pytest.mark.parametrize(
    "moment", ["PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master"]
)
def test_two_processes_may_make_the_file_at_once(path: Path, moment: str) -> None:
    """Whatever the one has done when the other looks, neither takes the file for another program's."""
    first, second = (sqlite3.connect(path, timeout=0, isolation_level=None) for _ in range(2))

    def interfere(statement: str) -> None:
        if statement == moment:
            first.set_trace_callback(None)
            with suppress(sqlite3.OperationalError):  # the file is locked, and it would wait
                sqlite_file._migrate(second)

    with closing(first), closing(second):
        first.set_trace_callback(interfere)
        sqlite_file._migrate(first)
        sqlite_file._migrate(second)

        assert sqlite_file.FORMAT == sqlite_file._format(first) == sqlite_file._format(second)


async def test_what_passes_by_itself_is_an_outage(path: Path) -> None:
    """A file that somebody has locked may be had a moment later: the start isn't refused for it."""
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        store = SqliteStore(path, SystemClock(), SeededRandomness(), timeout_seconds=0.2)
        with pytest.raises(StoreError) as caught:
            await store.start()
        assert not isinstance(caught.value, StoreMisplaced)
        other.execute("ROLLBACK")
    other.close()
    await store.start()
    await store.close()


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


def booted(before: ManualClock, *, off_seconds: float) -> ManualClock:
    """The clock of the same host when it has been off for a while: its monotonic clock begins anew."""
    return ManualClock(before.now() + off_seconds)


@pytest.mark.parametrize("behind_seconds", [0.0, 12 * 3600.0, 31 * 86400.0, NOW], ids=["right", "12h", "31d", "1970"])
@pytest.mark.parametrize("is_seen_by_another", [False, True])
async def test_ft_15_a_clock_that_is_set_after_a_boot_ends_nothing_at_the_next_one(
    path: Path, behind_seconds: float, is_seen_by_another: bool
) -> None:
    """The host boots before its clock is right. Lifetimes go on over later boots, by what passes meanwhile and no more."""
    clock = ManualClock(NOW - behind_seconds)
    clock.advance(10)
    store = SqliteStore(path, clock, SeededRandomness())
    await store.create(KEY, b"1", ttl_seconds=LONG)
    clock.set_wall_clock(behind_seconds)
    clock.advance(10)
    other = SqliteStore(path, clock, SeededRandomness())
    await (other if is_seen_by_another else store).ping()
    for each in (store, other):
        await each.close()

    clock = booted(clock, off_seconds=LONG / 2)
    store = SqliteStore(path, clock, SeededRandomness())

    assert None is not await store.get(KEY)
    clock.advance(LONG / 2)
    assert None is await store.get(KEY)
    await store.close()


async def test_ft_15_a_clock_that_is_set_is_noticed_by_a_store_that_only_listens(path: Path) -> None:
    """Nobody need write anything between that and the next boot."""
    clock = ManualClock(NOW - 86400)
    clock.advance(10)
    store = SqliteStore(path, clock, SeededRandomness())
    await listening(store)
    await store.create(KEY, b"1", ttl_seconds=LONG)
    clock.set_wall_clock(86400)
    clock.advance(2)
    await until(lambda: noted(path)["wall_ms"] == round(clock.now() * 1000))
    await store.close()

    store = SqliteStore(path, booted(clock, off_seconds=0), SeededRandomness())
    assert None is not await store.get(KEY)
    await store.close()


async def test_ft_15_a_clock_that_a_boot_sets_back_keeps_nothing_for_ever(path: Path) -> None:
    """A host without a battery for its clock: no time has passed then, and from there on it passes."""
    clock = ManualClock(NOW)
    clock.advance(10)
    store = SqliteStore(path, clock, SeededRandomness())
    await store.create(KEY, b"1", ttl_seconds=LONG)
    await store.close()

    clock = ManualClock(0.0)
    store = SqliteStore(path, clock, SeededRandomness())
    assert None is not await store.get(KEY)
    clock.set_wall_clock(NOW)
    clock.advance(LONG)
    assert None is await store.get(KEY)
    await store.close()


async def test_ft_14_a_file_in_which_no_time_was_written_down_goes_by_the_wall_clock(path: Path) -> None:
    """An earlier release made it. The first process that opens it writes it down."""
    clock = ManualClock(NOW)
    clock.advance(10)
    store = SqliteStore(path, clock, SeededRandomness())
    await store.create(KEY, b"1", ttl_seconds=LONG)
    await store.close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM counters WHERE name IN ('wall_ms', 'store_ms')")

    clock = booted(clock, off_seconds=LONG / 2)
    store = SqliteStore(path, clock, SeededRandomness())

    assert None is not await store.get(KEY)
    clock.advance(LONG / 2)
    assert None is await store.get(KEY)
    await store.close()
    assert {"wall_ms", "store_ms"} == noted(path).keys()


async def test_reads_go_on_where_the_time_can_not_be_written_down(store: SqliteStore, path: Path) -> None:
    """Another process has the lock, for longer than anybody waits."""
    await store.create(KEY, b"1", ttl_seconds=LONG)
    await store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM counters WHERE name IN ('wall_ms', 'store_ms')")
        again = SqliteStore(path, SystemClock(), SeededRandomness(), timeout_seconds=TIMEOUT)
        for _ in range(3):
            assert None is not await again.get(KEY)
        await again.close()


def noted(path: Path) -> dict[str, int]:
    """What is written down of the time."""
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT name, value FROM counters WHERE name IN ('wall_ms', 'store_ms')"))


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


@pytest.mark.parametrize("what", ["a directory", "a text", "another program's database"])
async def test_ad_02_what_is_no_store_is_refused_and_left_as_it_is(path: Path, what: str) -> None:
    """A slip in `store.url` takes nothing from other users: not a directory, nor another program's file."""
    match what:
        case "a directory":
            path.mkdir()
        case "a text":
            path.write_text("not a database" * 1000)
        case _:
            with closing(sqlite3.connect(path)) as db:
                db.execute("CREATE TABLE theirs (x)")
    path.chmod(0o755)
    store = SqliteStore(path, SystemClock(), SeededRandomness())

    with pytest.raises(StoreMisplaced, match=f"^{path}: "):
        await store.start()
    await store.close()

    assert 0o755 == stat.S_IMODE(path.stat().st_mode)


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
    with pytest.raises(StoreMisplaced, match="another program"):
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

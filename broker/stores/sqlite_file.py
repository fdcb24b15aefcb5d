"""The database file of the SQLite store: opened with care, closed on doubt, and opened again by itself."""

import errno
import logging
import math
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from broker.errors import StoreError, StoreMisplaced
from broker.stores.base import Clock

FORMAT = 1
"""``user_version`` of the file. A later one is left alone: a newer broker is at work on it (rolling upgrades)."""
APPLICATION_ID = 0x546B4272
"""``application_id`` of the file ("TkBr"), so that another program's database is never written to."""
BUSY_SECONDS = 0.02
"""How long SQLite itself waits for a lock. Longer waits are the worker's, which serves reads meanwhile."""
REOPEN_SECONDS = 0.5
"""How long a file that failed is left alone; calls fail at once meanwhile."""
NOTE_SECONDS = 10.0
"""How often it is written down what the wall clock shows, while the store is written to."""
SET_SECONDS = 1.0
"""What the wall clock moves on the store's time when it is set. By less it isn't, and so often that is written down."""

SCHEMA = """
CREATE TABLE records (
    key TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    value BLOB NOT NULL,
    version INTEGER NOT NULL,
    expires_at REAL NOT NULL,
    due_at REAL
);
CREATE INDEX records_by_end ON records (expires_at);
CREATE INDEX records_by_due_time ON records (kind, due_at) WHERE due_at IS NOT NULL;
CREATE TABLE tags (
    tag TEXT NOT NULL,
    key TEXT NOT NULL REFERENCES records (key) ON DELETE CASCADE,
    PRIMARY KEY (tag, key)
) WITHOUT ROWID;
CREATE INDEX tags_by_key ON tags (key);
CREATE TABLE leases (key TEXT PRIMARY KEY, owner BLOB NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL,
    key TEXT NOT NULL,
    number INTEGER NOT NULL,
    created_at REAL NOT NULL
);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counters VALUES ('version', 0), ('ping', 0);
CREATE TABLE epochs (boot TEXT NOT NULL, monotonic REAL NOT NULL, started_at REAL NOT NULL);
"""

_LASTING = frozenset(
    {
        errno.EACCES,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)
"""Why a file can't be made that no waiting mends; of the others a full disk, or too many open files, pass."""

log = logging.getLogger(__name__)

# Closing any descriptor of a file drops the locks that this process has on it (POSIX), those of other connections too.
# So the file is only ever opened by SQLite, except to create it, and that by one thread at a time.
# Source: "How To Corrupt An SQLite Database File", section 2.2.
_creation = threading.Lock()


@dataclass(frozen=True, slots=True)
class OpenFile:
    """
    A connection, and what was true of the file when it was opened.

    Attributes:
        db: The connection, in autocommit: transactions are begun and ended by hand.
        identity: Device and inode.
        epoch: What added to the monotonic clock gives the store's time, in seconds.
    """

    db: sqlite3.Connection
    identity: tuple[int, int]
    epoch: float


class SqliteFile:
    """The file at one path. For use by one thread."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._open: OpenFile | None = None
        self._left_alone_until = -1.0
        self._fault = ""
        self._noted_ahead = math.inf
        self._note_tried_at = -math.inf

    def open(self) -> OpenFile:
        """
        Return the open file; open it if it isn't, or if another file is at its path by now.

        Raises:
            StoreMisplaced: If that can't ever be done where the path is.
            StoreError: If that can't be done now.
            sqlite3.OperationalError: If another process has it locked (:func:`is_busy`).
        """
        if self._open is not None:
            if self._open.identity == self._identity():
                return self._open
            log.warning("store_file_replaced")
            self.close()
        if self._clock.monotonic() < self._left_alone_until:
            raise StoreError(self._fault, retry_after_seconds=REOPEN_SECONDS)
        try:
            self._prepare()
            self._open = self._connect()
        except (sqlite3.Error, OSError) as fault:
            if is_busy(fault):
                raise
            failed = self.failed(fault)
            if (why := self._lasting(fault)) is None:
                raise failed from fault
            raise StoreMisplaced(f"{failed}{why}") from fault
        except StoreMisplaced as fault:
            detail = f"{self._path}: {fault}"
            self._leave_alone(detail)
            raise StoreMisplaced(detail) from None
        return self._open

    def now(self) -> float:
        """Return the store's time in seconds. It began as Unix time, and nobody sets it forward or back."""
        assert self._open is not None
        return self._clock.monotonic() + self._open.epoch

    def note_time(self, *, is_written: bool) -> None:
        """
        Write down what the wall clock shows at the store's time, for the next boot of the host (:func:`_resumed`).

        That is done if the wall clock was set since, and now and then while the store *is_written* to. Where it can't
        be done it is tried again: nothing depends on it before the next boot.
        """
        if self._open is None:
            return
        store = self.now()
        if store - self._note_tried_at < SET_SECONDS:
            return
        wall = self._clock.now()
        is_stale = is_written and store - self._note_tried_at >= NOTE_SECONDS
        if not is_stale and abs(wall - store - self._noted_ahead) < SET_SECONDS:
            return
        self._note_tried_at = store
        noted = ("wall_ms", round(wall * 1000)), ("store_ms", round(store * 1000))
        with suppress(sqlite3.Error), transaction(self._open.db):
            self._open.db.executemany("INSERT OR REPLACE INTO counters VALUES (?, ?)", noted)
            self._noted_ahead = wall - store

    def failed(self, fault: sqlite3.Error | OSError) -> StoreError:
        """
        Return the error that tells of *fault*.

        The file is closed if it may work better when it is opened anew, as after it was restored from a backup.
        """
        if isinstance(fault, OSError):
            detail = f"{fault.filename or self._path}: {fault.strerror or fault}"
        else:
            name = getattr(fault, "sqlite_errorname", None) or type(fault).__name__
            detail = f"{self._path}: {name}: {fault}"
        if not is_busy(fault) and not _is_full(fault):
            self.close()
            self._leave_alone(detail)
        return StoreError(detail)

    def close(self) -> None:
        """Close the file if it is open."""
        if self._open is not None:
            db, self._open = self._open.db, None
            self._noted_ahead, self._note_tried_at = math.inf, -math.inf
            try:
                db.close()
            except sqlite3.Error as fault:
                log.warning("store_close_failed", extra={"error": str(fault)})

    def _leave_alone(self, detail: str) -> None:
        self._fault = detail
        self._left_alone_until = self._clock.monotonic() + REOPEN_SECONDS

    def _lasting(self, fault: sqlite3.Error | OSError) -> str | None:
        """Return what there is to add to *fault* if no waiting mends it; None if it may pass by itself."""
        if isinstance(fault, OSError):
            return "" if fault.errno in _LASTING else None
        if _code(fault) == sqlite3.SQLITE_NOTADB:
            return ""
        # SQLite doesn't say why it can't open or write what is there; it needs to make files beside it, too.
        needed = ((self._path.parent, os.R_OK | os.W_OK | os.X_OK), (self._path, os.R_OK | os.W_OK))
        if _code(fault) not in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}:
            return None
        for path, mode in needed:
            if not os.access(path, mode, effective_ids=os.access in os.supports_effective_ids):
                return f" ({path} can't be written by this user)"
        return None

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _prepare(self) -> None:
        """Create the file for our eyes only, and see that nobody else could put another one in its place."""
        directory = self._path.parent
        mode = directory.stat().st_mode
        if not stat.S_ISDIR(mode):
            raise StoreMisplaced(f"{directory} is not a directory")
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise StoreMisplaced(f"{directory} is writable by everyone: chmod o-w it")
        with _creation:
            try:
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            except FileExistsError:
                self._narrow()

    def _narrow(self) -> None:
        """Take the file from other users' eyes, if it is one, and ours. The files that SQLite makes get its mode."""
        mode = self._path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise StoreMisplaced("it is no file")
        if stat.S_IMODE(mode) & 0o077 and _may_be_ours(self._path):
            log.warning("store_file_mode_narrowed", extra={"path": str(self._path)})
            self._path.chmod(0o600)

    def _connect(self) -> OpenFile:
        identity = self._identity()
        assert identity is not None
        db = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            # What a logout deletes is overwritten, not only unlinked from the tree.
            db.execute("PRAGMA secure_delete = ON")
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("PRAGMA trusted_schema = OFF")
            _migrate(db)
            epoch = _epoch(db, self._clock)
        except BaseException:
            db.close()
            raise
        return OpenFile(db, identity, epoch)


def _may_be_ours(path: Path) -> bool:
    """Return whether a file is empty, or says of itself that it is ours (SQLite's file format, section 1.3)."""
    with path.open("rb") as file:
        head = file.read(72)
    return not head or head[68:] == APPLICATION_ID.to_bytes(4)


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Write in one transaction, which is committed at the end and rolled back on any fault."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # some faults, such as a full disk, have ended it already
            db.execute("ROLLBACK")
        raise


@contextmanager
def _snapshot(db: sqlite3.Connection) -> Iterator[None]:
    """Read of one moment, whatever other processes write meanwhile."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def is_busy(fault: BaseException) -> bool:
    """Return whether another process has a lock that it will give back."""
    return _code(fault) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _is_full(fault: BaseException) -> bool:
    return _code(fault) == sqlite3.SQLITE_FULL


def _code(fault: BaseException) -> int:
    """Return the primary result code; the upper bits say more. Source: SQLite, "Result and Error Codes"."""
    code = getattr(fault, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else -1


def _migrate(db: sqlite3.Connection) -> None:
    """Create the tables in a file that is empty, and refuse one that is not ours."""
    with _snapshot(db):
        if _format(db) == FORMAT:
            return
    db.execute("PRAGMA journal_mode = WAL")
    with transaction(db):
        if _format(db) != FORMAT:  # another process may have been quicker
            for statement in SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {FORMAT}")


def _format(db: sqlite3.Connection) -> int:
    """Return the format of the file; 0 if it is empty."""
    [application_id] = db.execute("PRAGMA application_id").fetchone()
    [version] = db.execute("PRAGMA user_version").fetchone()
    [tables] = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables:
        return 0
    if application_id != APPLICATION_ID:
        raise StoreMisplaced("the file is a database of another program")
    if version > FORMAT:
        raise StoreMisplaced(f"the file has format {version}, written by a newer release; this one knows {FORMAT}")
    return int(version)


def _epoch(db: sqlite3.Connection, clock: Clock) -> float:
    """
    Return what added to the monotonic clock gives the store's time.

    The first process after a boot of the host decides on it and writes it down; all others
    use it. So lifetimes pass at the same pace in every process, whatever the wall clock does, and no lease of a
    process that died with the host outlives the boot.
    """
    boot = _boot_id()
    if (epoch := _known_epoch(db, boot, clock)) is not None:
        return epoch
    with transaction(db):
        if (epoch := _known_epoch(db, boot, clock)) is not None:
            return epoch
        now, monotonic = _resumed(db, clock.now()), clock.monotonic()
        db.execute("DELETE FROM epochs")
        db.execute("DELETE FROM leases")
        db.execute("INSERT INTO epochs VALUES (?, ?, ?)", (boot, monotonic, now))
    return now - monotonic


def _resumed(db: sqlite3.Connection, wall: float) -> float:
    """
    Return the store's time at a boot: what it was when that was last written down, and what has passed since.

    How much that is, only the wall clock can tell; but not by what it showed at the last boot, since it may have been
    set after that. One that was set back tells nothing: then no time has passed.

    Args:
        db: The connection.
        wall: Unix seconds by the wall clock. They are the store's time in a file in which none was written down.
    """
    noted = dict(db.execute("SELECT name, value / 1000.0 FROM counters WHERE name IN ('wall_ms', 'store_ms')"))
    return float(noted["store_ms"] + max(0.0, wall - noted["wall_ms"])) if noted else wall


def _known_epoch(db: sqlite3.Connection, boot: str, clock: Clock) -> float | None:
    row = db.execute("SELECT boot, monotonic, started_at FROM epochs").fetchone()
    # A monotonic clock that is behind the one that was written down has started anew.
    if row is None or row[0] != boot or clock.monotonic() < row[1]:
        return None
    return float(row[2]) - float(row[1])


def _boot_id() -> str:
    """Return what differs between two boots of the host; empty where the system doesn't tell. Source: random(4)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""

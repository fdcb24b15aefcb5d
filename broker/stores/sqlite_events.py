"""Events between processes that share a database file: a table that each of them watches."""

import sqlite3

from broker.stores.base import Event, Topic
from broker.stores.listeners import RESYNC

KEPT_SECONDS = 60.0
"""How long an event stays in the table. A process that was stopped for longer gets a RESYNC."""


class EventFeed:
    """
    Reads the events that were committed, by whichever process, since it began to follow the table.

    ``PRAGMA data_version`` tells almost for free whether another connection has changed the file.
    Source: SQLite, "PRAGMA Statements".

    Attributes:
        is_wanted: Whether anybody listens.
        is_behind: Whether this process itself has written an event; ``data_version`` doesn't tell of that.
    """

    def __init__(self) -> None:
        self.is_wanted = False
        self.is_behind = False
        self._db: sqlite3.Connection | None = None
        self._data_version = -1
        self._cursor = 0
        self._is_interrupted = False

    def follow(self, db: sqlite3.Connection) -> None:
        """
        Begin with the events after now, if somebody listens and this isn't following *db* yet.

        What is read from *db* afterwards is either still so, or an event tells of its change.
        """
        if not self.is_wanted:
            self._db = None
        elif self._db is not db:
            self._is_interrupted = self._db is not None
            self._data_version = _data_version(db)
            self._cursor = _last(db)
            self._db = db

    def poll(self, db: sqlite3.Connection) -> list[Event]:
        """Return the events since the last call, and RESYNC if some of them are no longer there."""
        if self._db is not db:
            return []
        data_version = _data_version(db)
        if data_version == self._data_version and not self.is_behind and not self._is_interrupted:
            return []
        last = _last(db)
        rows = db.execute(
            "SELECT id, topic, key, number FROM events WHERE id > ? ORDER BY id", (self._cursor,)
        ).fetchall()
        # Ids have no gaps, since a transaction that is rolled back gives its ids back.
        has_gap = rows[0][0] != self._cursor + 1 if rows else last != self._cursor
        events = [RESYNC] if has_gap or self._is_interrupted else []
        events += [Event(Topic(topic), key, number) for _, topic, key, number in rows if topic in _KNOWN]
        self._cursor = rows[-1][0] if rows else last
        self._data_version = data_version
        self.is_behind = self._is_interrupted = False
        return events


_KNOWN = frozenset(topic.value for topic in Topic if topic is not Topic.RESYNC)


def _data_version(db: sqlite3.Connection) -> int:
    [version] = db.execute("PRAGMA data_version").fetchone()
    return int(version)


def _last(db: sqlite3.Connection) -> int:
    """Return the highest id that was ever given to an event."""
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
    return 0 if row is None else int(row[0])

"""
What one process knows of browser sessions, for the hot path.

An entry is a plain tuple of numbers, texts and bytes, so that a hundred thousand of them can be kept in little room
(:mod:`broker.services.compact`).
"""

from typing import Any, Final, TypeAlias

from broker.core import session as core
from broker.core.session import Session
from broker.services.compact import CompactDict
from broker.services.session_records import StoredSession

Entry: TypeAlias = tuple[str, int, bytes, str, str, float, float, float]

KEY: Final = 0
VERSION: Final = 1
DOCUMENT: Final = 2
"""The session as JSON: it is parsed only by who wants its claims."""
GRANT_ID: Final = 3
PROVIDER: Final = 4
LIVES_UNTIL: Final = 5
"""Unix seconds of the idle or the absolute end, whichever comes first."""
TOUCH_AT: Final = 6
"""Unix seconds from which a use is worth writing down."""
READ_AT: Final = 7
"""Monotonic seconds, taken before the store was asked."""


def entry_of(stored: StoredSession, *, idle_timeout_seconds: float, read_at: float) -> Entry:
    """Return what is kept of a session."""
    session = stored.session
    return (
        stored.key,
        stored.version,
        stored.document,
        session.grant_id,
        session.provider,
        core.lives_until(session, idle_timeout_seconds=idle_timeout_seconds),
        core.touch_at(session, idle_timeout_seconds=idle_timeout_seconds),
        read_at,
    )


def _same(entry: Any) -> Any:
    return entry


def read_again(entry: Entry, *, read_at: float) -> Entry:
    """Return *entry* as one that was found unchanged at *read_at* (monotonic seconds)."""
    return (*entry[:READ_AT], read_at)


class LiveSession:
    """A session that may be used now. Only :attr:`session` and :attr:`stored` cost anything: it is parsed each time."""

    __slots__ = ("_entry",)

    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    def __repr__(self) -> str:
        return f"LiveSession({self.key})"

    @property
    def key(self) -> str:
        """The store key: it names the session in logs and events, and opens nothing."""
        return self._entry[KEY]

    @property
    def version(self) -> int:
        """The version of the record that was read."""
        return self._entry[VERSION]

    @property
    def grant_id(self) -> str:
        """Whose tokens the session's calls carry."""
        return self._entry[GRANT_ID]

    @property
    def provider(self) -> str:
        """The configured name of the authorization server."""
        return self._entry[PROVIDER]

    @property
    def lives_until(self) -> float:
        """Unix seconds of the end if it isn't used again."""
        return self._entry[LIVES_UNTIL]

    @property
    def session(self) -> Session:
        """Who logged in, with all claims."""
        return core.decode(self._entry[DOCUMENT])

    @property
    def stored(self) -> StoredSession:
        """The session as it was read."""
        return StoredSession(self.key, self.version, self.session, self._entry[DOCUMENT])


class SessionCache:
    """
    Entries by the hash of the session id, and the ids for which there is none.

    Both are bounded. An entry moves to the end each time that it is read from the store anew, so the one that is
    dropped is the one that nobody asked for longest, give or take the time that entries are trusted for.
    """

    def __init__(self, max_entries: int) -> None:
        self._max_absent = max_entries // 8 + 1
        self._entries: CompactDict[bytes, Entry] = CompactDict(max_entries, pack=_same, unpack=_same)
        self._digests: dict[str, bytes] = {}
        self._absent: dict[bytes, float] = {}
        # The hot path calls it for each request: no method in between.
        self.ready = self._entries.ready
        self.get = self._entries.get

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, digest: bytes, entry: Entry) -> None:
        """Remember *entry*; an older one of the same id is replaced."""
        self._digests[entry[KEY]] = digest
        dropped = self._entries.put(digest, entry)
        if dropped is not None:
            _, oldest = dropped
            self._digests.pop(oldest[KEY], None)

    def drop(self, key: str) -> None:
        """Forget the session of a store key."""
        digest = self._digests.pop(key, None)
        if digest is not None:
            _ = self._entries.pop(digest)

    def put_absent(self, digest: bytes, *, until: float) -> None:
        """Remember until *until* (monotonic seconds) that there is no session of this id."""
        self._absent.pop(digest, None)
        self._absent[digest] = until
        if len(self._absent) > self._max_absent:
            del self._absent[next(iter(self._absent))]

    def is_absent(self, digest: bytes, *, at: float) -> bool:
        """Return whether the store was asked for this id lately, in vain."""
        until = self._absent.get(digest)
        if until is None:
            return False
        if at >= until:
            del self._absent[digest]
            return False
        return True

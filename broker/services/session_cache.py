"""What one process knows of browser sessions, for the hot path; in little room (:mod:`broker.services.compact`)."""

from dataclasses import dataclass, field
from typing import Any

from broker.core import session as core
from broker.core.session import Session
from broker.services.compact import CompactDict
from broker.services.session_records import StoredSession


@dataclass(slots=True, eq=False)  # not frozen: that would treble what it takes to make one
class LiveSession:
    """
    A session as this process knows it. Only :attr:`session` and :attr:`stored` cost anything: it is parsed each time.

    Attributes:
        key: The store key: it names the session in logs and events, and opens nothing.
        version: The version of the record that was read.
        document: The session as JSON: it is parsed only by who wants its claims.
        grant_id: Whose tokens the session's calls carry.
        provider: The configured name of the authorization server.
        lives_until: Unix seconds of the end if it isn't used again: the idle or the absolute one.
        touch_at: Unix seconds from which a use is worth writing down.
        read_at: Monotonic seconds, taken before the store was asked.
    """

    key: str
    version: int = field(repr=False)
    document: bytes = field(repr=False)
    grant_id: str = field(repr=False)
    provider: str = field(repr=False)
    lives_until: float = field(repr=False)
    touch_at: float = field(repr=False)
    read_at: float = field(repr=False)

    @classmethod
    def of(cls, stored: StoredSession, *, idle_timeout_seconds: float, read_at: float) -> "LiveSession":
        """Return what is known of a session that was read."""
        session = stored.session
        return cls(
            stored.key,
            stored.version,
            stored.document,
            session.grant_id,
            session.provider,
            core.lives_until(session, idle_timeout_seconds=idle_timeout_seconds),
            core.touch_at(session, idle_timeout_seconds=idle_timeout_seconds),
            read_at,
        )

    @property
    def session(self) -> Session:
        """Who logged in, with all claims."""
        return core.decode(self.document)

    @property
    def stored(self) -> StoredSession:
        """The session as it was read."""
        return StoredSession(self.key, self.version, self.session, self.document)

    def read_again(self, read_at: float) -> "LiveSession":
        """Return it as one that was found unchanged at *read_at* (monotonic seconds)."""
        return _unpack((*_pack(self)[:-1], read_at))


class SessionCache:
    """
    Sessions by the hash of their ids, and the ids for which there is none.

    Both are bounded. A session moves to the end each time that it is read from the store anew, so the one that is
    dropped is the one that nobody asked for longest, give or take the time that what was read is trusted for.
    """

    def __init__(self, max_sessions: int) -> None:
        self._max_absent = max_sessions // 8 + 1
        self._sessions: CompactDict[bytes, LiveSession] = CompactDict(max_sessions, pack=_pack, unpack=_unpack)
        self._digests: dict[str, bytes] = {}
        self._absent: dict[bytes, float] = {}
        # The hot path calls it for each request: no method in between.
        self.ready = self._sessions.ready
        self.get = self._sessions.get

    def __len__(self) -> int:
        return len(self._sessions)

    def put(self, digest: bytes, session: LiveSession) -> None:
        """Remember *session*; an older one of the same id is replaced."""
        self._digests[session.key] = digest
        dropped = self._sessions.put(digest, session)
        if dropped is not None:
            _, oldest = dropped
            self._digests.pop(oldest.key, None)

    def drop(self, key: str) -> None:
        """Forget the session of a store key."""
        digest = self._digests.pop(key, None)
        if digest is not None:
            _ = self._sessions.pop(digest)

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


def _pack(session: LiveSession) -> tuple[Any, ...]:
    return (
        session.key,
        session.version,
        session.document,
        session.grant_id,
        session.provider,
        session.lives_until,
        session.touch_at,
        session.read_at,
    )


def _unpack(packed: tuple[Any, ...]) -> LiveSession:
    return LiveSession(*packed)

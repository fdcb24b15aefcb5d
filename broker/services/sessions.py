"""
Browser sessions: sealed records in the store, found by the hash of the cookie, and a cache of them in the process.

    peek    what this process knows for sure; no I/O, for the hot path
    load    the same, or from the store
    start   at a login, under a new id
    end     at a logout, a revocation, a back-channel logout; every process hears of it at once

A session that began in place of another ends that one as soon as its browser has shown its cookie: at the login nobody
knows whether the browser will ever be given it, and by the other one it is logged in until then.

A use is written down now and then, in the background and by compare-and-set: a write that comes late finds the record
deleted or changed, and does nothing (SECURITY SE-07). The absolute end is part of the sealed record, so that nothing
that happens to the store's own expiry makes a session immortal (SE-05).
"""

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256

from broker.core import session as core
from broker.core.pkce import text_of
from broker.core.secret import SessionId
from broker.core.session import Index, Session, SessionOptions
from broker.errors import StoreError
from broker.services import metrics
from broker.services.clock import Clock, Randomness
from broker.services.compact import MAX_READY
from broker.services.keyring import Keyring
from broker.services.session_cache import LiveSession, SessionCache
from broker.services.session_records import SessionRecords, StoredSession, Unchanged
from broker.services.tasks import Tasks
from broker.services.together import Together
from broker.stores.base import Event, Store, Topic

__all__ = ["LiveSession", "Sessions"]

ID_BYTES = 32
GRANT_OUTLIVES_SECONDS = 600.0
"""A grant's record lives this much longer than its session's, so that no session ever finds its grant gone."""
TOUCH_RETRY_SECONDS = 10.0
MAX_TOUCHING = 10_000
STORE_REST_SECONDS = 1.0
"""After the store failed, what is known is used for this long without asking again."""

_ID = re.compile(rb"[A-Za-z0-9_-]{43}")

log = logging.getLogger(__name__)


Release = Callable[[Session, Session], Awaitable[object]]
"""Ends what hangs on the first session, which is about to end because the second has taken its place."""


def new_session_id(randomness: Randomness) -> str:
    """Return what no other session has, and nobody guesses: 256 random bits in base64url."""
    return text_of(randomness.token_bytes(ID_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginTimes:
    """
    The instants of a session that begins.

    Attributes:
        authenticated_at: Unix seconds of its beginning.
        ends_at: Unix seconds of its absolute end.
        grant_ttl_seconds: How long the record of its grant must live, if the session isn't used again.
    """

    authenticated_at: float
    ends_at: float
    grant_ttl_seconds: float


class Sessions:
    """All browser sessions, as one process sees them."""

    def __init__(
        self,
        store: Store,
        keyring: Keyring,
        options: SessionOptions,
        clock: Clock,
        randomness: Randomness,
        *,
        touch_grant: Callable[[str, float], Awaitable[None]] | None = None,
    ) -> None:
        """
        Args:
            store: Where the records are.
            keyring: Seals and names them.
            options: How long sessions live.
            clock: Time.
            randomness: Source of the ids.
            touch_grant: Is called with a grant's id and the seconds that it should live on, whenever a use of its
                session is written down (``TokenBroker.touch``).
        """
        self._store = store
        self._records = SessionRecords(store, keyring)
        self._options = options
        self._clock = clock
        self._randomness = randomness
        self._touch_grant = touch_grant
        self._release: Release | None = None
        self._cache = SessionCache(options.max_cached)
        self._tasks = Tasks()
        self._loading: Together[bytes, LiveSession | StoreError | None] = Together()
        self._touching: dict[bytes, float] = {}
        self._resynced_at = -1.0
        self._changes_heard = 0
        self._store_rests_until = -1.0
        self._unsubscribe = store.subscribe(self._heard)

    # --- finding

    def peek(self, session_id: bytes, *, used: bool = True) -> LiveSession | None:
        """
        Return the session of a cookie if this process knows it for sure, or None: then ask :meth:`load`.

        Args:
            session_id: The cookie's value.
            used: Whether this counts as a use, which moves the idle end.
        """
        digest = _digest(session_id)
        live = self._cache.ready(digest) or self._cache.get(digest)
        if live is None:
            return None
        read_at = live.read_at
        if read_at <= self._resynced_at or self._clock.monotonic() >= read_at + self._options.cache_ttl_seconds:
            return None
        return live if self._may_be_used(digest, live, used=used) else None

    async def load(self, session_id: bytes, *, used: bool = True) -> LiveSession | None:
        """
        Return the live session of a cookie, or None.

        Args:
            session_id: The cookie's value.
            used: Whether this counts as a use, which moves the idle end.

        Raises:
            StoreError: If the store is down and nothing that may still be used is known.
        """
        if not _ID.fullmatch(session_id):
            return None
        known = self.peek(session_id, used=used)
        if known is not None:
            return known
        digest = _digest(session_id)
        if self._cache.is_absent(digest, at=self._clock.monotonic()):
            return None
        live = await self._look_up(digest, session_id.decode("ascii"))
        return live if live is not None and self._may_be_used(digest, live, used=used) else None

    def _may_be_used(self, digest: bytes, live: LiveSession, *, used: bool) -> bool:
        now = self._clock.now()
        if now >= live.lives_until:
            return False
        if used and now >= live.touch_at:
            self._touch_soon(digest, live)
        return True

    async def _look_up(self, digest: bytes, session_id: str) -> LiveSession | None:
        """Return the session from the store, or what was known of it if the store is down."""
        if self._clock.monotonic() < self._store_rests_until:
            kept = self._kept_through_outage(digest)
            if kept is not None:
                return kept
        outcome = await self._loading.read(digest, self._read, digest, session_id)
        if not isinstance(outcome, StoreError):
            return outcome
        kept = self._kept_through_outage(digest)
        if kept is None:
            raise StoreError(str(outcome))
        return kept

    def _kept_through_outage(self, digest: bytes) -> LiveSession | None:
        """Return what was known of a session, if that was not too long ago and it has certainly not ended by itself."""
        live = self._cache.get(digest)
        if live is None or self._clock.now() >= live.lives_until:
            return None
        age = self._clock.monotonic() - live.read_at
        return live if age < self._options.outage_grace_seconds else None

    async def _read(self, digest: bytes, session_id: str) -> LiveSession | StoreError | None:
        """Read a session and remember what came of it. A fault is returned: several callers may wait for it."""
        read_at, heard = self._clock.monotonic(), self._changes_heard
        known = self._cache.get(digest)
        stored: StoredSession | Unchanged | None
        try:
            if known is None:
                stored = await self._records.read(session_id)
            else:
                stored = await self._records.read_again(known.key, known.version)
        except StoreError as fault:
            self._store_failed()
            return fault
        if stored is None:
            if known is not None:
                self._cache.drop(known.key)
            self._cache.put_absent(digest, until=read_at + self._options.cache_ttl_seconds)
            return None
        if isinstance(stored, StoredSession):
            return self._remember(digest, stored, read_at=read_at, heard=heard)
        assert known is not None
        return self._keep(digest, known.read_again(read_at), heard=heard)

    def _remember(self, digest: bytes, stored: StoredSession, *, read_at: float, heard: int) -> LiveSession:
        live = LiveSession.of(stored, idle_timeout_seconds=self._options.idle_timeout_seconds, read_at=read_at)
        return self._keep(digest, live, heard=heard)

    def _keep(self, digest: bytes, live: LiveSession, *, heard: int) -> LiveSession:
        # Some session ended or changed since the store was asked. It may have been this one: don't keep it.
        if heard == self._changes_heard:
            self._cache.put(digest, live)
        return live

    # --- beginning and ending

    def times_of_login(self) -> LoginTimes:
        """Return the instants of a session that begins now."""
        now = self._clock.now()
        return LoginTimes(
            authenticated_at=now,
            ends_at=now + self._options.absolute_timeout_seconds,
            grant_ttl_seconds=self._options.idle_timeout_seconds + GRANT_OUTLIVES_SECONDS,
        )

    def _lifetime_seconds(self, session: Session) -> float:
        return core.lifetime_seconds(
            session, now=self._clock.now(), idle_timeout_seconds=self._options.idle_timeout_seconds
        )

    def key_of(self, session_id: SessionId) -> str:
        """Return the store key of a session that this process has begun."""
        return self._records.key_of(session_id.reveal())

    async def start(self, session: Session) -> SessionId:
        """
        Keep a session under a new id.

        Returns:
            What goes into the cookie: 256 random bits in base64url.

        Raises:
            StoreError: If it can't be stored.
        """
        session_id = new_session_id(self._randomness)
        read_at, heard = self._clock.monotonic(), self._changes_heard
        stored = await self._records.create(session_id, session, ttl_seconds=self._lifetime_seconds(session))
        self._remember(_digest(session_id.encode()), stored, read_at=read_at, heard=heard)
        metrics.SESSIONS.labels("started").inc()
        log.info("session_started", extra={"session": stored.key, "grant": session.grant_id})
        return SessionId(session_id)

    async def end(self, key: str, *, first: Callable[[Session], Awaitable[object]] | None = None) -> Session | None:
        """
        End the session of a store key, on every process.

        Args:
            key: The session.
            first: Ends what hangs on the session, while there is still a session by which to find it.

        Returns:
            The session as it was; None if it had ended before.

        Raises:
            StoreError: If the store is down; the session may live on.
        """
        if first is not None and (stored := await self._records.read_key(key)) is not None:
            await first(stored.session)
        session = await self._records.delete(key)
        await self._tell_changed(key)
        if session is not None:
            metrics.SESSIONS.labels("ended").inc()
            log.info("session_ended", extra={"session": key, "grant": session.grant_id})
        return session

    async def end_by(
        self, index: Index, *words: str, first: Callable[[Session], Awaitable[object]] | None = None
    ) -> list[Session]:
        """
        End every session that an index names.

        Args:
            index: What *words* are.
            words: ``iss`` and ``sub``; ``iss`` and ``sid``; a grant's id; or a provider's name.
            first: As in :meth:`end`.

        Returns:
            The sessions as they were.

        Raises:
            StoreError: If the store is down; some may have ended, and calling again ends the rest.
        """
        found = await self._records.find(index, words)
        return [session for stored in found if (session := await self.end(stored.key, first=first)) is not None]

    def on_replaced(self, release: Release) -> None:
        """Call *release* with each session that is about to end because another took its place."""
        self._release = release

    async def end_replaced(self, key: str) -> None:
        """
        End the session in whose place that of a store key began, now that its browser has shown its cookie.

        Raises:
            StoreError: If the store is down. The next use of the new one tries again.
        """
        stored = await self._records.read_key(key)
        if stored is None or stored.session.replaces is None:
            return
        await self._end_before(stored.session, by=stored.session)
        if await self._records.replace(stored, replace(stored.session, replaces=None)) is not None:
            self._forget(key)

    async def _end_before(self, session: Session, *, by: Session) -> None:
        """End what *session* replaces, as *by* has taken its place; first what that one replaces itself."""
        if session.replaces is None:
            return

        async def release(replaced: Session) -> None:
            await self._end_before(replaced, by=by)
            if self._release is not None:
                await self._release(replaced, by)

        _ = await self.end(session.replaces, first=release)

    async def find_by(self, index: Index, *words: str) -> list[StoredSession]:
        """Return the live sessions that an index names, as :meth:`end_by` takes them. Raises ``StoreError``."""
        found = await self._records.find(index, words)
        return [stored for stored in found if self._lifetime_seconds(stored.session) > 0]

    async def renew_claims(self, grant_id: str, claims: Mapping[str, object], *, keeps_others: bool = False) -> None:
        """
        Write anew who the user of a grant is, after a refresh said so (SECURITY RT-10).

        A session that changes or ends at the same time is left as it then is: the next refresh says it again.

        Args:
            grant_id: The grant.
            claims: What was said.
            keeps_others: Whether claims of which nothing was said stay as they were.

        Raises:
            StoreError: If the store is down.
        """
        for stored in await self._records.find(Index.GRANT, [grant_id]):
            renewed = {**stored.session.claims, **claims} if keeps_others else claims
            if await self._records.replace(stored, replace(stored.session, claims=renewed)) is not None:
                await self._tell_changed(stored.key)

    async def _tell_changed(self, key: str) -> None:
        self._forget(key)
        try:
            await self._store.publish(Event(Topic.SESSION_ENDED, key))
        except StoreError as fault:
            # It is written. The others hear of it by the RESYNC that follows, or when their cache_ttl is over.
            log.warning("session_change_not_published", extra={"session": key, "error": str(fault)})

    # --- using

    def _touch_soon(self, digest: bytes, live: LiveSession) -> None:
        """Write a use down in the background; whoever asked doesn't wait for it."""
        now = self._clock.monotonic()
        if now < self._touching.get(digest, now) or now < self._store_rests_until:
            return
        if len(self._touching) >= MAX_TOUCHING:
            self._touching.clear()
        self._touching[digest] = now + TOUCH_RETRY_SECONDS
        self._tasks.launch(self._touch(digest, live), name="session:touch")

    async def _touch(self, digest: bytes, live: LiveSession) -> None:
        read_at, heard = self._clock.monotonic(), self._changes_heard
        stored = live.stored
        session = replace(stored.session, last_seen_at=self._clock.now(), replaces=None)
        ttl = self._lifetime_seconds(session)
        if ttl <= 0:
            return
        try:
            await self._end_before(stored.session, by=stored.session)
            if self._touch_grant is not None:
                # First: a use that is written is not written again soon, and its session would outlive the grant.
                await self._touch_grant(session.grant_id, ttl + GRANT_OUTLIVES_SECONDS)
            written = await self._records.replace(stored, session, ttl_seconds=ttl)
            if written is None:  # ended, or written by another process: whoever asks next reads it
                self._cache.drop(stored.key)
            else:
                self._remember(digest, written, read_at=read_at, heard=heard)
        except StoreError as fault:
            self._store_failed()
            log.warning("session_use_not_written", extra={"session": stored.key, "error": str(fault)})
        else:
            self._touching.pop(digest, None)

    def _store_failed(self) -> None:
        self._store_rests_until = self._clock.monotonic() + STORE_REST_SECONDS

    # --- hearing

    def _heard(self, event: Event) -> None:
        if event.topic is Topic.SESSION_ENDED:
            self._forget(event.key)
        elif event.topic is Topic.RESYNC:
            # Entries aren't trusted any more, but serve on if the store is down: that is what outage_grace is for.
            self._changes_heard += 1
            self._resynced_at = self._clock.monotonic()

    def _forget(self, key: str) -> None:
        self._changes_heard += 1
        self._cache.drop(key)

    async def close(self, timeout_seconds: float = 5.0) -> None:
        """Let writes in the background end, then stop."""
        self._unsubscribe()
        await self._tasks.drain(timeout_seconds)


@lru_cache(maxsize=MAX_READY)
def _digest(session_id: bytes) -> bytes:
    """Under what a session is kept in memory. Remembered for as many as are kept ready."""
    return sha256(session_id).digest()

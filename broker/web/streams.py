"""
Answers that are still under way, by the session and the grant they were begun with.

A logout must end what the session has open: event streams, downloads, WebSockets. Every process hears of it by the
store's events (SECURITY SE-03, BR-03).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from broker.errors import StoreError
from broker.services.clock import Clock
from broker.services.session_cache import LiveSession
from broker.services.tasks import Tasks
from broker.stores.base import Event, Topic

SWEEP_SECONDS: Final = 0.5

log = logging.getLogger(__name__)


class Cuttable(Protocol):
    """An answer under way."""

    def cut(self) -> None:
        """End it, visibly."""
        ...


class Subscription(Protocol):
    """Whoever has events (``stores.base.Store``)."""

    def subscribe(self, listener: Callable[[Event], None]) -> Callable[[], None]: ...


@dataclass(frozen=True, slots=True)
class _Open:
    """A session that has streams open."""

    session_id: bytes
    grant_id: str
    ends_at: float
    streams: set[Cuttable]


class Streams:
    """The open streams of one process."""

    def __init__(
        self,
        *,
        load: Callable[[bytes], Awaitable[LiveSession | None]],
        clock: Clock,
        events: Subscription | None = None,
    ) -> None:
        """
        Args:
            load: Finds a session by its id, without counting that as a use.
            clock: Time.
            events: Tells of sessions and grants that ended; None for tests without a store.
        """
        self._load = load
        self._clock = clock
        self._by_session: dict[str, _Open] = {}
        self._tasks = Tasks()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._unsubscribe = events.subscribe(self._heard) if events is not None else None

    def __len__(self) -> int:
        return sum(len(each.streams) for each in self._by_session.values())

    def add(self, stream: Cuttable, session: LiveSession, session_id: bytes) -> None:
        """Watch *stream*, which was begun with *session*."""
        found = self._by_session.get(session.key)
        if found is None:
            found = _Open(session_id, session.grant_id, session.session.ends_at, set())
            self._by_session[session.key] = found
        found.streams.add(stream)
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def remove(self, stream: Cuttable, session_key: str) -> None:
        """Forget *stream*: it has ended."""
        found = self._by_session.get(session_key)
        if found is not None:
            found.streams.discard(stream)
            if not found.streams:
                del self._by_session[session_key]

    def close(self) -> None:
        """Hear and watch no more."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._timer is not None:
            self._timer.cancel()

    def _heard(self, event: Event) -> None:
        match event.topic:
            case Topic.SESSION_ENDED if event.key in self._by_session:
                # It may only have changed: then it is found again.
                self._tasks.launch(self._check(event.key), name="streams:check")
            case Topic.GRANT_ENDED:
                for key in [key for key, each in self._by_session.items() if each.grant_id == event.key]:
                    self._cut(key, "grant_ended")
            case Topic.RESYNC:
                for key in self._by_session:
                    self._tasks.launch(self._check(key), name="streams:check")
            case _:
                pass

    async def _check(self, key: str) -> None:
        found = self._by_session.get(key)
        if found is None:
            return
        try:
            live = await self._load(found.session_id)
        except StoreError:
            # As for requests: what is known is used until the store can be asked again.
            return
        if live is None:
            self._cut(key, "session_ended")

    def _sweep(self) -> None:
        self._timer = None
        now = self._clock.now()
        for key in [key for key, each in self._by_session.items() if each.ends_at <= now]:
            self._cut(key, "session_expired")
        if self._by_session:
            self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _cut(self, key: str, reason: str) -> None:
        found = self._by_session.pop(key, None)
        if found is not None:
            log.info("streams_cut", extra={"session": key, "reason": reason, "count": len(found.streams)})
            for stream in list(found.streams):
                stream.cut()

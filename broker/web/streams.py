"""
Answers that are still under way, by the session, the handle or the grant that they were begun with.

A logout or a revocation must end what is open with it: event streams, downloads, WebSockets. Every process hears of it
by the store's events (SECURITY SE-03, BR-03).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from broker.errors import ProviderError, StoreError
from broker.services.clock import Clock
from broker.services.tasks import Tasks
from broker.stores.base import Event, Topic

if TYPE_CHECKING:
    from broker.web.gate import Call, Endings

SWEEP_SECONDS: Final = 0.5
LOOK_SECONDS: Final = 30.0
"""How often each owner is looked at though nothing was heard: a session may idle away under an open stream."""
RETRY_SECONDS: Final = 1.0
"""How soon again, if nobody could say."""
MAX_LOOKS: Final = 100
"""How many owners, those that wait the longest, are looked at in a sweep, beside those of which something was heard."""

_ENDINGS: Final = frozenset({Topic.SESSION_ENDED, Topic.GRANT_ENDED, Topic.RESYNC})

log = logging.getLogger(__name__)


class Cuttable(Protocol):
    """An answer under way."""

    def cut(self) -> None:
        """End it, visibly."""
        ...


class Subscription(Protocol):
    """Whoever has events (``stores.base.Store``)."""

    def subscribe(self, listener: Callable[[Event], None]) -> Callable[[], None]: ...


Look: TypeAlias = Callable[[], Awaitable[float | None]]


@dataclass(frozen=True, slots=True)
class Owner:
    """
    With whose leave an answer is given.

    Attributes:
        key: Names it in events and in the log; of a session or a handle, its store key.
        grant_id: Whose token went along.
        ends_at: Unix seconds from which it isn't good any more, whatever happens.
        look: Returns when it ends now; None if it has. Raises ``StoreError`` or ``ProviderError`` if nobody can say.
    """

    key: str
    grant_id: str
    ends_at: float
    look: Look = field(repr=False)  # it holds what the caller has shown


@dataclass(slots=True)
class _Open:
    """
    An owner that has streams open.

    Attributes:
        owner: The owner.
        ends_at: When its leave ends, as far as is known.
        due_at: When it is looked at again, on the loop's clock.
        streams: What is open.
    """

    owner: Owner
    ends_at: float
    due_at: float
    streams: set[Cuttable] = field(default_factory=set)


class Streams:
    """
    The open streams of one process.

    Attributes:
        endings: What has ended.
    """

    def __init__(
        self,
        *,
        owner_of: "Callable[[Call], Owner | None]",
        clock: Clock,
        endings: "Endings",
        events: Subscription | None = None,
    ) -> None:
        """
        Args:
            owner_of: Tells with whose leave a call is answered; None for nobody's.
            clock: Time.
            endings: Is told of each ending.
            events: Tells of sessions, handles and grants that ended; None for tests without a store.
        """
        self._owner_of = owner_of
        self._clock = clock
        self.endings = endings
        self._open: dict[str, _Open] = {}
        self._tasks = Tasks()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._unsubscribe = events.subscribe(self._heard) if events is not None else None

    def __len__(self) -> int:
        return sum(len(each.streams) for each in self._open.values())

    def watch(self, stream: Cuttable, call: "Call") -> str | None:
        """Watch *stream*, which answers *call*. Returns the key of its owner; None if it has none."""
        owner = self._owner_of(call)
        if owner is None:
            return None
        found = self._open.get(owner.key)
        if found is None:
            found = self._open[owner.key] = _Open(owner, owner.ends_at, self._loop.time() + LOOK_SECONDS)
        found.streams.add(stream)
        if self.endings.outdate(call):
            # It may have ended while the upstream took its time.
            self._tasks.launch(self._check(owner.key), name="streams:check")
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        return owner.key

    def remove(self, stream: Cuttable, key: str) -> None:
        """Forget *stream*: it has ended."""
        found = self._open.get(key)
        if found is not None:
            found.streams.discard(stream)
            if not found.streams:
                del self._open[key]

    def close(self) -> None:
        """Hear and watch no more."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._timer is not None:
            self._timer.cancel()

    def _heard(self, event: Event) -> None:
        if event.topic in _ENDINGS:
            self.endings.count += 1
        match event.topic:
            case Topic.SESSION_ENDED if event.key in self._open:
                # It may only have changed: then it is found again. Handles end by the same event.
                self._tasks.launch(self._check(event.key), name="streams:check")
            case Topic.GRANT_ENDED:
                for key in [key for key, each in self._open.items() if each.owner.grant_id == event.key]:
                    self._cut(key, "grant_ended")
            case Topic.RESYNC:
                for key in self._open:
                    self._tasks.launch(self._check(key), name="streams:check")
            case _:
                pass

    async def _check(self, key: str) -> None:
        found = self._open.get(key)
        if found is None:
            return
        try:
            ends_at = await found.owner.look()
        except (StoreError, ProviderError):
            # As for requests: what is known is used until the store can be asked again, which is tried soon.
            found.due_at = self._loop.time() + RETRY_SECONDS
            return
        if ends_at is None:
            self._cut(key, "ended")
        else:
            found.ends_at = ends_at

    def _sweep(self) -> None:
        self._timer = None
        now, loop_now = self._clock.now(), self._loop.time()
        for key in [key for key, each in self._open.items() if each.ends_at <= now]:
            self._cut(key, "expired")
        due = ((key, each) for key, each in self._open.items() if each.due_at <= loop_now)
        for key, each in nsmallest(MAX_LOOKS, due, key=lambda found: found[1].due_at):
            each.due_at = loop_now + LOOK_SECONDS
            self._tasks.launch(self._check(key), name="streams:check")
        if self._open:
            self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _cut(self, key: str, reason: str) -> None:
        found = self._open.pop(key, None)
        if found is not None:
            log.info("streams_cut", extra={"owner": key, "reason": reason, "count": len(found.streams)})
            for stream in list(found.streams):
                stream.cut()

"""
Reads over one connection that all callers share.

The questions of one turn of the event loop go out in one write, and the answers come in the order of the questions.
That makes a read several times cheaper than an exchange of its own (``redis_connection.Pool``), to which a connection,
a deadline and a few turns of the loop go. What isn't a plain answer isn't judged here: whoever asked asks again, the
thorough way.

The connection is redis-py's, with all that it does at the beginning; its transport then speaks to the lane. That takes
two private attributes of redis-py's connections, and where they are missing there are no lanes.
"""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import hiredis
from redis.asyncio.connection import Connection

from broker.errors import StoreError
from broker.stores.options import Address
from broker.stores.redis_connection import REST_SECONDS, Reply, Unreachable, explain

MAX_UNANSWERED: Final = 1024
"""How many questions one connection carries; who asks more goes the thorough way, which queues."""

PATIENCE_SHARE: Final = 0.25
"""Which part of a call's time an answer may take here. The rest is for asking again."""

_NOTHING: Final = object()


class Lane(asyncio.Protocol):
    """A connection for reads. It is lost, with all questions on it, as soon as one isn't answered in time."""

    def __init__(self, connection: Connection, *, patience_seconds: float) -> None:
        """
        Args:
            connection: Ready for commands, and nobody else's from now on.
            patience_seconds: How long an answer may take.

        Raises:
            Unreachable: If it can't be taken over.
        """
        writer: asyncio.StreamWriter | None = getattr(connection, "_writer", None)
        if writer is None or not hasattr(connection, "_reader"):
            raise Unreachable("a connection of this redis-py can't be taken over")
        self._patience_seconds = patience_seconds
        self._loop = asyncio.get_running_loop()
        # The writer is kept: it closes the transport when it is collected.
        self._writer = writer
        connection._reader = connection._writer = None  # noqa: SLF001
        self._transport = writer.transport
        self._transport.set_protocol(self)
        self._answers = hiredis.Reader(notEnoughData=_NOTHING)
        self._unsent: list[bytes] = []
        self._unanswered: deque[tuple[float, asyncio.Future[Reply]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._prolonged: asyncio.Future[Reply] | None = None
        self._is_full = False
        self.is_lost = False

    def ask(self, question: bytes) -> "asyncio.Future[Reply] | None":
        """
        Send a command.

        Returns:
            Its answer, which may be an exception as a value: the server's refusal; or ``Unreachable`` is raised. None
            if the lane can't take it now.
        """
        if self.is_lost or self._is_full or len(self._unanswered) >= MAX_UNANSWERED:
            return None
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent.append(question)
        now = self._loop.time()
        answer: asyncio.Future[Reply] = self._loop.create_future()
        self._unanswered.append((now, answer))
        if self._timer is None:
            self._timer = self._loop.call_at(now + self._patience_seconds, self._check)
        return answer

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        if not self.is_lost:
            self._transport.write(b"".join(unsent))

    def _check(self) -> None:
        """
        Give up if the oldest question has waited for too long.

        Its answer may have come while the event loop was busy with others, which reads it only after its timers have
        run. So the question gets as much time again as the loop was late, once, and at most doubles what it had.
        """
        self._timer = None
        if not self._unanswered:
            return
        now, (asked_at, answer) = self._loop.time(), self._unanswered[0]
        due_at = asked_at + self._patience_seconds
        if now >= due_at:
            if answer is self._prolonged:
                self.lose("no answer in time")
                return
            self._prolonged = answer
            due_at = now + min(now - due_at, self._patience_seconds)
        self._timer = self._loop.call_at(due_at, self._check)

    def lose(self, why: str) -> None:
        """Drop the connection, with whatever is on its way."""
        if self.is_lost:
            return
        self.is_lost = True
        if self._timer is not None:
            self._timer.cancel()
        self._transport.abort()
        while self._unanswered:
            _, answer = self._unanswered.popleft()
            if not answer.done():  # whoever asked may have gone
                answer.set_exception(Unreachable(f"redis: {why}", was_idle=True))

    # --- what the transport tells

    def data_received(self, data: bytes) -> None:
        try:
            self._answers.feed(data)
            while (reply := self._answers.gets()) is not _NOTHING:
                if not self._unanswered:
                    self.lose("an answer that nobody asked for")
                    return
                _, answer = self._unanswered.popleft()
                if not answer.done():
                    answer.set_result(reply)
        except hiredis.HiredisError as fault:
            self.lose(explain(fault))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lose("the connection ended" if exc is None else explain(exc))

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False


class LaneKeeper:
    """The lane to one server: opened in the background when it is first wanted, and again after it was lost."""

    def __init__(
        self, dial: Callable[[Address], Awaitable[Connection]], address: Address, *, timeout_seconds: float
    ) -> None:
        """
        Args:
            dial: Connects to it.
            address: The server.
            timeout_seconds: How long a call may take, or connecting.
        """
        self._dial = dial
        self._address = address
        self._timeout_seconds = timeout_seconds
        self._lane: Lane | None = None
        self._opening: asyncio.Task[None] | None = None
        self._rests_until = -math.inf

    def ask(self, question: bytes) -> "asyncio.Future[Reply] | None":
        """As :meth:`Lane.ask`; None, too, while there is no lane."""
        lane = self._lane
        if lane is None or lane.is_lost:
            self._open()
            return None
        return lane.ask(question)

    def _open(self) -> None:
        loop = asyncio.get_running_loop()
        if (self._opening is None or self._opening.done()) and loop.time() >= self._rests_until:
            self._rests_until = loop.time() + REST_SECONDS
            self._opening = loop.create_task(self._connect(), name="redis-lane")

    async def _connect(self) -> None:
        with contextlib.suppress(StoreError, TimeoutError):  # the thorough way tells of it
            async with asyncio.timeout(self._timeout_seconds):
                connection = await self._dial(self._address)
            self._lane = Lane(connection, patience_seconds=self._timeout_seconds * PATIENCE_SHARE)

    def reset(self) -> None:
        """Drop the lane: the server is not, or no longer, whom to ask."""
        if self._lane is not None:
            self._lane.lose("the connection was dropped")

    async def close(self) -> None:
        """Drop the lane, for good."""
        self._rests_until = math.inf
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        self.reset()

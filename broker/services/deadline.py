"""
Time that runs out, for a process that may stand still: paused, starved, or with its machine asleep.

A process that goes on after a pause finds all its timers due at once, before it has read what came meanwhile; and it
doesn't know what others have done since. A token response that is there must not be dropped for that, nor must a
refresh token be presented late.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker.services.clock import Clock

STALL_SECONDS = 0.1
"""A timer that fires this late means that the event loop stood still."""
UNREAD_SECONDS = 0.25
"""How long what came meanwhile may be read then."""


@asynccontextmanager
async def deadline(seconds: float) -> AsyncIterator[None]:
    """
    Bound the block as ``asyncio.timeout`` does, but let it read what came while the process stood still.

    Raises:
        TimeoutError: If the block takes longer.
    """
    loop = asyncio.get_running_loop()
    strikes_at = loop.time() + seconds
    async with asyncio.timeout(None) as timeout:

        def strike() -> None:
            now = loop.time()
            timeout.reschedule(now + UNREAD_SECONDS if now - strikes_at > STALL_SECONDS else now)

        timer = loop.call_at(strikes_at, strike)
        try:
            yield
        finally:
            timer.cancel()


class Stopwatch:
    """Counts seconds from its making, those included during which the machine slept."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = clock.monotonic(), clock.now()

    def seconds(self) -> float:
        """Return how long it has been at most. Only the wall clock shows a sleep, and it may have been set."""
        monotonic, now = self._began
        return max(self._clock.monotonic() - monotonic, self._clock.now() - now)

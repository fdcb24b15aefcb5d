"""Time and randomness, passed to whatever needs them, so that tests can hold both still."""

import secrets
import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks: one for instants that are stored, one for durations within this process."""

    def now(self) -> float:
        """Return Unix time in seconds. It may jump."""
        ...

    def monotonic(self) -> float:
        """Return seconds since some moment. It never goes back (timers, caches, backoff within the process)."""
        ...


class Randomness(Protocol):
    """A cryptographically secure source."""

    def token_bytes(self, count: int) -> bytes:
        """Return *count* random bytes."""
        ...

    def uniform(self, low: float, high: float) -> float:
        """Return a number between *low* and *high*, for jitter."""
        ...


class SystemClock:
    """The clocks of the operating system."""

    # The functions themselves: a request reads the clocks a dozen times.
    now = staticmethod(time.time)  # noqa: TID251 - this is the clock that is passed in
    monotonic = staticmethod(time.monotonic)


class SystemRandomness:
    """The operating system's random source."""

    def token_bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * (secrets.randbelow(1 << 53) / (1 << 53))

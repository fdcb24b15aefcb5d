"""A clock that stands still until a test moves it, and randomness that a seed decides."""

import random


class ManualClock:
    """Implements ``services.clock.Clock``. Both clocks move together, unless the wall clock is set."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now
        self._monotonic = 1_000.0

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass."""
        assert seconds >= 0
        self._now += seconds
        self._monotonic += seconds

    def set_wall_clock(self, by_seconds: float) -> None:
        """Set the wall clock forward or back; no time passes."""
        self._now += by_seconds


class SeededRandomness:
    """Implements ``services.clock.Randomness``; the same seed gives the same bytes."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)

    def token_bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

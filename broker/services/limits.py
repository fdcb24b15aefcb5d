"""
Rates, by token buckets: each caller's bucket fills steadily, and a request takes one token.

A bucket is one number, the time at which it will be full again (the generic cell rate algorithm): nothing has to be
filled by a timer, and a full bucket needs no memory at all.

Source: ITU-T I.371, the virtual scheduling algorithm.
"""

from collections.abc import Callable
from typing import Final

MAX_CALLERS: Final = 100_000
"""How many callers are remembered. The one whose bucket was touched longest ago is forgotten first."""


class TokenBuckets:
    """The buckets of all callers of one thing."""

    def __init__(
        self,
        *,
        requests_per_second: float,
        burst: int,
        monotonic: Callable[[], float],
        max_callers: int = MAX_CALLERS,
    ) -> None:
        """
        Args:
            requests_per_second: How fast a bucket fills.
            burst: How many requests a full one holds.
            monotonic: The clock, in seconds.
            max_callers: How many callers are remembered.
        """
        self._interval = 1.0 / requests_per_second
        self._tolerance = (burst - 1) * self._interval
        self._monotonic = monotonic
        self._max_callers = max_callers
        self._full_at: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, caller: str) -> float:
        """Take a token of *caller*'s. Returns 0, or, if there is none, in how many seconds there will be one."""
        now = self._monotonic()
        full_at = max(self._full_at.pop(caller, now), now)
        wait = full_at - now - self._tolerance
        if wait <= 1e-9:
            full_at += self._interval
        self._full_at[caller] = full_at
        if len(self._full_at) > self._max_callers:
            del self._full_at[next(iter(self._full_at))]
        return wait if wait > 1e-9 else 0.0

    def give_back(self, caller: str) -> None:
        """Put back the token that *caller* took last: it was not used."""
        if caller in self._full_at:
            self._full_at[caller] -= self._interval

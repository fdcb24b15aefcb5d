"""
Rates, by token buckets: each caller's bucket fills steadily, and a request takes one token.

A bucket is one number, the time at which it will be full again (the generic cell rate algorithm): nothing has to be
filled by a timer, and a full bucket needs no memory at all.

Source: ITU-T I.371, the virtual scheduling algorithm.
"""

from collections.abc import Callable
from typing import Final

from broker.core.routing import RateLimitOptions

EVERYBODY: Final = ""
"""Whose bucket is taken from where all callers have one together."""
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
        self._news: dict[str, int] = {}
        self._has_news: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, caller: str) -> float:
        """Take a token of *caller*'s. Returns 0, or, if there is none, in how many seconds there will be one."""
        now = self._monotonic()
        full_at = max(self._full_at.pop(caller, now), now)
        wait = full_at - now - self._tolerance
        if wait <= 1e-9:
            full_at += self._interval
            if self._has_news is not None:
                self._note(caller, 1)
        self._full_at[caller] = full_at
        if len(self._full_at) > self._max_callers:
            del self._full_at[next(iter(self._full_at))]
        return wait if wait > 1e-9 else 0.0

    def give_back(self, caller: str) -> None:
        """Put back the token that *caller* took last: it was not used."""
        if caller in self._full_at:
            self._full_at[caller] -= self._interval
            if self._news.get(caller):
                self._note(caller, -1)

    # --- with other processes

    def share(self, has_news: Callable[[], None]) -> None:
        """Call *has_news* whenever a token was taken, and keep the number until :meth:`take_news`."""
        self._has_news = has_news

    @property
    def has_news(self) -> bool:
        """Whether tokens were taken since :meth:`take_news`."""
        return bool(self._news)

    def take_news(self, limit: int) -> dict[str, float]:
        """Return of up to *limit* callers how many seconds of filling they took since they were told of last."""
        callers = list(self._news)[:limit]
        return {caller: self._news.pop(caller) * self._interval for caller in callers}

    def forget_news(self) -> None:
        """Tell nobody what was taken until now."""
        self._news.clear()

    def learn(self, caller: str, full_in_seconds: float) -> None:
        """Take into account when *caller*'s bucket will be full, by all that was taken and told anywhere."""
        told = self._monotonic() + full_in_seconds + self._news.get(caller, 0) * self._interval
        if told > self._full_at.get(caller, 0.0):
            self._full_at[caller] = told

    def _note(self, caller: str, tokens: int) -> None:
        assert self._has_news is not None
        taken = self._news.get(caller, 0) + tokens
        if taken:
            self._news[caller] = taken
            if len(self._news) > self._max_callers:
                del self._news[next(iter(self._news))]
            self._has_news()
        else:
            del self._news[caller]


Rates = Callable[[str, RateLimitOptions], TokenBuckets]
"""Makes the buckets of a thing that is named the same in every process."""


def own_rates(monotonic: Callable[[], float]) -> Rates:
    """Return what makes buckets for one process alone."""

    def buckets(_name: str, rate: RateLimitOptions) -> TokenBuckets:
        return TokenBuckets(requests_per_second=rate.requests_per_second, burst=rate.burst, monotonic=monotonic)

    return buckets

"""
The circuit breaker of one authorization server, as values.

    CLOSED ──threshold failures in a row, or Retry-After──▶ OPEN ──rest is over──▶ HALF_OPEN
       ▲                                                      ▲                        │
       └──────────────── success ─────────────────────────────┼──── failure ───────────┤
       └──────────────── success of the probe ────────────────┴────────────────────────┘

While it is open no token request is made. Half open, one request probes. The rest is short, because calls should
work again within seconds of the server's return; it protects the server from a stampede, not the broker from work.
"""

from dataclasses import dataclass, replace

THRESHOLD = 5
"""Failures in a row, over all grants, that open it."""
FIRST_REST_SECONDS = 0.5
LONGEST_REST_SECONDS = 4.0
LONGEST_RETRY_AFTER_SECONDS = 3600.0
"""A server that asks for more than this is asked again after it."""
RATE_LIMIT_REST_SECONDS = 15.0
"""
A rate limit (429, RFC 6585 section 4) may be one user's. That user's grant waits for as long as the server says. The
others do only if several in a row are told so, and then one of them finds out after this whether that is still so.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """
    What is known of a server's health.

    Attributes:
        failures: Failures since the last success.
        opened_at: Unix seconds of the failure that opened it; a clock that was set back before it closes it.
        open_until: Unix seconds until which no request is made; 0 while it is closed.
        recovered_at: Unix seconds of the success that last ended an outage; failures before it say nothing any more.
            Other successes don't count: a grant that alone fails backs off all the same.
    """

    failures: int = 0
    opened_at: float = 0.0
    open_until: float = 0.0
    recovered_at: float = 0.0

    def is_open(self, now: float) -> bool:
        """Return whether no request may be made at *now* (Unix seconds)."""
        return self.opened_at <= now < self.open_until

    def is_probing(self, now: float) -> bool:
        """Return whether only one request at a time may be made: it rests no more and hasn't worked since."""
        return self.open_until > 0 and not self.is_open(now)


def succeeded(breaker: Breaker, *, now: float) -> Breaker:
    """Return the breaker after an answer that shows the server to work: tokens, or a refusal by name."""
    recovered_at = now if breaker.open_until else breaker.recovered_at
    return replace(breaker, failures=0, open_until=0.0, recovered_at=recovered_at)


def failed(
    breaker: Breaker, *, now: float, retry_after_seconds: float | None, jitter: float, status: int | None = None
) -> Breaker:
    """
    Return the breaker after a failure that is the server's.

    Args:
        breaker: Before.
        now: Unix seconds.
        retry_after_seconds: What the server asked for (RFC 9110 section 10.2.3); it opens at once, but for a 429.
        jitter: Between 0 and 1; replicas must not come back in step.
        status: The HTTP status; None if no answer came.
    """
    failures = breaker.failures + 1
    is_limited = status == 429
    if retry_after_seconds is not None and (not is_limited or failures >= THRESHOLD):
        longest = RATE_LIMIT_REST_SECONDS if is_limited else LONGEST_RETRY_AFTER_SECONDS
        rest = min(retry_after_seconds, longest) * (1 + 0.1 * jitter)
        return _rest(replace(breaker, failures=failures), now=now, until=now + rest)
    if failures < THRESHOLD:
        return replace(breaker, failures=failures)
    rest = min(FIRST_REST_SECONDS * 2.0 ** min(failures - THRESHOLD, 10), LONGEST_REST_SECONDS)
    return _rest(replace(breaker, failures=failures), now=now, until=now + rest * (0.5 + 0.5 * jitter))


def told(breaker: Breaker, *, now: float, rest_seconds: float) -> Breaker:
    """Return the breaker after another replica said for how long it rests from now; 0: the server works again."""
    if rest_seconds <= 0:
        return replace(breaker, failures=0, open_until=0.0, recovered_at=now)
    return _rest(breaker, now=now, until=now + min(rest_seconds, 1.1 * LONGEST_RETRY_AFTER_SECONDS))


def _rest(breaker: Breaker, *, now: float, until: float) -> Breaker:
    longest = until if not breaker.is_open(now) else max(breaker.open_until, until)
    return replace(breaker, opened_at=now, open_until=longest)

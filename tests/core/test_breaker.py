"""The circuit breaker of one authorization server."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.breaker import (
    LONGEST_REST_SECONDS,
    LONGEST_RETRY_AFTER_SECONDS,
    RATE_LIMIT_REST_SECONDS,
    THRESHOLD,
    Breaker,
    failed,
    succeeded,
    told,
)
from tests.support.grants import NOW


def after_failures(count: int, *, jitter: float = 1.0, retry_after_seconds: float | None = None) -> Breaker:
    breaker = Breaker()
    for _ in range(count):
        breaker = failed(breaker, now=NOW, retry_after_seconds=retry_after_seconds, jitter=jitter)
    return breaker


@pytest.mark.parametrize(
    ("failures", "jitter", "expected"),
    [(1, 1.0, 0.0), (4, 1.0, 0.0), (5, 1.0, 0.5), (5, 0.0, 0.25), (6, 1.0, 1.0), (8, 1.0, 4.0), (1000, 1.0, 4.0)],
)
def test_failures_in_a_row_open_it_for_longer_and_longer(failures: int, jitter: float, expected: float) -> None:
    """The threshold opens it; each further failure doubles the rest, up to four seconds."""
    breaker = after_failures(failures, jitter=jitter)

    assert (expected > 0) == breaker.is_open(NOW)
    assert not breaker.is_open(NOW + expected)
    assert (NOW + expected if expected else 0.0) == breaker.open_until


def test_one_success_starts_the_count_anew() -> None:
    """Only failures in a row count."""
    breaker = succeeded(after_failures(THRESHOLD - 1), now=NOW)

    assert not failed(breaker, now=NOW, retry_after_seconds=None, jitter=1).is_open(NOW)


@pytest.mark.parametrize(("asked", "rest"), [(7.0, 7.0), (0.0, 0.0), (1e6, LONGEST_RETRY_AFTER_SECONDS)])
def test_retry_after_opens_it_at_once(asked: float, rest: float) -> None:
    """A server that says when it wants to be asked again is asked then, within reason."""
    breaker = after_failures(1, jitter=0.0, retry_after_seconds=asked)

    assert NOW + rest == breaker.open_until
    assert (rest > 0) == breaker.is_open(NOW)


def test_one_users_rate_limit_is_not_everybodys() -> None:
    """A 429 may mean one user; only several in a row rest the server, and not for as long as it says."""
    breaker = Breaker()
    rests = []
    for _ in range(THRESHOLD):
        breaker = failed(breaker, now=NOW, retry_after_seconds=3600.0, jitter=0.0, status=429)
        rests.append(breaker.open_until)

    assert [0.0] * (THRESHOLD - 1) + [NOW + RATE_LIMIT_REST_SECONDS] == rests


def test_a_rest_is_never_cut_short_by_another_failure() -> None:
    """Calls that were under way when it opened fail too, and don't reopen it for less."""
    breaker = failed(after_failures(1, retry_after_seconds=60.0), now=NOW, retry_after_seconds=1.0, jitter=0.0)

    assert breaker.is_open(NOW + 59)


def test_after_its_rest_it_is_probed_until_something_works() -> None:
    """Half open, requests are made one at a time; the first success closes it."""
    breaker = after_failures(THRESHOLD)

    assert not breaker.is_probing(NOW)
    assert breaker.is_probing(NOW + 1)
    assert not succeeded(breaker, now=NOW + 1).is_probing(NOW + 1)


def test_only_the_end_of_an_outage_is_a_recovery() -> None:
    """The successes of others don't void the backoff of a grant that fails alone."""
    in_passing = succeeded(after_failures(1), now=NOW + 1)
    after_outage = succeeded(after_failures(THRESHOLD), now=NOW + 1)

    assert 0.0 == in_passing.recovered_at
    assert NOW + 1 == after_outage.recovered_at


def test_a_replica_is_told_for_how_long_to_rest() -> None:
    """A replica whose clock differs rests as long, not until the same instant; 0 ends it."""
    breaker = told(Breaker(), now=NOW - 3600, rest_seconds=2.0)
    recovered = told(breaker, now=NOW - 3599, rest_seconds=0.0)

    assert breaker.is_open(NOW - 3600 + 1.9)
    assert not breaker.is_open(NOW - 3600 + 2.0)
    assert (NOW - 3599, 0.0) == (recovered.recovered_at, recovered.open_until)


def test_a_replica_that_talks_nonsense_is_believed_for_an_hour_at_most() -> None:
    """No event keeps a provider from being asked for ever."""
    assert not told(Breaker(), now=NOW, rest_seconds=1e9).is_open(NOW + 1.1 * LONGEST_RETRY_AFTER_SECONDS)


@given(jump=st.floats(-7200, 7200), failures=st.integers(1, 12), jitter=st.floats(0, 1))
def test_ft_15_no_clock_jump_keeps_it_open(jump: float, failures: int, jitter: float) -> None:
    """However the clock is set, it is asked again within its longest rest."""
    breaker = after_failures(failures, jitter=jitter)
    now = NOW + jump

    assert not breaker.is_open(now) or breaker.open_until - now <= LONGEST_REST_SECONDS

"""When a grant is looked at although nobody asks for it."""

from typing import Any

import pytest

from broker.core.grant import EndReason
from broker.core.refresh import SETTLE_SECONDS, end
from broker.core.upkeep import (
    REVOKE_FOR_SECONDS,
    awaits_revocation,
    due_at,
    keep_alive_at,
    login_needed_at,
    revocation_at,
)
from tests.support.grants import NOW, grant, provider_options

STRICT = provider_options()


@pytest.mark.parametrize(
    ("options", "changes", "jitter", "expected"),
    [
        ({}, {}, 1.0, None),
        ({"idle_timeout_seconds": 1800.0}, {}, 1.0, 900.0),
        ({"idle_timeout_seconds": 1800.0}, {}, 0.0, 720.0),
        ({"idle_timeout_seconds": 1800.0}, {"refresh_expires_at": NOW + 600}, 1.0, 300.0),
        ({"idle_timeout_seconds": 1800.0}, {"refresh_expires_at": NOW}, 1.0, 900.0),  # refresh_expires_in: 0
        ({}, {"refresh_expires_at": NOW + 600}, 1.0, 300.0),
        ({"idle_timeout_seconds": 1800.0}, {"keep_until": NOW + 899}, 1.0, None),
        ({"idle_timeout_seconds": 1800.0, "max_rotation_seconds": 800.0}, {}, 1.0, None),
        ({"idle_timeout_seconds": 1800.0, "max_rotation_seconds": 1800.0}, {}, 1.0, 900.0),
        ({"idle_timeout_seconds": 1800.0}, {"refresh_token": None}, 1.0, None),
        ({"idle_timeout_seconds": 1800.0}, {"ended": end(grant(), EndReason.LOGOUT, now=NOW).ended}, 1.0, None),
    ],
)
def test_keep_alive_comes_at_half_of_the_shortest_limit(
    options: dict[str, Any], changes: dict[str, Any], jitter: float, expected: float | None
) -> None:
    """An unused grant is refreshed in time, and not beyond its session or its chain."""
    due = keep_alive_at(grant(**changes), provider_options(**options), jitter=jitter)

    assert (None if expected is None else NOW + expected) == due


def test_the_user_must_log_in_when_the_chain_ends() -> None:
    """max_rotation counts from the first token response; an ended grant needs it at once."""
    bounded = provider_options(max_rotation_seconds=3600.0)

    assert login_needed_at(grant(), STRICT) is None
    assert NOW + 3600 == login_needed_at(grant(refreshed_at=NOW + 99), bounded)
    assert NOW + 5 == login_needed_at(end(grant(), EndReason.LOGOUT, now=NOW + 5), bounded)


@pytest.mark.parametrize(
    ("revoke", "age", "jitter", "expected"),
    [
        (True, 0.0, 0.5, SETTLE_SECONDS),
        (True, 0.0, 0.0, 0.8 * SETTLE_SECONDS),
        (True, 60.0, 0.5, 60.0),
        (True, 60.0, 1.0, 72.0),
        (True, -3600.0, 0.5, SETTLE_SECONDS),  # the clock was set back
        (True, REVOKE_FOR_SECONDS, 0.5, None),
        (False, 0.0, 0.5, None),
    ],
)
def test_a_revocation_is_tried_again_ever_more_seldom(
    revoke: bool, age: float, jitter: float, expected: float | None
) -> None:
    """The wait doubles with each attempt, for a day; what needs no revocation isn't looked at any more."""
    over, now = end(grant(), EndReason.LOGOUT, now=NOW, revoke=revoke), NOW + age

    assert (None if expected is None else pytest.approx(now + expected)) == revocation_at(over, now=now, jitter=jitter)
    assert revocation_at(over, now=now, jitter=jitter) == due_at(over, STRICT, now=now, jitter=jitter)
    assert (expected is not None) == awaits_revocation(over, now=now)


def test_a_grant_that_lives_is_not_revoked() -> None:
    """Nor is one that has nothing to revoke."""
    assert not awaits_revocation(grant(), now=NOW)
    assert not awaits_revocation(end(grant(refresh_token=None), EndReason.LOGOUT, now=NOW, revoke=True), now=NOW)

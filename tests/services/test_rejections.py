"""How often an upstream's 401 may cause a refresh."""

import itertools

import pytest

from broker.services.rejections import LIMIT, Rejections


def test_a_token_that_is_refused_at_once_is_left_alone() -> None:
    """Another one wouldn't be better: the upstream refuses every token."""
    assert not Rejections().worth_a_refresh("g", age_seconds=1.9)


def test_an_upstream_that_refuses_every_token_causes_fewer_and_fewer_refreshes() -> None:
    """The age below which a refused token is kept doubles, up to a minute."""
    rejections, clock, refreshes = Rejections(), 0.0, []
    issued_at = 0.0

    while clock < 3600:
        clock += 0.5
        if rejections.worth_a_refresh("g", age_seconds=clock - issued_at):
            refreshes.append(clock)
            issued_at = clock

    rests = [later - earlier for earlier, later in itertools.pairwise(refreshes)]
    assert [4.0, 8.0, 16.0, 32.0, 60.0, 60.0] == rests[:6]
    assert len(refreshes) < 3600 / 60 + 6


def test_a_token_that_lived_is_replaced_and_the_count_begins_anew() -> None:
    """One revoked token is no misconfigured upstream."""
    rejections = Rejections()
    for age in (2.0, 4.0):
        assert rejections.worth_a_refresh("g", age_seconds=age)

    assert rejections.worth_a_refresh("g", age_seconds=100)
    assert rejections.worth_a_refresh("g", age_seconds=2.0)


@pytest.mark.parametrize(("age", "worth"), [(-3600.0, True), (-60.0, True), (-1.0, False), (0.0, False)])
def test_ft_15_a_token_from_the_future_is_of_unknown_age(age: float, worth: bool) -> None:
    """After the clock was set back, tokens would look too young to replace for an hour; a little skew is no jump."""
    assert worth == Rejections().worth_a_refresh("g", age_seconds=age)


def test_what_is_remembered_is_bounded() -> None:
    """Many grants with refused tokens take bounded memory."""
    rejections = Rejections()
    for number in range(LIMIT + 10):
        rejections.worth_a_refresh(str(number), age_seconds=2.0)

    assert LIMIT == len(rejections._ages)

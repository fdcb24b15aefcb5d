"""Lifetimes, from whatever a server says."""

import math

import pytest

from broker.core.lifetimes import MAX_LIFETIME_SECONDS, date_time, instant, number, numeric_date

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0.0),
        (3600, 3600.0),
        ("3600", 3600.0),
        ("3600.5", 3600.5),
        (-1, None),
        (-0.5, None),
        (True, None),
        (False, None),
        (None, None),
        ("", None),
        ("-1", None),
        ("1e3", None),
        ("٣", None),  # an Arabic digit
        (" 1", None),
        (math.nan, None),
        (math.inf, None),
        (1e300, None),
        (10**400, None),
        ([], None),
    ],
)
def test_jw_07_only_sensible_numbers_are_numbers(value: object, expected: float | None) -> None:
    """Numbers and numeric strings from 0 to 10^15 count; booleans, NaN, infinities and negatives don't."""
    assert expected == number(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3600, NOW + 3600),
        (1_000_000_000, None),  # 31 years as a lifetime: absurd
        (1_000_000_001, None),  # an instant in 2001
        (NOW + 60, NOW + 60),
        ((NOW + 60) * 1000, NOW + 60),
        (NOW, None),
        (NOW - 60, None),
        (0, None),
        (MAX_LIFETIME_SECONDS, NOW + MAX_LIFETIME_SECONDS),
        (MAX_LIFETIME_SECONDS + 1, None),
    ],
)
def test_a_large_number_is_an_instant(value: object, expected: float | None) -> None:
    """Up to 10^9 it is a lifetime, up to 10^11 an instant in seconds, beyond in milliseconds."""
    assert expected == instant(value, NOW)


def test_a_numeric_date_is_never_a_lifetime() -> None:
    """A JWT's exp of 3600 is an hour into 1970, not an hour from now."""
    assert numeric_date(3600, NOW) is None
    assert NOW + 60 == numeric_date(NOW + 60, NOW)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2027-01-15T08:00:00Z", NOW),
        ("2027-01-15T09:00:00.5+01:00", NOW + 0.5),
        ("20270115T080000Z", NOW),
        ("2027-01-15T08:00:00", None),  # no zone: whose clock?
        ("2027-01-15", None),
        ("1969-12-31T23:59:59Z", None),
        ("0001-01-01T00:00:00+23:59", None),
        ("tomorrow", None),
        ("2027-01-15T08:00:00Z" + " " * 40, None),
        (1_800_000_000, None),
        (None, None),
    ],
)
def test_a_date_has_its_time_and_zone(value: object, expected: float | None) -> None:
    """What ISO 8601 writes names one moment only with a zone."""
    assert expected == date_time(value)


def test_a_date_is_an_instant_like_any_other() -> None:
    """Past ones and absurd ones name no end."""
    assert NOW + 60 == instant("2027-01-15T08:01:00Z", NOW)
    assert instant("2027-01-15T07:59:00Z", NOW) is None
    assert instant("2099-01-15T08:00:00Z", NOW) is None

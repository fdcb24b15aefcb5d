"""How far two clocks are apart, by a date in an answer."""

import pytest

from broker.core.clocks import ahead_seconds

SAID = 784111777.0
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize(
    ("sent_at", "received_at", "expected"),
    [
        (SAID, SAID, 0.0),
        (SAID + 1, SAID + 1, 0.0),  # the date has no fractions
        (SAID - 100, SAID + 100, 0.0),  # the answer may have been written at any time in between
        (SAID + 11, SAID + 12, 10.0),
        (SAID - 12, SAID - 10, -10.0),
    ],
)
def test_only_what_nothing_else_explains_counts(sent_at: float, received_at: float, expected: float) -> None:
    """Positive where this machine is ahead."""
    assert expected == ahead_seconds(DATE, sent_at=sent_at, received_at=received_at)


@pytest.mark.parametrize("date", [None, "", "yesterday", "Sun, 99 Nov 1994 08:49:37 GMT"])
def test_without_a_date_nothing_is_known(date: str | None) -> None:
    """A server needs no clock (RFC 9110 section 6.6.1)."""
    assert ahead_seconds(date, sent_at=0, received_at=1) is None

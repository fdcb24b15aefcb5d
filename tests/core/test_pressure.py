"""When what is refused, by the share of the limit that is used."""

import pytest

from broker.core.pressure import Pressure, pressure_at

NONE, HIGH, CRITICAL = Pressure


@pytest.mark.parametrize(
    ("share", "after_none", "after_high", "after_critical"),
    [
        (0.00, NONE, NONE, NONE),
        (0.849, NONE, NONE, NONE),
        (0.85, NONE, HIGH, HIGH),
        (0.899, NONE, HIGH, HIGH),
        (0.90, HIGH, HIGH, CRITICAL),
        (0.949, HIGH, HIGH, CRITICAL),
        (0.95, CRITICAL, CRITICAL, CRITICAL),
        (1.50, CRITICAL, CRITICAL, CRITICAL),
    ],
)
def test_ft_22_each_level_ends_lower_than_it_begins(
    share: float, after_none: Pressure, after_high: Pressure, after_critical: Pressure
) -> None:
    """What refusing has freed doesn't end the refusing at once."""
    assert after_none == pressure_at(share, before=NONE)
    assert after_high == pressure_at(share, before=HIGH)
    assert after_critical == pressure_at(share, before=CRITICAL)

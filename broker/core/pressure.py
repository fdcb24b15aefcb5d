"""
When a process that runs out of memory refuses what, before the kernel kills it and whatever it has begun.

    refused                         from        until below
    requests that are forwarded     90 %        85 %
    connections, too                95 %        90 %

Shares are of the limit. Each bound has two values, so that what is freed by refusing doesn't end the refusing at once.
A request that is refused is told so, and when to come back; a connection isn't, so it comes second: until then logins
and logouts, which are never refused for themselves, still get in.

Source: Envoy's overload manager, whose actions have thresholds of their own.
"""

from enum import IntEnum


class Pressure(IntEnum):
    """How near the limit is. Each level refuses what those below it refuse, and more."""

    NONE = 0
    HIGH = 1
    """No further request is forwarded."""
    CRITICAL = 2
    """No further connection is taken."""


_BOUNDS = ((Pressure.HIGH, 0.90, 0.85), (Pressure.CRITICAL, 0.95, 0.90))
"""Of each level: the share at which it begins, and that below which it ends."""


def pressure_at(share: float, *, before: Pressure) -> Pressure:
    """
    Return the level for a share of the limit.

    Args:
        share: What is used, as a share of the limit.
        before: The level until now.
    """
    pressure = Pressure.NONE
    for level, begins_at, ends_below in _BOUNDS:
        if share >= (ends_below if before >= level else begins_at):
            pressure = level
    return pressure

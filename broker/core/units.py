"""Durations and sizes as the configuration writes them: a number and one unit, without a space."""

import re

DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
"""Seconds of each unit."""

SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
"""Bytes of each unit. The decimal ones (kB, MB) are refused: too many people take them for these."""

# Bounded digits: nobody waits a billion days, and no number becomes infinite.
DURATION_PATTERN = r"[0-9]{1,9}(\.[0-9]{1,6})?(ms|s|m|h|d)"
SIZE_PATTERN = r"[0-9]{1,12}(B|KiB|MiB|GiB)"

_DURATION = re.compile(DURATION_PATTERN)
_SIZE = re.compile(SIZE_PATTERN)
_UNIT = re.compile(r"[A-Za-z]+$")


def parse_duration(text: str) -> float | None:
    """Return the seconds of a duration such as ``30s``, ``1.5h`` or ``14d``, or None if *text* is none."""
    if not _DURATION.fullmatch(text):
        return None
    unit = _unit(text)
    return float(text.removesuffix(unit)) * DURATION_UNITS[unit]


def parse_size(text: str) -> int | None:
    """Return the bytes of a size such as ``64KiB``, or None if *text* is none."""
    if not _SIZE.fullmatch(text):
        return None
    unit = _unit(text)
    return int(text.removesuffix(unit)) * SIZE_UNITS[unit]


def format_duration(seconds: float) -> str:
    """Return *seconds* as a duration in the largest unit that needs no fraction."""
    for unit in ("d", "h", "m", "s"):
        count = seconds / DURATION_UNITS[unit]
        if count.is_integer() and (count or unit == "s"):
            return f"{int(count)}{unit}"
    return f"{seconds * 1000:.6f}".rstrip("0").rstrip(".") + "ms"


def format_size(count: int) -> str:
    """Return *count* bytes as a size in the largest unit that needs no fraction."""
    for unit, factor in reversed(SIZE_UNITS.items()):
        if count and count % factor == 0:
            return f"{count // factor}{unit}"
    return f"{count}B"


def _unit(text: str) -> str:
    match = _UNIT.search(text)
    assert match is not None, "the pattern ends with a unit"
    return match.group()

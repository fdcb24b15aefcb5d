"""``Retry-After`` (RFC 9110 section 10.2.3)."""

import re
from email.utils import parsedate_to_datetime

MAX_SECONDS = 86400.0
"""A server that wants more rest than a day is asked again after a day."""

_DELAY = re.compile(r"[0-9]{1,12}")


def retry_after_seconds(value: str | None, now: float) -> float | None:
    """
    Return how long to wait, between 0 and a day; None if *value* says nothing sensible.

    Args:
        value: The header: a delay in seconds or an HTTP date.
        now: Unix seconds.
    """
    if value is None:
        return None
    value = value.strip()
    if _DELAY.fullmatch(value):
        return min(float(value), MAX_SECONDS)
    try:
        moment = parsedate_to_datetime(value[:64]).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(moment - now, 0.0), MAX_SECONDS)

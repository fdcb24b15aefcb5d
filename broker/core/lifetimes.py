"""
How long a token lives, from whatever the authorization server says about it.

Servers give numbers, numeric strings, instants in seconds, in Java's milliseconds or by ISO 8601, zero, negatives,
nothing, and worse. No such answer may cause a refresh storm (a lifetime that is always over) or an immortal token.
"""

import re
from datetime import datetime

MAX_LIFETIME_SECONDS = 10 * 366 * 86400.0
"""Nothing lives longer. Oracle's longest access token lives a year (31 556 952 s)."""

INSTANT_FROM = 1e9
"""A number above this is no duration: 10^9 s are 31 years. It is an instant."""

MILLISECONDS_FROM = 1e11
"""An instant from here on is in milliseconds: 10^11 s is the year 5138."""

MAX_DATE_TIME_CHARACTERS = 40

_NUMERIC = re.compile(r"[0-9]{1,16}(\.[0-9]{1,9})?")


def number(value: object) -> float | None:
    """Return *value* as a number from 0 to 10^15, or None. Numeric strings count; booleans don't."""
    if isinstance(value, str):
        if not _NUMERIC.fullmatch(value):
            return None
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Python compares a huge integer exactly; float() of it would overflow. False for NaN.
    return float(value) if 0 <= value <= 1e15 else None


def date_time(value: object) -> float | None:
    """
    Return the Unix seconds of a date with its time and zone, or None.

    Source: ISO 8601, RFC 3339 section 5.6.
    """
    if not isinstance(value, str) or len(value) > MAX_DATE_TIME_CHARACTERS:
        return None
    try:
        named = datetime.fromisoformat(value)
        return None if named.tzinfo is None else number(named.timestamp())
    except (ValueError, OverflowError):
        return None


def instant(value: object, requested_at: float) -> float | None:
    """
    Return the moment that a lifetime or an instant names.

    Args:
        value: ``expires_in`` or ``expires_at`` as the server sent it.
        requested_at: Unix seconds, read before the request was sent: a lifetime counts from there, so that a slow
            answer never makes a token live longer.

    Returns:
        Unix seconds after *requested_at*; None where *value* names no such moment, or one that is absurdly far.

    Source: RFC 6749 section 5.1; Keycloak's adapters send Java timestamps.
    """
    given = number(value)
    if given is None:
        named = date_time(value)
        return None if named is None else _bounded(named, requested_at)
    return _bounded(requested_at + given if given <= INSTANT_FROM else _seconds(given), requested_at)


def numeric_date(value: object, requested_at: float) -> float | None:
    """
    Return the moment that a JWT's ``exp`` names, under the same bounds as :func:`instant`.

    Source: RFC 7519 section 2, NumericDate.
    """
    given = number(value)
    return None if given is None else _bounded(_seconds(given), requested_at)


def _seconds(moment: float) -> float:
    return moment if moment < MILLISECONDS_FROM else moment / 1000


def _bounded(moment: float, requested_at: float) -> float | None:
    return moment if 0 < moment - requested_at <= MAX_LIFETIME_SECONDS else None

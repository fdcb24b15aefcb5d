"""Two clocks that tell different times."""

from email.utils import parsedate_to_datetime


def ahead_seconds(date: str | None, *, sent_at: float, received_at: float) -> float | None:
    """
    Return how far this machine's clock is certainly ahead of the server's; negative if it is behind.

    Args:
        date: The answer's ``Date`` field (RFC 9110 section 6.6.1).
        sent_at: Unix seconds, by this machine's clock, when the request was sent.
        received_at: The same when the answer was there.

    Returns:
        Seconds; None where there is no date.
    """
    try:
        said = parsedate_to_datetime(date or "").timestamp()
    except (ValueError, OverflowError):
        return None
    # A second of the date's own, and the way: only what neither can explain counts.
    return max(sent_at - (said + 1), 0.0) - max(said - received_at, 0.0)

"""Retry-After."""

import pytest

from broker.core.retry_after import retry_after_seconds

NOW = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the instant of RFC 9110 section 5.6.7


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("120", 120.0),
        (" 0 ", 0.0),
        ("999999999", 86400.0),
        ("Sun, 06 Nov 1994 08:50:37 GMT", 60.0),
        ("Sun, 06 Nov 1994 08:48:37 GMT", 0.0),
        ("Sun, 06 Nov 2094 08:48:37 GMT", 86400.0),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("Sun, 99 Nov 1994 08:50:37 GMT", None),
        ("9" * 5000, None),
    ],
)
def test_a_delay_or_a_date_is_read_and_anything_else_ignored(value: str | None, expected: float | None) -> None:
    """A delay in seconds or an HTTP date counts, bounded to a day."""
    assert expected == retry_after_seconds(value, NOW)

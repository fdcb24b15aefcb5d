"""Durations and sizes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0.0),
        ("250ms", 0.25),
        ("30s", 30.0),
        ("1.5h", 5400.0),
        ("15m", 900.0),
        ("14d", 1209600.0),
        ("999999999d", 999999999 * 86400.0),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    """A number and one unit are a duration in seconds."""
    assert seconds == parse_duration(text)


@pytest.mark.parametrize(
    "text",
    ["", "30", "30 s", " 30s", "30s\n", "-1s", "+1s", "1h30m", "1.s", ".5s", "1e3s", "30S", "1w", "1y", "inf", "nans",
     "٣s", "1_000s", "1000000000d", "1.0000000s", "s"],
)  # fmt: skip
def test_what_is_no_duration(text: str) -> None:
    """Other spellings are refused rather than guessed."""
    assert parse_duration(text) is None


@pytest.mark.parametrize(
    ("text", "count"), [("0B", 0), ("512B", 512), ("64KiB", 65536), ("1MiB", 1048576), ("2GiB", 2147483648)]
)
def test_a_size_is_a_number_and_a_binary_unit(text: str, count: int) -> None:
    """A whole number and a binary unit are a size in bytes."""
    assert count == parse_size(text)


@pytest.mark.parametrize(
    "text", ["", "64", "64K", "64k", "64KB", "64kB", "1.5MiB", "-1B", "64 KiB", "64kib", "1TiB", "٣B"]
)
def test_what_is_no_size(text: str) -> None:
    """Decimal and ambiguous units are refused."""
    assert parse_size(text) is None


@given(st.integers(min_value=0, max_value=10**9 - 1), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_a_formatted_duration_reads_as_itself(number: int, unit: str) -> None:
    """What is formatted is parsed to the same number of seconds."""
    seconds = parse_duration(f"{number}{unit}")
    assert seconds is not None
    again = parse_duration(format_duration(seconds))
    assert again is not None
    assert math.isclose(seconds, again, rel_tol=1e-9, abs_tol=1e-9)


@given(st.integers(min_value=0, max_value=10**12 - 1))
def test_a_formatted_size_reads_as_itself(count: int) -> None:
    """What is formatted is parsed to the same number of bytes."""
    assert count == parse_size(format_size(count))


@given(st.text(max_size=20))
def test_no_text_breaks_the_parsers(text: str) -> None:
    """Any text is a finite number of seconds or bytes, or none."""
    seconds = parse_duration(text)
    assert seconds is None or (0 <= seconds < math.inf)
    size = parse_size(text)
    assert size is None or size >= 0

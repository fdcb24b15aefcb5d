"""The kinds of scalar."""

from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from broker.config.document import Plain
from broker.config.scalars import NETWORK, SIMPLE_TYPES, Choice, Duration, Flag, Number, Scalar, Size, Text, Whole


class Colour(StrEnum):
    RED = "red"


SCALARS: list[Scalar] = [Text(), Flag(), Whole(), Number(), Duration(), Size(), Choice({"red": Colour.RED}), NETWORK]


@pytest.mark.parametrize(
    ("scalar", "text", "value"),
    [
        (Text(), "a", "a"),
        (Flag(), True, True),
        (Whole(), 3, 3),
        (Number(), 0.5, 0.5),
        (Duration(), "8h", 28800.0),
        (Size(), "64KiB", 65536),
        (Choice({"red": Colour.RED}), "red", Colour.RED),
        (SIMPLE_TYPES[Path], "/a", Path("/a")),
    ],
)
def test_what_is_written_reads_as_itself(scalar: Scalar, text: Plain, value: object) -> None:
    """A default is shown in the reference just as an operator would write it."""
    assert value == scalar.read(text)
    assert text == scalar.write(value)


@given(
    st.sampled_from(SCALARS),
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(["1s", "1B", "red"]),
)
def test_editors_accept_what_the_broker_accepts(scalar: Scalar, value: Plain) -> None:
    """A scalar that is read is also valid by its JSON Schema; one that isn't raises ValueError and nothing else."""
    try:
        scalar.read(value)
    except ValueError:
        return
    assert Draft202012Validator(scalar.schema()).is_valid(value)


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\tb", "a\0b", "a\x1bb", "a\x7fb"])
def test_texts_hold_no_control_characters(text: str) -> None:
    """What could end a header, a URL or a log line is no text."""
    with pytest.raises(ValueError, match="a text on one line, without control characters"):
        Text().read(text)

"""The shapes of types."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from broker.config.scalars import Duration, Size, Text, Whole
from broker.config.settings import Settings
from broker.config.shapes import (
    Anything,
    FileName,
    ListOf,
    MapOf,
    Nullable,
    OneOf,
    Options,
    OwnForm,
    ScalarOf,
    SecretText,
    Shape,
    fields_of,
    is_secret,
    shape_of,
)
from broker.core.options import option
from broker.core.secret import RefreshToken, Secret


@dataclass(kw_only=True)
class Example:
    """An example."""

    wait_seconds: float | None = option("A duration.", default=None)
    waits_seconds: Mapping[str, float] = option("Durations.", default_factory=dict)
    room_bytes: int = option("A size.")
    key_file: str | None = option("A file.", default=None)
    count: int = option("A number.", default=1)
    keyed: int = option("A number.", default=1, key="other")
    hidden: int = 5


def test_names_say_what_numbers_and_texts_mean() -> None:
    """The end of a field's name makes a duration, a size or a file of it, and its key is the rest."""
    assert {
        "wait": Nullable(ScalarOf(Duration())),
        "waits": MapOf(ScalarOf(Duration())),
        "room": ScalarOf(Size()),
        "key_file": Nullable(FileName()),
        "count": ScalarOf(Whole()),
        "other": ScalarOf(Whole()),
    } == {key: field.shape for key, field in fields_of(Example).items()}


def test_a_field_without_a_default_is_required() -> None:
    """Only what has no default must be there."""
    assert ["room"] == [key for key, field in fields_of(Example).items() if field.required]


@pytest.mark.parametrize("hint", [bytes, complex, set[str], type, dict[str, bytes], tuple[bytes, ...], None])
def test_types_that_no_yaml_value_can_have(hint: Any) -> None:
    """A type that can't be configured is the programmer's mistake, found by the first test that reads the class."""
    with pytest.raises(TypeError, match="no YAML value can be a"):
        shape_of(hint)


@pytest.mark.parametrize(
    ("shape", "secret"),
    [
        (SecretText(Secret), True),
        (Nullable(SecretText(RefreshToken)), True),
        (ListOf(SecretText(Secret), tuple), True),
        (MapOf(ListOf(SecretText(Secret), tuple)), True),
        (OneOf((ScalarOf(Text()), SecretText(Secret))), True),
        (ScalarOf(Text()), False),
        (ListOf(ScalarOf(Text()), tuple), False),
        (Options(Example), False),
        (Anything(), False),
    ],
)
def test_what_may_be_a_secret(shape: Shape, secret: bool) -> None:
    """Whatever may hold a secret is never shown; of an options class, each field is judged by itself."""
    assert secret == is_secret(shape)


def options_classes(options: type) -> set[type]:
    """Return *options* and every options class below it."""
    found = {options}
    shapes = [field.shape for field in fields_of(options).values()]
    while shapes:
        match shapes.pop():
            case Options(inner):
                found |= options_classes(inner)
            case Nullable(inner) | ListOf(inner) | MapOf(inner):
                shapes.append(inner)
            case OneOf(arms):
                shapes.extend(arms)
            case _:
                pass
    return found


def test_every_option_is_documented() -> None:
    """Each option of each component says what it means, in whole sentences, and each own form has a schema."""
    for options in options_classes(Settings):
        for field in fields_of(options).values():
            assert field.doc.endswith("."), f"{options.__name__}.{field.name}"
            assert not isinstance(field.shape, OwnForm) or field.shape.schema(), f"{options.__name__}.{field.name}"


def test_no_two_options_classes_share_a_name() -> None:
    """The JSON Schema names its parts by their classes."""
    classes = options_classes(Settings)
    assert len(classes) == len({options.__name__ for options in classes})

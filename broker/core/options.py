"""
How an option is declared.

The options of a component are a frozen dataclass beside the component. The configuration reads it by its fields, and
the JSON Schema and the reference are made from the same fields:

- a field ``idle_timeout_seconds: float`` is the key ``idle_timeout`` and takes a duration (``30s``, ``8h``);
- a field ``max_replay_body_bytes: int`` is the key ``max_replay_body`` and takes a size (``64KiB``, ``1MiB``);
- a field of type ``Secret`` takes ``{env: NAME}``, ``{file: PATH}`` or ``{value: TEXT}``;
- a ``StrEnum`` takes its values; ``tuple[T, ...]`` a list; ``Mapping[str, T]`` a mapping; another options class a
  mapping; ``T | None`` may be left out;
- a class with a class method ``from_option(value)`` reads a plain YAML value itself, and one with ``option_schema()``
  describes it.

A field without a default is required. ``__post_init__`` raises :class:`OptionError` for what types can't say.
"""

from collections.abc import Callable
from dataclasses import MISSING, field
from typing import Any


class OptionError(ValueError):
    """
    A value that an options class refuses.

    Attributes:
        key: The key of the value within its options class, as the YAML spells it; empty for the whole class.
        expected: What would have been accepted, as a phrase: "a duration above 0".
        found: The text at fault, where that isn't the value of the key: a name in a mapping. Never a secret.
        hint: What was probably meant.
    """

    def __init__(self, key: str, expected: str, *, found: str = "", hint: str = "") -> None:
        super().__init__(f"{key}: expected {expected}" if key else f"expected {expected}")
        self.key = key
        self.expected = expected
        self.found = found
        self.hint = hint


def option(
    doc: str,
    *,
    default: Any = MISSING,
    default_factory: Callable[[], Any] | Any = MISSING,
    key: str | None = None,
    example: str | None = None,
    may_be_empty: bool = False,
) -> Any:
    """
    Declare one option: a dataclass field with its documentation.

    Args:
        doc: What the option means, in one or two sentences. It goes into the reference and the JSON Schema.
        default: The value where the key is left out.
        default_factory: Makes the default, where it is mutable.
        key: The key in YAML, where it isn't made from the field's name (see the module).
        example: A YAML value for the reference.
        may_be_empty: Whether an empty text means something. Otherwise it is refused, as what a template left.
    """
    metadata: dict[str, object] = {"doc": doc}
    if key is not None:
        metadata["key"] = key
    if example is not None:
        metadata["example"] = example
    if may_be_empty:
        metadata["may_be_empty"] = True
    if default is not MISSING:
        return field(default=default, metadata=metadata)
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata=metadata)
    return field(metadata=metadata)

"""The kinds of scalar that an option may be: how each is read, written, described and told to an editor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import ClassVar, Protocol

from broker.config.document import Plain
from broker.core.units import (
    DURATION_PATTERN,
    SIZE_PATTERN,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)

Schema = dict[str, object]
"""A JSON Schema (draft 2020-12)."""


class Scalar(Protocol):
    """One kind of scalar."""

    @property
    def expected(self) -> str:
        """What it accepts, as a phrase."""
        ...

    def read(self, value: Plain) -> object:
        """Return what *value* stands for. Raises ValueError, with what was expected if that is more than usual."""
        ...

    def write(self, value: object) -> Plain:
        """Return what stands for *value*: the reverse of :meth:`read`."""
        ...

    def schema(self) -> Schema:
        """Return its JSON Schema."""
        ...


@dataclass(frozen=True, slots=True)
class Text:
    """
    A text on one line.

    Attributes:
        may_be_empty: Whether an empty one means something.
    """

    may_be_empty: bool = False
    expected: ClassVar[str] = "a text"

    def read(self, value: Plain) -> object:
        # An empty text is what a template that filled in nothing leaves; a control character in a header, a URL or a
        # log line is an injection.
        if not isinstance(value, str):
            raise ValueError  # noqa: TRY004 - one error for all that can't be read
        if not value and not self.may_be_empty:
            raise ValueError("a text that is not empty")
        if any(ord(one) < 0x20 or ord(one) == 0x7F for one in value):
            raise ValueError("a text on one line, without control characters")
        return value

    def write(self, value: object) -> Plain:
        return str(value)

    def schema(self) -> Schema:
        return {"type": "string"} if self.may_be_empty else {"type": "string", "minLength": 1}


@dataclass(frozen=True, slots=True)
class Flag:
    """``true`` or ``false``."""

    expected: ClassVar[str] = "true or false"

    def read(self, value: Plain) -> object:
        if not isinstance(value, bool):
            raise ValueError  # noqa: TRY004 - one error for all that can't be read
        return value

    def write(self, value: object) -> Plain:
        return bool(value)

    def schema(self) -> Schema:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number."""

    expected: ClassVar[str] = "a whole number"

    def read(self, value: Plain) -> object:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError  # noqa: TRY004 - one error for all that can't be read
        return value

    def write(self, value: object) -> Plain:
        return int(str(value))

    def schema(self) -> Schema:
        return {"type": "integer"}


@dataclass(frozen=True, slots=True)
class Number:
    """A number."""

    expected: ClassVar[str] = "a number"

    def read(self, value: Plain) -> object:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError  # noqa: TRY004 - one error for all that can't be read
        return float(value)

    def write(self, value: object) -> Plain:
        return float(str(value))

    def schema(self) -> Schema:
        return {"type": "number"}


@dataclass(frozen=True, slots=True)
class Duration:
    """A duration; its value is in seconds."""

    expected: ClassVar[str] = "a duration such as 30s, 15m or 14d"

    def read(self, value: Plain) -> object:
        seconds = parse_duration(value) if isinstance(value, str) else None
        if seconds is None:
            raise ValueError
        return seconds

    def write(self, value: object) -> Plain:
        return format_duration(float(str(value)))

    def schema(self) -> Schema:
        return {"type": "string", "pattern": f"^{DURATION_PATTERN}$"}


@dataclass(frozen=True, slots=True)
class Size:
    """A size; its value is in bytes."""

    expected: ClassVar[str] = "a size such as 512B, 64KiB or 1MiB"

    def read(self, value: Plain) -> object:
        size = parse_size(value) if isinstance(value, str) else None
        if size is None:
            raise ValueError
        return size

    def write(self, value: object) -> Plain:
        return format_size(int(str(value)))

    def schema(self) -> Schema:
        return {"type": "string", "pattern": f"^{SIZE_PATTERN}$"}


@dataclass(frozen=True, slots=True)
class Choice:
    """
    One of several words.

    Attributes:
        words: What may be written, and the value of each.
    """

    words: Mapping[str, object]

    @property
    def expected(self) -> str:
        return ("one of " if len(self.words) > 1 else "") + ", ".join(self.words)

    def read(self, value: Plain) -> object:
        if not isinstance(value, str) or value not in self.words:
            raise ValueError
        return self.words[value]

    def write(self, value: object) -> Plain:
        return str(value)

    def schema(self) -> Schema:
        return {"enum": list(self.words)}


@dataclass(frozen=True, slots=True)
class Parsed:
    """
    A text that a function reads.

    Attributes:
        expected: What it accepts, as a phrase.
        parse: Returns the value; raises ValueError.
    """

    expected: str
    parse: Callable[[str], object]

    def read(self, value: Plain) -> object:
        text = str(Text().read(value))
        try:
            return self.parse(text)
        except ValueError:
            raise ValueError from None

    def write(self, value: object) -> Plain:
        return str(value)

    def schema(self) -> Schema:
        return {"type": "string", "minLength": 1, "description": self.expected}


def _network(text: str) -> IPv4Network | IPv6Network:
    return ip_network(text)


NETWORK = Parsed("a network such as 10.0.0.0/8, without host bits", _network)

SIMPLE_TYPES: Mapping[type, Scalar] = {
    str: Text(),
    bool: Flag(),
    int: Whole(),
    float: Number(),
    Path: Parsed("a path", Path),
    IPv4Network: NETWORK,
    IPv6Network: NETWORK,
}
"""What the types of the standard library are in YAML."""

"""What is wrong with a configuration: every problem with its place, and never a secret."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from broker.errors import ConfigError

_MAX_SHOWN = 64  # a SHA-256 in hexadecimal names a caller
_USER_INFORMATION = re.compile(r"//.*@", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Location:
    """
    A place in a file.

    Attributes:
        file: Its name, as the operator gave it.
        line: Counted from 1.
        column: Counted from 1, in characters.
    """

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """
    One reason to refuse a configuration.

    Attributes:
        at: Where it is.
        key: The path of the key, such as ``providers.corp.scope`` or ``routes[2].path``; empty for the whole file.
        expected: What would have been accepted, as a phrase.
        found: What is there instead, as a phrase without any secret.
        hint: What was probably meant.
    """

    at: Location
    key: str
    expected: str
    found: str
    hint: str = ""

    def __str__(self) -> str:
        subject = f"{self.at}: {self.key}: " if self.key else f"{self.at}: "
        hint = f" ({self.hint})" if self.hint else ""
        # An options class may repeat what it read.
        return _printable(f"{subject}expected {self.expected}, found {self.found}{hint}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """
    Something that is accepted and that the operator should know: an insecure switch, a readable secret file.

    Attributes:
        at: Where it is.
        key: The path of the key.
        text: A phrase without any secret.
    """

    at: Location
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.at}: {self.key}: {self.text}"


class ConfigErrors(ConfigError):
    """
    The configuration is refused.

    Attributes:
        problems: All that is wrong with it, in the order of the file.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.at.line, problem.at.column, problem.key)))
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(slots=True)
class Report:
    """What has been found so far. The reading never stops at the first problem."""

    problems: list[Problem] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)

    def refuse(self, at: Location, key: str, *, expected: str, found: str, hint: str = "") -> None:
        self.problems.append(Problem(at=at, key=key, expected=expected, found=found, hint=hint))

    def notice(self, at: Location, key: str, text: str) -> None:
        self.notices.append(Notice(at=at, key=key, text=text))

    def extend(self, other: "Report") -> None:
        self.problems.extend(other.problems)
        self.notices.extend(other.notices)

    def raise_problems(self) -> None:
        """Raise ``ConfigErrors`` if there are problems."""
        if self.problems:
            raise ConfigErrors(self.problems)


def quoted(text: str) -> str:
    """
    Return *text* for a message: on one line, bounded, and without the user information of a URL.

    Source: RFC 3986 section 3.2.1: an application should not render what follows the first colon in it.
    """
    text = _USER_INFORMATION.sub("//…@", text)
    shown = text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"
    return _printable(json.dumps(shown, ensure_ascii=False))


def _printable(text: str) -> str:
    """Escape what could forge a line in a terminal or a log viewer; JSON escapes the C0 controls only."""
    return "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in text)

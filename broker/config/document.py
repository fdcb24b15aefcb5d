"""
YAML text as a tree of values that know where they stand. The only module that imports ``yaml``.

The tree is built from the parser's events, so that nothing of YAML's object model is ever reached. What a
configuration never needs and an attacker or a slip might bring is refused, with its place: tags, anchors and aliases
(and with them "billion laughs"), merge keys, several documents, duplicate keys, keys that aren't plain text, great
depth, great size, and characters that an editor doesn't show.

Plain scalars are read by the core schema of YAML 1.2 (section 10.3.2), not by PyYAML's 1.1: ``on``, ``off``, ``yes``
and ``no`` are texts, so are ``12:30`` and ``2026-01-31``; a number never begins with a zero that changes its meaning.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, assert_never

import yaml

from broker.config.problems import ConfigErrors, Location, Problem, Report, quoted

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 100_000

Plain = str | int | float | bool | None
"""A scalar's value."""


@dataclass(frozen=True, slots=True)
class ScalarNode:
    """
    A scalar.

    Attributes:
        at: Where it stands.
        value: Its value. An empty place (``key:`` and nothing behind it) has None.
        text: Its text as it was written, without quotes; ``""`` tells an empty place from a written ``null``.
    """

    at: Location
    value: Plain
    text: str


@dataclass(frozen=True, slots=True)
class ListNode:
    """A sequence."""

    at: Location
    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's place and its value."""

    key_at: Location
    value: "Node"


@dataclass(frozen=True, slots=True)
class MappingNode:
    """A mapping, in the order of the file."""

    at: Location
    entries: Mapping[str, Entry]


Node = ScalarNode | ListNode | MappingNode


def parse(source: bytes, *, file: str) -> Node:
    """
    Parse one YAML document.

    Args:
        source: The bytes of the file, in UTF-8.
        file: Its name, for the messages.

    Raises:
        ConfigErrors: If it isn't YAML, or uses what is refused here.

    Source: YAML 1.2.2.
    """
    if len(source) > MAX_BYTES:
        raise _refusal(Location(file, 1, 1), f"a file of at most {MAX_BYTES >> 20}MiB", "a larger one")
    text = _decoded(source, file)
    composer = _Composer(file, yaml.parse(text, Loader=yaml.SafeLoader))
    try:
        node = composer.document()
    except yaml.MarkedYAMLError as error:
        raise _refusal(_place(error, file), "YAML", _syntax_error(error.problem or "")) from None
    composer.report.raise_problems()
    return node


def plain(node: Node) -> Any:
    """Return the value of *node* in ``str``, ``int``, ``float``, ``bool``, ``None``, ``list`` and ``dict``."""
    match node:
        case ScalarNode():
            return node.value
        case ListNode():
            return [plain(item) for item in node.items]
        case MappingNode():
            return {key: plain(entry.value) for key, entry in node.entries.items()}
        case _:
            assert_never(node)


class _Composer:
    """Builds the tree from the parser's events."""

    def __init__(self, file: str, events: Iterator[yaml.Event]) -> None:
        self.report = Report()
        self._file = file
        self._events = events
        self._count = 0

    def document(self) -> Node:
        next(self._events)  # the start of the stream
        start = next(self._events)
        if isinstance(start, yaml.StreamEndEvent):
            raise _refusal(Location(self._file, 1, 1), "a mapping of settings", "an empty document")
        node = self._node(next(self._events), depth=0)
        next(self._events)  # the end of the document
        if not isinstance(second := next(self._events), yaml.StreamEndEvent):
            self._refuse(second, "one document", "a second one")
        return node

    def _node(self, event: yaml.Event, *, depth: int) -> Node:
        at = self._at(event)
        self._count += 1
        if self._count > MAX_NODES:
            raise _refusal(at, f"at most {MAX_NODES} values", "more")
        if depth > MAX_DEPTH:
            raise _refusal(at, f"at most {MAX_DEPTH} levels", "deeper nesting")
        if isinstance(event, yaml.AliasEvent):
            self._refuse(event, "a value", "an alias: anchors and aliases are refused")
            return ScalarNode(at, None, "")
        assert isinstance(event, yaml.NodeEvent)
        if event.anchor is not None:
            self._refuse(event, "a value", "an anchor: anchors and aliases are refused")
        if getattr(event, "tag", None) is not None:
            self._refuse(event, "a value", "a tag: tags are refused")
        if isinstance(event, yaml.SequenceStartEvent):
            return ListNode(at, tuple(self._items(depth)))
        if isinstance(event, yaml.MappingStartEvent):
            return MappingNode(at, self._entries(depth))
        assert isinstance(event, yaml.ScalarEvent)
        if _SURROGATE.search(event.value):  # "\\ud800": no encoder takes it
            self._refuse(event, "a text", "half of a character")
            return ScalarNode(at, None, "")
        plain = event.style is None
        return ScalarNode(at, resolve(event.value) if plain else event.value, event.value)

    def _items(self, depth: int) -> Iterator[Node]:
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            yield self._node(event, depth=depth + 1)

    def _entries(self, depth: int) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._node(event, depth=depth + 1)
            value = self._node(next(self._events), depth=depth + 1)
            if not isinstance(key, ScalarNode) or (key.value is None and not key.text):
                self._refuse(event, "a key of plain text", "another value as a key")
            elif key.text in entries:
                first = entries[key.text].key_at
                self._refuse(event, "each key once", f"the key {quoted(key.text)} again (first in line {first.line})")
            else:
                entries[key.text] = Entry(key.at, value)
        return entries

    def _at(self, event: yaml.Event) -> Location:
        mark = event.start_mark
        assert mark is not None, "the parser marks every event"
        return Location(self._file, mark.line + 1, mark.column + 1)

    def _refuse(self, event: yaml.Event, expected: str, found: str) -> None:
        self.report.refuse(self._at(event), "", expected=expected, found=found)


_SURROGATE = re.compile("[\\ud800-\\udfff]")
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
# Without the core schema's leading zeros (YAML 1.1 reads 010 as 8, 1.2 as 10), octals and hexadecimals, and without
# .inf and .nan: as texts, they are refused wherever a number is expected.
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]{0,17})(\.[0-9]{0,30}|(?=[eE]))|\.[0-9]{1,30})([eE][-+]?[0-9]{1,2})?")


def resolve(text: str) -> Plain:
    """
    Return the value of a plain scalar.

    Source: YAML 1.2.2 section 10.3.2, less the spellings of numbers that YAML 1.1 reads otherwise.
    """
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


# The printable characters of YAML 1.2.2 (section 5.1) without those that end a line for some readers only (NEL, LS,
# PS) and those that reorder a line on the screen (CVE-2021-42574).
_REFUSED_CHARACTER = re.compile(
    "[^\\t\\n\\r\\x20-\\x7e\\xa0-\\u2027\\u202f-\\u2065\\u206a-\\ud7ff\\ue000-\\ufefe\\uff00-\\ufffd\\U00010000-\\U0010ffff]"
)


def _decoded(source: bytes, file: str) -> str:
    try:
        text = source.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = source[: error.start]
        at = Location(file, before.count(b"\n") + 1, len(before) - (before.rfind(b"\n") + 1) + 1)
        raise _refusal(at, "text in UTF-8", "bytes that are none") from None
    if refused := _REFUSED_CHARACTER.search(text):
        before_text = text[: refused.start()]
        at = Location(file, before_text.count("\n") + 1, refused.start() - (before_text.rfind("\n") + 1) + 1)
        raise _refusal(at, "printable text", f"the character U+{ord(refused.group()):04X}")
    return text


def _place(error: yaml.MarkedYAMLError, file: str) -> Location:
    mark = error.problem_mark
    if mark is None:
        return Location(file, 1, 1)
    return Location(file, mark.line + 1, mark.column + 1)


def _syntax_error(problem: str) -> str:
    """Return what PyYAML complains of, without what it quotes from the file: that may be a piece of a secret."""
    if problem.startswith("found character '\\t'"):
        return "a tab: indent with spaces"
    if problem.startswith("found character"):
        return "a character that must stand in quotes"
    if problem.startswith("found unknown escape"):
        return "an unknown escape in a double-quoted text: use single quotes"
    if problem.startswith("found undefined tag handle"):
        return "a tag: tags are refused"
    if problem.startswith("mapping values are not allowed"):
        return (
            "a second colon, or a line that is indented further than its neighbours: a text with a colon needs quotes"
        )
    if problem.startswith("expected <block end>"):
        return "a line that isn't indented as its neighbours are"
    return f"a syntax error: {problem}"


def _refusal(at: Location, expected: str, found: str) -> ConfigErrors:
    return ConfigErrors([Problem(at=at, key="", expected=expected, found=found)])

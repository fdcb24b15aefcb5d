"""From YAML to options classes of every kind."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Literal, NewType

import pytest
from hypothesis import given

from broker.config import ConfigErrors, HostSource, PretendedSource, loads
from broker.config.binding import REFUSED, Binder
from broker.config.document import MappingNode, parse, plain
from broker.config.problems import Problem, Report
from broker.config.shapes import Options
from broker.core.options import OptionError, option
from broker.core.secret import RefreshToken, Secret
from tests.config.documents import DOCUMENTS, options_documents

Name = NewType("Name", str)


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Point:
    x: int
    y: int

    @classmethod
    def from_option(cls, value: object) -> "Point":
        match = re.fullmatch("([0-9])/([0-9])", value) if isinstance(value, str) else None
        if match is None:
            raise OptionError("", "a point such as 1/2")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """The inner part."""

    size_bytes: int = option("A size.", default=1)
    insecure_door: bool = option("The door is open.", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """All kinds of options."""

    text: str = option("A text.", default="")
    name: Name | None = option("A name.", default=None)
    blank: str = option("A text that may be empty.", default="x", may_be_empty=True)
    flag: bool = option("A flag.", default=False)
    whole: int = option("A whole number.", default=0)
    number: float = option("A number.", default=0.0)
    wait_seconds: float = option("A duration.", default=0.0)
    waits_seconds: tuple[float, ...] = option("Durations.", default=())
    maybe_seconds: float | None = option("A duration or null.", default=1.0)
    colour: Colour = option("A colour.", default=Colour.RED)
    word: Literal["one", "two"] = option("A word.", default="one")
    where: Path | None = option("A path.", default=None)
    ca_file: str | None = option("A file.", default=None)
    networks: tuple[IPv4Network | IPv6Network, ...] = option("Networks.", default=())
    secret: Secret | None = option("A secret.", default=None)
    token: RefreshToken | None = option("A secret of its own type.", default=None)
    secrets: tuple[Secret, ...] = option("Secrets.", default=())
    point: Point | None = option("A point.", default=None)
    words: frozenset[str] = option("Words.", default=frozenset())
    colours: Mapping[str, Colour] = option("Colours by name.", default_factory=dict)
    inner: Inner = option("The inner part.", default=Inner())
    inners: Mapping[str, Inner] = option("Inner parts by name.", default_factory=dict)
    either: str | tuple[str, ...] | Inner = option("One of three forms.", default="")
    free: Any = option("Anything.", default=None)
    renamed: int = option("Has a key of its own.", default=0, key="other-name")
    computed: int = 7

    def __post_init__(self) -> None:
        if self.whole == 13:
            raise OptionError("whole", "another number")
        if self.whole == 14:
            raise OptionError("inner.size", "a size that goes with 14")
        if self.whole == 15:
            raise OptionError("", "another combination")
        if self.whole == 16:
            raise OptionError("secret", "another secret")


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Has keys that must be there."""

    secret: Secret = option("A secret.")
    colour: Colour = option("A colour.")


SOURCE = HostSource({"SECRET": "s3cret"}, Path("/nonexistent"))


UNKNOWN = (
    "expected one of the keys blank, ca_file, colour, colours, either, flag, free, inner, inners, maybe, name, networks, number, "
    "other-name, point, secret, secrets, text, token, wait, waits, where, whole, word, words, found the unknown key"
)


def bound(text: str, options: type = Outer, **rewrites: Any) -> tuple[Any, Report]:
    binder = Binder(SOURCE, **rewrites)
    value = binder.bind(parse(text.encode(), file="c"), Options(options))
    return value, binder.report


def problems_of(text: str, options: type = Outer) -> list[str]:
    return list(map(str, bound(text, options)[1].problems))


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("text: abc", "text", "abc"),
        ("text: 'true'", "text", "true"),
        ("name: abc", "name", "abc"),
        ("blank: ''", "blank", ""),
        ("flag: true", "flag", True),
        ("whole: -3", "whole", -3),
        ("number: 3", "number", 3.0),
        ("number: 1.5", "number", 1.5),
        ("wait: 1.5h", "wait_seconds", 5400.0),
        ("waits: [1s, 2m]", "waits_seconds", (1.0, 120.0)),
        ("maybe: 2s", "maybe_seconds", 2.0),
        ("maybe: null", "maybe_seconds", None),
        ("maybe: ~", "maybe_seconds", None),
        ("colour: blue", "colour", Colour.BLUE),
        ("word: two", "word", "two"),
        ("where: /a/b", "where", Path("/a/b")),
        ("networks: [10.0.0.0/8, 'fd00::/8', 127.0.0.1]", "networks",
         (ip_network("10.0.0.0/8"), ip_network("fd00::/8"), ip_network("127.0.0.1/32"))),
        ("secret: {env: SECRET}", "secret", Secret("s3cret")),
        ("secret: {value: abc}", "secret", Secret("abc")),
        ('secret: {value: "-----BEGIN-----\\nabc"}', "secret", Secret("-----BEGIN-----\nabc")),
        ("token: {env: SECRET}", "token", RefreshToken("s3cret")),
        ("secrets: [{env: SECRET}, {value: a}]", "secrets", (Secret("s3cret"), Secret("a"))),
        ("point: 1/2", "point", Point(1, 2)),
        ("words: [a, b, a]", "words", frozenset({"a", "b"})),
        ("colours: {sky: blue, blood: red}", "colours", {"sky": Colour.BLUE, "blood": Colour.RED}),
        ("inner: {size: 64KiB}", "inner", Inner(size_bytes=65536)),
        ("inner: {}", "inner", Inner()),
        ("inners: {a: {size: 2B}}", "inners", {"a": Inner(size_bytes=2)}),
        ("either: a", "either", "a"),
        ("either: [a, b]", "either", ("a", "b")),
        ("either: {size: 3B}", "either", Inner(size_bytes=3)),
        ("free: {a: [1, null, x]}", "free", {"a": [1, None, "x"]}),
        ("other-name: 5", "renamed", 5),
    ],
)  # fmt: skip
def test_each_kind_of_option_takes_its_value(text: str, name: str, value: object) -> None:
    """Every type that an options class may use is read as its docstring says."""
    options, report = bound(text)
    assert [] == report.problems
    assert value == getattr(options, name)
    assert type(value) is type(getattr(options, name)) or isinstance(value, dict)


def test_what_is_left_out_has_its_default() -> None:
    """An empty mapping is a configuration of defaults."""
    assert Outer() == bound("{}")[0]


def test_mappings_are_read_only() -> None:
    """A bound value can't be changed afterwards."""
    options, _ = bound("colours: {sky: blue}")
    with pytest.raises(TypeError):
        options.colours["sky"] = Colour.RED


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("text: 1", "c:1:7: text: expected a text, found the number 1 (put it in quotes)"),
        ("text: true", "c:1:7: text: expected a text, found true (put it in quotes)"),
        ("text: ''", 'c:1:7: text: expected a text that is not empty, found the text ""'),
        ("text: [a]", "c:1:7: text: expected a text, found a list"),
        ("text: {}", "c:1:7: text: expected a text, found an empty mapping"),
        ("text: null", "c:1:7: text: expected a text, found null"),
        ("name:", "c:1:6: name: expected a text, found nothing (leave the key out, or say null)"),
        ("flag: 1", "c:1:7: flag: expected true or false, found the number 1"),
        ("flag: off", 'c:1:7: flag: expected true or false, found the text "off"'),
        ("whole: true", "c:1:8: whole: expected a whole number, found true"),
        ("whole: 1e3", "c:1:8: whole: expected a whole number, found the number 1e3"),
        ("number: .inf", 'c:1:9: number: expected a number, found the text ".inf"'),
        ("number: .nan", 'c:1:9: number: expected a number, found the text ".nan"'),
        ("wait: 1", "c:1:7: wait: expected a duration such as 30s, 15m or 14d, found the number 1"),
        ("wait_seconds: 1s", 'c:1:1: wait_seconds: expected a known key, found the unknown key "wait_seconds" (did you mean wait?)'),
        ("waits: [1s, 2]", "c:1:13: waits[1]: expected a duration such as 30s, 15m or 14d, found the number 2"),
        ("inner: {size: 1}", "c:1:15: inner.size: expected a size such as 512B, 64KiB or 1MiB, found the number 1"),
        ("colour: green", 'c:1:9: colour: expected one of red, blue, found the text "green"'),
        ("word: three", 'c:1:7: word: expected one of one, two, found the text "three"'),
        ("where: 5", "c:1:8: where: expected a path, found the number 5"),
        ("ca_file: ca.pem", 'c:1:10: ca_file: expected a readable file "ca.pem" beside the configuration, found the error: No such file or directory'),
        ("ca_file: 5", "c:1:10: ca_file: expected a text, found the number 5 (put it in quotes)"),
        ("networks: [x]", 'c:1:12: networks[0]: expected a network such as 10.0.0.0/8, without host bits, found the text "x"'),
        ("point: 1", "c:1:8: point: expected a point such as 1/2, found the number 1"),
        ("colours: {a: green}", 'c:1:14: colours.a: expected one of red, blue, found the text "green"'),
        ("inners: {a: {sizee: 1B}}", 'c:1:14: inners.a.sizee: expected a known key, found the unknown key "sizee" (did you mean size?)'),
        ("either: 5", "c:1:9: either: expected a text or a list, each item a text or a mapping, found the number 5"),
        ("either: [1]", "c:1:10: either[0]: expected a text, found the number 1 (put it in quotes)"),
        ("either: {size: 5}", "c:1:16: either.size: expected a size such as 512B, 64KiB or 1MiB, found the number 5"),
        ("whole: 13", "c:1:8: whole: expected another number, found the number 13"),
        ("{whole: 14, inner: {size: 1B}}", 'c:1:27: inner.size: expected a size that goes with 14, found the text "1B"'),
        ("whole: 14", "c:1:1: inner.size: expected a size that goes with 14, found nothing: the key is missing"),
        ("whole: 15", "c:1:1: expected another combination, found a mapping"),
        ("{whole: 16, secret: {value: abc}}", "c:1:21: secret: expected another secret, found a secret"),
        ("zzz: 1", f'c:1:1: zzz: {UNKNOWN} "zzz"'),
        ("computed: 1", f'c:1:1: computed: {UNKNOWN} "computed"'),
        ("[]", "c:1:1: expected a mapping, found an empty list"),
        ('"a\\nb": 1', f'c:1:1: "a\\nb": {UNKNOWN} "a\\nb"'),
    ],
)  # fmt: skip
def test_each_kind_of_option_names_what_it_refuses(text: str, problem: str) -> None:
    """What doesn't fit is named with its place, its key, what was expected and what was found."""
    assert [problem] == problems_of(text)


def test_all_problems_are_reported_at_once() -> None:
    """Neither an unknown key, nor a bad value, nor a missing key hides another."""
    assert [
        'c:1:1: x: expected one of the keys colour, secret, found the unknown key "x"',
        'c:2:9: colour: expected one of red, blue, found the text "green"',
        "c:1:1: secret: expected {env: NAME}, {file: PATH} or {value: TEXT}, found nothing: the key is missing",
    ] == problems_of("x: 1\ncolour: green\n", Needs)


CANARY = "canary-5e7a"


@pytest.mark.parametrize("key", ["secret", "secrets", "token"])
@pytest.mark.parametrize(
    "value",
    [
        CANARY,
        f"'{CANARY}'",
        f"[{CANARY}]",
        f"[[{CANARY}]]",
        f"{{{CANARY}}}",
        f"{{{CANARY}: x}}",
        f"{{env: '{CANARY} x'}}",
        f"{{env: [{CANARY}]}}",
        f"{{value: {CANARY}, valuee: {CANARY}}}",
        f"{{value: [{CANARY}]}}",
        f"{{valuee: {CANARY}}}",
        f"[{{valuee: {CANARY}}}]",
        f"[{{value: {CANARY}}}, {CANARY}]",
        f"!{CANARY} x",
        f"!a!{CANARY} x",
        f"&{CANARY} x",
        f"*{CANARY}",
        f"'{CANARY}",
        f'"\\{CANARY}"',
        f"@{CANARY}",
        f"{CANARY}: {CANARY}: {CANARY}",
    ],
)
def test_no_problem_shows_a_secret(key: str, value: str) -> None:
    """However a secret is miswritten, no message repeats it."""
    try:
        message = "\n".join(problems_of(f"{key}: {value}"))
    except ConfigErrors as errors:
        message = str(errors)
    assert message
    assert CANARY not in message


def test_ad_03_insecure_switches_and_open_secrets_are_noticed() -> None:
    """A switch whose name begins with insecure, and a secret that stands in the file, are reported with their places."""
    _, report = bound("inner: {insecure_door: true}\nsecret: {value: abc}\n")
    assert [
        "c:1:9: inner.insecure_door: The door is open.",
        "c:2:9: secret: the secret is written in the configuration itself",
    ] == list(map(str, report.notices))


def test_a_union_keeps_the_notices_of_the_form_that_was_taken() -> None:
    """What is noteworthy inside of a union is not lost with the forms that didn't fit."""
    _, report = bound("either: {insecure_door: true}\n")
    assert ["c:1:10: either.insecure_door: The door is open."] == list(map(str, report.notices))


def test_a_mapping_is_rewritten_before_it_is_read() -> None:
    """A rewrite may add what the operator left out."""

    def add_colour(node: MappingNode, _path: str, _report: Report) -> MappingNode:
        added = parse(b"colour: blue", file="preset")
        assert isinstance(added, MappingNode)
        return MappingNode(node.at, {**added.entries, **node.entries})

    options, report = bound("secret: {env: SECRET}", Needs, rewrites={Needs: add_colour})
    assert [] == report.problems
    assert Colour.BLUE == options.colour


@given(options_documents(Outer))
def test_any_document_is_bound_or_refused_with_reasons(document: dict[str, Any]) -> None:
    """No document makes the binder raise: it has a value, or there is at least one problem."""
    binder = Binder(SOURCE)
    node = parse(json.dumps(document).encode(), file="c")
    assert document == plain(node)
    value = binder.bind(node, Options(Outer))
    assert value is not REFUSED or binder.report.problems
    assert all(str(problem).isprintable() for problem in binder.report.problems)


@given(DOCUMENTS)
def test_any_document_is_settings_or_refused(document: dict[str, Any]) -> None:
    """No document makes the whole configuration raise anything but ``ConfigErrors``."""
    refused: tuple[Problem, ...] = ()
    try:
        settings = loads(json.dumps(document).encode(), file="c", source=PretendedSource())
    except ConfigErrors as errors:
        refused = errors.problems
    else:
        assert settings.public_url.is_secure or settings.warnings
    assert all(str(problem).isprintable() for problem in refused)

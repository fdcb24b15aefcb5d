"""YAML as a located tree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config.document import MAX_BYTES, MappingNode, ScalarNode, parse, plain, resolve
from broker.config.problems import ConfigErrors, Problem


def errors_of(source: str | bytes) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        parse(source if isinstance(source, bytes) else source.encode(), file="c.yaml")
    return list(map(str, caught.value.problems))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True), ("True", True), ("FALSE", False), ("null", None), ("~", None), ("", None),
        ("on", "on"), ("off", "off"), ("yes", "yes"), ("no", "no"), ("y", "y"), ("NO", "NO"), ("tRue", "tRue"),
        ("0", 0), ("-17", -17), ("+5", 5), ("12:30", "12:30"), ("190:20:30", "190:20:30"),
        ("010", "010"), ("0o10", "0o10"), ("0x1F", "0x1F"), ("0b1", "0b1"), ("1_000", "1_000"),
        ("1.5", 1.5), ("-.5", -0.5), ("1e3", 1000.0), ("1.", 1.0), (".", "."), ("e5", "e5"), ("1e999", "1e999"),
        (".inf", ".inf"), (".nan", ".nan"), ("nan", "nan"), ("infinity", "infinity"),
        ("2026-01-31", "2026-01-31"), ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z"),
        ("9" * 18, int("9" * 18)), ("9" * 5000, "9" * 5000), ("<<", "<<"), ("=", "="), ("1.2.3", "1.2.3"),
    ],
)  # fmt: skip
def test_plain_scalars_hold_no_surprise(text: str, value: object) -> None:
    """A plain scalar is what YAML 1.2 says, and a text where YAML 1.1 says otherwise."""
    resolved = resolve(text)
    assert (value, type(value)) == (resolved, type(resolved))


def test_every_node_knows_its_place() -> None:
    """Keys and values have the line and column where they begin, counted from 1."""
    tree = parse(b"# a comment\na: 1\nb:\n  - x\n  - {c: 'two'}\n", file="c.yaml")
    assert isinstance(tree, MappingNode)
    assert "c.yaml:2:1" == str(tree.entries["a"].key_at)
    assert "c.yaml:2:4" == str(tree.entries["a"].value.at)
    assert "c.yaml:4:3" == str(tree.entries["b"].value.at)
    assert {"a": 1, "b": ["x", {"c": "two"}]} == plain(tree)


def test_quoted_scalars_are_texts() -> None:
    """Quotes and block scalars make a text of anything."""
    assert {"a": "true", "b": "12", "c": "null\n", "d": ""} == plain(
        parse(b"a: 'true'\nb: \"12\"\nc: |\n  null\nd: ''\n", file="c.yaml")
    )


def test_a_byte_order_mark_is_ignored() -> None:
    """Editors that write a byte order mark do no harm."""
    assert {"a": 1} == plain(parse(b"\xef\xbb\xbfa: 1\n", file="c.yaml"))


def test_windows_line_ends_are_line_ends() -> None:
    """CR LF counts as one line."""
    tree = parse(b"a: 1\r\nb: 2\r\n", file="c.yaml")
    assert isinstance(tree, MappingNode)
    assert "c.yaml:2:4" == str(tree.entries["b"].value.at)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("", "c.yaml:1:1: expected a mapping of settings, found an empty document"),
        ("# only a comment\n", "c.yaml:1:1: expected a mapping of settings, found an empty document"),
        ("a: 1\n---\nb: 2\n", "c.yaml:2:1: expected one document, found a second one"),
        ("a: 1\na: 2\n", 'c.yaml:2:1: expected each key once, found the key "a" again (first in line 1)'),
        ("a: {b: 1, 'b': 2}\n", 'c.yaml:1:11: expected each key once, found the key "b" again (first in line 1)'),
        ("? [a]\n: 1\n", "c.yaml:1:3: expected a key of plain text, found another value as a key"),
        ("? {a: 1}\n: 1\n", "c.yaml:1:3: expected a key of plain text, found another value as a key"),
        ("? \n: 1\n", "c.yaml:1:2: expected a key of plain text, found another value as a key"),
        ("a: b: c\n", "c.yaml:1:5: expected YAML, found a second colon, or a line that is indented further than its neighbours: a text with a colon needs quotes"),
        ("a:\n\tb: 1\n", "c.yaml:2:1: expected YAML, found a tab: indent with spaces"),
        ("a: @b\n", "c.yaml:1:4: expected YAML, found a character that must stand in quotes"),
        ("a: `b`\n", "c.yaml:1:4: expected YAML, found a character that must stand in quotes"),
        ('a: "\\q"\n', "c.yaml:1:6: expected YAML, found an unknown escape in a double-quoted text: use single quotes"),
        ("a: [b, c\n", "c.yaml:2:1: expected YAML, found a syntax error: expected ',' or ']', but got '<stream end>'"),
        ("a: 'b\n", "c.yaml:2:1: expected YAML, found a syntax error: found unexpected end of stream"),
        ("- a\nb: 1\n", "c.yaml:2:1: expected YAML, found a line that isn't indented as its neighbours are"),
        ("%YAML 2.0\n---\na: 1\n",
         "c.yaml:1:1: expected YAML, found a syntax error: found incompatible YAML document (version 1.* is required)"),
        ("a: \x00b\n", "c.yaml:1:4: expected printable text, found the character U+0000"),
        ("a: 1\nb: \u2028\n", "c.yaml:2:4: expected printable text, found the character U+2028"),
        ("a: \u202eb\n", "c.yaml:1:4: expected printable text, found the character U+202E"),
        ("a: b\x85c: d\n", "c.yaml:1:5: expected printable text, found the character U+0085"),
        ('a: "\\ud800"\n', "c.yaml:1:4: expected a text, found half of a character"),
        (b"a: \xff\n", "c.yaml:1:4: expected text in UTF-8, found bytes that are none"),
        ("a: 1\n".encode("utf-16"), "c.yaml:1:1: expected text in UTF-8, found bytes that are none"),
        (bytes(range(256)), "c.yaml:2:118: expected text in UTF-8, found bytes that are none"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_with_its_place(source: str | bytes, error: str) -> None:
    """Each way to break a file has its own sentence, with line and column."""
    assert [error] == errors_of(source)


@pytest.mark.parametrize(
    ("source", "errors"),
    [
        ("a: !!python/object/apply:os.system [x]\n", ["c.yaml:1:4: expected a value, found a tag: tags are refused"]),
        ("a: !!str 1\n", ["c.yaml:1:4: expected a value, found a tag: tags are refused"]),
        ("a: ! 1\n", ["c.yaml:1:4: expected a value, found a tag: tags are refused"]),
        ("a: !secret 1\n", ["c.yaml:1:4: expected a value, found a tag: tags are refused"]),
        ("a: !hunter!2 1\n", ["c.yaml:1:4: expected YAML, found a tag: tags are refused"]),
        ("!!map {a: 1}\n", ["c.yaml:1:1: expected a value, found a tag: tags are refused"]),
        ("!!str a: 1\n", ["c.yaml:1:1: expected a value, found a tag: tags are refused"]),
        (
            "a: &x [1]\nb: *x\n<<: *x\n",
            [
                "c.yaml:1:4: expected a value, found an anchor: anchors and aliases are refused",
                "c.yaml:2:4: expected a value, found an alias: anchors and aliases are refused",
                "c.yaml:3:5: expected a value, found an alias: anchors and aliases are refused",
            ],
        ),
        ("*x : 1\n", ["c.yaml:1:1: expected a key of plain text, found another value as a key",
                      "c.yaml:1:1: expected a value, found an alias: anchors and aliases are refused"]),
    ],
)  # fmt: skip
def test_cr_05_tags_and_aliases_are_refused(source: str, errors: list[str]) -> None:
    """No tag, anchor or alias is ever acted upon; each is named with its place."""
    assert sorted(errors) == sorted(errors_of(source))


def test_cr_05_a_billion_laughs_are_not_expanded() -> None:
    """The alias bomb is refused by its anchors, without being built."""
    levels = ["l0: &l0 [lol, lol]"] + [f"l{n}: &l{n} [*l{n - 1}, *l{n - 1}]" for n in range(1, 30)]
    errors = errors_of("\n".join(levels))
    assert 30 + 58 == len(errors)


@pytest.mark.parametrize("source", ["[" * 2000, "{a: " * 2000, "- " * 2000, "? " * 2000])
def test_cr_05_depth_is_bounded(source: str) -> None:
    """Deep nesting is refused before it can exhaust the stack."""
    assert ["deeper nesting"] == [error.partition("found ")[2] for error in errors_of(source)]


def test_cr_05_the_number_of_values_is_bounded() -> None:
    """A file of countless tiny values is refused."""
    assert ["c.yaml:1:200000: expected at most 100000 values, found more"] == errors_of(
        "[" + ",".join("1" * 120_000) + "]"
    )


def test_cr_05_the_size_is_bounded() -> None:
    """A huge file is refused before it is parsed."""
    assert ["c.yaml:1:1: expected a file of at most 1MiB, found a larger one"] == errors_of(b"#" * (MAX_BYTES + 1))


def test_an_empty_place_differs_from_a_written_null() -> None:
    """``key:`` and ``key: null`` have the same value and different texts."""
    tree = parse(b"a:\nb: null\n", file="c.yaml")
    assert isinstance(tree, MappingNode)
    empty, written = (tree.entries[key].value for key in "ab")
    assert isinstance(empty, ScalarNode)
    assert isinstance(written, ScalarNode)
    assert ("", "null") == (empty.text, written.text)


YAML_LIKE = st.text(st.sampled_from(list("ab01 \n\t-:?,[]{}#&*!|>'\"%@`~<=.\\\u2028é\x00")), max_size=60)


def problems_of(source: bytes) -> tuple[Problem, ...]:
    try:
        parse(source, file="c.yaml")
    except ConfigErrors as errors:
        return errors.problems
    return ()


@given(
    (YAML_LIKE | st.text(max_size=60)).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=60)
)
def test_any_bytes_are_a_tree_or_refused(source: bytes) -> None:
    """No bytes whatever raise anything but ``ConfigErrors``, and every problem is told in one line."""
    assert all(str(problem).isprintable() for problem in problems_of(source))

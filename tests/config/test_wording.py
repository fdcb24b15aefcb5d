"""How places and values are put into words."""

import pytest

from broker.config.document import parse
from broker.config.wording import KeyPath, describe, key_path, show


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ((), ""),
        (("routes", 2, "headers", "X-User"), "routes[2].headers.X-User"),
        ((0,), "[0]"),
        (("a", "b\nc"), 'a."b\\nc"'),
        (("a\u202eb",), '"a\\u202eb"'),
        (('a"b',), '"a\\"b"'),
    ],
)
def test_a_path_of_keys_is_shown_as_it_is_written(path: KeyPath, shown: str) -> None:
    """Keys are joined by dots, positions stand in brackets, and no key can forge a line."""
    assert shown == show(path)


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("", ()),
        ("a", ("a",)),
        ("timeout.connect", ("timeout", "connect")),
        ("urls[1]", ("urls", 1)),
        ("[3].path", (3, "path")),
    ],
)
def test_the_key_of_an_option_error_is_a_path(key: str, path: KeyPath) -> None:
    """An options class names a key within it, however deep."""
    assert path == key_path(key)


@pytest.mark.parametrize(
    ("text", "shown", "concealed"),
    [
        ("a", 'the text "a"', "a text"),
        ("''", 'the text ""', "a text"),
        ("12", "the number 12", "a number"),
        ("1e3", "the number 1e3", "a number"),
        ("True", "True", "True"),
        ("~", "null", "null"),
        ("[1]", "a list", "a list"),
        ("[]", "an empty list", "an empty list"),
        ("{a: 1}", "a mapping", "a mapping"),
        ("{}", "an empty mapping", "an empty mapping"),
        ("redis://:hunter2@host/0", 'the text "redis://…@host/0"', "a text"),
        ('"a\\nb"', 'the text "a\\nb"', "a text"),
    ],
)
def test_values_are_described(text: str, shown: str, concealed: str) -> None:
    """What was found is told in a few words, and without its value where that may be a secret."""
    node = parse(text.encode(), file="c")
    assert shown == describe(node, conceal=False)
    assert concealed == describe(node, conceal=True)

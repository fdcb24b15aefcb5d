"""JSON from outside."""

import pytest

from broker.core.json_object import at_path, read_object, read_object_forgivingly


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b'"text"',
        b"null",
        b'{"a":1',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":1,"a":2}',
        b'{"b":{"a":1,"a":2}}',
        b'\xff{"a":1}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":' + b"[" * 100_000,
        b"{'a':1}",
    ],
)
def test_anything_but_one_clear_object_is_refused(document: bytes) -> None:
    """No array, scalar, fragment, constant, repeated member, huge number or bottomless nesting is an object."""
    assert read_object(document) is None


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (b'{"a":NaN}', {"a": None}),
        (b'{"a":1,"a":2}', {"a": 2}),
        (b'{"a":' + b"9" * 5000 + b"}", {"a": None}),
        (b'\xef\xbb\xbf{"a":1}', {"a": 1}),
        (b"[]", None),
        (b'{"a":' + b"[" * 100_000, None),
    ],
)
def test_the_forgiving_reader_loses_only_the_member(document: bytes, expected: object) -> None:
    """Where an answer can't be had again, a senseless number costs that number and nothing else."""
    assert expected == read_object_forgivingly(document)


@pytest.mark.parametrize(
    ("path", "expected"), [("a", {"b": 1}), ("a.b", 1), ("a.b.c", None), ("c", None), ("a.c", None), ("", None)]
)
def test_a_path_leads_to_a_member_or_to_nothing(path: str, expected: object) -> None:
    """Dots go down; a missing step is None."""
    assert expected == at_path({"a": {"b": 1}}, path)

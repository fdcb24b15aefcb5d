"""JSON from outside, read so that no document can do more than be refused."""

import json
from typing import NoReturn


def read_object(document: bytes) -> dict[str, object] | None:
    """
    Return the JSON object that *document* is, or None if it is anything else.

    ``NaN`` and ``Infinity`` are no JSON (RFC 8259 section 6), numbers of thousands of digits and bottomless nesting
    are no answer, and of two members of one name nobody knows which is meant: all are refused.
    """
    return _object(document, json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique_members))


def read_object_forgivingly(document: bytes) -> dict[str, object] | None:
    """
    Return the JSON object that *document* is, where throwing it away would lose something that can't be had again.

    Numbers that are none become None, and of two members of one name the last counts.
    """
    return _object(document, json.JSONDecoder(parse_constant=_nothing, parse_int=_bounded_int))


def at_path(document: dict[str, object], path: str) -> object:
    """Return the member of *document* at *path* (``data.token``), or None if there is none."""
    value: object = document
    for name in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def _object(document: bytes, decoder: json.JSONDecoder) -> dict[str, object] | None:
    try:
        value = decoder.decode(document.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _nothing(_constant: str) -> None:
    return None


def _bounded_int(digits: str) -> int | None:
    return int(digits) if len(digits) <= 32 else None


def _unique_members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member occurs twice")
    return members

"""The configuration as a page of Markdown: every key under a heading of its own."""

import json
from collections.abc import Iterator
from typing import assert_never

from broker.config.schema import default_of
from broker.config.settings import Settings
from broker.config.shapes import (
    Anything,
    FileName,
    ListOf,
    MapOf,
    Nullable,
    OneOf,
    OptionField,
    Options,
    OwnForm,
    ScalarOf,
    SecretText,
    Shape,
    fields_of,
)

_INTRODUCTION = """\
# Configuration

<!-- Made by `make docs` from the options classes. Do not edit. -->

The configuration is one YAML file in UTF-8. It is read once, at the start; a file with any mistake is refused as a
whole, and `token-broker check FILE` names every mistake with its line. Unknown and duplicate keys, empty values, empty
lists, tags, anchors and aliases are refused.

- A **duration** is a number and one of `ms`, `s`, `m`, `h`, `d`: `30s`, `1.5h`, `14d`.
- A **size** is a number and one of `B`, `KiB`, `MiB`, `GiB`: `64KiB`.
- A **secret** is `{env: NAME}`, `{file: PATH}` or `{value: TEXT}`. A line break at the end of a file is not part of it.
- A relative **path** of a secret or a certificate begins at the configuration's directory.
- Only `true` and `false` are truth values; `yes`, `no`, `on` and `off` are texts.

Editors complete and check the file by [its JSON Schema](config.schema.json), with this as its first line:
`# yaml-language-server: $schema=config.schema.json`.
"""


def reference() -> str:
    """Return the page."""
    return "\n".join([_INTRODUCTION, *_sections()])


def keys() -> list[str]:
    """Return every key of the configuration, as it is spelled in headings: ``providers.NAME.client_id``."""
    return [path for path, _, _ in _walk(Settings, "")]


def _sections() -> Iterator[str]:
    for path, field, depth in _walk(Settings, ""):
        yield f"{'#' * min(depth + 2, 5)} `{path}`\n"
        yield f"{field.doc}\n"
        yield "".join(f"- {line}\n" for line in _facts(field))


def _facts(field: OptionField) -> Iterator[str]:
    yield f"Value: {_value(field.shape)}"
    default = default_of(field)
    if field.required:
        yield "Required"
    elif default is not None:
        yield f"Default: `{json.dumps(default).replace(chr(34), '')}`"
    if field.example:
        yield f"Example: `{field.key}: {field.example}`"


def _value(shape: Shape) -> str:
    match shape:
        case ScalarOf() | FileName() | OwnForm() | Anything():
            return shape.expected
        case SecretText():
            return "a secret"
        case ListOf(item):
            return f"a list; each item is {_value(item)}"
        case MapOf(value):
            return f"a mapping; each value is {_value(value)}"
        case Options():
            return "a mapping of the keys below"
        case Nullable(inner):
            return _value(inner)
        case OneOf(arms):
            return ", or ".join(map(_value, arms))
        case _:
            assert_never(shape)


def _walk(options: type, prefix: str, depth: int = 0) -> Iterator[tuple[str, OptionField, int]]:
    """Yield each key's path, its field, and how deep it is."""
    for field in fields_of(options).values():
        path = prefix + field.key
        yield path, field, depth
        for inner, suffix in _inner_options(field.shape):
            yield from _walk(inner, f"{path}{suffix}.", depth + 1)


def _inner_options(shape: Shape) -> Iterator[tuple[type, str]]:
    match shape:
        case Options(options):
            yield options, ""
        case ListOf(item):
            yield from ((options, f"[]{suffix}") for options, suffix in _inner_options(item))
        case MapOf(value):
            yield from ((options, f".NAME{suffix}") for options, suffix in _inner_options(value))
        case Nullable(inner):
            yield from _inner_options(inner)
        case OneOf(arms):
            for arm in arms:
                yield from _inner_options(arm)
        case _:
            return

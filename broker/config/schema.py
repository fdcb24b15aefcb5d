"""The configuration as a JSON Schema (draft 2020-12), for editors."""

import json
from typing import assert_never

from broker.config.scalars import Schema
from broker.config.settings import Settings
from broker.config.shapes import (
    Anything,
    Definite,
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

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_text() -> str:
    """Return the schema as JSON, for a file."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def schema() -> Schema:
    """
    Return the schema of the whole configuration.

    It says what types can say. Rules between keys are checked by ``token-broker check`` alone.
    """
    definitions: dict[str, Schema] = {}
    _define(Settings, definitions)
    top = definitions.pop(Settings.__name__)
    return {"$schema": DIALECT, "title": "token-broker", **top, "$defs": dict(sorted(definitions.items()))}


def _define(options: type, definitions: dict[str, Schema]) -> None:
    if options.__name__ in definitions:
        return
    definition: Schema = {"type": "object"}
    definitions[options.__name__] = definition
    fields = fields_of(options).values()
    definition["description"] = first_sentence(options)
    definition["properties"] = {field.key: _property(field, definitions) for field in fields}
    required = [field.key for field in fields if field.required]
    if any(field.key == "preset" for field in fields):
        definition["anyOf"] = [{"required": ["preset"]}, {"required": required}]  # a preset may bring them
    else:
        definition["required"] = required
    definition["additionalProperties"] = False


def first_sentence(documented: type) -> str:
    """Return the first paragraph of a class's documentation, in one line."""
    return " ".join((documented.__doc__ or "").strip().partition("\n\n")[0].split())


def _property(field: OptionField, definitions: dict[str, Schema]) -> Schema:
    schema: Schema = {"description": field.doc, **_schema(field.shape, definitions)}
    default = default_of(field)
    if default is not None:
        schema["default"] = default
    schema["description"] = field.doc
    return schema


def _schema(shape: Shape, definitions: dict[str, Schema]) -> Schema:
    match shape:
        case ScalarOf(kind):
            return kind.schema()
        case SecretText():
            definitions.setdefault("Secret", _SECRET)
            return {"$ref": "#/$defs/Secret"}
        case OwnForm() | FileName() | Anything():
            return shape.schema()
        case ListOf(item):
            return {"type": "array", "items": _schema(item, definitions), "minItems": 1}
        case MapOf(value):
            return {"type": "object", "additionalProperties": _schema(value, definitions)}
        case Options(options):
            _define(options, definitions)
            return {"$ref": f"#/$defs/{options.__name__}"}
        case Nullable(inner):
            return {"anyOf": [_schema(inner, definitions), {"type": "null"}]}
        case OneOf(arms):
            return {"anyOf": [_schema(arm, definitions) for arm in arms]}
        case _:
            assert_never(shape)


_SECRET: Schema = {
    "type": "object",
    "description": "A secret, which stands in an environment variable or a file.",
    "oneOf": [
        {
            "properties": {key: {"type": "string", "minLength": 1, "description": text}},
            "required": [key],
            "additionalProperties": False,
        }
        for key, text in (
            ("env", "The name of an environment variable."),
            ("file", "The path of a file; a relative one begins at the configuration's directory."),
            ("value", "The secret itself. Anybody who reads the configuration knows it then."),
        )
    ],
}


def default_of(field: OptionField) -> object:
    """Return the default of *field* as YAML would have it; None where there is none, or it has no short form."""
    default = None if field.required else _written(field.default, field.shape)
    return None if default in ([], {}) else default


def _written(value: object, shape: Definite | Shape) -> object:
    match shape:
        case ScalarOf(kind) if value is not None:
            return kind.write(value)
        case Nullable(inner):
            return None if value is None else _written(value, inner)
        case ListOf(item) if isinstance(value, tuple):
            return [_written(one, item) for one in value]
        case OwnForm() | FileName() if value is not None:
            return str(value)
        case Options(options) if isinstance(value, options):
            return _written_options(value, options)
        case OneOf(arms):
            return next((str(value) for arm in arms if isinstance(arm, OwnForm) and isinstance(value, arm.type)), None)
        case _:
            return None


def _written_options(value: object, options: type) -> dict[str, object]:
    """Return the keys of *value* that differ from their own defaults, which stand at these keys."""
    fields = fields_of(options).values()
    given = {field.key: (field, getattr(value, field.name)) for field in fields}
    return {
        key: _written(one, field.shape) for key, (field, one) in given.items() if field.required or one != field.default
    }

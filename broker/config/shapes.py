"""
What a YAML value must look like, derived once from the type of an options field.

The binder, the JSON Schema and the reference all read these shapes, so they can't disagree.
``broker.core.options`` says which types an options class may use.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from enum import StrEnum
from functools import cache
from types import MappingProxyType, NoneType, UnionType
from typing import Any, ClassVar, Literal, NewType, Union, get_args, get_origin, get_type_hints

from broker.config.scalars import SIMPLE_TYPES, Choice, Duration, Scalar, Schema, Size, Text
from broker.core.secret import Secret


@dataclass(frozen=True, slots=True)
class ScalarOf:
    """A scalar of one kind."""

    kind: Scalar

    @property
    def expected(self) -> str:
        return self.kind.expected


@dataclass(frozen=True, slots=True)
class SecretText:
    """A secret, which stands elsewhere. Its value is of *type*."""

    type: type[Secret]
    expected: ClassVar[str] = "{env: NAME}, {file: PATH} or {value: TEXT}"


@dataclass(frozen=True, slots=True)
class FileName:
    """The path of a file that must be there; a relative one begins at the configuration's directory."""

    expected: ClassVar[str] = "the path of a file"

    def schema(self) -> Schema:
        return {"type": "string", "minLength": 1}


@dataclass(frozen=True, slots=True)
class OwnForm:
    """A class that reads its plain value itself, by its class method ``from_option``."""

    type: type

    @property
    def expected(self) -> str:
        return str(self.schema().get("description") or f"a {self.type.__name__}")

    def schema(self) -> Schema:
        """Return the JSON Schema that the class states by its ``option_schema``; empty if it doesn't."""
        describe = getattr(self.type, "option_schema", None)
        return dict(describe()) if describe is not None else {}


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list; *collect* makes its value."""

    item: "Shape"
    collect: Callable[[list[Any]], object]

    @property
    def expected(self) -> str:
        return f"a list, each item {self.item.expected}"


@dataclass(frozen=True, slots=True)
class MapOf:
    """A mapping with free keys."""

    value: "Shape"
    expected: ClassVar[str] = "a mapping"


@dataclass(frozen=True, slots=True)
class Options:
    """A mapping whose keys are the fields of an options class; see :func:`fields_of`."""

    type: type
    expected: ClassVar[str] = "a mapping"


@dataclass(frozen=True, slots=True)
class Nullable:
    """A value that may also be ``null``."""

    inner: "Definite"

    @property
    def expected(self) -> str:
        return self.inner.expected


@dataclass(frozen=True, slots=True)
class OneOf:
    """Any of several shapes."""

    arms: tuple["Definite", ...]

    @property
    def expected(self) -> str:
        return " or ".join(arm.expected for arm in self.arms)


@dataclass(frozen=True, slots=True)
class Anything:
    """A plain value of any kind."""

    expected: ClassVar[str] = "a value"

    def schema(self) -> Schema:
        return {}


Definite = ScalarOf | SecretText | FileName | OwnForm | ListOf | MapOf | Options | OneOf | Anything
"""What isn't ``null``."""

Shape = Definite | Nullable
"""What a YAML value must look like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionField:
    """
    A field of an options class, as the YAML has it.

    Attributes:
        name: The dataclass field.
        key: The YAML key.
        shape: What its value must look like.
        required: Whether it must be there.
        default: Its value where it is left out; None also where it is required.
        doc: Its documentation.
        example: A YAML value for the reference; empty for none.
    """

    name: str
    key: str
    shape: Shape
    required: bool
    default: object
    doc: str
    example: str


@cache
def fields_of(options: type) -> Mapping[str, OptionField]:
    """
    Return the fields of an options class by their YAML keys.

    Raises:
        TypeError: If it isn't one, or has a field whose type no YAML value can have.
    """
    hints = get_type_hints(options)
    fields = (
        _option_field(field, hints[field.name]) for field in dataclasses.fields(options) if "doc" in field.metadata
    )
    return {field.key: field for field in fields}


def _option_field(field: "dataclasses.Field[Any]", hint: Any) -> OptionField:
    default: object = None
    if field.default is not MISSING:
        default = field.default
    elif field.default_factory is not MISSING:
        default = field.default_factory()
    key = field.name
    meant: Mapping[type, Definite] = {}
    if field.name.endswith("_seconds"):
        key, meant = field.name.removesuffix("_seconds"), {float: ScalarOf(Duration())}
    elif field.name.endswith("_bytes"):
        key, meant = field.name.removesuffix("_bytes"), {int: ScalarOf(Size())}
    elif field.metadata.get("may_be_empty"):
        meant = {str: ScalarOf(Text(may_be_empty=True))}
    elif field.name.endswith("_file"):
        meant = {str: FileName()}
    return OptionField(
        name=field.name,
        key=field.metadata.get("key", key),
        shape=shape_of(hint, meant),
        required=field.default is MISSING and field.default_factory is MISSING,
        default=default,
        doc=field.metadata["doc"],
        example=field.metadata.get("example", ""),
    )


def shape_of(hint: Any, meant: Mapping[type, Definite] = MappingProxyType({})) -> Shape:
    """
    Return the shape of a type.

    Args:
        hint: The type, as ``typing.get_type_hints`` returns it.
        meant: What its plain types mean, where the field's name says so.

    Raises:
        TypeError: If no YAML value can have the type.
    """
    origin = get_origin(hint)
    if origin in {Union, UnionType}:
        return _union(hint, meant)
    if origin is Literal:
        return ScalarOf(Choice({str(word): word for word in get_args(hint)}))
    if origin in {tuple, frozenset, list}:
        collect: Callable[[list[Any]], object] = frozenset if origin is frozenset else tuple
        return ListOf(shape_of(get_args(hint)[0], meant), collect)
    if origin in {dict, Mapping}:
        return MapOf(shape_of(get_args(hint)[1], meant))
    if isinstance(hint, NewType):
        return shape_of(hint.__supertype__, meant)
    if hint in {Any, object}:
        return Anything()
    if isinstance(hint, type):
        return _class(hint, meant)
    raise TypeError(f"no YAML value can be a {hint!r}")


def _union(hint: Any, meant: Mapping[type, Definite]) -> Shape:
    arms: list[Definite] = []
    for member in get_args(hint):
        if member is not NoneType:
            arm = shape_of(member, meant)
            assert not isinstance(arm, Nullable), "typing flattens unions"
            if arm not in arms:  # both IPv4Network and IPv6Network are a network
                arms.append(arm)
    union = arms[0] if len(arms) == 1 else OneOf(tuple(arms))
    return Nullable(union) if NoneType in get_args(hint) else union


def _class(hint: type, meant: Mapping[type, Definite]) -> Definite:
    if hint in meant:
        return meant[hint]
    if hasattr(hint, "from_option"):
        return OwnForm(hint)
    if issubclass(hint, Secret):
        return SecretText(hint)
    if issubclass(hint, StrEnum):
        return ScalarOf(Choice({member.value: member for member in hint}))
    if dataclasses.is_dataclass(hint):
        return Options(hint)
    if hint in SIMPLE_TYPES:
        return ScalarOf(SIMPLE_TYPES[hint])
    raise TypeError(f"no YAML value can be a {hint.__name__}")


def is_secret(shape: Shape) -> bool:
    """Return whether a value of *shape*, or a value in its place by mistake, may be a secret."""
    match shape:
        case SecretText():
            return True
        case Nullable(inner) | ListOf(inner) | MapOf(inner):
            return is_secret(inner)
        case OneOf(arms):
            return any(map(is_secret, arms))
        case _:
            return False

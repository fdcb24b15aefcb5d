"""From located YAML values to frozen options classes. Every problem is reported with its place; none stops the rest."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, assert_never

from broker.config.document import Entry, ListNode, MappingNode, Node, ScalarNode, plain
from broker.config.problems import Location, Report, quoted
from broker.config.scalars import Text
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
    is_secret,
)
from broker.config.sources import Missing, Obtained, Source
from broker.config.wording import KeyPath, describe, key_path, show
from broker.core.options import OptionError
from broker.core.secret import Secret


class _Refused:
    """The value of what has been reported."""


REFUSED: Final = _Refused()


@dataclass(frozen=True, slots=True)
class Place:
    """
    A value that was met.

    Attributes:
        node: What the file has there.
        shape: What was expected.
        value: What it became; REFUSED if it is reported.
    """

    node: Node
    shape: Shape
    value: object


_SECRET_KEYS: Final = {"env": "the name of an environment variable", "file": "a path", "value": "a text"}
"""Where a secret may stand, and what each place takes."""

Rewrite = Callable[[MappingNode, str, Report], MappingNode]
"""Changes a mapping before an options class reads it (presets): the mapping, its key path, and where to report."""


class Binder:
    """
    Binds one configuration.

    Attributes:
        report: What is wrong and what is noteworthy.
        source: Where secrets and files are looked up.
        places: Every value that was met, by its path.
    """

    def __init__(self, source: Source, rewrites: Mapping[type, Rewrite] | None = None) -> None:
        self.report = Report()
        self.places: dict[KeyPath, Place] = {}
        self.source = source
        self._rewrites = rewrites or {}

    def bind(self, node: Node, shape: Shape, path: KeyPath = ()) -> Any:
        """
        Return the value of *node*, or REFUSED after reporting why it has none.

        A mapping with an unknown key is reported and has a value nevertheless, so that what is wrong with that is
        told, too. Whoever uses the values must look at the report first.
        """
        self.places[path] = Place(node, shape, REFUSED)
        value: object = None
        if not isinstance(node, ScalarNode) or node.value is not None:
            value = self._value(node, shape.inner if isinstance(shape, Nullable) else shape, path)
        elif not (isinstance(shape, Nullable) and node.text):
            # An empty place is refused even where null is taken: a template that filled in nothing must not switch a
            # check off (CVE-2021-21411).
            value = self._refuse(node, shape, path)
        self.places[path] = Place(node, shape, value)
        return value

    def _value(self, node: Node, shape: Definite, path: KeyPath) -> object:
        match shape:
            case ScalarOf():
                return self._scalar(node, shape, path)
            case SecretText():
                return self._secret(node, shape, path)
            case FileName():
                return self._file(node, path)
            case OwnForm():
                return self._own_form(node, shape, path)
            case ListOf():
                return self._list(node, shape, path)
            case MapOf():
                return self._map(node, shape, path)
            case Options():
                return self._options(node, shape, path)
            case OneOf():
                return self._one_of(node, shape, path)
            case Anything():
                return plain(node)
            case _:
                assert_never(shape)

    def refuse(self, path: KeyPath, *, expected: str, found: str = "", hint: str = "") -> None:
        """Report that the value at *path*, or the lack of one, is refused; without *found*, what is there is told."""
        place = self.places.get(path)
        if place is not None:
            there = "a secret" if isinstance(place.value, Secret) else ""
            found = found or there or describe(place.node, conceal=is_secret(place.shape))
        self.report.refuse(
            self.nearest(path), show(path), expected=expected, found=found or "nothing: the key is missing", hint=hint
        )

    def notice(self, path: KeyPath, text: str) -> None:
        """Report that the value at *path* is noteworthy."""
        self.report.notice(self.nearest(path), show(path), text)

    def nearest(self, path: KeyPath) -> Location:
        """Return the place of the value at *path*, or of the innermost value around it."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path].node.at

    def _refuse(self, node: Node, shape: Shape, path: KeyPath, *, expected: str = "") -> _Refused:
        hint = ""
        if isinstance(shape, Nullable) and isinstance(node, ScalarNode) and node.value is None:
            hint = "leave the key out, or say null"
        if (
            isinstance(shape, ScalarOf)
            and isinstance(shape.kind, Text)
            and isinstance(node, ScalarNode)
            and isinstance(node.value, bool | int | float)
        ):
            hint = "put it in quotes"
        found = describe(node, conceal=is_secret(shape))
        self.report.refuse(node.at, show(path), expected=expected or shape.expected, found=found, hint=hint)
        return REFUSED

    def _scalar(self, node: Node, shape: ScalarOf, path: KeyPath) -> object:
        if not isinstance(node, ScalarNode):
            return self._refuse(node, shape, path)
        try:
            return shape.kind.read(node.value)
        except ValueError as error:
            return self._refuse(node, shape, path, expected=str(error))

    def _secret(self, node: Node, shape: SecretText, path: KeyPath) -> object:
        if not isinstance(node, MappingNode) or not node.entries:
            return self._refuse(node, shape, path)
        kind, entry = next(iter(node.entries.items()))
        if len(node.entries) > 1 or kind not in _SECRET_KEYS:
            return self._refuse_secret_keys(node, path)
        text = entry.value.value if isinstance(entry.value, ScalarNode) else None
        if not isinstance(text, str) or not text:
            hint = "put it in quotes" if isinstance(text, bool | int | float) else ""
            found = describe(entry.value, conceal=True)
            key = show((*path, kind))
            self.report.refuse(entry.value.at, key, expected=_SECRET_KEYS[kind], found=found, hint=hint)
            return REFUSED
        match kind:
            case "env":
                obtained = self.source.from_environment(text)
            case "file":
                obtained = self.source.from_file(text)
            case _:
                obtained = Obtained(text, "the secret is written in the configuration itself")
        if isinstance(obtained, Missing):
            self.report.refuse(node.at, show(path), expected=obtained.expected, found=obtained.found)
            return REFUSED
        if obtained.notice:
            self.report.notice(node.at, show(path), obtained.notice)
        return shape.type(obtained.text)

    def _refuse_secret_keys(self, node: MappingNode, path: KeyPath) -> _Refused:
        # The keys aren't shown: in {hunter2} the secret itself is one.
        unknown = [key for key in node.entries if key not in _SECRET_KEYS]
        similar = [close for key in unknown for close in difflib.get_close_matches(key, _SECRET_KEYS, n=1)]
        found = "another key" if len(node.entries) == 1 else f"{len(node.entries)} keys"
        hint = f"did you mean {similar[0]}?" if similar else ""
        self.report.refuse(
            node.at, show(path), expected="exactly one of the keys env, file, value", found=found, hint=hint
        )
        return REFUSED

    def _file(self, node: Node, path: KeyPath) -> object:
        text = self._scalar(node, ScalarOf(Text()), path)
        if not isinstance(text, str):
            return text
        located = self.source.locate(text)
        if isinstance(located, Missing):
            self.report.refuse(node.at, show(path), expected=located.expected, found=located.found)
            return REFUSED
        return located.path

    def _own_form(self, node: Node, shape: OwnForm, path: KeyPath) -> object:
        try:
            return shape.type.from_option(plain(node))  # type: ignore[attr-defined]  # the shape says it has one
        except OptionError as error:
            found = describe(node, conceal=False)
            self.report.refuse(node.at, show((*path, *key_path(error.key))), expected=error.expected, found=found)
            return REFUSED

    def _list(self, node: Node, shape: ListOf, path: KeyPath) -> object:
        if not isinstance(node, ListNode):
            return self._refuse(node, shape, path)
        if not node.items:
            # An allow-list that was emptied by a slip must not pass for one that was never made.
            self.report.refuse(node.at, show(path), expected="at least one item", found="an empty list")
            return REFUSED
        items = [self.bind(item, shape.item, (*path, index)) for index, item in enumerate(node.items)]
        return REFUSED if _any_refused(items) else shape.collect(items)

    def _map(self, node: Node, shape: MapOf, path: KeyPath) -> object:
        if not isinstance(node, MappingNode):
            return self._refuse(node, shape, path)
        values = {key: self.bind(entry.value, shape.value, (*path, key)) for key, entry in node.entries.items()}
        return REFUSED if _any_refused(values.values()) else MappingProxyType(values)

    def _options(self, node: Node, shape: Options, path: KeyPath) -> object:
        if not isinstance(node, MappingNode):
            return self._refuse(node, shape, path)
        problems_before = len(self.report.problems)
        if rewrite := self._rewrites.get(shape.type):
            node = rewrite(node, show(path), self.report)
        is_whole = len(self.report.problems) == problems_before  # what the rewrite would have brought isn't missed
        fields = fields_of(shape.type)
        values: dict[str, object] = {}
        for key, entry in node.entries.items():
            if (field := fields.get(key)) is not None:
                values[field.name] = self.bind(entry.value, field.shape, (*path, key))
                self._notice_switch(field, entry, values[field.name], (*path, key))
            else:
                self._unknown_key(key, entry, fields, path)
        for field in fields.values():
            if field.required and field.key not in node.entries:
                values[field.name] = REFUSED
                expected = field.shape.expected
                key = show((*path, field.key))
                self.report.refuse(node.at, key, expected=expected, found="nothing: the key is missing")
        if not is_whole or _any_refused(values.values()):
            return REFUSED
        return self._construct(shape.type, values, path)

    def _construct(self, options: type, values: Mapping[str, object], path: KeyPath) -> object:
        try:
            return options(**values)
        except OptionError as error:
            found = error.found and f"the name {quoted(error.found)}"
            self.refuse((*path, *key_path(error.key)), expected=error.expected, found=found, hint=error.hint)
            return REFUSED

    def _notice_switch(self, field: OptionField, entry: Entry, value: object, path: KeyPath) -> None:
        if value is True and field.key.startswith("insecure"):
            self.report.notice(entry.key_at, show(path), field.doc)

    def _unknown_key(self, key: str, entry: Entry, fields: Mapping[str, OptionField], path: KeyPath) -> None:
        spellings = {field.name: field.key for field in fields.values()} | {known: known for known in fields}
        similar = difflib.get_close_matches(key, spellings, n=1)
        if similar:
            expected, hint = "a known key", f"did you mean {spellings[similar[0]]}?"
        else:
            expected, hint = "one of the keys " + ", ".join(sorted(fields)), ""
        self.report.refuse(
            entry.key_at, show((*path, key)), expected=expected, found=f"the unknown key {quoted(key)}", hint=hint
        )

    def _one_of(self, node: Node, shape: OneOf, path: KeyPath) -> object:
        trials: list[Binder] = []
        expected = ""
        for arm in shape.arms:
            trial = Binder(self.source, self._rewrites)
            value = trial._value(node, arm, path)
            if not trial.report.problems:
                self._adopt(trial)
                return value
            if _has_kind(node, arm):
                trials.append(trial)
                if isinstance(arm, OwnForm):
                    expected = trial.report.problems[0].expected  # it knows best what is wrong with its text
        if not trials or isinstance(node, ScalarNode):
            return self._refuse(node, shape, path, expected=expected)
        self._adopt(min(trials, key=lambda trial: len(trial.report.problems)))
        return REFUSED

    def _adopt(self, trial: "Binder") -> None:
        self.report.extend(trial.report)
        self.places.update(trial.places)


def _any_refused(values: Iterable[object]) -> bool:
    return any(value is REFUSED for value in values)


def _has_kind(node: Node, shape: Definite) -> bool:
    """Return whether *node* is at least of the kind (scalar, list, mapping) that *shape* wants."""
    match shape:
        case ListOf():
            return isinstance(node, ListNode)
        case MapOf() | Options() | SecretText():
            return isinstance(node, MappingNode)
        case OwnForm() if shape.schema().get("type") == "string":
            return isinstance(node, ScalarNode)
        case OwnForm() | Anything():
            return True
        case _:
            return isinstance(node, ScalarNode)

"""Presets in the configuration: what a product's preset adds to the keys that the operator wrote for a provider."""

from collections.abc import Callable, Mapping

from broker.config.binding import Rewrite
from broker.config.document import Entry, ListNode, MappingNode, Node, ScalarNode, plain
from broker.config.problems import Location, Report
from broker.config.wording import describe
from broker.core.options import OptionError

PresetKeys = Callable[[str, Mapping[str, object]], Mapping[str, object]]
"""
Returns what a preset adds to the keys that are given, both as plain values.

Raises ``OptionError`` if there is no such preset, or if it needs a key that isn't given.
"""


def with_presets(preset_keys: PresetKeys) -> Rewrite:
    """Return what adds the preset that a mapping names. What is added stands where the preset is named."""

    def rewrite(node: MappingNode, path: str, report: Report) -> MappingNode:
        named = node.entries["preset"].value if "preset" in node.entries else None
        if not isinstance(named, ScalarNode) or not isinstance(named.value, str):
            return node
        try:
            return _merged(node, preset_keys(named.value, plain(node)), named.at)
        except OptionError as error:
            wrong = node.entries.get(error.key)
            found = describe(wrong.value, conceal=False) if wrong is not None else "nothing: the key is missing"
            at = wrong.value.at if wrong is not None else named.at
            report.refuse(at, f"{path}.{error.key}", expected=error.expected, found=found, hint=error.hint)
            return node

    return rewrite


def _merged(above: MappingNode, added: Mapping[str, object], at: Location) -> MappingNode:
    """Return *above* with what it lacks of *added*, which stands at *at*."""
    entries = dict(above.entries)
    for key, value in added.items():
        own = entries.get(key)
        if own is None:
            entries[key] = Entry(at, _located(value, at))
        elif isinstance(own.value, MappingNode) and isinstance(value, Mapping):
            entries[key] = Entry(own.key_at, _merged(own.value, value, at))
    return MappingNode(above.at, entries)


def _located(value: object, at: Location) -> Node:
    match value:
        case Mapping():
            return MappingNode(at, {key: Entry(at, _located(one, at)) for key, one in value.items()})
        case list() | tuple():
            return ListNode(at, tuple(_located(one, at) for one in value))
        case bool() | int() | float() | str():
            return ScalarNode(at, value, str(value))
        case _:
            raise TypeError(f"a preset holds a {type(value).__name__}")

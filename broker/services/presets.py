"""
Presets: what is known of a product, as data in ``broker/presets/*.toml``, each fact with its source.

A preset holds keys of a provider as the YAML spells them. Texts may hold ``{base_url}``, ``{realm}`` or ``{tenant}``,
for which the operator's own keys stand, or the preset's. The configuration lays a preset under what the operator wrote.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping
from importlib import resources

from broker.core.options import OptionError

PLACEHOLDERS = ("base_url", "realm", "tenant")
"""What a preset leaves to the operator, as ``{base_url}``; a preset may bring a value of its own for it."""

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_FOLDER = resources.files("broker") / "presets"


def preset_names() -> tuple[str, ...]:
    """Return the names of all presets, sorted."""
    return tuple(sorted(file.name.removesuffix(".toml") for file in _FOLDER.iterdir() if file.name.endswith(".toml")))


def load_preset(name: str) -> Mapping[str, object]:
    """
    Return the keys that the preset *name* says, with placeholders in them.

    Raises:
        OptionError: If there is none of that name.
    """
    names = preset_names()
    if name not in names:  # which also keeps a name from leading out of the folder
        similar = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {similar[0]}?" if similar else ""
        raise OptionError("preset", "one of " + ", ".join(names), hint=hint)
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text("utf-8"))


def preset_keys(name: str, given: Mapping[str, object]) -> Mapping[str, object]:
    """
    Return what the preset *name* adds to the keys *given* for a provider.

    Mappings are merged: what is given within one wins, and the rest of it is added. Of what is given nothing is
    returned.

    Raises:
        OptionError: If there is no such preset, or a placeholder has no value: its key names what is missing.
    """
    preset = load_preset(name)
    return _added(preset, given, {key: given.get(key, preset.get(key)) for key in PLACEHOLDERS})


def _added(
    preset: Mapping[str, object], given: Mapping[str, object], values: Mapping[str, object]
) -> dict[str, object]:
    added: dict[str, object] = {}
    for key, value in preset.items():
        inner = given.get(key)
        if isinstance(value, Mapping) and isinstance(inner, Mapping | None):
            added[key] = _added(value, inner or {}, values)
        elif key not in given:
            added[key] = _filled(value, values)
    return added


def _filled(value: object, values: Mapping[str, object]) -> object:
    if isinstance(value, list):
        return [_filled(item, values) for item in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        filling = values.get(match[1])
        if not isinstance(filling, str) or not filling:
            raise OptionError(match[1], "a value: the preset needs it")
        return filling.rstrip("/")

    return _PLACEHOLDER.sub(fill, value)

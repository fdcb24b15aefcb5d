"""From a file to settings."""

import os
from dataclasses import replace
from pathlib import Path

from broker.config.binding import Binder
from broker.config.checks import cross_check
from broker.config.document import MAX_BYTES, MappingNode, Node, parse, plain
from broker.config.presets import with_presets
from broker.config.problems import ConfigErrors, Location, Problem
from broker.config.settings import Settings
from broker.config.shapes import Options
from broker.config.sources import HostSource, MostlyPretendedSource, Source
from broker.core.provider import ProviderOptions
from broker.services.presets import preset_keys


def load(path: Path, *, source: Source | None = None) -> Settings:
    """
    Read a configuration.

    Args:
        path: The file.
        source: Where secrets and files are looked up; by default on this host.

    Returns:
        The settings; their ``warnings`` say what the operator should know.

    Raises:
        ConfigErrors: With all that is wrong.
    """
    return loads(_read(path), file=str(path), source=source or HostSource(os.environ, path.parent))


def load_for_operator(path: Path) -> Settings:
    """
    Read a configuration for commands that only ask the admin API.

    Of its secrets only ``admin.token`` is looked up. The others, and files, are pretended: an operator's shell needn't
    be trusted with what the broker's own process has.

    Raises:
        ConfigErrors: As :func:`load`.
    """
    tree = parse(_read(path), file=str(path))
    admin = plain(tree).get("admin") if isinstance(tree, MappingNode) else None
    token = admin.get("token") if isinstance(admin, dict) else None
    host = HostSource(os.environ, path.parent)
    return _settings(tree, MostlyPretendedSource(host, token if isinstance(token, dict) else {}))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a path"
        problem = Problem(
            at=Location(str(path), 1, 1), key="", expected="a readable file", found=f"the error: {reason}"
        )
        raise ConfigErrors([problem]) from None


def loads(text: bytes, *, file: str, source: Source) -> Settings:
    """
    Read a configuration from the bytes of a file.

    Args:
        text: YAML in UTF-8.
        file: The name for the messages.
        source: Where secrets and files are looked up.

    Raises:
        ConfigErrors: With all that is wrong.
    """
    return _settings(parse(text, file=file), source)


def _settings(tree: Node, source: Source) -> Settings:
    binder = Binder(source, {ProviderOptions: with_presets(preset_keys)})
    settings = binder.bind(tree, Options(Settings))
    cross_check(binder)
    binder.report.raise_problems()
    assert isinstance(settings, Settings)
    return replace(settings, warnings=tuple(binder.report.notices))

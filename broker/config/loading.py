"""From a file to settings."""

import os
from dataclasses import replace
from pathlib import Path

from broker.config.binding import Binder
from broker.config.checks import cross_check
from broker.config.document import MAX_BYTES, parse
from broker.config.problems import ConfigErrors, Location, Problem
from broker.config.secrets import HostSecrets, SecretSource
from broker.config.settings import Settings
from broker.config.shapes import Options


def load(path: Path, *, secrets: SecretSource | None = None) -> Settings:
    """
    Read a configuration.

    Args:
        path: The file.
        secrets: Where its secrets are looked up; by default in this process's environment and in files, whose relative
            paths begin at the configuration's directory.

    Returns:
        The settings; their ``warnings`` say what the operator should know.

    Raises:
        ConfigErrors: With all that is wrong.
    """
    try:
        with path.open("rb") as file:
            source = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a path"
        problem = Problem(
            at=Location(str(path), 1, 1), key="", expected="a readable file", found=f"the error: {reason}"
        )
        raise ConfigErrors([problem]) from None
    return loads(source, file=str(path), secrets=secrets or HostSecrets(os.environ, path.parent))


def loads(source: bytes, *, file: str, secrets: SecretSource) -> Settings:
    """
    Read a configuration from the bytes of a file.

    Args:
        source: YAML in UTF-8.
        file: The name for the messages.
        secrets: Where its secrets are looked up.

    Raises:
        ConfigErrors: With all that is wrong.
    """
    binder = Binder(secrets)
    settings = binder.bind(parse(source, file=file), Options(Settings))
    cross_check(binder)
    binder.report.raise_problems()
    assert isinstance(settings, Settings)
    return replace(settings, warnings=tuple(binder.report.notices))

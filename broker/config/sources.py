"""
What a configuration refers to outside of itself: environment variables and files.

Secrets stand there, and not in the configuration; so do certificates.
"""

import base64
import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from broker.config.problems import quoted

MAX_BYTES = 1 << 16
"""The largest secret: a PEM bundle of several long keys is far below it."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


@dataclass(frozen=True, slots=True, repr=False)
class Obtained:
    """
    A secret's text.

    Attributes:
        text: The secret itself.
        notice: What the operator should know about where it was; empty for nothing.
    """

    text: str
    notice: str = ""


@dataclass(frozen=True, slots=True)
class Located:
    """A file that is there and readable: its path, from the root or from the working directory."""

    path: str


@dataclass(frozen=True, slots=True)
class Missing:
    """It isn't there: what was expected, and what was found, as phrases."""

    expected: str
    found: str


class Source(Protocol):
    """Where ``{env: NAME}``, ``{file: PATH}`` and the paths of files are looked up. No method raises."""

    @property
    def pretends(self) -> bool:
        """Whether what it returns only stands in for secrets and files, so that their content says nothing."""
        ...

    def from_environment(self, name: str) -> Obtained | Missing:
        """Return the value of an environment variable."""
        ...

    def from_file(self, path: str) -> Obtained | Missing:
        """Return the content of a file, without the line break at its end."""
        ...

    def locate(self, path: str) -> Located | Missing:
        """Return where a file is that a component will read itself."""
        ...


class HostSource:
    """This process's environment, and this host's files; relative paths begin at the configuration's directory."""

    pretends = False

    def __init__(self, environment: Mapping[str, str], directory: Path) -> None:
        self._environment = environment
        self._directory = directory

    def from_environment(self, name: str) -> Obtained | Missing:
        if not _NAME.fullmatch(name):
            # Not shown: whoever writes something else here has probably written the secret itself.
            return Missing("the name of an environment variable", "a text that can't be one")
        text = self._environment.get(name)
        if text is None:
            return Missing(f"the environment variable {name}", "that it isn't set")
        if not text:
            return Missing(f"a secret in the environment variable {name}", "that it is empty")
        return Obtained(text)

    def from_file(self, path: str) -> Obtained | Missing:
        shown = quoted(path)
        try:
            content, mode = _read(self._directory / path)
        except (OSError, ValueError) as error:
            return Missing(f"a readable file {_named(path)}", _reason(error))
        if not stat.S_ISREG(mode):
            return Missing(f"a regular file {shown}", "something else")
        if len(content) > MAX_BYTES:
            return Missing(f"a file {shown} of at most {MAX_BYTES >> 10}KiB", "a larger one")
        try:
            text = content.decode()
        except UnicodeDecodeError:
            return Missing(f"text in UTF-8 in the file {shown}", "bytes that are none")
        text = text.removesuffix("\n").removesuffix("\r")
        if not text:
            return Missing(f"a secret in the file {shown}", "that it is empty")
        readable = mode & stat.S_IROTH
        return Obtained(text, f"the secret file {shown} is readable by every user of this host" if readable else "")

    def locate(self, path: str) -> Located | Missing:
        shown = quoted(path)
        try:
            _read(found := self._directory / path)
        except (OSError, ValueError) as error:
            return Missing(f"a readable file {_named(path)}", _reason(error))
        return Located(str(found)) if found.is_file() else Missing(f"a regular file {shown}", "something else")


def _named(path: str) -> str:
    """Return a file's name as it is told, with where it was looked for."""
    return quoted(path) if path.startswith("/") else f"{quoted(path)} beside the configuration"


def _reason(error: OSError | ValueError) -> str:
    """Return why a file can't be read: no such file, permission denied …; ValueError is a NUL in its name."""
    return f"the error: {error.strerror if isinstance(error, OSError) and error.strerror else 'not a path'}"


def _read(path: Path) -> tuple[bytes, int]:
    """Return the first bytes of a file and its mode; no bytes if it isn't a regular one."""
    # Without O_NONBLOCK, opening a FIFO that nobody writes to would never return.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - of a descriptor
        mode = os.fstat(descriptor).st_mode
        return (file.read(MAX_BYTES + 1) if stat.S_ISREG(mode) else b""), mode


class PretendedSource:
    """
    Stands in for every secret and file, so that a configuration can be checked where these are not.

    A pretended secret has the form of a ring key, and differs for each name and path.
    """

    pretends = True

    def from_environment(self, name: str) -> Obtained | Missing:
        return self._pretend(f"env:{name}")

    def from_file(self, path: str) -> Obtained | Missing:
        return self._pretend(f"file:{path}")

    def locate(self, path: str) -> Located | Missing:
        return Located(path)

    def _pretend(self, origin: str) -> Obtained:
        return Obtained(base64.urlsafe_b64encode(hashlib.sha256(origin.encode()).digest()).decode().rstrip("="))


class MostlyPretendedSource(PretendedSource):
    """Stands in for every secret and file but one, which is looked up."""

    def __init__(self, source: Source, kept: Mapping[str, object]) -> None:
        """
        Args:
            source: Where the one is looked up.
            kept: As the configuration refers to it: ``{"env": NAME}`` or ``{"file": PATH}``.
        """
        self._source = source
        self._kept = kept

    def from_environment(self, name: str) -> Obtained | Missing:
        known = name == self._kept.get("env")
        return self._source.from_environment(name) if known else super().from_environment(name)

    def from_file(self, path: str) -> Obtained | Missing:
        known = path == self._kept.get("file")
        return self._source.from_file(path) if known else super().from_file(path)

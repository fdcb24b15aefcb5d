"""A real control group with little memory, for a process and its children."""

import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from tests.support.ports import free_port

_VERSIONS = {
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "memory.oom_control"),
    "cgroup2": ("memory.max", "memory.current", "inactive_file", "memory.events"),
}


class ControlGroup:
    """
    A group below this process's own, or below the root of its hierarchy. Where none can be made the test is skipped.

    Attributes:
        command: Runs what follows it in the group.
    """

    def __init__(self, limit_bytes: int) -> None:
        """
        Args:
            limit_bytes: The kernel kills what is in the group before it uses more.
        """
        self._limit_bytes = limit_bytes
        self._directory = Path()
        self._usage = self._inactive = self._kills = ""

    def __enter__(self) -> Self:
        faults = []
        for parent, kind in _parents():
            limit, self._usage, self._inactive, self._kills = _VERSIONS[kind]
            self._directory = parent / f"token-broker-test-{os.getpid()}-{free_port()}"
            try:
                self._directory.mkdir()
                (self._directory / limit).write_text(str(self._limit_bytes))
            except OSError as fault:
                faults.append(str(fault))
                with suppress(OSError):
                    self._directory.rmdir()
            else:
                return self
        pytest.skip(f"control groups can only be made by root, where their files can be written: {faults}")

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + 10
        while self._directory.exists():
            try:
                self._directory.rmdir()
            except OSError:  # the kernel takes a moment to see that a process is gone
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    @property
    def command(self) -> tuple[str, ...]:
        return ("/bin/sh", "-c", f'echo $$ > {self._directory}/cgroup.procs && exec "$@"', "sh")

    def used_bytes(self) -> int:
        """What counts against the limit, without the file cache that the kernel takes back first."""
        usage = int((self._directory / self._usage).read_text())
        return usage - self._number("memory.stat", self._inactive)

    def kills(self) -> int:
        """How often the kernel has killed something in the group."""
        return self._number(self._kills, "oom_kill")

    def _number(self, file: str, name: str) -> int:
        found = re.search(rf"^{name} (\d+)$", (self._directory / file).read_text(), re.MULTILINE)
        assert found is not None, (file, name)
        return int(found[1])


def _parents() -> list[tuple[Path, str]]:
    """Where a group may be made, and of which version it is there."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers or "cgroup2"] = path
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mounted, _, system = line.partition(" - ")
        kind, _, options = system.split(" ", 2)
        point = Path(mounted.split(" ")[4])
        if kind == "cgroup" and "memory" in options.split(","):
            path = next((path for names, path in own.items() if "memory" in names.split(",")), "/")
            found += [(point / path.lstrip("/"), kind), (point, kind)]
        elif kind == "cgroup2":
            found += [(point / own.get(kind, "/").lstrip("/"), kind), (point, kind)]
    return found

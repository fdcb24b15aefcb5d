"""
How much memory there is, how much is used, and whether load is shed because of that.

Two limits count, and the nearer one decides:

- **the container's**: ``memory.max`` of the process's control group and of each group above it that can be seen
  (``memory.limit_in_bytes`` by the first version of control groups). Every process of the group counts against it, and
  what is used is what kubelet and ``docker stats`` call the working set: the group's memory without the file cache that
  wasn't used lately, which the kernel takes back before it kills anybody;
- **the configured one**, ``limits.max_memory``, for each process alone: its resident set.

Limits are read anew at each look, since a container's may be changed while it runs. Without one nothing is shed, and it
is seldom looked for one.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (memory) and cgroup-v1/memory.html; proc(5) for ``statm``,
``cgroup`` and ``mountinfo``.
"""

import asyncio
import ctypes
import gc
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from broker.core.pressure import Pressure, pressure_at
from broker.services import metrics

LOOK_SECONDS = 0.25
"""A look takes some ten microseconds for each limit, and a few hundred slow callers fill a tenth of it in a second."""
UNLIMITED_LOOK_SECONDS = 5.0
"""How often it is looked whether there is a limit by now."""
COLLECT_EVERY = 40
"""Of so many times that memory is given back, one looks for cycles, too."""
NO_LIMIT_BYTES = 1 << 60
"""No machine has that much."""
MAX_FILE_BYTES = 64 << 10
PROC = Path("/proc/self")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Shedding:
    """
    What is refused at the moment. Whoever takes something new asks it each time.

    Attributes:
        requests: Whether no further request is forwarded.
        connections: Whether no further connection is taken.
    """

    requests: bool = False
    connections: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """
    One limit, and what of it is used.

    Attributes:
        used_bytes: What is used.
        limit_bytes: The limit.
        source: Who set the limit: a directory of a control group, or a key of the configuration.
    """

    used_bytes: int
    limit_bytes: int
    source: str

    @property
    def share(self) -> float:
        """What is used, as a share of the limit."""
        return self.used_bytes / self.limit_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlGroup:
    """
    A control group whose memory is limited, or may be.

    Attributes:
        directory: Where its files are.
        limit: The name of the file with its limit.
        usage: The name of the file with what it uses.
        inactive: What ``memory.stat`` calls the file cache that wasn't used lately, of the groups below it, too.
    """

    directory: Path
    limit: str
    usage: str
    inactive: str

    def read(self) -> Reading | None:
        """Return its limit and what is used; None if it has none, or that can't be told."""
        try:
            limit = _limit_of(_text_of(self.directory / self.limit).strip())
            if limit is None:
                return None
            usage = int(_text_of(self.directory / self.usage))
            cache = _number_of(self.inactive, _text_of(self.directory / "memory.stat"))
            return Reading(used_bytes=max(usage - cache, 0), limit_bytes=limit, source=str(self.directory))
        except (OSError, ValueError, IndexError):
            return None


def control_groups(proc: Path = PROC) -> Sequence[ControlGroup]:
    """
    Return the control groups that may limit the memory of this process: its own, and those above it.

    Args:
        proc: The directory of the process below /proc.
    """
    try:
        paths = dict(_paths(proc))
        return [group for mount in _mounts(proc) if mount.kind in paths for group in mount.groups(paths[mount.kind])]
    except (OSError, ValueError, IndexError):
        return ()


_FILES = {
    "cgroup2": ("memory.max", "memory.current", "inactive_file"),
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""The names of the files of each version, by what mountinfo calls its file system."""


def _paths(proc: Path) -> Iterator[tuple[str, str]]:
    """Yield the path of the process's group by the version."""
    for line in (proc / "cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            yield "cgroup2", path
        elif "memory" in controllers.split(","):
            yield "cgroup", path


@dataclass(frozen=True, slots=True)
class _Mount:
    kind: str
    root: str
    point: Path

    def groups(self, path: str) -> Iterator[ControlGroup]:
        """Yield the group of a path and those above it, as far as they are below the mount."""
        # A container sees its own group as the root. If it also sees the path that the host uses, the mount says so.
        inside = path == self.root or path.startswith(f"{self.root.rstrip('/')}/")
        below = path.removeprefix(self.root).strip("/") if inside else ""
        directory = self.point / below
        if ".." in directory.parts or not directory.is_dir():
            directory = self.point
        limit, usage, inactive = _FILES[self.kind]
        for each in (directory, *directory.parents):
            if each.is_relative_to(self.point) and (each / limit).exists():
                yield ControlGroup(directory=each, limit=limit, usage=usage, inactive=inactive)


def _mounts(proc: Path) -> Iterator[_Mount]:
    """Yield where control groups for memory are mounted."""
    for line in (proc / "mountinfo").read_text().splitlines():
        mounted, _, system = line.partition(" - ")
        kind, _, options = system.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
            fields = mounted.split(" ")
            yield _Mount(kind, fields[3], Path(fields[4]))


def resident_bytes(proc: Path = PROC) -> int | None:
    """Return the resident set of a process in bytes; None if that can't be told."""
    try:
        return int(_text_of(proc / "statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _text_of(path: Path) -> str:
    """Read a small file of the kernel's, in three calls in place of the nine of ``Path.read_text``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, MAX_FILE_BYTES).decode("ascii")
    finally:
        os.close(descriptor)


def _limit_of(text: str) -> int | None:
    """Return a limit in bytes; None for none, which the first version calls by the highest number of pages."""
    limit = NO_LIMIT_BYTES if text == "max" else int(text)
    return max(limit, 1) if limit < NO_LIMIT_BYTES else None


def _number_of(name: str, table: str) -> int:
    """Return a number of ``memory.stat``; 0 if it isn't there."""
    return next((int(line.split()[1]) for line in table.splitlines() if line.startswith(f"{name} ")), 0)


class MemoryWatch:
    """Looks again and again how near the limit is, and says what is refused."""

    def __init__(
        self,
        shedding: Shedding,
        *,
        max_bytes: int | None = None,
        groups: Iterable[ControlGroup] = (),
        resident: Callable[[], int | None] = resident_bytes,
        give_back: Callable[[], None] | None = None,
    ) -> None:
        """
        Args:
            shedding: What it switches.
            max_bytes: The configured limit of this process; None for none.
            groups: The control groups that may limit it.
            resident: Tells the memory of this process in bytes.
            give_back: Returns to the system what this process doesn't need; None for the allocator's way.
        """
        self._shedding = shedding
        self._max_bytes = max_bytes
        self._groups = list(groups)
        self._resident = resident
        self._give_back = give_back or GiveBack()
        self._pressure = Pressure.NONE

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            is_limited = self.look()
            await asyncio.sleep(LOOK_SECONDS if is_limited else UNLIMITED_LOOK_SECONDS)

    def look(self) -> bool:
        """
        Read the limits, and act on it. Nothing is refused for the sake of memory that is free already.

        Returns:
            Whether there is a limit.
        """
        nearest = self._nearest()
        if self._judge(nearest) > Pressure.NONE:
            self._give_back()
            nearest = self._nearest()
        before, self._pressure = self._pressure, self._judge(nearest)
        self._shedding.requests = self._pressure >= Pressure.HIGH
        self._shedding.connections = self._pressure >= Pressure.CRITICAL
        metrics.MEMORY_USED_RATIO.set(_share_of(nearest))
        metrics.LOAD_SHEDDING.set(self._pressure)
        if self._pressure != before:
            event = "load_is_shed" if self._shedding.requests else "load_is_taken_again"
            log.warning(event, extra={"pressure": self._pressure.name.lower(), **_described(nearest)})
        return nearest is not None

    def _judge(self, nearest: Reading | None) -> Pressure:
        return pressure_at(_share_of(nearest), before=self._pressure)

    def _nearest(self) -> Reading | None:
        return max(self._readings(), key=_share_of, default=None)

    def _readings(self) -> Iterator[Reading]:
        for group in self._groups:
            if (reading := group.read()) is not None:
                yield reading
        if self._max_bytes is not None and (used := self._resident()) is not None:
            yield Reading(used_bytes=used, limit_bytes=self._max_bytes, source="limits.max_memory")


def _share_of(reading: Reading | None) -> float:
    return 0.0 if reading is None else reading.share


def _described(reading: Reading | None) -> dict[str, object]:
    if reading is None:  # the limit was lifted
        return {}
    return {"used_bytes": reading.used_bytes, "limit_bytes": reading.limit_bytes, "limit": reading.source}


class GiveBack:
    """
    Returns to the system what this process doesn't need.

    glibc keeps what is freed below its last block in use: after a crowd of slow readers had gone, a process stayed at
    its peak of 155 MiB for good, and with ``malloc_trim`` it was back at 61 MiB within 4 ms. So without it load would
    be shed for ever. Other allocators return pages by themselves.
    """

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._calls = 0

    def __call__(self) -> None:
        # Cycles are collected by how much is allocated, and now that is little. It takes longer than the rest.
        if self._calls % COLLECT_EVERY == 0:
            gc.collect()
        self._calls += 1
        if self._trim is not None:
            self._trim(0)

"""Limits of memory as systems state them, and what is switched near them. The files are a directory of the test's."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.services import memory, metrics
from broker.services.memory import GiveBack, MemoryWatch, Shedding, control_groups, resident_bytes
from tests.support.waiting import until

MIB = 1 << 20
NO_LIMIT_V1 = 9223372036854771712


class System:
    """What a process sees of its control groups below /proc and /sys."""

    def __init__(self, directory: Path) -> None:
        self.proc = directory / "proc"
        self.proc.mkdir()
        self._sys = directory / "sys"
        self._mounts: list[str] = ["23 1 8:1 / / rw,relatime - ext4 /dev/vda rw"]
        self._paths: list[str] = []

    def mount(self, version: int, path: str, *, root: str = "/") -> None:
        """The process is in the group *path*; the mount's own directory is the group *root*."""
        kind, options, at = ("cgroup2", "rw", "unified") if version == 2 else ("cgroup", "rw,memory", "memory")
        self._mounts.append(f"31 23 0:28 {root} {self._sys / at} rw,relatime shared:9 - {kind} {kind} {options}")
        self._paths.append(f"0::{path}" if version == 2 else f"4:cpu,memory:{path}")
        (self._sys / at).mkdir(parents=True, exist_ok=True)
        (self.proc / "mountinfo").write_text("\n".join(self._mounts) + "\n")
        (self.proc / "cgroup").write_text("\n".join(["9:name=systemd:/", *self._paths]) + "\n")

    def v2(self, path: str, *, limit: int | str | None, used: int = 0, inactive: int = 0) -> Path:
        """Write the files of a group. A root of the whole machine has no limit at all."""
        directory = self._sys / "unified" / path
        directory.mkdir(parents=True, exist_ok=True)
        if limit is not None:
            (directory / "memory.max").write_text(f"{limit}\n")
        (directory / "memory.current").write_text(f"{used}\n")
        (directory / "memory.stat").write_text(f"anon 1\nfile 2\nactive_file 7\ninactive_file {inactive}\n")
        return directory

    def v1(self, path: str, *, limit: int, used: int = 0, inactive: int = 0) -> Path:
        directory = self._sys / "memory" / path
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (directory / "memory.usage_in_bytes").write_text(f"{used}\n")
        (directory / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {inactive}\n")
        return directory

    def shares(self) -> list[float]:
        """What is used of each limit that is found, from the process's own group upwards."""
        readings = [group.read() for group in control_groups(self.proc)]
        return [reading.share for reading in readings if reading is not None]


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


@pytest.fixture(autouse=True)
def gauges() -> Iterator[None]:
    """The gauges are the process's; nobody after these tests shall find them high."""
    yield
    metrics.LOAD_SHEDDING.set(0)
    metrics.MEMORY_USED_RATIO.set(0)


# --- limits


def test_a_container_sees_its_own_group_as_the_root(system: System) -> None:
    """That is what Docker and Kubernetes show; the cache that wasn't used lately isn't counted."""
    system.mount(2, "/")
    system.v2("", limit=100 * MIB, used=90 * MIB, inactive=30 * MIB)

    assert [0.6] == system.shares()


def test_the_first_version_of_control_groups(system: System) -> None:
    """Its files have other names, and the cache of the groups below counts, too."""
    system.mount(1, "/")
    system.v1("", limit=200 * MIB, used=90 * MIB, inactive=10 * MIB)

    assert [0.4] == system.shares()


def test_a_container_that_sees_the_paths_of_its_host(system: System) -> None:
    """The mount's own directory is the group that the path names."""
    system.mount(1, "/docker/0123", root="/docker/0123")
    system.v1("", limit=200 * MIB, used=100 * MIB)

    assert [0.5] == system.shares()


def test_groups_above_count_too(system: System) -> None:
    """Each by its own limit and its own use: neighbours fill the one above, as the other containers of a pod do."""
    system.mount(2, "/kube/pod/broker")
    system.v2("kube/pod/broker", limit=100 * MIB, used=20 * MIB)
    system.v2("kube/pod", limit=200 * MIB, used=180 * MIB)
    system.v2("kube", limit="max", used=900 * MIB)
    system.v2("", limit=None, used=999 * MIB)

    assert [0.2, 0.9] == system.shares()


def test_both_versions_at_once(system: System) -> None:
    """On a hybrid system memory belongs to one of them. Its highest number means that there is no limit."""
    system.mount(1, "/app")
    system.mount(2, "/app")
    system.v1("app", limit=200 * MIB, used=100 * MIB)
    system.v1("", limit=NO_LIMIT_V1, used=999 * MIB)

    assert [0.5] == system.shares()


def test_a_process_outside_of_what_is_mounted(system: System) -> None:
    """The group that is mounted is the nearest one that can be read."""
    system.mount(2, "/../../elsewhere")
    system.v2("", limit=100 * MIB, used=50 * MIB)

    assert [0.5] == system.shares()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("memory.max", "max\n"),
        ("memory.max", "much\n"),
        ("memory.max", ""),
        ("memory.current", ""),
        ("memory.current", None),
        ("memory.stat", None),
        ("memory.stat", "inactive_file x\n"),
        ("memory.stat", "inactive_file \n"),
    ],
)
def test_what_cant_be_read_limits_nothing(system: System, file: str, text: str | None) -> None:
    """A kernel that says something else is no reason to refuse anybody."""
    system.mount(2, "/")
    directory = system.v2("", limit=100, used=100)
    assert [1.0] == system.shares()
    if text is None:
        (directory / file).unlink()
    else:
        (directory / file).write_text(text)

    assert [] == system.shares()


def test_no_cache_is_told_of(system: System) -> None:
    """Then all that is used counts."""
    system.mount(2, "/")
    (system.v2("", limit=100, used=50) / "memory.stat").write_text("anon 50\n")

    assert [0.5] == system.shares()


def test_a_group_with_no_limit_at_all(system: System) -> None:
    """A limit of nothing is a limit that is exceeded, and no division by it."""
    system.mount(2, "/")
    system.v2("", limit=0, used=50)

    assert [50.0] == system.shares()


@pytest.mark.parametrize("missing", ["cgroup", "mountinfo"])
def test_systems_without_control_groups(system: System, missing: str) -> None:
    """There is no limit to be found."""
    system.mount(2, "/")
    system.v2("", limit=100, used=100)
    (system.proc / missing).unlink()

    assert [] == system.shares()


@pytest.mark.parametrize(
    ("file", "text"), [("cgroup", "what is this\n"), ("mountinfo", "31 23 - cgroup2 cgroup2 rw\n")]
)
def test_strange_files_of_a_process(system: System, file: str, text: str) -> None:
    """There is no limit to be found in them."""
    system.mount(2, "/")
    system.v2("", limit=100, used=100)
    (system.proc / file).write_text(text)

    assert [] == system.shares()


def test_the_resident_set_of_this_process() -> None:
    """It is some MiB; of a process that can't be asked it is unknown."""
    used = resident_bytes()
    assert used is not None
    assert 8 * MIB < used < 4096 * MIB
    assert resident_bytes(Path("/nowhere")) is None


def test_a_resident_set_in_pages(tmp_path: Path) -> None:
    """The second number of statm counts pages; an empty file tells nothing."""
    (tmp_path / "statm").write_text("9 3 2 1 0 1 0\n")
    first = resident_bytes(tmp_path)
    (tmp_path / "statm").write_text("")

    assert first is not None
    assert first % 3 == 0
    assert first >= 3 * 4096
    assert resident_bytes(tmp_path) is None


# --- what is switched


class Process:
    """A process whose memory a test sets."""

    def __init__(self, **options: object) -> None:
        self.used: int | None = 0
        self.spare = 0
        self.given_back = 0
        self.shedding = Shedding()
        self.watch = MemoryWatch(
            self.shedding,
            resident=lambda: self.used,
            give_back=self._give_back,
            **{"max_bytes": 1000, **options},  # type: ignore[arg-type]
        )

    def _give_back(self) -> None:
        self.given_back += 1
        self.used = (self.used or 0) - self.spare
        self.spare = 0

    def look(self, used: int | None = None) -> tuple[bool, bool]:
        if used is not None:
            self.used = used
        self.watch.look()
        return self.shedding.requests, self.shedding.connections


def gauge(name: str) -> float:
    lines = metrics.exposition().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def test_ft_22_load_is_shed_near_the_limit_and_taken_again_below_it(caplog: pytest.LogCaptureFixture) -> None:
    """Requests first, then connections; each change is one warning, and what goes on is none."""
    process = Process()
    with caplog.at_level(logging.INFO):
        switched = [process.look(used) for used in (500, 899, 900, 920, 950, 999, 900, 899, 850, 849, 899)]
    lines = [
        (record.getMessage(), record.__dict__["pressure"], record.__dict__["used_bytes"]) for record in caplog.records
    ]

    assert [
        (False, False),
        (False, False),
        (True, False),
        (True, False),
        (True, True),
        (True, True),
        (True, True),
        (True, False),
        (True, False),
        (False, False),
        (False, False),
    ] == switched
    assert [
        ("load_is_shed", "high", 900),
        ("load_is_shed", "critical", 950),
        ("load_is_shed", "high", 899),
        ("load_is_taken_again", "none", 849),
    ] == lines
    assert {1000} == {record.__dict__["limit_bytes"] for record in caplog.records}
    assert {"limits.max_memory"} == {record.__dict__["limit"] for record in caplog.records}
    assert {logging.WARNING} == {record.levelno for record in caplog.records}


def test_ft_22_gauges_say_how_near_it_is() -> None:
    """For an alarm before the first refusal, and one while there are some."""
    process = Process()
    process.look(700)
    before = gauge("memory_used_ratio"), gauge("load_shedding")
    process.look(960)

    assert (0.7, 0.0) == before
    assert (0.96, 2.0) == (gauge("memory_used_ratio"), gauge("load_shedding"))
    assert 2.0 == metrics.highest(metrics.LOAD_SHEDDING)


def test_nothing_is_refused_for_memory_that_is_free() -> None:
    """It is given back first, and what is left decides."""
    process = Process()
    process.spare = 200

    assert (False, False) == process.look(990)
    assert 1 == process.given_back
    assert (True, False) == process.look(920)


def test_memory_is_given_back_as_long_as_load_is_shed() -> None:
    """What was held comes free bit by bit; away from the limit nobody spends time on it."""
    process = Process()
    for used in (100, 920, 910, 890, 840, 830):
        process.look(used)

    assert 3 == process.given_back


def test_the_nearer_limit_decides(system: System) -> None:
    """A limit of the container counts beside the configured one, and may change meanwhile."""
    system.mount(2, "/")
    directory = system.v2("", limit=100, used=50)
    process = Process(groups=control_groups(system.proc))

    assert (False, False) == process.look(500)
    assert (True, False) == process.look(910)
    assert (False, False) == process.look(500)
    (directory / "memory.max").write_text("52\n")
    assert (True, True) == process.look(500)
    (directory / "memory.max").write_text("max\n")
    assert (False, False) == process.look(500)


def test_without_a_limit_nothing_is_shed(caplog: pytest.LogCaptureFixture) -> None:
    """Nor where the memory in use can't be told; a limit that is lifted ends it."""
    unlimited, unknown = Process(max_bytes=None), Process()
    unknown.look(990)
    unknown.used = None

    assert (False, False) == unlimited.look(1 << 50)
    assert (False, False) == unknown.look()
    assert ["load_is_shed", "load_is_taken_again"] == [record.getMessage() for record in caplog.records]


async def test_a_process_without_a_limit_is_seldom_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """But a limit that comes while it runs is seen."""
    monkeypatch.setattr(memory, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(memory, "UNLIMITED_LOOK_SECONDS", 0.02)
    looks: list[bool] = []

    class Counting(MemoryWatch):
        def look(self) -> bool:
            looks.append(super().look())
            return looks[-1]

    shedding = Shedding()
    watch = Counting(shedding, resident=lambda: 990, give_back=lambda: None)
    running = asyncio.create_task(watch.run())
    await asyncio.sleep(0.1)
    assert 0 < len(looks) <= 6
    watch._max_bytes = 1000
    await until(lambda: shedding.requests)
    await until(lambda: looks.count(True) > 20)
    running.cancel()


def test_giving_back_harms_nothing() -> None:
    """However often it is done."""
    give_back = GiveBack()
    before = resident_bytes()
    for _ in range(12):
        give_back()
    after = resident_bytes()

    assert before is not None
    assert after is not None
    assert after < before + MIB

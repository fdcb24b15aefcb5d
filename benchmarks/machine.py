"""Processes on cores of their own, and what they cost: on-CPU time, memory, answers of wrk."""

import os
import platform
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data_plane import HOST, descendants

PROXY_CORE, LOAD_CORE = "0", "1"
WAKE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of wrk saw."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


@contextmanager
def started(arguments: Sequence[str], *, core: str, port: int, log: Path) -> Iterator[int]:
    """
    Run a program on *core* until it listens on *port*, and stop it by its own pid at the end.

    A port that is served already would spoil the figures, since SO_REUSEPORT shares it.
    """
    with socket.socket() as probe:
        assert probe.connect_ex((HOST, port)), f"port {port} is served already"
    with log.open("ab") as output:
        # The authorization server of the tests ends with its standard input, so there is one.
        running = subprocess.Popen(
            ["taskset", "-c", core, *arguments], stdin=subprocess.PIPE, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 20
        while not _listens(port):
            assert running.poll() is None, f"{arguments[0]} did not start:\n{log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"{arguments[0]} doesn't listen:\n{log.read_text()[-2000:]}"
            time.sleep(0.05)
        yield running.pid
    finally:
        running.send_signal(signal.SIGTERM)
        try:
            running.wait(15)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


@contextmanager
def asleep(pids: Sequence[int]) -> Iterator[None]:
    """Stop processes and their descendants: a process with nothing to do wakes up for its timers, on the core of others."""
    _signal(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(pids, signal.SIGCONT)


@contextmanager
def awake(pids: Sequence[int]) -> Iterator[None]:
    """Let processes that are asleep do what is measured, once they have done what has become due meanwhile."""
    _signal(pids, signal.SIGCONT)
    time.sleep(WAKE_SECONDS)
    try:
        yield
    finally:
        _signal(pids, signal.SIGSTOP)


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        for each in (pid, *descendants(pid)):
            os.kill(each, number)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


_USERS = """
local cookies = {%s}
local number = 0
function setup(thread)
  number = number %% #cookies + 1
  thread:set("cookie", cookies[number])
end
function init(args) wrk.headers["Cookie"] = cookie end
"""
"""Each thread of wrk is a user. In one thread wrk can't tell its connections apart."""


def wrk(
    port: int,
    path: str,
    fields: Sequence[str],
    *,
    seconds: int,
    connections: int,
    script: str = "",
    cookies: Sequence[str] = (),
) -> Load:
    """
    Load one path from the other core. Any answer but 2xx, and any broken connection, fails.

    Args:
        port: Where.
        path: Which path.
        fields: What each request carries.
        seconds: For how long.
        connections: On how many connections at once.
        script: What makes the requests more than a GET, in Lua.
        cookies: Of several users, each with connections of its own, in place of the one among *fields*.
    """
    headers = [argument for line in fields for argument in ("-H", line)]
    threads = max(1, min(len(cookies), connections))
    command = ["taskset", "-c", LOAD_CORE, "wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--latency"]
    if cookies:
        script += _USERS % ", ".join(f'"{each}"' for each in cookies)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        scripted = ["-s", file.name] if script else []
        arguments = [*command, *scripted, *headers, f"http://{HOST}:{port}{path}"]
        report = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in report, report
    assert "Socket errors" not in report, report
    done = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m)", report)
    assert done is not None, report
    took = float(done[2]) * {"ms": 1e-3, "s": 1.0, "m": 60.0}[done[3]]
    return Load(int(done[1]), took, _percentile(report, "50"), _percentile(report, "99"))


def _percentile(report: str, which: str) -> float:
    found = re.search(rf"\b{which}%\s+([\d.]+)(us|ms|s)\b", report)
    assert found is not None, report
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]]


def memory_kib(pid: int) -> int:
    """The proportional memory of a process and its descendants: pages that they share count once."""
    total = 0
    for each in [pid, *descendants(pid)]:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{each}/smaps_rollup").read_text(), re.MULTILINE)
        total += int(found[1]) if found else 0
    return total


def description() -> str:
    """The machine, in one line."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    cores = len(re.findall(r"^processor", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    system = re.search(r'^PRETTY_NAME="(.+)"$', Path("/etc/os-release").read_text(), re.MULTILINE)
    return (
        f"{cores} x {cpu[1] if cpu else 'unknown CPU'}, {system[1] if system else platform.system()}, "
        f"Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}"
    )

"""
Several processes on one port.

    supervisor ─┬─ worker 0 ─ its own listening socket (SO_REUSEPORT)
                ├─ worker 1 ─ …
                └─ admin    ─ health, and the metrics of all

The supervisor reads the configuration once, opens the sockets, forks, and then only waits: it runs no event loop and no
thread, so it can fork again at any time. A worker that dies is started again on its own socket; connections that came
meanwhile wait in its backlog.
"""

import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

RESTART_SECONDS = 1.0
"""A process that dies again and again is started at most this often."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger(__name__)

Process = Callable[[], int]
"""What a forked process runs; returns its exit code."""


def listening_sockets(host: str, port: int, count: int) -> list[socket.socket]:
    """
    Open *count* sockets on one address.

    Raises:
        OSError: If the address can't be bound.
    """
    opened: list[socket.socket] = []
    for _ in range(count):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if count > 1:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((host, opened[0].getsockname()[1] if opened else port))
        listening.listen(1024)
        listening.setblocking(False)
        opened.append(listening)
    return opened


class Supervisor:
    """Keeps processes running until it is told to stop."""

    def __init__(self, processes: list[Process]) -> None:
        self._processes = processes
        self._running: dict[int, tuple[int, float]] = {}
        self._stopping = False
        self._failed = False

    def run(self) -> int:
        """Run until SIGTERM or SIGINT, then until every process has ended. Returns the exit code."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._stop)
        for index in range(len(self._processes)):
            self._start(index)
        while self._running:
            pid, status = os.wait()
            index, started_at = self._running.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            if not self._stopping:
                log.error("process_died", extra={"index": index, "exit_code": code})
                time.sleep(max(0.0, RESTART_SECONDS - (time.monotonic() - started_at)))
            if not self._stopping:
                self._start(index)
            elif code:
                self._failed = True
        return int(self._failed)

    def _start(self, index: int) -> None:
        pid = os.fork()
        if pid:
            self._running[pid] = (index, time.monotonic())
            if self._stopping:  # the signal came while this one was being started
                os.kill(pid, signal.SIGTERM)
            return
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        code = 1
        try:
            code = self._processes[index]()
        finally:
            os._exit(code)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self._stopping = True
        for pid in self._running:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


@contextmanager
def shared_metrics() -> Iterator[None]:
    """
    Let every process that is forked inside add to the same metrics.

    prometheus_client reads the variable once, when it is imported, so this comes first.
    """
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="token-broker-metrics-") as directory:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
        yield

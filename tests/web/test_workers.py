import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from broker.web.workers import listening_sockets

SCRIPT = r"""
import os, signal, sys, time
from broker.web import workers

workers.RESTART_SECONDS = 0.05

def worker() -> int:
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
    os.write(1, b"up %d\n" % os.getpid())  # in one piece: both workers write to one pipe
    while not ended:
        time.sleep(0.01)
    return int(sys.argv[1])

sys.exit(workers.Supervisor([worker, worker]).run())
"""


@contextmanager
def started(exit_code: int = 0) -> Iterator[tuple["subprocess.Popen[str]", list[int]]]:
    command = [sys.executable, "-c", SCRIPT, str(exit_code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, [pid_of(process) for _ in range(2)]
        finally:
            process.send_signal(signal.SIGTERM)


def pid_of(process: "subprocess.Popen[str]") -> int:
    assert process.stdout is not None
    return int(process.stdout.readline().split()[1])


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_stop_signal_ends_every_process_cleanly() -> None:
    """SIGTERM reaches all workers, and the exit code says that they ended well."""
    with started() as (process, pids):
        process.send_signal(signal.SIGTERM)

        assert 0 == process.wait(10)
    assert all(is_gone(pid) for pid in pids)


def test_a_worker_that_ends_badly_at_the_stop_is_told() -> None:
    """The exit code is 1 if a worker's wasn't 0."""
    with started(exit_code=3) as (process, _):
        process.send_signal(signal.SIGTERM)

        assert 1 == process.wait(10)


def test_ft_24_a_worker_that_dies_is_started_again() -> None:
    """The others go on."""
    with started() as (process, (first, second)):
        os.kill(first, signal.SIGKILL)
        restarted = pid_of(process)

        assert restarted not in {first, second}
        assert not is_gone(second)
        process.send_signal(signal.SIGTERM)
        assert 0 == process.wait(10)
    assert eventually(lambda: is_gone(restarted))


def test_the_sockets_of_the_workers_share_one_port() -> None:
    """Port 0 is drawn once."""
    sockets = listening_sockets("127.0.0.1", 0, 3)
    try:
        assert 1 == len({each.getsockname() for each in sockets})
        with socket.create_connection(sockets[0].getsockname()):
            pass
    finally:
        for each in sockets:
            each.close()

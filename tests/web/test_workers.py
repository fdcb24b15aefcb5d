import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

SCRIPT = r"""
import os, signal, sys, time
from broker.web import workers

os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # as asyncio does since Python 3.12
workers.RESTART_SECONDS = 0.05
workers.START_SECONDS = 0.5
CODE, *PLANS = sys.argv[1:]  # each plan is a word for each of its processes

def say(*words) -> None:
    os.write(1, b"%s\n" % " ".join(map(str, words)).encode())  # in one piece: all processes write to one pipe

def process(word, ready) -> int:
    ended = []
    for number in (signal.SIGTERM, workers.GENTLY):
        signal.signal(number, lambda number, _: ended.append(number))
    if word == "dies":
        return 7
    if word != "hangs":
        ready()
    say("up", os.getpid(), word)
    while not ended and word != "stays":
        time.sleep(0.01)
    if word == "stays":
        time.sleep(60)
    say("end", os.getpid(), word, signal.Signals(ended[0]).name)
    return int(CODE)

def plan(words):
    return workers.Plan(
        processes=[lambda ready, word=word: process(word, ready) for word in words.split()],
        adopted=lambda: say("adopted", words),
        dropped=lambda: say("dropped", words),
    )

def renew():
    words = PLANS.pop(0) if PLANS else ""
    return plan(words) if words else say("refused")

workers.OVERDUE_SECONDS = 1.5
sys.exit(workers.Supervisor(plan(PLANS.pop(0)), renew=renew).run())
"""


@contextmanager
def started(*plans: str, exit_code: int = 0) -> Iterator[tuple["subprocess.Popen[str]", list[int]]]:
    command = [sys.executable, "-c", SCRIPT, str(exit_code), *(plans or ["a b"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, [pid_of(process) for _ in range(2)]
        finally:
            process.send_signal(signal.SIGTERM)


def line_of(process: "subprocess.Popen[str]") -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def pid_of(process: "subprocess.Popen[str]") -> int:
    return int(line_of(process)[1])


def heard_until(process: "subprocess.Popen[str]", last: list[str]) -> list[list[str]]:
    """Return the next lines, up to *last*."""
    lines = heard(process, 1)
    while lines[-1] != last:
        lines += heard(process, 1)
    return lines


def heard(process: "subprocess.Popen[str]", count: int) -> list[list[str]]:
    """Return the next lines, in any order, without process ids."""
    lines = [line_of(process) for _ in range(count)]
    return sorted([words[0], *words[2:]] if words[0] in {"up", "end"} else words for words in lines)


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


def test_a_stop_signal_at_any_moment_of_the_start_ends_it() -> None:
    """A signal that meets a process between its fork and its own handlers isn't lost."""
    for milliseconds in range(60):
        with subprocess.Popen([sys.executable, "-c", SCRIPT, "0", "a b c d"], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.read(1)  # the first of them is up
            time.sleep(milliseconds / 10_000)
            process.send_signal(signal.SIGTERM)

            assert process.wait(20) in {0, -signal.SIGTERM}


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


def test_a_start_that_comes_to_nothing_ends() -> None:
    """A process that dies before it serves is not tried again for ever: the start is refused, and the others end."""
    with started("a b dies") as (process, _):
        assert 1 == process.wait(10)


def test_a_reload_replaces_the_processes_once_the_new_ones_serve() -> None:
    """The old ones are told gently, after the new ones serve; there may be more or fewer of them than before."""
    with started("a b", "c") as (process, _):
        process.send_signal(signal.SIGHUP)

        before = heard_until(process, ["adopted", "c"])
        lines = sorted([*before, *heard(process, 4 - len(before))])

        assert [] == [words for words in before if words[0] == "end"]
        assert [["adopted", "c"], ["end", "a", "SIGQUIT"], ["end", "b", "SIGQUIT"], ["up", "c"]] == lines
        process.send_signal(signal.SIGTERM)
        assert [["end", "c", "SIGTERM"]] == heard(process, 1)
        assert 0 == process.wait(10)


@pytest.mark.parametrize("word", ["dies", "hangs"])
def test_a_reload_that_comes_to_nothing_changes_nothing(word: str) -> None:
    """If one of the new processes dies or doesn't come to serve, those that do end again, and the old ones go on."""
    with started("a b", f"c {word}") as (process, pids):
        process.send_signal(signal.SIGHUP)
        lines = heard_until(process, ["dropped", "c", word])

        assert ["adopted", "c", word] not in lines
        assert not any(is_gone(pid) for pid in pids)
        process.send_signal(signal.SIGTERM)
        assert 0 == process.wait(10)


def test_a_refused_configuration_changes_nothing() -> None:
    """Nothing is started, and the processes that run are the same as before."""
    with started("a b", "") as (process, pids):
        process.send_signal(signal.SIGHUP)

        assert [["refused"]] == heard(process, 1)
        assert not any(is_gone(pid) for pid in pids)


def test_an_old_process_that_stays_is_killed() -> None:
    """What hangs in its drain doesn't stay for ever."""
    with started("stays b", "c") as (process, pids):
        process.send_signal(signal.SIGHUP)

        assert [["adopted", "c"], ["end", "b", "SIGQUIT"], ["up", "c"]] == heard(process, 3)
        assert eventually(lambda: is_gone(pids[0]))
        assert eventually(lambda: is_gone(pids[1]))


def test_the_next_reload_follows_the_last() -> None:
    """A signal that comes while a reload is under way is not lost, and many of them are one."""
    with started("a b", "c", "d", "e") as (process, _):
        process.send_signal(signal.SIGHUP)
        heard(process, 1)
        for _ in range(20):
            process.send_signal(signal.SIGHUP)
        heard_until(process, ["adopted", "d"])
        process.send_signal(signal.SIGTERM)

        assert 0 == process.wait(10)

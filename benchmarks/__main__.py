"""
The broker beside other proxies, in one run.

    make bench                          the whole run, which writes the document and the plot
    python -m benchmarks --quick        under three minutes, and writes nothing unless --write
    python -m benchmarks --only nginx,broker

Proxies run on core 0, the load and everything behind the proxies on core 1; with two workers the broker has both. Each
round takes a slice of every proxy, so that whatever else the machine does meets all of them. What counts are ratios
within one run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.connections import echoes, idle_kib, slow_reader_mib
from benchmarks.data_plane import on_cpu_seconds
from benchmarks.machine import LOAD_CORE, asleep, awake, wrk
from benchmarks.proxies import CHUNKED_POST, POST, Lab, Subject, proxies
from benchmarks.report import Run, write

UPLOAD = 'wrk.method = "POST"\nwrk.body = string.rep("x", 1048576)'


@dataclass(frozen=True, slots=True)
class Plan:
    """
    How much is measured.

    Attributes:
        starts: How often everything is started anew: where a process comes to lie in memory may cost it a twentieth.
        rounds: How many rounds are measured after each start.
        seconds: How long a slice is.
        connections: How many idle connections are weighed.
        sessions: How many sessions are weighed.
    """

    starts: int
    rounds: int
    seconds: int
    connections: int
    sessions: int


FULL = Plan(starts=4, rounds=3, seconds=1, connections=2000, sessions=100_000)
QUICK = Plan(starts=1, rounds=2, seconds=1, connections=300, sessions=10_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short run, which writes nothing")
    parser.add_argument("--write", action="store_true", help="write document and plot after a short run, too")
    parser.add_argument(
        "--starts", type=int, default=None, help="start everything so often anew, in place of four times"
    )
    parser.add_argument("--rounds", type=int, default=None, help="so many rounds after each start, in place of three")
    parser.add_argument("--only", default="", help="beginnings of names, with commas between")
    parser.add_argument("--directory", type=Path, default=Path(__file__).parents[1] / "docs")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    plan = replace(plan, starts=arguments.starts or plan.starts, rounds=arguments.rounds or plan.rounds)
    only = tuple(filter(None, arguments.only.split(",")))
    subjects, memory = measure(plan, lambda name: not only or name.startswith(only))
    run = Run(subjects, memory, starts=plan.starts, rounds=plan.rounds, seconds=plan.seconds, at=datetime.now(UTC))
    print(run.table())
    print(run.targets())
    if arguments.write or not (arguments.quick or only):
        write(run, arguments.directory)


def measure(plan: Plan, wanted: Callable[[str], bool]) -> tuple[list[Subject], dict[str, float]]:
    """Return the wanted proxies with all that was measured of them, and the memory that sessions take."""
    measured: dict[str, Subject] = {}
    memory: dict[str, float] = {}
    for number in range(plan.starts):
        with tempfile.TemporaryDirectory() as directory:
            lab = Lab(Path(directory))
            with proxies(lab, wanted) as subjects:
                memory = memory or session_memory(lab, plan.sessions)
                take_rounds(subjects, plan)
        for subject in subjects:
            known = measured.setdefault(subject.name, subject)
            for figure, values in subject.samples.items() if known is not subject else ():
                known.samples.setdefault(figure, []).extend(values)
        print(f"start {number + 1} of {plan.starts}", file=sys.stderr)
    return list(measured.values()), memory


def take_rounds(subjects: list[Subject], plan: Plan) -> None:
    """Take a slice of each subject in each round, after one that warms up, while the others sleep; then weigh the memory."""
    with asleep([pid for subject in subjects for pid in subject.pids]):
        for subject in subjects:
            with alone(subject):
                small(subject, plan.seconds, 32)
                post(subject, plan.seconds, 32)
                subject.samples.clear()
        for number in range(plan.rounds):
            for subject in subjects:
                with alone(subject):
                    small(subject, plan.seconds, 32)
                    post(subject, plan.seconds, 32)
            # These vary less than the machine does, so every second round is enough.
            if number % 2 == 0:
                for figure in (lone, large, upload, messages):
                    for subject in subjects:
                        with alone(subject):
                            figure(subject, plan.seconds)
            print(f"round {number + 1} of {plan.rounds}", file=sys.stderr)
        for subject in subjects:
            with alone(subject):
                weigh(subject, plan.connections)


@contextmanager
def alone(subject: Subject) -> Iterator[None]:
    """Wake one subject up, and say whose an answer was that isn't as it should be."""
    try:
        with awake(subject.pids):
            yield
    except AssertionError as failure:
        failure.add_note(f"of {subject.name}")
        raise


def small(subject: Subject, seconds: int, connections: int) -> None:
    before = spent(subject)
    load = wrk(
        subject.port,
        subject.path,
        subject.fields,
        seconds=seconds,
        connections=connections,
        script=subject.script,
        cookies=subject.cookies,
    )
    add(subject, "cpu_us", (spent(subject) - before) / load.requests * 1e6)
    add(subject, "rate", load.rate)
    add(subject, "p50_ms", load.p50_ms)
    add(subject, "p99_ms", load.p99_ms)


def post(subject: Subject, seconds: int, connections: int) -> None:
    """The same with a small body: of a length that is told, and in a chunk."""
    if not is_usual(subject) or subject.pid is None:
        return
    for figure, script in (("post_us", POST), ("chunked_us", CHUNKED_POST)):
        before = spent(subject)
        load = wrk(subject.port, subject.path, subject.fields, seconds=seconds, connections=connections, script=script)
        add(subject, figure, (spent(subject) - before) / load.requests * 1e6)


def lone(subject: Subject, seconds: int) -> None:
    load = wrk(subject.port, subject.path, subject.fields, seconds=seconds, connections=1, script=subject.script)
    add(subject, "lone_p50_us", load.p50_ms * 1000)


def large(subject: Subject, seconds: int) -> None:
    if not is_usual(subject):
        return
    before = spent(subject)
    load = wrk(subject.port, "/1m", subject.fields, seconds=seconds, connections=8)
    add(subject, "mib_us", (spent(subject) - before) / load.requests * 1e6)
    add(subject, "mb_s", load.rate * 1.048576)


def upload(subject: Subject, seconds: int) -> None:
    if not is_usual(subject):
        return
    before = spent(subject)
    try:
        load = wrk(subject.port, "/sink", subject.fields, seconds=seconds, connections=4, script=UPLOAD)
    except AssertionError:
        return  # HAProxy refuses what wrk's script sends; the table has a dash then
    add(subject, "upload_us", (spent(subject) - before) / load.requests * 1e6)


def messages(subject: Subject, seconds: int) -> None:
    if not is_usual(subject) or subject.pid is None:
        return
    before = spent(subject)
    count = echoes(subject.port, [line for line in subject.fields if line.startswith("Cookie")], seconds=seconds)
    add(subject, "message_us", (spent(subject) - before) / count * 1e6)
    add(subject, "messages", count / seconds)


def weigh(subject: Subject, connections: int) -> None:
    if subject.pid is None or not is_usual(subject):
        return
    if "Apache" not in subject.name and "mod_auth" not in subject.name:  # which has a thread for each of 64 connections
        add(subject, "idle_kib", idle_kib(subject.port, subject.pid, subject.fields, connections=connections))
    add(subject, "slow_reader_mib", slow_reader_mib(subject.port, subject.pid, subject.fields))


def session_memory(lab: Lab, count: int) -> dict[str, float]:
    command = [
        "taskset",
        "-c",
        LOAD_CORE,
        sys.executable,
        "-m",
        "benchmarks.session_memory",
        str(lab.redis),
        str(count),
    ]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=900)
    figures: dict[str, float] = json.loads(ran.stdout)
    return figures


def is_usual(subject: Subject) -> bool:
    """Whether it is more than another way to send small requests."""
    is_by_cookie = not any(line.startswith("Authorization") for line in subject.fields)
    return is_by_cookie and (subject.script, subject.path, subject.cookies) == ("", "/small.json", ())


def spent(subject: Subject) -> float:
    return 0.0 if subject.pid is None else on_cpu_seconds(subject.pid)


def add(subject: Subject, figure: str, value: float) -> None:
    subject.samples.setdefault(figure, []).append(value)


if __name__ == "__main__":
    main()

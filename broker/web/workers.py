"""
The processes of an installation, and how they are replaced.

    supervisor ─┬─ worker 0 ─ its own listening socket (SO_REUSEPORT)
                ├─ worker 1 ─ …
                └─ admin    ─ health, and the metrics of all

The supervisor reads the configuration, opens the sockets, forks, and then only waits: it runs no event loop and no
thread, so it can fork again at any time. A worker that dies is started again on its own socket; connections that came
meanwhile wait in its backlog.

A reload is a second generation of processes on the same sockets. Once all of it serves, the first one is told to end
what it has begun; if it doesn't come to serve, the first one goes on as if nothing had been.
"""

import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

RESTART_SECONDS = 1.0
"""A process that dies again and again is started at most this often, and the configuration read again."""
START_SECONDS = 60.0
"""How long a new generation may take until all of it serves."""
OVERDUE_SECONDS = 15.0
"""How much longer than its drain an old process may take to end."""
MAX_RETIRING = 4
"""How many old generations may be ending at a time; before a further reload, one must have ended."""

GENTLY = signal.SIGQUIT
"""Tells a process that another one serves in its place: it ends all that has begun, connections included."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, GENTLY)
HANDLED = (*STOP_SIGNALS, signal.SIGHUP, signal.SIGCHLD)

log = logging.getLogger(__name__)

MAX_REASON_BYTES = 2000
"""How much is heard of why a process refuses to start; less than what a pipe takes in one piece."""

Process = Callable[[Callable[[], None]], int | str]
"""
What a forked process runs. It is given what to call once it serves, and returns its exit code; or, if it refuses to
start, why. That is heard by the supervisor, who says it once for all of them.
"""
_SERVES = b"+"


class Reloaded(Protocol):
    """Takes what came of a reload."""

    def __call__(self, *, is_successful: bool) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    What is to run.

    Attributes:
        processes: The processes.
        drain_seconds: How long they may take to end.
        adopted: Called once all of them serve, in place of those that ran before.
        dropped: Called if they are given up.
    """

    processes: Sequence[Process]
    drain_seconds: float = 0.0
    adopted: Callable[[], None] = lambda: None
    dropped: Callable[[], None] = lambda: None


@dataclass(slots=True, eq=False)
class _Generation:
    """
    The processes of a plan.

    Attributes:
        plan: The plan.
        began_at: When it was begun.
        has_served: Whether all of it have served at one time.
        due: When which of its processes is to be started again.
    """

    plan: Plan
    began_at: float
    has_served: bool = False
    due: dict[int, float] = field(default_factory=dict)


class _Mailbox(NamedTuple):
    """The two ends of the pipe through which the supervisor hears of signals."""

    read: int
    write: int


@dataclass(slots=True, eq=False)
class _Child:
    """
    A process.

    Attributes:
        index: Its place in the plan.
        generation: To which it belongs.
        started_at: When it was started.
        pipe: From which it is heard that it serves; None once it was heard.
        serves: Whether it does.
        refusal: Why it refuses to start, if it does and says so.
        overdue_at: When it is killed.
    """

    index: int
    generation: _Generation
    started_at: float
    pipe: int | None
    serves: bool = False
    refusal: str = ""
    overdue_at: float | None = None

    def hear(self) -> None:
        """Take what it tells; once it has ended, that is there, or nothing will be."""
        if self.pipe is None:
            return
        told = os.read(self.pipe, MAX_REASON_BYTES)
        os.close(self.pipe)
        self.pipe = None
        self.serves = told == _SERVES
        self.refusal = "" if self.serves else told.decode(errors="replace")


class Supervisor:
    """
    Keeps processes running until it is told to stop.

    Attributes:
        refusal: Why the first process that refused to start did; empty if none has said so.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        renew: Callable[[], Plan | None] = lambda: None,
        forget: Callable[[int], None] = lambda _: None,
        reloaded: Reloaded = lambda **_: None,
    ) -> None:
        """
        Args:
            plan: What runs first.
            renew: Returns what runs after a SIGHUP; None to leave all as it is.
            forget: Is told the id of each process that has ended.
            reloaded: Is told what came of each reload.
        """
        self.refusal = ""
        self._reloaded = reloaded
        self._forget = forget
        self._renew = renew
        self._current = _Generation(plan, time.monotonic())
        self._next: _Generation | None = None
        self._children: dict[int, _Child] = {}
        self._reload_wanted = False
        self._reload_at = 0.0
        self._stopping = False
        self._failed = False

    def run(self) -> int:
        """
        Run until SIGTERM, SIGINT or SIGQUIT, then until every process has ended.

        Returns:
            The exit code: 1 if a process didn't come to serve at the start, or ended badly at the stop.
        """
        with _signals() as mailbox:
            self._begin(self._current, mailbox)
            while self._children or (self._current.due and not self._stopping):
                pipes = [child.pipe for child in self._children.values() if child.pipe is not None]
                readable, _, _ = select.select([mailbox.read, *pipes], [], [], self._patience())
                if mailbox.read in readable:
                    for number in os.read(mailbox.read, 4096):
                        self._take(number)
                self._hear(readable)
                self._reap()
                self._go_on(mailbox)
        return int(self._failed)

    def _patience(self) -> float | None:
        """Return for how many seconds there is nothing to do; None for any time."""
        times = list(self._current.due.values())
        times += [child.overdue_at for child in self._children.values() if child.overdue_at is not None]
        if self._next is not None:
            times.append(self._next.began_at + START_SECONDS)
        elif self._reload_wanted and not self._is_crowded():
            times.append(self._reload_at)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _take(self, number: int) -> None:
        if number in STOP_SIGNALS:
            self._stop(signal.SIGTERM if number == signal.SIGINT else number)
        elif number == signal.SIGHUP:
            self._reload_wanted = True

    def _hear(self, readable: Sequence[int]) -> None:
        """Note which processes serve."""
        for child in self._children.values():
            if child.pipe in readable:
                child.hear()
        for generation in filter(None, (self._current, self._next)):
            serving = [child for child in self._of(generation) if child.serves]
            if not generation.has_served and len(serving) == len(generation.plan.processes):
                generation.has_served = True

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if pid in self._children:
                self._ended(self._children.pop(pid), pid, os.waitstatus_to_exitcode(status))

    def _ended(self, child: _Child, pid: int, code: int) -> None:
        child.hear()
        self._forget(pid)
        generation = child.generation
        if self._stopping:
            # One that didn't serve yet has no way yet to end well.
            self._failed |= code != 0 and (child.serves or code != -signal.SIGTERM)
        elif generation is self._next:
            self._give_up(child.refusal or f"process {child.index} ended with exit code {code} before it served")
        elif generation is not self._current:
            log.log(logging.WARNING if code else logging.INFO, "old_process_ended", extra={"exit_code": code})
        elif generation.has_served or child.serves:
            reason = {"reason": child.refusal} if child.refusal else {}
            log.error("process_died", extra={"index": child.index, "exit_code": code, **reason})
            generation.due[child.index] = child.started_at + RESTART_SECONDS
        else:
            if child.refusal:
                self.refusal = child.refusal
            else:
                log.error("start_failed", extra={"index": child.index, "exit_code": code})
            self._failed = True
            self._stop(signal.SIGTERM)

    def _go_on(self, mailbox: _Mailbox) -> None:
        """Do what is due."""
        now = time.monotonic()
        for pid, child in self._children.items():
            if child.overdue_at is not None and child.overdue_at <= now:
                log.error("old_process_killed", extra={"index": child.index})
                child.overdue_at = None
                os.kill(pid, signal.SIGKILL)
        if self._stopping:
            return
        for index in [index for index, at in self._current.due.items() if at <= now]:
            del self._current.due[index]
            self._start(self._current, index, mailbox)
        if self._next is not None:
            if self._next.has_served:
                self._adopt(self._next)
            elif self._next.began_at + START_SECONDS <= now:
                self._give_up(f"not all processes serve after {START_SECONDS:g} s")
        elif self._reload_wanted and self._reload_at <= now and not self._is_crowded():
            self._reload(now, mailbox)

    # --- generations

    def _reload(self, now: float, mailbox: _Mailbox) -> None:
        self._reload_wanted = False
        self._reload_at = now + RESTART_SECONDS
        plan = self._renew()
        if plan is None:
            self._reloaded(is_successful=False)
            return
        self._next = _Generation(plan, now)
        self._begin(self._next, mailbox)

    def _adopt(self, generation: _Generation) -> None:
        old, self._current, self._next = self._current, generation, None
        generation.plan.adopted()
        self._reloaded(is_successful=True)
        log.info("reloaded", extra={"processes": len(generation.plan.processes)})
        self._retire(old)

    def _give_up(self, reason: str) -> None:
        log.error("reload_refused", extra={"reason": reason})
        assert self._next is not None
        failed, self._next = self._next, None
        failed.plan.dropped()
        self._reloaded(is_successful=False)
        self._retire(failed)

    def _retire(self, generation: _Generation) -> None:
        overdue_at = time.monotonic() + generation.plan.drain_seconds + OVERDUE_SECONDS
        for pid, child in self._children.items():
            if child.generation is generation:
                child.overdue_at = overdue_at
                _send(pid, GENTLY if child.serves else signal.SIGTERM)

    def _is_crowded(self) -> bool:
        generations = {id(child.generation) for child in self._children.values()}
        return len(generations - {id(self._current)}) >= MAX_RETIRING

    def _of(self, generation: _Generation) -> list[_Child]:
        return [child for child in self._children.values() if child.generation is generation]

    # --- processes

    def _begin(self, generation: _Generation, mailbox: _Mailbox) -> None:
        for index in range(len(generation.plan.processes)):
            self._start(generation, index, mailbox)

    def _start(self, generation: _Generation, index: int, mailbox: _Mailbox) -> None:
        heard, told = os.pipe()
        # A signal that met the child before it has left would be taken by the parent's handler, and do nothing.
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
            os.close(told)
            self._children[pid] = _Child(index, generation, time.monotonic(), heard)
            return
        code = 1
        try:
            _leave_parent([*mailbox, heard, *(child.pipe for child in self._children.values())])
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
            outcome = generation.plan.processes[index](lambda: _tell(told, _SERVES))
            if isinstance(outcome, str):
                _tell(told, outcome.encode(errors="replace")[:MAX_REASON_BYTES])
            else:
                code = outcome
        except Exception:  # noqa: BLE001 - it ends with the process, which has no caller
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)

    def _stop(self, number: int) -> None:
        self._stopping = True
        for pid, child in self._children.items():
            _send(pid, number if child.serves else signal.SIGTERM)


@contextmanager
def _signals() -> Iterator[_Mailbox]:
    """Have the numbers of signals written to a mailbox."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = {number: signal.signal(number, lambda *_: None) for number in HANDLED}
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield _Mailbox(read, write)
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)


def _leave_parent(descriptors: Sequence[int | None]) -> None:
    """Undo, in a forked process, what its parent has set up for itself."""
    # The child of a later Python has forgotten it already, and can't say which descriptor it was.
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, GENTLY, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    # A terminal sends these to all processes; the supervisor decides what comes of them.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for descriptor in descriptors:
        if descriptor is not None:
            os.close(descriptor)


def _tell(pipe: int, what: bytes) -> None:
    with suppress(BrokenPipeError):
        os.write(pipe, what)
    os.close(pipe)


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)

"""
A broker that kills itself at the n-th moment at which one of its tasks waits or goes on.

``python -m tests.support.kill_points COUNTDOWN run CONFIG`` runs the broker as the command line does, on an event loop
whose tasks are counted. The countdown is a file that the test writes and the broker reads, both through memory: while it
is armed, each moment at which a task is about to go on, or has just begun to wait, counts it down, and at zero the
process gets SIGKILL. The broker itself knows nothing of it.

What is needed to start again was imported before, so that a new process takes a tenth of a second.
"""

import asyncio
import json
import mmap
import os
import signal
import struct
import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

_CELL = struct.Struct("q")
_REMAINING, _DEATHS, _TASKS = 0, 8, 16
_SIZE = 24


class Countdown:
    """Numbers that the test and the broker share."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: The file; made if it isn't there.
        """
        self.path = path
        if not path.exists():
            path.write_bytes(bytes(_SIZE))
        with path.open("r+b") as file:
            self._cells = mmap.mmap(file.fileno(), _SIZE)

    def _read(self, cell: int) -> int:
        value: int = _CELL.unpack_from(self._cells, cell)[0]
        return value

    def _write(self, cell: int, value: int) -> None:
        _CELL.pack_into(self._cells, cell, value)

    # What the test does.

    def arm(self, moments: int) -> None:
        """Kill the broker at the *moments*-th moment from now."""
        self._write(_REMAINING, moments)

    def disarm(self) -> bool:
        """Let it live. Returns whether it does: False if it was killed."""
        alive = self._read(_REMAINING) > 0
        self._write(_REMAINING, 0)
        return alive

    @property
    def deaths(self) -> int:
        """How many processes have died and been followed by another."""
        return self._read(_DEATHS)

    @property
    def tasks(self) -> int:
        """How many tasks there are in the broker."""
        return self._read(_TASKS)

    def last_words(self) -> list[list[str]]:
        """Return where each task of the process that was killed last stood, from its outermost function inwards."""
        stacks: list[list[str]] = json.loads(self._words.read_text())
        return stacks

    @property
    def _words(self) -> Path:
        return self.path.with_suffix(".stacks")

    # What the broker does.

    def count(self) -> None:
        """One moment has passed."""
        remaining = self._read(_REMAINING)
        if remaining <= 0:
            return
        self._write(_REMAINING, remaining - 1)
        if remaining == 1:
            self._words.write_text(json.dumps([_stack(task.get_coro()) for task in asyncio.all_tasks()]))
            os.kill(os.getpid(), signal.SIGKILL)

    def begin_life(self) -> None:
        self._write(_TASKS, 0)

    def note_death(self) -> None:
        self._write(_REMAINING, 0)
        self._write(_DEATHS, self.deaths + 1)

    def task_began(self) -> None:
        self._write(_TASKS, self.tasks + 1)

    def task_ended(self, _task: "asyncio.Task[Any]") -> None:
        self._write(_TASKS, self.tasks - 1)


class Counted(Coroutine[Any, Any, Any]):
    """A coroutine each of whose moments is counted."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], count: Callable[[], None]) -> None:
        self.coroutine = coroutine
        self._count = count

    def send(self, value: Any) -> Any:
        self._count()
        waits_for = self.coroutine.send(value)
        self._count()
        return waits_for

    def throw(self, kind: Any, value: Any = None, traceback: TracebackType | None = None) -> Any:
        self._count()
        waits_for = self.coroutine.throw(kind if value is None else value)
        self._count()
        return waits_for

    def close(self) -> None:
        self.coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.coroutine.__await__()


def _stack(coroutine: Any) -> list[str]:
    names = []
    current = coroutine
    while current is not None:
        if isinstance(current, Counted):
            current = current.coroutine
        elif (name := getattr(current, "__qualname__", None)) is not None:
            names.append(str(name))
            current = getattr(current, "cr_await", None) or getattr(current, "ag_await", None)
        else:
            current = None
    return names


def _live(countdown: Countdown, arguments: list[str]) -> int:
    import uvloop

    from broker.config import load
    from broker.web.listening import listening_sockets
    from broker.web.server import refused, serve

    new_event_loop = uvloop.new_event_loop

    def counted_loop() -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop = new_event_loop()

        def make(on: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
            task: asyncio.Task[Any] = asyncio.Task(Counted(coroutine, countdown.count), loop=on, **options)
            countdown.task_began()
            task.add_done_callback(countdown.task_ended)
            return task

        loop.set_task_factory(make)
        return loop

    vars(uvloop)["new_event_loop"] = counted_loop  # the broker asks for one by this name
    countdown.begin_life()
    command, config = arguments
    assert command == "run"
    settings = load(Path(config))
    # The process that serves, without the supervisor, which would start it again.
    public, admin = (listening_sockets(at.host, at.port, 1) for at in (settings.listen, settings.admin.listen))
    outcome = serve(settings, public=public, admin=admin)
    return refused(outcome) if isinstance(outcome, str) else outcome


def _run(countdown: Countdown, arguments: list[str]) -> int:
    # All that a broker imports, so that only the first one waits for it.
    import broker.config
    import broker.stores.open
    import broker.stores.redis
    import broker.stores.sqlite
    import broker.web.app
    import broker.web.server  # noqa: F401

    child = 0

    def stop(number: int, _frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number)

    while True:
        child = os.fork()
        if child == 0:
            code = 1
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            try:
                code = _live(countdown, arguments)
            finally:
                os._exit(code)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code != -signal.SIGKILL:
            return code
        countdown.note_death()


if __name__ == "__main__":
    sys.exit(_run(Countdown(Path(sys.argv[1])), sys.argv[2:]))

"""
An engine that kills or stops itself at the n-th moment at which a refresh waits or goes on.

``python -m tests.support.kill_driver OPTIONS`` is an engine_worker with one command more: ``arm N``. From then on each
moment of the tasks that run one of ``COUNTED`` is counted, and at the n-th the process gets SIGKILL, or what else it is
told.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from tests.support import engine_worker
from tests.support.engine_worker import Worker
from tests.support.kill_points import Counted

COUNTED = frozenset({"Refresher.refresh", "Answers._finish", "Answers._keep_later", "Worker.end"})


class Victim(Worker):
    """Dies when it is told to."""

    number = signal.SIGKILL
    remaining = 0
    passed = 0

    def count(self) -> None:
        """One moment has passed."""
        self.passed += 1
        if self.remaining > 0:
            self.remaining -= 1
            if self.remaining == 0:
                os.kill(os.getpid(), self.number)

    def make(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        """Make a task, whose moments are counted if it runs one of :data:`COUNTED`."""
        if getattr(coroutine, "__qualname__", "") in COUNTED:
            coroutine = Counted(coroutine, self.count)
        return asyncio.Task(coroutine, loop=loop, **options)

    async def start(self) -> None:
        asyncio.get_running_loop().set_task_factory(self.make)
        await super().start()

    async def arm(self, moments: int, number: int = signal.SIGKILL) -> None:
        """Die, or get another signal, at the *moments*-th moment from now."""
        self.remaining, self.passed, self.number = moments, 0, signal.Signals(number)

    async def disarm(self) -> int:
        """Live. Returns how many moments have passed."""
        self.remaining = 0
        return self.passed

    async def end_counted(self, grant_ids: Sequence[str]) -> list[bool]:
        """As ``end``, in a task whose moments are counted."""
        return await asyncio.get_running_loop().create_task(self.end(grant_ids), name="end")


if __name__ == "__main__":
    engine_worker.Worker = Victim  # type: ignore[misc]
    asyncio.run(engine_worker.serve(json.loads(sys.argv[1])))

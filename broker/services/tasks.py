"""Background tasks that are never lost: each is referenced until it ends, and its fault is logged."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)


class Tasks:
    """
    A set of tasks that can be drained.

    asyncio keeps only a weak reference to a task, so one that nobody holds may vanish in mid-air.
    Source: asyncio's documentation of ``create_task``.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def spawn(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> "asyncio.Task[T]":
        """Run *coroutine* as a task of its own, which no caller's cancellation reaches."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def launch(self, coroutine: Coroutine[Any, Any, object], *, name: str) -> None:
        """As :meth:`spawn`, for a task whose result nobody waits for."""
        _ = self.spawn(coroutine, name=name)

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._running.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("task_failed", extra={"task": task.get_name(), "error": type(fault).__name__}, exc_info=fault)

    async def drain(self, timeout_seconds: float) -> int:
        """
        Wait for the tasks to end by themselves, those that they begin included, then cancel the rest.

        Returns:
            How many had to be cancelled.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        while self._running and loop.time() < deadline:
            await asyncio.wait(self._running, timeout=deadline - loop.time())
        return await self.cancel()

    async def cancel(self) -> int:
        """Cancel every task and wait for its end. Returns how many there were."""
        cancelled = 0
        # A task may begin another one while it ends.
        while left := [task for task in self._running if not task.done()]:
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            cancelled += len(left)
        return cancelled

"""Background tasks that are never lost."""

import asyncio
import gc
import logging

import pytest

from broker.services.tasks import Tasks


async def test_a_task_that_nobody_holds_runs_to_its_end() -> None:
    """Asyncio alone would let the garbage collector take it."""
    tasks, ended = Tasks(), asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0.01)
        ended.set()

    tasks.launch(work(), name="work")
    gc.collect()
    async with asyncio.timeout(10):
        await ended.wait()
    await asyncio.sleep(0)

    assert 0 == len(tasks)


async def test_a_fault_is_logged_by_the_name_of_its_task(caplog: pytest.LogCaptureFixture) -> None:
    """No fault is silent, and none is logged with its text, which may hold anything."""
    tasks = Tasks()

    async def work() -> None:
        raise ValueError("canary")

    with caplog.at_level(logging.ERROR):
        tasks.launch(work(), name="refresh:abc")
        await tasks.drain(1)

    (record,) = caplog.records
    assert ("task_failed", "refresh:abc", "ValueError") == (
        record.message,
        record.__dict__["task"],
        record.__dict__["error"],
    )


async def test_draining_waits_for_what_tasks_begin() -> None:
    """A refresh that ends while the process stops may have begun to save its answer."""
    tasks, trace = Tasks(), list[str]()

    async def second() -> None:
        await asyncio.sleep(0.02)
        trace.append("second")

    async def first() -> None:
        await asyncio.sleep(0.02)
        tasks.launch(second(), name="second")

    tasks.launch(first(), name="first")

    assert 0 == await tasks.drain(1)
    assert ["second"] == trace


async def test_what_does_not_end_in_time_is_cancelled_and_counted() -> None:
    """Nothing outlives a drain, not even what a cancelled task begins."""
    tasks = Tasks()

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            tasks.launch(asyncio.sleep(60), name="later")

    tasks.launch(stubborn(), name="stubborn")

    assert 2 == await tasks.drain(0.01)
    assert 0 == len(tasks)

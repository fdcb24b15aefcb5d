"""Turns are handed out in order, and none is lost."""

import asyncio
import random

from broker.stores.redis_queue import Queue


async def test_the_patient_let_all_others_go_first() -> None:
    """Among their like, those who came first are served first."""
    queue, served = Queue(1), list[str]()
    await queue.take()

    async def work(name: str, *, is_patient: bool) -> None:
        await queue.take(is_patient=is_patient)
        served.append(name)
        queue.give_back()

    async with asyncio.TaskGroup() as group:
        for name in ("new 1", "begun 1", "new 2", "begun 2"):
            _ = group.create_task(work(name, is_patient=name.startswith("new")))
        await asyncio.sleep(0)
        queue.give_back()
    assert ["begun 1", "begun 2", "new 1", "new 2"] == served


async def test_no_turn_is_lost_or_made_by_cancellation() -> None:
    """However callers come and go, never more than the size have a turn, and in the end all turns are there."""
    rng = random.Random(7)
    queue, busy, most = Queue(3), 0, 0

    async def work() -> None:
        nonlocal busy, most
        await queue.take(is_patient=rng.random() < 0.5)
        busy += 1
        most = max(most, busy)
        try:
            await asyncio.sleep(rng.choice([0, 0.001]))
        finally:
            busy -= 1
            queue.give_back()

    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(work()) for _ in range(500)]
    while not all(task.done() for task in tasks):
        rng.choice(tasks).cancel()
        await asyncio.sleep(0)
    assert 3 == most
    async with asyncio.timeout(10):
        for _ in range(3):
            await queue.take()


async def test_a_turn_that_is_handed_to_one_who_leaves_goes_on() -> None:
    """A caller that is cancelled at the moment in which its turn comes passes it to the next."""
    queue = Queue(1)
    await queue.take()
    loop = asyncio.get_running_loop()
    leaver, stayer = loop.create_task(queue.take()), loop.create_task(queue.take())
    await asyncio.sleep(0)
    queue.give_back()
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    async with asyncio.timeout(10):
        await stayer

"""One at a time, by name."""

import asyncio

from broker.services.tasks import Tasks
from broker.services.turns import Turns


async def test_turns_of_one_name_come_one_after_the_other() -> None:
    """Nobody enters before the former has left, and they come in their order."""
    turns, trace = Turns(), list[str]()

    async def take(who: str) -> None:
        async with turns.turn("a"):
            trace.append(f"{who} in")
            await asyncio.sleep(0)
            trace.append(f"{who} out")

    await asyncio.gather(*(take(who) for who in "123"))

    assert ["1 in", "1 out", "2 in", "2 out", "3 in", "3 out"] == trace


async def test_other_names_do_not_wait() -> None:
    """Turns are by name."""
    turns = Turns()

    async with turns.turn("a"), asyncio.timeout(10), turns.turn("b"):
        assert 2 == len(turns)


async def test_a_caller_that_is_cancelled_while_it_waits_leaves_no_trace() -> None:
    """The turn goes to the next one, and nothing is kept of names that nobody wants."""
    turns, tasks = Turns(), Tasks()

    async def take() -> None:
        async with turns.turn("a"):
            pass

    async with turns.turn("a"):
        gone, stays = tasks.spawn(take(), name="gone"), tasks.spawn(take(), name="stays")
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
    await stays

    assert 0 == len(turns)

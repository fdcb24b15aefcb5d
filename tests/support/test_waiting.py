"""What is measured while the loop waits, and while it stands still."""

import asyncio
import time

import pytest

from tests.support.waiting import LONGEST_TICK_SECONDS, awake, until


async def test_what_waits_on_the_loop_is_measured() -> None:
    """As long as the loop turns, it is the time that passed, or a little less."""
    async with awake() as seconds:
        began_at = time.monotonic()
        await asyncio.sleep(0.5)
        assert 0.1 < seconds() <= time.monotonic() - began_at


async def test_a_loop_that_stood_still_is_not() -> None:
    """Of a second for which it was blocked, one tick counts."""
    async with awake() as seconds:
        await asyncio.sleep(0)
        time.sleep(1)  # the loop stands still
        await asyncio.sleep(0)
        before = seconds()
        await asyncio.sleep(LONGEST_TICK_SECONDS)
        assert before < 0.1
        assert seconds() < 0.2


async def test_waiting_in_vain_says_for_what() -> None:
    """The reason may be made when it is needed."""
    for what in ("the thing", lambda: "the thing"):
        with pytest.raises(AssertionError, match="the thing did not come true within 0 s"):
            await until(lambda: False, seconds=0, what=what)

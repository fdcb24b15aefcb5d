"""Waiting for what another task, thread or process will do: polled, with a deadline."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

TICK_SECONDS = 0.005
LONGEST_TICK_SECONDS = 0.02
"""What is counted of a tick at most: beyond that the loop, or the whole machine, stood still."""


async def until(
    condition: Callable[[], bool], *, seconds: float = 20.0, what: str | Callable[[], str] = "the condition"
) -> None:
    """Return once *condition* is true. Fails after *seconds*, and says so of *what*."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what if isinstance(what, str) else what()} did not come true within {seconds} s")
        await asyncio.sleep(0.005)


async def until_async(condition: Callable[[], Awaitable[bool]], *, seconds: float = 20.0, what: str = "it") -> None:
    """Return once awaiting *condition* gives True. Fails after *seconds*."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def awake() -> AsyncIterator[Callable[[], float]]:
    """
    Measure how many seconds of the block this event loop was there for.

    For limits of what waits on the loop of the test itself: a machine that holds the process up for a moment is no
    fault of what is measured. What blocks the loop isn't noticed.
    """
    passed = 0.0

    async def tick() -> None:
        nonlocal passed
        while True:
            began_at = time.monotonic()
            await asyncio.sleep(TICK_SECONDS)
            passed += min(time.monotonic() - began_at, LONGEST_TICK_SECONDS)

    ticking = asyncio.get_running_loop().create_task(tick())
    try:
        yield lambda: passed
    finally:
        ticking.cancel()

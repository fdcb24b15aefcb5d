"""Waiting for what another task, thread or process will do: polled, with a deadline."""

import asyncio
import time
from collections.abc import Awaitable, Callable


async def until(
    condition: Callable[[], bool], *, seconds: float = 5.0, what: str | Callable[[], str] = "the condition"
) -> None:
    """Return once *condition* is true. Fails after *seconds*, and says so of *what*."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what if isinstance(what, str) else what()} did not come true within {seconds} s")
        await asyncio.sleep(0.005)


async def until_async(condition: Callable[[], Awaitable[bool]], *, seconds: float = 5.0, what: str = "it") -> None:
    """Return once awaiting *condition* gives True. Fails after *seconds*."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        await asyncio.sleep(0.02)

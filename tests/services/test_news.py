"""Waiting for news of a grant."""

import asyncio
import time

from broker.services.news import News
from broker.services.tasks import Tasks


async def test_everybody_who_waits_is_woken() -> None:
    """News of a grant wakes all its waiters, and nobody else's."""
    news, tasks = News(), Tasks()
    waiters = [tasks.spawn(news.wait("a", 60), name="a") for _ in range(3)]
    other = tasks.spawn(news.wait("b", 60), name="b")
    await asyncio.sleep(0)

    news.heard("a")
    async with asyncio.timeout(10):
        await asyncio.gather(*waiters)

    assert not other.done()
    await tasks.cancel()


async def test_a_lost_event_costs_no_more_than_the_timeout() -> None:
    """Whoever hears nothing goes on by itself."""
    news = News()
    began = time.monotonic()

    await news.wait("a", 0.02)

    assert 0.01 < time.monotonic() - began < 1


async def test_nothing_is_kept_of_those_who_have_gone() -> None:
    """Waiters that timed out, were woken or were cancelled are forgotten."""
    news, tasks = News(), Tasks()
    cancelled = tasks.spawn(news.wait("a", 60), name="cancelled")
    woken = tasks.spawn(news.wait("b", 60), name="woken")
    await asyncio.sleep(0)

    cancelled.cancel()
    news.heard("b")
    news.heard("nobody waits for this")
    await news.wait("c", 0)
    await woken

    assert {} == news._waiting

"""A stall of the event loop is noticed."""

import asyncio
import logging
import time

import pytest

from broker.services import metrics
from broker.services.clock import SystemClock
from broker.services.tasks import Tasks
from broker.services.watchdog import LOOK_SECONDS, watch_event_loop
from tests.support.waiting import until


def counted() -> float:
    (family,) = metrics.EVENT_LOOP_STALLED_SECONDS.collect()
    return family.samples[0].value


class Said(SystemClock):
    """A clock that says what it is told to, and then goes on by a look each time."""

    def __init__(self, *times: float) -> None:
        self._times = list(times)
        self._last = 0.0

    def monotonic(self) -> float:
        self._last = self._times.pop(0) if self._times else self._last + LOOK_SECONDS
        return self._last


async def test_ft_23_a_stall_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """With its seconds; a loop that works, or is a little late, is no news."""
    tasks, before = Tasks(), counted()
    clock = Said(10, 10 + LOOK_SECONDS, 20, 20.4 + LOOK_SECONDS, 30, 31.5 + LOOK_SECONDS)
    with caplog.at_level(logging.WARNING):
        tasks.launch(watch_event_loop(clock), name="watchdog")
        await until(lambda: bool(caplog.records), what="the line")
    await tasks.cancel()

    assert [("event_loop_stalled", 1.5)] == [(line.getMessage(), line.__dict__["seconds"]) for line in caplog.records]
    assert 1.5 == pytest.approx(counted() - before)


async def test_ft_23_a_loop_that_stands_still_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    """By the system's clock."""
    tasks = Tasks()
    with caplog.at_level(logging.WARNING):
        tasks.launch(watch_event_loop(SystemClock()), name="watchdog")
        await asyncio.sleep(0.1)
        time.sleep(2.0)  # the loop stands still, which is what is to be seen
        await until(lambda: bool(caplog.records), what="the line")
    await tasks.cancel()

    assert 1.0 < max(line.__dict__["seconds"] for line in caplog.records)

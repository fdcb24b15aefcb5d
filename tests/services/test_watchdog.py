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


async def test_ft_23_a_stall_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """With its seconds; a loop that works is no news."""
    tasks, before = Tasks(), counted()
    tasks.launch(watch_event_loop(SystemClock()), name="watchdog")
    with caplog.at_level(logging.WARNING):
        await asyncio.sleep(2.2 * LOOK_SECONDS)
        quiet = list(caplog.records)
        time.sleep(1.5)  # the loop stands still
        await until(lambda: bool(caplog.records), what="the line")
    await tasks.cancel()

    assert [] == quiet
    assert ["event_loop_stalled"] == [record.getMessage() for record in caplog.records]
    assert 0.9 < caplog.records[0].__dict__["seconds"] < 3
    assert counted() - before == pytest.approx(caplog.records[0].__dict__["seconds"], abs=0.01)

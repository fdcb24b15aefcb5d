"""Notices that the event loop stood still: whatever was due then came late, and other processes may have taken over."""

import asyncio
import logging

from broker.services import metrics
from broker.services.clock import Clock

LOOK_SECONDS = 0.5
STALL_SECONDS = 0.5
"""A shorter stall isn't worth a line: no lease ends in it, and no caller gives up."""

log = logging.getLogger(__name__)


async def watch_event_loop(clock: Clock) -> None:
    """Log and count stalls of the event loop until cancelled."""
    while True:
        began = clock.monotonic()
        await asyncio.sleep(LOOK_SECONDS)
        stalled = clock.monotonic() - began - LOOK_SECONDS
        if stalled >= STALL_SECONDS:
            metrics.EVENT_LOOP_STALLED_SECONDS.inc(stalled)
            log.warning("event_loop_stalled", extra={"seconds": round(stalled, 3)})

"""Time that runs out, where the process may have stood still."""

import asyncio
import socket
import time

import pytest

from broker.services.deadline import Stopwatch, deadline
from tests.support.clock import ManualClock


async def test_what_takes_too_long_is_cut_off() -> None:
    """As by ``asyncio.timeout``, and as soon."""
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with deadline(0.05):
            await asyncio.sleep(5)

    assert time.monotonic() - began < 1


async def test_what_is_done_in_time_is_left_alone() -> None:
    """Nothing strikes later."""
    async with deadline(0.05):
        pass
    await asyncio.sleep(0.1)


@pytest.mark.parametrize("comes", [True, False])
async def test_ft_23_what_came_while_the_loop_stood_still_is_read(comes: bool) -> None:
    """The answer is in the socket, and the deadline has passed: the answer counts. Without one, the deadline does."""
    here, there = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=here)
    read = b""
    try:
        async with deadline(0.2):
            if comes:
                there.send(b"x")
            time.sleep(0.5)  # the loop stands still
            read = await reader.readexactly(1)
    except TimeoutError:
        assert not comes
    writer.close()
    await writer.wait_closed()
    there.close()

    assert (b"x" if comes else b"") == read


def test_ft_23_a_sleep_of_the_machine_counts() -> None:
    """The monotonic clock stands still meanwhile; a wall clock that is set back doesn't count."""
    clock = ManualClock()
    stopwatch = Stopwatch(clock)
    clock.advance(3)
    assert 3 == pytest.approx(stopwatch.seconds())

    clock.set_wall_clock(3600)
    assert 3603 == pytest.approx(stopwatch.seconds())
    clock.set_wall_clock(-7200)
    assert 3 == pytest.approx(stopwatch.seconds())

"""Who takes too little of what waits for it."""

import asyncio
import socket

import pytest

from broker.core.limit_options import MIN_BYTES_PER_SECOND
from broker.web.taking import Taking
from tests.support.loops import on_both_loops
from tests.support.waiting import until

PATIENCE_SECONDS = 10.0


class Buffer(asyncio.Transport):
    """What the loop has yet to give to a kernel that tells nothing."""

    def __init__(self, unsent_bytes: int) -> None:
        super().__init__()
        self.unsent_bytes = unsent_bytes

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes


def late_after(bytes_per_second: float, *, every_seconds: int, end: int = 100) -> int | None:
    """Return the second in which a caller is late that takes a portion now and then; None if that isn't before *end*."""
    buffer = Buffer(1 << 20)
    taking = Taking(buffer, 0.0)
    for now in range(1, end):
        if now % every_seconds == 0:
            buffer.unsent_bytes -= int(bytes_per_second * every_seconds)
        if taking.is_late(float(now), PATIENCE_SECONDS):
            return now
    return None


@pytest.mark.parametrize("every_seconds", [1, 9])
def test_a_slow_caller_that_goes_on_taking_is_never_late(every_seconds: int) -> None:
    """However much waits, and however long."""
    assert None is late_after(MIN_BYTES_PER_SECOND, every_seconds=every_seconds)


def test_ds_01_who_takes_nothing_is_late() -> None:
    """After its time."""
    assert 11 == late_after(0, every_seconds=1)


def test_ds_01_who_pauses_for_too_long_is_late() -> None:
    """However much it took before."""
    buffer = Buffer(1 << 20)
    taking = Taking(buffer, 0.0)
    buffer.unsent_bytes -= 1 << 19

    assert not taking.is_late(5.0, PATIENCE_SECONDS)
    assert not taking.is_late(15.0, PATIENCE_SECONDS)
    assert taking.is_late(15.1, PATIENCE_SECONDS)


def test_ds_01_who_takes_byte_by_byte_is_late() -> None:
    """One byte now and then holds no connection."""
    assert 11 == late_after(1, every_seconds=1)
    assert 21 == late_after(MIN_BYTES_PER_SECOND / 2, every_seconds=1)


def test_what_is_written_meanwhile_is_not_counted() -> None:
    """Only what leaves the buffer is taken."""
    buffer = Buffer(1 << 20)
    taking = Taking(buffer, 0.0)
    for now in range(1, 10):
        buffer.unsent_bytes += 100_000
        assert not taking.is_late(float(now), PATIENCE_SECONDS)

    assert taking.is_late(11.0, PATIENCE_SECONDS)


@on_both_loops
async def test_the_kernel_is_asked() -> None:
    """What the other end takes counts, though none of it has left the loop's buffer."""
    made: list[asyncio.Transport] = []
    loop = asyncio.get_running_loop()

    class Keeping(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made.append(transport)  # type: ignore[arg-type]

    server = await loop.create_server(Keeping, "127.0.0.1", 0)
    with socket.socket() as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.setblocking(False)
        await loop.sock_connect(caller, server.sockets[0].getsockname())
        await until(lambda: bool(made))
        (transport,) = made
        transport.write(b"x" * (16 << 20))
        await asyncio.sleep(0.1)
        taking, unsent = Taking(transport, 0.0), transport.get_write_buffer_size()
        for now in range(1, 30):
            await loop.sock_recv(caller, 1 << 16)
            await asyncio.sleep(0.01)
            assert not taking.is_late(float(now), 2.0)
        assert unsent == transport.get_write_buffer_size()
        assert taking.is_late(32.0, 2.0)
        transport.abort()
    server.close()

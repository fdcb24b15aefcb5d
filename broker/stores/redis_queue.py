"""Who may use a connection next."""

import asyncio
from collections import deque


class Queue:
    """
    Hands out a number of turns, first come, first served; whoever is patient lets all others go first.

    What has been begun should end before anything new begins: else a lease ends while its renewal waits behind those
    who want leases of their own.
    """

    def __init__(self, size: int) -> None:
        """
        Args:
            size: How many may have a turn at once.
        """
        self._free = size
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._patient: deque[asyncio.Future[None]] = deque()

    async def take(self, *, is_patient: bool = False) -> None:
        """Wait for a turn. Whoever has had one gives it back."""
        if self._free > 0:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        (self._patient if is_patient else self._waiting).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was handed over at the same moment
                self.give_back()
            raise

    def give_back(self) -> None:
        """End a turn: the next one's begins."""
        for waiting in (self._waiting, self._patient):
            while waiting:
                turn = waiting.popleft()
                if not turn.done():  # else its caller has gone
                    turn.set_result(None)
                    return
        self._free += 1

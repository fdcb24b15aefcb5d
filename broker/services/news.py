"""Waiting for news of a grant that another process refreshes."""

import asyncio


class News:
    """Wakes whoever waits for a grant as soon as something is heard of it."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}

    def heard(self, grant_id: str) -> None:
        """Wake those who wait for *grant_id*."""
        for waiter in self._waiting.pop(grant_id, ()):
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, grant_id: str, timeout_seconds: float) -> None:
        """Return when something is heard of *grant_id*, or after *timeout_seconds*: events may be lost."""
        waiter = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(grant_id, set())
        waiting.add(waiter)
        try:
            await asyncio.wait((waiter,), timeout=timeout_seconds)
        finally:
            waiting.discard(waiter)
            if not waiting and self._waiting.get(grant_id) is waiting:
                del self._waiting[grant_id]

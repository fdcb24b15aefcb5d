"""One read for all who want the same thing at the same time: a page's calls come all at once."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, ParamSpec, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
P = ParamSpec("P")


class _Abandoned:
    """Whoever read for the others is gone."""


_ABANDONED: Final = _Abandoned()


class Together(Generic[K, T]):
    """The reads that are under way, by what they are of. The first who asks reads; the others wait for its outcome."""

    def __init__(self) -> None:
        # None until somebody waits: most who ask are alone, and a future is a good part of what a read costs.
        self._running: dict[K, asyncio.Future[T | _Abandoned] | None] = {}

    def __len__(self) -> int:
        return len(self._running)

    def __contains__(self, key: K) -> bool:
        return key in self._running

    async def read(self, key: K, read: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """
        Return the outcome of *read*, or of one that has begun before for the same *key*.

        A reader that is cancelled, or raises, leaves the work to the next of those who wait.
        """
        while key in self._running:
            outcome = await asyncio.shield(self._outcome(key))
            if not isinstance(outcome, _Abandoned):
                return outcome
        self._running[key] = None
        outcome = _ABANDONED
        try:
            outcome = await read(*args, **kwargs)
        finally:
            awaited = self._running.pop(key)
            if awaited is not None:
                awaited.set_result(outcome)
        return outcome

    def _outcome(self, key: K) -> "asyncio.Future[T | _Abandoned]":
        """Return where the outcome of the read that is under way will be."""
        awaited = self._running[key]
        if awaited is None:
            awaited = self._running[key] = asyncio.get_running_loop().create_future()
        return awaited

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
        self._running: dict[K, asyncio.Future[T | _Abandoned]] = {}

    def __len__(self) -> int:
        return len(self._running)

    async def read(self, key: K, read: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """
        Return the outcome of *read*, or of one that has begun before for the same *key*.

        A reader that is cancelled, or raises, leaves the work to the next of those who wait.
        """
        while (running := self._running.get(key)) is not None:
            outcome = await asyncio.shield(running)
            if not isinstance(outcome, _Abandoned):
                return outcome
        mine: asyncio.Future[T | _Abandoned] = asyncio.get_running_loop().create_future()
        self._running[key] = mine
        outcome = _ABANDONED
        try:
            outcome = await read(*args, **kwargs)
        finally:
            del self._running[key]
            mine.set_result(outcome)
        return outcome

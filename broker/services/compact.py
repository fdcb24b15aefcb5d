"""
Many values in little room, which the garbage collector needn't visit.

A full collection visits every object that may hold others. A hundred thousand sessions as objects take it fifty
milliseconds, in which nobody is served; as tuples ten, since the dict that has them is visited; as bytes none.
"""

import marshal
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

MAX_READY: Final = 1024
"""Of how many values the objects are kept, too: as many as a collection visits in a millisecond."""

K = TypeVar("K")
V = TypeVar("V")


class CompactDict(Generic[K, V]):
    """
    A bounded dict: the value that was put longest ago goes first.

    Attributes:
        ready: Finds the value of a key if it is one of those that were used last, for the hot path; else ask
            :meth:`get`.
    """

    def __init__(
        self, limit: int, *, pack: Callable[[V], tuple[Any, ...]], unpack: Callable[[tuple[Any, ...]], V]
    ) -> None:
        """
        Args:
            limit: How many values are kept.
            pack: Makes of a value nothing but exact tuples, texts, bytes, numbers and None.
            unpack: Makes the value of that.
        """
        self._limit = limit
        self._pack = pack
        self._unpack = unpack
        self._packed: dict[K, bytes | None] = {}  # None: it is ready, and hasn't been packed yet
        self._ready: dict[K, V] = {}
        self.ready = self._ready.get

    def __len__(self) -> int:
        return len(self._packed)

    def get(self, key: K) -> V | None:
        """Return the value of *key*."""
        value = self._ready.get(key)
        if value is None and (packed := self._packed.get(key)) is not None:
            value = self._unpacked(packed)
            self._keep_ready(key, value)
        return value

    def put(self, key: K, value: V) -> tuple[K, V] | None:
        """Keep *value*, in place of another under *key*. Returns what had to go for it."""
        self._packed.pop(key, None)
        self._packed[key] = None
        self._keep_ready(key, value)
        if len(self._packed) <= self._limit:
            return None
        oldest = next(iter(self._packed))
        return oldest, self._take(oldest)

    def pop(self, key: K) -> V | None:
        """Forget the value of *key*, and return it."""
        return self._take(key) if key in self._packed else None

    def _take(self, key: K) -> V:
        packed, value = self._packed.pop(key), self._ready.pop(key, None)
        if value is None:
            assert packed is not None
            value = self._unpacked(packed)
        return value

    def _keep_ready(self, key: K, value: V) -> None:
        self._ready[key] = value
        if len(self._ready) > MAX_READY:
            # The one that became ready longest ago: it gets ready again when it is used.
            oldest = next(iter(self._ready))
            value = self._ready.pop(oldest)
            if self._packed[oldest] is None:
                self._packed[oldest] = marshal.dumps(self._pack(value))

    def _unpacked(self, packed: bytes) -> V:
        return self._unpack(marshal.loads(packed))  # noqa: S302 - our own bytes, which never leave the process

"""A store that is down, or holds a call, whenever a test says so."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from broker.errors import StoreError
from broker.stores.base import Event, LeaseOutcome, Record, Store, StoreDown


class FaultyStore:
    """
    Implements ``stores.base.Store`` over another one.

    Attributes:
        down: Every call fails.
        failing: The names of methods that fail, or of methods on one kind of record: ``create``, ``create:session``.
        calls: How often each method was called.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.down = False
        self.failing: set[str] = set()
        self.calls: dict[str, int] = {}
        self._held: dict[str, asyncio.Event] = {}
        self._reached: dict[str, asyncio.Event] = {}
        self._passes = 0
        self._stop: tuple[int, asyncio.Event, asyncio.Event] | None = None

    def hold_call(self, number: int) -> tuple[asyncio.Event, asyncio.Event]:
        """As :meth:`hold`, of the call that comes as the *number*-th from now, whatever it is, and of those after it."""
        self._stop = (self._passes + number, asyncio.Event(), asyncio.Event())
        return self._stop[1:]

    def hold(self, method: str, *, after: bool = False) -> tuple[asyncio.Event, asyncio.Event]:
        """
        Stop the next calls of *method*, before or after they are done.

        Returns:
            An event that is set once a call is held, and one that lets go.
        """
        name = f"{method}:after" if after else method
        self._reached[name], self._held[name] = asyncio.Event(), asyncio.Event()
        return self._reached[name], self._held[name]

    async def _pass(self, method: str, key: str = "") -> None:
        self.calls[method] = self.calls.get(method, 0) + 1
        await asyncio.sleep(0)  # no store answers in the very turn of the loop in which it is asked
        await self._wait(method)
        self._passes += 1
        if self._stop is not None and self._passes >= self._stop[0]:
            self._stop[1].set()
            await self._stop[2].wait()
        if self.down or self.failing & {method, f"{method}:{key.partition(':')[0]}"}:
            raise StoreError(f"{method} fails by order of the test")

    async def _wait(self, name: str) -> None:
        if name in self._held:
            self._reached[name].set()
            await self._held[name].wait()

    async def start(self) -> None:
        await self._pass("start")
        await self._store.start()

    async def close(self) -> None:
        await self._store.close()

    async def ping(self) -> None:
        await self._pass("ping")
        await self._store.ping()

    async def version(self, key: str) -> int | None:
        await self._pass("version", key)
        return await self._store.version(key)

    async def get(self, key: str) -> Record | None:
        await self._pass("get", key)
        record = await self._store.get(key)
        await self._wait("get:after")
        return record

    async def create(
        self, key: str, value: bytes, *, ttl_seconds: float, tags: Sequence[str] = (), due_at: float | None = None
    ) -> int | None:
        await self._pass("create", key)
        created = await self._store.create(key, value, ttl_seconds=ttl_seconds, tags=tags, due_at=due_at)
        await self._wait("create:after")
        return created

    async def replace(
        self, key: str, value: bytes, version: int, *, ttl_seconds: float | None = None, due_at: float | None = None
    ) -> int | None:
        await self._pass("replace", key)
        written = await self._store.replace(key, value, version, ttl_seconds=ttl_seconds, due_at=due_at)
        await self._wait("replace:after")
        return written

    async def delete(self, key: str, version: int | None = None) -> bool:
        await self._pass("delete", key)
        return await self._store.delete(key, version)

    async def touch(self, key: str, ttl_seconds: float) -> bool:
        await self._pass("touch", key)
        return await self._store.touch(key, ttl_seconds)

    async def find(self, tag: str) -> list[str]:
        await self._pass("find")
        return await self._store.find(tag)

    async def due(self, kind: str, before: float, limit: int) -> list[str]:
        await self._pass("due")
        return await self._store.due(kind, before, limit)

    async def lease(self, key: str, ttl_seconds: float) -> LeaseOutcome:
        try:
            await self._pass("lease")
        except StoreError as fault:
            return StoreDown(str(fault))
        return await self._store.lease(key, ttl_seconds)

    async def draw(self, seconds: Mapping[str, float]) -> Mapping[str, float]:
        await self._pass("draw")
        drawn = await self._store.draw(seconds)
        await self._wait("draw:after")
        return drawn

    async def publish(self, event: Event) -> None:
        await self._pass("publish")
        await self._store.publish(event)

    def subscribe(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        return self._store.subscribe(listener)

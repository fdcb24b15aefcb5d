"""A store that fails at exactly the named call: before it is done, after it is done, or not at all but late."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from broker.errors import StoreError
from broker.stores.base import Event, Lease, LeaseOutcome, Record, Store, StoreDown


class Trouble(StrEnum):
    """What goes wrong with a call."""

    FAILS = "fails"
    """Nothing is done, and an error is reported."""
    APPLIED = "applied"
    """It is done, and an error is reported."""
    HELD = "held"
    """It isn't done before the test lets it go on; then it is."""
    HELD_ANSWER = "held_answer"
    """It is done, and its caller hears of it when the test lets it."""
    CONFLICT = "conflict"
    """A write finds that somebody else has written."""


@dataclass(slots=True)
class Rule:
    """
    One fault.

    Attributes:
        method: The name of the store's method; "" for every one.
        trouble: What goes wrong.
        skip: How many matching calls pass first.
        count: How many calls it strikes; None: all, until :meth:`TroubledStore.heal`.
        when: Only calls with these arguments.
        reached: Set when the first call is struck.
        released: Lets held calls go on.
    """

    method: str
    trouble: Trouble
    skip: int = 0
    count: int | None = 1
    when: Callable[..., bool] | None = None
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def strikes(self, method: str, arguments: tuple[Any, ...]) -> bool:
        if self.method not in {"", method} or self.count == 0 or (self.when and not self.when(*arguments)):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.count is not None:
            self.count -= 1
        self.reached.set()
        return True


class TroubledStore:
    """Implements ``stores.base.Store`` over another one."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.calls: list[str] = []
        self._rules: list[Rule] = []

    def trouble(self, method: str, trouble: Trouble | str, **rule: Any) -> Rule:
        """Add a fault. ``lease.renew`` and ``lease.release`` are the methods of leases."""
        added = Rule(method, Trouble(trouble), **rule)
        self._rules.append(added)
        return added

    def go_down(self) -> None:
        """Fail every call from now on."""
        self.trouble("", Trouble.FAILS, count=None)

    def heal(self) -> None:
        """Forget every fault, and let go of what is held."""
        for rule in self._rules:
            rule.released.set()
        self._rules.clear()

    async def _call(self, method: str, call: Callable[[], Any], *arguments: Any) -> Any:
        self.calls.append(method)
        rule = next((rule for rule in self._rules if rule.strikes(method, arguments)), None)
        if rule is None:
            return await call()
        match rule.trouble:
            case Trouble.FAILS:
                await asyncio.sleep(0)  # no store answers in the very turn of the loop in which it is asked
                raise StoreError("the test wants it so")
            case Trouble.APPLIED:
                await call()
                raise StoreError("the test wants it so, and it was done")
            case Trouble.HELD:
                await rule.released.wait()
                return await call()
            case Trouble.HELD_ANSWER:
                result = await call()
                await rule.released.wait()
                return result
            case Trouble.CONFLICT:
                return None

    async def start(self) -> None:
        await self.inner.start()

    async def close(self) -> None:
        await self.inner.close()

    async def ping(self) -> None:
        await self._call("ping", self.inner.ping)

    async def version(self, key: str) -> int | None:
        version: int | None = await self._call("version", lambda: self.inner.version(key), key)
        return version

    async def get(self, key: str) -> Record | None:
        record: Record | None = await self._call("get", lambda: self.inner.get(key), key)
        return record

    async def create(
        self,
        key: str,
        value: bytes,
        *,
        ttl_seconds: float,
        tags: Sequence[str] = (),
        due_at: float | None = None,
    ) -> int | None:
        version: int | None = await self._call(
            "create",
            lambda: self.inner.create(key, value, ttl_seconds=ttl_seconds, tags=tags, due_at=due_at),
            key,
        )
        return version

    async def replace(
        self,
        key: str,
        value: bytes,
        version: int,
        *,
        ttl_seconds: float | None = None,
        due_at: float | None = None,
    ) -> int | None:
        written: int | None = await self._call(
            "replace",
            lambda: self.inner.replace(key, value, version, ttl_seconds=ttl_seconds, due_at=due_at),
            key,
        )
        return written

    async def delete(self, key: str, version: int | None = None) -> bool:
        return bool(await self._call("delete", lambda: self.inner.delete(key, version), key))

    async def touch(self, key: str, ttl_seconds: float) -> bool:
        return bool(await self._call("touch", lambda: self.inner.touch(key, ttl_seconds), key))

    async def find(self, tag: str) -> list[str]:
        found: list[str] = await self._call("find", lambda: self.inner.find(tag), tag)
        return found

    async def due(self, kind: str, before: float, limit: int) -> list[str]:
        found: list[str] = await self._call("due", lambda: self.inner.due(kind, before, limit), kind)
        return found

    async def lease(self, key: str, ttl_seconds: float) -> LeaseOutcome:
        try:
            outcome = await self._call("lease", lambda: self.inner.lease(key, ttl_seconds), key)
        except StoreError as fault:
            return StoreDown(str(fault))
        if hasattr(outcome, "renew"):
            lease: LeaseOutcome = _TroubledLease(self, outcome)
            return lease
        refused: LeaseOutcome = outcome
        return refused

    async def draw(self, seconds: Mapping[str, float]) -> Mapping[str, float]:
        return dict(await self._call("draw", lambda: self.inner.draw(seconds), seconds))

    async def publish(self, event: Event) -> None:
        await self._call("publish", lambda: self.inner.publish(event), event)

    def subscribe(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        return self.inner.subscribe(listener)


class _TroubledLease:
    def __init__(self, store: TroubledStore, inner: Lease) -> None:
        self._store = store
        self._inner = inner

    async def renew(self, ttl_seconds: float) -> bool:
        return bool(await self._store._call("lease.renew", lambda: self._inner.renew(ttl_seconds)))

    async def release(self) -> None:
        try:
            await self._store._call("lease.release", self._inner.release)
        except StoreError:
            return

"""The memory store passes the contract."""

from collections.abc import AsyncIterator

import pytest

from broker.stores.base import Store
from broker.stores.memory import MemoryBackend, MemoryStore
from tests.stores.store_contract import LONG, StoreContract
from tests.support.clock import ManualClock


class MemoryBacking:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.backend = MemoryBackend(self.clock)
        self._opened: list[Store] = []

    async def open(self) -> Store:
        store: Store = MemoryStore(self.backend)
        await store.start()
        self._opened.append(store)
        return store

    async def elapse(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def close(self) -> None:
        for store in self._opened:
            await store.close()


@pytest.fixture
async def backing() -> AsyncIterator[MemoryBacking]:
    backing = MemoryBacking()
    yield backing
    await backing.close()


class TestContract(StoreContract):
    """The suite that every store passes."""


async def test_expired_records_do_not_pile_up(backing: MemoryBacking) -> None:
    """A hundred thousand expired records and leases that nobody asks for leave the memory again."""
    store = await backing.open()
    for number in range(100_000):
        await store.create(f"session:{number:x}", b"", ttl_seconds=1)
        await store.lease(f"session:{number:x}", 1)
        backing.clock.advance(0.01)
    assert len(backing.backend.records) + len(backing.backend.leases) < 3_000


async def test_ft_15_the_wall_clock_ends_nothing(backing: MemoryBacking) -> None:
    """A wall clock that is set an hour forward or back neither ends a record or a lease nor keeps it."""
    store = await backing.open()
    await store.create("session:01", b"", ttl_seconds=LONG)
    await store.lease("session:01", LONG)
    for jump in (3600, -7200):
        backing.clock.set_wall_clock(jump)
        assert None is not await store.get("session:01")
    backing.clock.advance(LONG)
    assert None is await store.get("session:01")
    assert {} == backing.backend.leases or backing.backend.lease("session:01") is None

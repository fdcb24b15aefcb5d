"""The SQLite store passes the contract."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.stores.base import Store
from broker.stores.sqlite import SqliteStore
from tests.stores.store_contract import StoreContract
from tests.support.clock import ManualClock, SeededRandomness


class SqliteBacking:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = ManualClock()
        self._opened: list[Store] = []

    async def open(self) -> Store:
        store: Store = SqliteStore(self.path, self.clock, SeededRandomness(len(self._opened)))
        await store.start()
        self._opened.append(store)
        return store

    async def elapse(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def close(self) -> None:
        for store in self._opened:
            await store.close()


@pytest.fixture
async def backing(tmp_path: Path) -> AsyncIterator[SqliteBacking]:
    backing = SqliteBacking(tmp_path / "broker.db")
    yield backing
    await backing.close()


class TestContract(StoreContract):
    """The suite that every store passes."""

"""The Redis store passes the contract, on a real server."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from broker.services.clock import SystemClock, SystemRandomness
from broker.stores.base import Store
from broker.stores.open import open_store
from broker.stores.options import StoreOptions, StoreUrl
from tests.stores.store_contract import StoreContract
from tests.support.redis_server import RedisServer


class RedisBacking:
    def __init__(self, options: StoreOptions) -> None:
        self.options = options
        self.opened: list[Store] = []

    def make(self) -> Store:
        """Return a store that is not started."""
        self.opened.append(open_store(self.options, SystemClock(), SystemRandomness()))
        return self.opened[-1]

    async def open(self) -> Store:
        store = self.make()
        await store.start()
        return store

    async def elapse(self, seconds: float) -> None:
        await asyncio.sleep(seconds)  # lifetimes are the server's, and its clock can't be moved

    async def close(self) -> None:
        for store in self.opened:
            await store.close()


def options(server: RedisServer) -> StoreOptions:
    return StoreOptions(url=StoreUrl.parse(f"redis://127.0.0.1:{server.port}/0"))


@pytest.fixture
async def backing(redis_server: RedisServer) -> AsyncIterator[RedisBacking]:
    backing = RedisBacking(options(redis_server))
    yield backing
    await backing.close()


class TestContract(StoreContract):
    """The suite that every store passes."""

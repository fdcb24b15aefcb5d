"""What several tests of stores use."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.errors import StoreError
from broker.services.clock import SystemClock
from broker.stores.base import Store
from broker.stores.sqlite import SqliteStore
from tests.stores.sqlite_process import LONG
from tests.support.clock import SeededRandomness
from tests.support.waiting import until_async

TIMEOUT = 1.5
"""The deadline of an SQLite store's calls in these tests, in seconds."""
RECOVERY = 5.0
"""Within so many seconds after a fault the service is normal (invariant I7)."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "broker.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, SystemClock(), SeededRandomness(), timeout_seconds=TIMEOUT)
    await store.start()
    yield store
    await store.close()


async def works(store: Store) -> bool:
    try:
        await store.ping()
    except StoreError:
        return False
    return True


async def recovers(store: Store) -> None:
    await until_async(lambda: works(store), seconds=RECOVERY, what="the recovery")
    assert None is not await store.create("grant:after", b"1", ttl_seconds=LONG)

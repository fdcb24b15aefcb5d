"""The options choose the store, and only its library is imported."""

import subprocess
import sys

import pytest

from broker.stores.memory import MemoryStore
from broker.stores.open import open_store
from broker.stores.options import StoreOptions, StoreUrl
from broker.stores.redis import RedisStore
from broker.stores.sqlite import SqliteStore
from tests.support.clock import ManualClock, SeededRandomness

KINDS = {
    "memory:": MemoryStore,
    "sqlite:///tmp/x.db": SqliteStore,
    "redis://localhost": RedisStore,
    "rediss://localhost": RedisStore,
    "redis+sentinel://localhost/broker": RedisStore,
    "redis+cluster://localhost": RedisStore,
}


@pytest.mark.parametrize("url", KINDS)
def test_the_url_chooses_the_store(url: str) -> None:
    """Each URL opens its kind of store, and nothing is connected or written yet."""
    store = open_store(StoreOptions(url=StoreUrl.parse(url)), ManualClock(), SeededRandomness())
    assert KINDS[url] is type(store)


@pytest.mark.parametrize("url", ["memory:", "sqlite:///tmp/x.db"])
def test_redis_is_not_imported_without_need(url: str) -> None:
    """An installation without Redis never loads its client."""
    program = (
        "import sys\n"
        "from broker.services.clock import SystemClock, SystemRandomness\n"
        "from broker.stores.open import open_store\n"
        "from broker.stores.options import StoreOptions, StoreUrl\n"
        f"open_store(StoreOptions(url=StoreUrl.parse({url!r})), SystemClock(), SystemRandomness())\n"
        "print('redis' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "False" == result.stdout.strip()

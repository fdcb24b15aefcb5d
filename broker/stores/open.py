"""Which store the options mean."""

from typing import assert_never

from broker.stores.base import Clock, Randomness, Store
from broker.stores.options import StoreKind, StoreOptions


def open_store(options: StoreOptions, clock: Clock, randomness: Randomness) -> Store:
    """
    Return the store that *options* mean. It does nothing before its ``start``.

    Only the library that this store needs is imported.

    Raises:
        ConfigError: If a certificate or a key can't be loaded.
    """
    location = options.location
    match location.kind:
        case StoreKind.MEMORY:
            from broker.stores.memory import MemoryBackend, MemoryStore

            return MemoryStore(MemoryBackend(clock))
        case StoreKind.SQLITE:
            from broker.stores.sqlite import SqliteStore

            return SqliteStore(location.path, clock, randomness, timeout_seconds=options.timeout_seconds)
        case StoreKind.REDIS | StoreKind.SENTINEL | StoreKind.CLUSTER:
            from broker.stores.redis import RedisStore

            return RedisStore(options, clock, randomness)
        case _:
            assert_never(location.kind)

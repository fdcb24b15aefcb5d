"""The store in Redis, or Valkey, for many hosts."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import assert_never

from broker.errors import ConfigError, StoreError
from broker.stores.base import Clock, Event, LeaseOutcome, Randomness, Record
from broker.stores.listeners import Listeners
from broker.stores.options import StoreKind, StoreOptions
from broker.stores.redis_buckets import draw
from broker.stores.redis_client import RedisClient, Script, milliseconds
from broker.stores.redis_connection import Dialler, Reply
from broker.stores.redis_events import EventChannel
from broker.stores.redis_indexes import Due, Indexes, Keys
from broker.stores.redis_leases import acquire
from broker.stores.redis_sentinels import Sentinels
from broker.stores.redis_tls import RedisTls
from broker.stores.redis_topology import Cluster, Standalone, Topology
from broker.stores.redis_witness import Witness

# A record is a hash:
#   value    the sealed bytes
#   version  microseconds of the server's clock at the write, or one more than before where that isn't above it
#   write    the stamp of the call that wrote it last, by which a call that is repeated knows its own work
#   id       the stamp of the call that created it; entries in the indexes of its tags carry it
#   tags     words with spaces between them
#   due      a due time and the stamp of the call that set it; entries in the index of due times carry that
#
# A version is taken from the clock, and not counted, since a count can repeat: a failover may lose the last writes, and
# whoever has read one of them must not overwrite what was written in its place.
_NEXT_VERSION = """
local function next_version(last)
  local time = redis.call('TIME')
  return string.format('%.0f', math.max(time[1] * 1000000 + time[2], (tonumber(last) or 0) + 1))
end
"""

# Where a call is repeated whose answer was lost, the record is written once more, without a change, so that WAIT on the
# new connection has something to wait for.
CREATE = Script(
    _NEXT_VERSION
    + """
local value, ttl, stamp, tags, due = unpack(ARGV)
local found = redis.call('HMGET', KEYS[1], 'version', 'write')
if found[2] == stamp then
  redis.call('HSET', KEYS[1], 'write', stamp)
  return found[1]
elseif found[1] then
  return false
end
local version = next_version()
redis.call('HSET', KEYS[1], 'value', value, 'version', version, 'write', stamp, 'id', stamp, 'tags', tags, 'due', due)
redis.call('PEXPIRE', KEYS[1], ttl)
return version
"""
)

REPLACE = Script(
    _NEXT_VERSION
    + """
local value, expected, stamp, ttl, due = unpack(ARGV)
local found = redis.call('HMGET', KEYS[1], 'version', 'write', 'due', 'id', 'tags')
if found[2] == stamp then
  redis.call('HSET', KEYS[1], 'write', stamp)
  return {found[1], found[4], found[5], ''}
elseif found[1] ~= expected then
  return false
end
local version = next_version(found[1])
redis.call('HSET', KEYS[1], 'value', value, 'version', version, 'write', stamp, 'due', due)
if ttl ~= '' then
  redis.call('PEXPIRE', KEYS[1], ttl)
end
return {version, found[4], found[5], found[3]}
"""
)

DELETE = Script("""
local expected, stamp = unpack(ARGV)
if redis.call('GET', KEYS[2]) == stamp then
  redis.call('SET', KEYS[2], stamp, 'PX', 60000)
  return {'', '', ''}
end
local found = redis.call('HMGET', KEYS[1], 'version', 'id', 'tags', 'due')
if not found[1] or (expected ~= '' and found[1] ~= expected) then
  return false
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], stamp, 'PX', 60000)
return {found[2], found[3], found[4]}
""")

TOUCH = Script("""
if redis.call('PEXPIRE', KEYS[1], ARGV[1]) == 0 then
  return false
end
return redis.call('HMGET', KEYS[1], 'id', 'tags', 'due')
""")

PING = Script("""
redis.call('SET', KEYS[1], '', 'PX', 60000)
""")

log = logging.getLogger(__name__)


class RedisStore:
    """
    A store in one Redis server, behind Sentinels, or in a cluster. It implements ``stores.base.Store``.

    Redis promises failover, not that acknowledged writes survive it: with ``wait_replicas`` a write counts only once
    so many replicas have it. Lifetimes are the server's.
    """

    def __init__(self, options: StoreOptions, clock: Clock, randomness: Randomness) -> None:
        """
        Args:
            options: Where the servers are.
            clock: Dates the entries of indexes.
            randomness: For the owners of leases, and to tell one call from another.

        Raises:
            ConfigError: If a certificate or a key can't be loaded.
        """
        self._keys = Keys(options.prefix)
        self._client = _client(options, Witness(self._keys.witness(), randomness))
        self._indexes = Indexes(self._client, self._keys, clock, randomness)
        self._listeners = Listeners()
        self._channel = EventChannel(self._client, self._keys.events(), self._listeners.tell)
        self._wait_replicas = options.wait_replicas
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if self._watch is None:
            watch = self._client.topology.watch()
            self._watch = asyncio.get_running_loop().create_task(watch, name="redis-topology-watch")
        await self._channel.open()
        await self.ping()
        await self._warn_of_eviction()

    async def _warn_of_eviction(self) -> None:
        """Say so if Redis may delete sessions to make room. Whoever may not ask isn't told."""
        with contextlib.suppress(StoreError):
            reply = await self._client.call(self._keys.ping(), "INFO", "memory")
            facts = reply.decode(errors="replace") if isinstance(reply, bytes) else ""
            policy = next((line for line in facts.splitlines() if line.startswith("maxmemory_policy:")), "")
            if policy not in {"", "maxmemory_policy:noeviction"}:
                log.warning("redis_may_evict_sessions", extra={"policy": policy[:100]})

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        await self._channel.close()
        await self._client.close()

    async def ping(self) -> None:
        await self._client.run(PING, [self._keys.ping()], replicas=self._wait_replicas)

    async def get(self, key: str) -> Record | None:
        record = self._keys.record(key)
        match await self._client.read(record, "HMGET", record, "value", "version"):
            case [None, None]:
                return None
            case [bytes() as value, version]:
                return Record(value, _version(version))
            case reply:
                raise _nonsense(reply)

    async def version(self, key: str) -> int | None:
        record = self._keys.record(key)
        reply = await self._client.read(record, "HGET", record, "version")
        return None if reply is None else _version(reply)

    async def create(
        self,
        key: str,
        value: bytes,
        *,
        ttl_seconds: float,
        tags: Sequence[str] = (),
        due_at: float | None = None,
    ) -> int | None:
        stamp = self._indexes.stamp()
        due = None if due_at is None else Due(due_at, stamp)
        ttl = milliseconds(ttl_seconds)
        await self._indexes.add(key, stamp, tags, due, ttl)
        written = (value, ttl, stamp, " ".join(tags), str(due or ""))
        reply = await self._client.run(CREATE, [self._keys.record(key)], *written, replicas=self._wait_replicas)
        if reply is None:
            await self._indexes.remove(key, stamp, tags, due)
            return None
        return _version(reply)

    async def replace(
        self,
        key: str,
        value: bytes,
        version: int,
        *,
        ttl_seconds: float | None = None,
        due_at: float | None = None,
    ) -> int | None:
        stamp = self._indexes.stamp()
        due = None if due_at is None else Due(due_at, stamp)
        ttl = None if ttl_seconds is None else milliseconds(ttl_seconds)
        await self._indexes.add(key, stamp, (), due, ttl or 0)
        written = (value, version, stamp, ttl or "", str(due or ""))
        match await self._client.run(REPLACE, [self._keys.record(key)], *written, replicas=self._wait_replicas):
            case None:
                await self._indexes.remove(key, stamp, (), due)
                return None
            case [reply, *indexed]:
                created, tags, before = _indexed(indexed)
                await self._indexes.remove(key, stamp, (), before)
                if ttl is not None:
                    await self._indexes.add(key, created, tags, None, ttl)
                return _version(reply)
            case reply:
                raise _nonsense(reply)

    async def delete(self, key: str, version: int | None = None) -> bool:
        keys = [self._keys.record(key), self._keys.mark(key)]
        expected = "" if version is None else version
        reply = await self._client.run(DELETE, keys, expected, self._indexes.stamp(), replicas=self._wait_replicas)
        if reply is None:
            return False
        with contextlib.suppress(StoreError):  # a record that makes no sense is gone all the same
            await self._indexes.remove(key, *_indexed(reply))
        return True

    async def touch(self, key: str, ttl_seconds: float) -> bool:
        ttl = milliseconds(ttl_seconds)
        reply = await self._client.run(TOUCH, [self._keys.record(key)], ttl)
        if reply is None:
            return False
        await self._indexes.add(key, *_indexed(reply), ttl)
        return True

    async def find(self, tag: str) -> list[str]:
        return await self._indexes.find(tag)

    async def due(self, kind: str, before: float, limit: int) -> list[str]:
        return await self._indexes.due(kind, before, limit)

    async def lease(self, key: str, ttl_seconds: float) -> LeaseOutcome:
        return await acquire(self._client, self._keys.lease(key), self._indexes.stamp(), ttl_seconds)

    async def draw(self, seconds: Mapping[str, float]) -> dict[str, float]:
        return await draw(self._client, self._keys, seconds)

    async def publish(self, event: Event) -> None:
        await self._channel.publish(event)

    def subscribe(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        return self._listeners.add(listener)


def _client(options: StoreOptions, witness: Witness) -> RedisClient:
    """Build the client for what the URL means."""
    location = options.location
    tls = RedisTls(options.tls) if location.tls else None
    dialler = Dialler(
        username=location.username,
        password=options.password or location.password,
        database=location.database,
        tls=tls,
        at="store.password" if location.password is None else "store.url",
    )
    topology: Topology
    match location.kind:
        case StoreKind.REDIS:
            topology = Standalone(location.addresses[0])
        case StoreKind.SENTINEL:
            asker = Dialler(
                username=options.sentinel_username,
                password=options.sentinel_password,
                tls=tls,
                at="store.sentinel_password",
            )
            topology = Sentinels(location.addresses, location.master, asker, witness)
        case StoreKind.CLUSTER:
            topology = Cluster(location.addresses, dialler)
        case StoreKind.MEMORY | StoreKind.SQLITE:
            raise ConfigError(f"{location} is no URL of a Redis store")
        case _:
            assert_never(location.kind)
    return RedisClient(
        topology, dialler, timeout_seconds=options.timeout_seconds, max_connections=options.max_connections
    )


def _version(reply: Reply) -> int:
    if isinstance(reply, bytes) and reply.isdigit() and len(reply) < 20:
        return int(reply)
    raise _nonsense(reply)


def _indexed(reply: Reply) -> tuple[str, list[str], Due | None]:
    """Read what a record says of its entries in indexes: its creation's stamp, its tags and its due time."""
    match reply:
        case [bytes() as stamp, bytes() as tags, bytes() as due]:
            return _text(stamp), _text(tags).split(), Due.read(_text(due))
        case _:
            raise _nonsense(reply)


def _text(reply: bytes) -> str:
    return reply.decode(errors="replace")


def _nonsense(reply: Reply) -> StoreError:
    return StoreError(f"redis holds something under this key that is no record: {type(reply).__name__}")

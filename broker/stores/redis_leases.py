"""Leases in Redis: a key that names its owner and expires."""

import asyncio
import contextlib
from dataclasses import dataclass

from broker.errors import StoreError
from broker.stores.base import Busy, Lease, LeaseOutcome, StoreDown
from broker.stores.redis_client import RedisClient, Script, milliseconds

ACQUIRE = Script("""
local owner, ttl = unpack(ARGV)
if redis.call('SET', KEYS[1], owner, 'NX', 'PX', ttl) then
  return 1
elseif redis.call('GET', KEYS[1]) == owner then
  redis.call('PEXPIRE', KEYS[1], ttl)
  return 1
end
return 0
""")

RENEW = Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
""")

RELEASE = Script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
""")


async def acquire(client: RedisClient, key: str, owner: str, ttl_seconds: float) -> LeaseOutcome:
    """
    Try once to hold the lease at *key*.

    Args:
        client: Where it is.
        key: Its key in Redis.
        owner: What no other call has.
        ttl_seconds: How long to hold it.
    """
    lease: Lease = RedisLease(client, key, owner)
    try:
        is_held = await client.run(ACQUIRE, [key], owner, milliseconds(ttl_seconds), is_patient=True) == 1
    except StoreError as fault:
        return StoreDown(str(fault))
    except asyncio.CancelledError:
        client.afterwards(lease.release())  # it may have been had, and nobody would use it
        raise
    return lease if is_held else Busy()


@dataclass(frozen=True, slots=True)
class RedisLease:
    """A lease that is held. It implements ``stores.base.Lease``."""

    client: RedisClient
    key: str
    owner: str

    async def renew(self, ttl_seconds: float) -> bool:
        return await self.client.run(RENEW, [self.key], self.owner, milliseconds(ttl_seconds)) == 1

    async def release(self) -> None:
        with contextlib.suppress(StoreError):
            await self.client.run(RELEASE, [self.key], self.owner)

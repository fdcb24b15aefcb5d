"""Buckets in Redis: a key that holds when its bucket is full again, and expires then."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping

from broker.errors import StoreError
from broker.stores.redis_client import RedisClient, Script
from broker.stores.redis_indexes import Keys

# Where the call is repeated whose answer was lost, the tokens are taken twice: a rate errs towards fewer.
DRAW = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local full_in = {}
for index, key in ipairs(KEYS) do
  local full_at = math.max(tonumber(redis.call('GET', key)) or 0, now) + ARGV[index]
  redis.call('SET', key, string.format('%.0f', full_at), 'PX', math.ceil((full_at - now) / 1000))
  full_in[index] = string.format('%.0f', full_at - now)
end
return full_in
""")


async def draw(client: RedisClient, keys: Keys, seconds: Mapping[str, float]) -> dict[str, float]:
    """As ``Store.draw``, by one call for each slot of a cluster in which there are such keys."""
    slots: dict[str, list[str]] = defaultdict(list)
    for key in seconds:
        slots[keys.bucket_slot(key)].append(key)
    found = await asyncio.gather(*(_draw(client, keys, group, seconds) for group in slots.values()))
    return {key: full_in for each in found for key, full_in in each.items()}


async def _draw(client: RedisClient, keys: Keys, group: list[str], seconds: Mapping[str, float]) -> dict[str, float]:
    microseconds = [max(1, round(seconds[key] * 1e6)) for key in group]
    reply = await client.run(DRAW, [keys.bucket(key) for key in group], *microseconds)
    if not isinstance(reply, list) or len(reply) != len(group):
        raise StoreError("redis answered nonsense to a draw")
    return {key: float(full_in) / 1e6 for key, full_in in zip(group, reply, strict=True)}

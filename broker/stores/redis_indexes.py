"""
Finding records in Redis by tag and by due time.

In a cluster an index lives on another node than the records it names, so no script can write both. Hence the rule: an
index may name too much, never too little, and who asks it asks the records too. An entry is written before its record,
carries the stamp of that write, and counts only as long as the record carries the same stamp. What no longer counts is
taken out when it is met; but not at once, since its record might be about to be written.
"""

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

from broker.errors import StoreError
from broker.stores.base import Clock, Randomness
from broker.stores.redis_client import RedisClient, Script
from broker.stores.redis_connection import Reply

GRACE_SECONDS = 600.0
"""How old an entry without a record is before it is taken out; far above any deadline of a call."""

# An entry is kept for twice the life of its record: a touch that dies between the record and the index costs nothing,
# as the next touch, long before that, makes up for it.
ADD_TAG = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local keep = 2 * tonumber(ARGV[2]) + 60000
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + keep, ARGV[1])
if redis.call('PTTL', KEYS[1]) < keep then
  redis.call('PEXPIRE', KEYS[1], keep)
end
""")

# Kept until 30 days after the last due time: what nobody looked for by then is reported late, and not never.
ADD_DUE = Script("""
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
local until_due = math.ceil(1000 * tonumber(ARGV[3])) - 1000 * redis.call('TIME')[1]
local keep = math.max(2 * tonumber(ARGV[2]), 100 * 86400000, until_due + 30 * 86400000)
if redis.call('PTTL', KEYS[1]) < keep then
  redis.call('PEXPIRE', KEYS[1], keep)
end
""")


@dataclass(frozen=True, slots=True)
class Due:
    """A due time as a record carries it: Unix seconds, and the stamp of the write that set it."""

    at: float
    stamp: str

    def __str__(self) -> str:
        return f"{self.at!r}@{self.stamp}"

    @classmethod
    def read(cls, text: str) -> "Due | None":
        """Read what ``str`` wrote; None if it is empty, or not ours."""
        at, _, stamp = text.partition("@")
        try:
            return cls(float(at), stamp)
        except ValueError:
            return None


class Keys:
    """The names of things in Redis. Braces keep what belongs to one id in one slot."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def record(self, key: str) -> str:
        return f"{self._prefix}{{{key}}}"

    def mark(self, key: str) -> str:
        """Tells for a moment that a record was deleted, and by which call."""
        return f"{self._prefix}deleted:{{{key}}}"

    def bucket(self, key: str) -> str:
        """Of 16 slots, so that what is drawn together takes few calls."""
        return f"{self._prefix}bucket:{{{self.bucket_slot(key)}}}:{key}"

    def bucket_slot(self, key: str) -> str:
        """Return what decides on the slot of a bucket."""
        return f"bucket-{key.partition(':')[2][:1]}"

    def lease(self, key: str) -> str:
        return f"{self._prefix}lease:{{{key}}}"

    def tag(self, tag: str) -> str:
        return f"{self._prefix}tag:{tag}"

    def due(self, kind: str) -> str:
        return f"{self._prefix}due:{kind}"

    def events(self) -> str:
        return f"{self._prefix}events"

    def ping(self) -> str:
        return f"{self._prefix}ping"

    def witness(self) -> str:
        """Is there as long as the rest is: see ``redis_witness``."""
        return f"{self._prefix}witness"


class Indexes:
    """The sets that name records, one for each tag and one for each kind that can be due."""

    def __init__(self, client: RedisClient, keys: Keys, clock: Clock, randomness: Randomness) -> None:
        self._client = client
        self._keys = keys
        self._clock = clock
        self._randomness = randomness

    def stamp(self) -> str:
        """Return what no other write has: its time in hexadecimal Unix seconds and a nonce."""
        return f"{int(self._clock.now()):x}-{self._randomness.token_bytes(12).hex()}"

    async def add(self, key: str, stamp: str, tags: Iterable[str], due: Due | None, ttl_ms: int) -> None:
        """
        Let *key* be found by *tags* and when it is *due*.

        Args:
            key: The record.
            stamp: Of the call that created it.
            tags: Its tags.
            due: Its due time, or None.
            ttl_ms: How long it lives; 0 if that isn't known.

        Raises:
            StoreError: If it might not be found.
        """
        calls = [self._client.run(ADD_TAG, [self._keys.tag(tag)], _entry(key, stamp), ttl_ms) for tag in tags]
        if due is not None:
            index = self._keys.due(_kind(key))
            calls.append(self._client.run(ADD_DUE, [index], _entry(key, due.stamp), ttl_ms, repr(due.at)))
        await asyncio.gather(*calls)

    async def remove(self, key: str, stamp: str, tags: Iterable[str], due: Due | None) -> None:
        """Take out what no longer counts. Never raises: who meets it later takes it out."""
        calls = [self._remove(self._keys.tag(tag), _entry(key, stamp)) for tag in tags]
        if due is not None:
            calls.append(self._remove(self._keys.due(_kind(key)), _entry(key, due.stamp)))
        await asyncio.gather(*calls)

    async def find(self, tag: str) -> list[str]:
        """Return the keys of the records with *tag*. Raises StoreError."""
        index = self._keys.tag(tag)
        entries = _texts(await self._client.call(index, "ZRANGE", index, 0, -1))
        found, _ = await self._ask_records(index, entries, "id")
        return found

    async def due(self, kind: str, before: float, limit: int) -> list[str]:
        """Return the keys of up to *limit* records that are due, oldest first. Raises StoreError."""
        index = self._keys.due(kind)
        found: list[str] = []
        passed = 0
        while len(found) < limit:
            page = ("LIMIT", passed, limit)
            entries = _texts(await self._client.call(index, "ZRANGEBYSCORE", index, "-inf", repr(before), *page))
            keys, left = await self._ask_records(index, entries, "due")
            found += keys
            passed += left
            if len(entries) < limit:
                break
        return found[:limit]

    async def _ask_records(self, index: str, entries: list[str], field: str) -> tuple[list[str], int]:
        """
        Return the keys of the entries whose record carries their stamp in *field*, and how many entries are left.

        Those that count no longer and are old are taken out of *index*.
        """
        records = [self._keys.record(_read_entry(entry)[0]) for entry in entries]
        replies = await asyncio.gather(*(self._client.call(record, "HGET", record, field) for record in records))
        found: list[str] = []
        old: list[str] = []
        for entry, reply in zip(entries, replies, strict=True):
            key, stamp = _read_entry(entry)
            # The field "id" is a stamp, and "due" ends with one.
            if isinstance(reply, bytes) and reply.decode(errors="replace").rpartition("@")[2] == stamp:
                found.append(key)
            elif self._is_old(stamp):
                old.append(entry)
        await asyncio.gather(*(self._remove(index, entry) for entry in old))
        return found, len(entries) - len(old)

    def _is_old(self, stamp: str) -> bool:
        """Return whether no write that *stamp* could belong to is under way. So it is of what is no stamp of ours."""
        try:
            return self._clock.now() - int(stamp.partition("-")[0], 16) > GRACE_SECONDS
        except ValueError:
            return True

    async def _remove(self, index: str, entry: str) -> None:
        with contextlib.suppress(StoreError):
            await self._client.call(index, "ZREM", index, entry)


def _kind(key: str) -> str:
    return key.partition(":")[0]


def _entry(key: str, stamp: str) -> str:
    return f"{key}@{stamp}"


def _read_entry(entry: str) -> tuple[str, str]:
    key, _, stamp = entry.rpartition("@")
    return key, stamp


def _texts(reply: Reply) -> list[str]:
    if not isinstance(reply, list):
        raise StoreError(f"redis answered {type(reply).__name__} for a list")
    return [item.decode(errors="replace") for item in reply if isinstance(item, bytes)]

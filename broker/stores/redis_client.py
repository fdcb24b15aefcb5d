"""Calls to Redis, wherever the key is, with one deadline over all that may go wrong on the way."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from broker.errors import StoreError
from broker.stores.options import Address
from broker.stores.redis_connection import Command, Dialler, Pool, Reply, Unreachable, explain
from broker.stores.redis_topology import Topology

ATTEMPTS = 4
"""How many servers, or states of one server, a call may meet on its way."""
PAUSE_SECONDS = 0.05
"""How long a call waits where a failover or a migration is under way, the first time."""
WAIT_SHARE = 0.35
"""Which part of the time that is left the replicas may take; less than a half (``Pool.exchange``)."""

Word = str | bytes | int | float


@dataclass(frozen=True, slots=True)
class Script:
    """
    A Lua script. Redis carries it out as one step, or not at all.

    It must be as good to run it twice as once, with the same arguments.
    """

    text: str
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        # Redis names scripts by SHA-1; nothing depends on its strength.
        object.__setattr__(self, "digest", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())

    def command(self, keys: Sequence[str], arguments: Sequence[Word], *, is_known: bool) -> Command:
        """Return the command that runs it, by its name if the server knows it."""
        name, body = ("EVALSHA", self.digest) if is_known else ("EVAL", self.text)
        return (name, body, len(keys), *keys, *arguments)


@dataclass(frozen=True, slots=True)
class _Turn:
    """What the commands of an attempt depend on: the seconds that are left, and whether the server knows the script."""

    seconds: float
    is_known: bool


class RedisClient:
    """Sends each command to the server that has its key."""

    def __init__(self, topology: Topology, dialler: Dialler, *, timeout_seconds: float, max_connections: int) -> None:
        """
        Args:
            topology: Knows the servers. It is closed with the client.
            dialler: Connects to them.
            timeout_seconds: How long a call may take, with all its detours.
            max_connections: How many connections one server gets.
        """
        self.topology = topology
        self.dialler = dialler
        self.timeout_seconds = timeout_seconds
        self._max_connections = max_connections
        self._pools: dict[Address, Pool] = {}
        self._is_closed = False

    async def call(self, key: str, *words: Word) -> Reply:
        """
        Return what Redis answers to a command on *key*, which may be carried out twice.

        Raises:
            StoreError: If it answers an error, or nothing in time.
        """
        [reply] = await self._call(key, lambda _: [words])
        return reply

    async def run(self, script: Script, keys: Sequence[str], *arguments: Word, replicas: int = 0) -> Reply:
        """
        Return what *script* returns.

        Args:
            script: What to run.
            keys: The keys that it uses, all of one slot.
            arguments: Its other arguments.
            replicas: How many replicas must have what it wrote.

        Raises:
            StoreError: If it fails, if there is no answer in time, or if too few replicas have it.
        """

        def commands(turn: _Turn) -> list[Command]:
            wait = [("WAIT", replicas, max(1, int(turn.seconds * WAIT_SHARE * 1000)))] if replicas else []
            return [script.command(keys, arguments, is_known=turn.is_known), *wait]

        reply, *waited = await self._call(keys[0], commands)
        for count in waited:
            if not isinstance(count, int) or count < replicas:
                raise StoreError(f"written, but not by {replicas} replicas in time: {count!r:.100}")
        return reply

    async def _call(self, key: str, commands: Callable[[_Turn], list[Command]]) -> list[Reply]:
        """
        Send the commands to where *key* is.

        Args:
            key: A key of the slot.
            commands: Makes them.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout_seconds
        is_known = True
        asked: Address | None = None
        reason: ResponseError | None = None
        for attempt in range(ATTEMPTS):
            began_at = loop.time()
            address = asked or await self.topology.locate(key, deadline)
            pool = await self._pool(address)
            asking: list[Command] = [("ASKING",)] if asked else []
            try:
                replies = await pool.exchange([*asking, *commands(_Turn(deadline - began_at, is_known))], deadline)
            except Unreachable as fault:
                await self.topology.relearn(began_at, deadline)
                elsewhere = address != await self.topology.locate(key, deadline)
                if loop.time() >= deadline or not (fault.was_idle or elsewhere):
                    raise
                asked = None
                continue
            del replies[: len(asking)]
            asked = None
            match replies[0]:
                case MovedError() as notice:
                    await self.topology.relearn(began_at, deadline)
                    self.topology.moved(notice)
                case AskError() as notice:
                    asked = Address(notice.host, notice.port)
                case NoScriptError():
                    is_known = False
                case ReadOnlyError() | ClusterDownError() | TryAgainError() as refusal:
                    # A master that was replaced, or slots on their way. Nothing was done.
                    reason = refusal
                    await pool.reset()
                    await self.topology.relearn(began_at, deadline)
                    await asyncio.sleep(PAUSE_SECONDS * (attempt + 1))
                case ResponseError() as refusal:
                    raise StoreError(f"redis at {address}: {explain(refusal)}")
                case _:
                    return replies
        raise StoreError(
            f"redis sends us in circles: {explain(reason) if reason else 'moved'}", retry_after_seconds=1.0
        )

    async def _pool(self, address: Address) -> Pool:
        if self._is_closed:
            raise StoreError("the store is closed")
        if (pool := self._pools.get(address)) is None:
            pool = self._pools[address] = Pool(self.dialler, address, size=self._max_connections)
            for gone in self._pools.keys() - self.topology.addresses() - {address}:
                await self._pools.pop(gone).close()
        return pool

    async def close(self) -> None:
        """Drop all connections, for good."""
        self._is_closed = True
        await self.topology.close()
        while self._pools:
            _, pool = self._pools.popitem()
            await pool.close()

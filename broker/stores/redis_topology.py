"""Which Redis server has a key: the only one, or a node of a cluster. Sentinels have a module of their own."""

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

from redis.asyncio.connection import Connection
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import MovedError

from broker.errors import StoreError
from broker.stores.options import Address
from broker.stores.redis_connection import Dialler, Pool, Reply, Unreachable

RETRY_SECONDS = 1.0
"""When a caller may come again who wants a key that no server has."""
ASK_SECONDS = 0.5
"""How long one Sentinel or node is waited for."""


class Topology(Protocol):
    """Knows where keys are. What a kind of it has no use for does nothing."""

    async def locate(self, key: str, deadline: float) -> Address:
        """
        Return the server that has *key*.

        Raises:
            StoreError: If nobody knows, or nobody says so before *deadline* (event loop time).
        """
        ...

    def known(self, key: str) -> Address | None:  # noqa: ARG002 - for those who can say without asking
        """Return the server that has *key*, if that is known."""
        return None

    def addresses(self) -> AbstractSet[Address]:
        """Return the servers that are known to have keys."""
        ...

    async def admit(self, connection: Connection, address: Address) -> None:  # noqa: ARG002 - for those who can
        """
        Vouch for the server to which *connection* was made just now.

        Raises:
            Unreachable: If it is not, or not yet, to be believed.
        """
        return

    async def relearn(self, since: float, deadline: float) -> None:  # noqa: ARG002 - for those who can
        """Ask anew, unless that was done after *since* (event loop time). What can't be learned stays as it was."""
        return

    def moved(self, notice: MovedError) -> None:  # noqa: ARG002 - for those who can
        """Take a cluster's word for where a slot is now."""
        return

    async def watch(self) -> None:
        """Notice by itself what changes. Runs until it is cancelled, or ends at once."""
        return

    async def close(self) -> None:
        """Drop all connections."""
        return


class Learning:
    """Learns for all who want to know, once at a time. Nobody's cancellation or deadline breaks it off."""

    def __init__(self, learn: Callable[[], Coroutine[None, None, bool]]) -> None:
        """
        Args:
            learn: Learns, and returns whether it could.
        """
        self._learn = learn
        self._learned_at = -math.inf
        self._task: asyncio.Task[None] | None = None

    async def after(self, since: float, deadline: float) -> None:
        """Return once something was learned that was asked for after *since*, or could not be, or at *deadline*."""
        loop = asyncio.get_running_loop()
        is_last = False
        while self._learned_at <= since and not is_last:
            # One that is under way may have asked before.
            if is_last := self._task is None or self._task.done():
                self._task = loop.create_task(self._run(), name="redis-topology")
            await asyncio.wait([self._task], timeout=max(0.0, deadline - loop.time()))

    async def _run(self) -> None:
        began_at = asyncio.get_running_loop().time()
        if await self._learn():
            self._learned_at = began_at

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


class Standalone(Topology):
    """One server, behind one name."""

    def __init__(self, address: Address) -> None:
        self._address = address

    async def locate(self, key: str, deadline: float) -> Address:  # noqa: ARG002 - it has every key
        return self._address

    def known(self, key: str) -> Address | None:  # noqa: ARG002 - it has every key
        return self._address

    def addresses(self) -> AbstractSet[Address]:
        return {self._address}


class Cluster(Topology):
    """The nodes of a cluster by slots (Redis cluster specification, "Key distribution model")."""

    def __init__(self, seeds: Sequence[Address], dialler: Dialler) -> None:
        """
        Args:
            seeds: Some of its nodes.
            dialler: Connects to them.
        """
        self._seeds = list(seeds)
        self._dialler = dialler
        self._owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._turn = 0
        self._look_at: str | None = None
        self._learning = Learning(self._learn)

    async def locate(self, key: str, deadline: float) -> Address:
        slot = key_slot(key.encode())
        if self._owners[slot] is None:
            await self.relearn(asyncio.get_running_loop().time(), deadline)
        owner = self._owners[slot]
        if owner is None:
            why = "no node of the cluster has the key's slot"
            raise StoreError(why, retry_after_seconds=RETRY_SECONDS, look_at=self._look_at)
        return owner

    def known(self, key: str) -> Address | None:
        return self._owners[key_slot(key.encode())]

    def addresses(self) -> AbstractSet[Address]:
        return {owner for owner in self._owners if owner is not None}

    async def relearn(self, since: float, deadline: float) -> None:
        await self._learning.after(since, deadline)

    async def _learn(self) -> bool:
        nodes = sorted(self.addresses() | set(self._seeds), key=str)
        # Each time another one begins, so that a node with an outdated view isn't believed twice in a row.
        self._turn = (self._turn + 1) % len(nodes)
        for node in nodes[self._turn :] + nodes[: self._turn]:
            if (owners := await self._ask(node)) is not None:
                self._owners = owners
                return True
        return False

    async def _ask(self, node: Address) -> list[Address | None] | None:
        """Return the owner of each slot as *node* knows it."""
        pool = Pool(self._dialler.dial, node, size=1)
        try:
            [reply] = await pool.exchange([("CLUSTER", "SLOTS")], asyncio.get_running_loop().time() + ASK_SECONDS)
        except Unreachable as fault:
            self._look_at = fault.look_at
            return None
        finally:
            await pool.close()
        return _read_slots(reply, node)

    def moved(self, notice: MovedError) -> None:
        if 0 <= notice.slot_id < REDIS_CLUSTER_HASH_SLOTS and notice.host:
            self._owners[notice.slot_id] = Address(notice.host, notice.port)

    async def close(self) -> None:
        await self._learning.close()


def _read_slots(reply: Reply, asked: Address) -> list[Address | None] | None:
    """Read the answer to CLUSTER SLOTS: ranges, each with its master first."""
    if not isinstance(reply, list):
        return None
    owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
    try:
        for first, last, (host, port, *_), *_ in reply:
            # A node that doesn't know its own name leaves it to the client, which has reached it.
            owner = Address(host.decode() if host else asked.host, int(port))
            owners[first : last + 1] = [owner] * (last + 1 - first)
    except (TypeError, ValueError, AttributeError):
        return None
    return owners if len(owners) == REDIS_CLUSTER_HASH_SLOTS else None

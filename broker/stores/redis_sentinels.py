"""The Redis master that most Sentinels name, and which server may pass for it."""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from redis.asyncio.connection import Connection

from broker.errors import StoreError
from broker.stores.options import Address
from broker.stores.redis_connection import Dialler, Pool, Reply, Unreachable
from broker.stores.redis_topology import ASK_SECONDS, Learning, Topology
from broker.stores.redis_witness import Witness

WATCH_SECONDS = 1.0
"""How often the Sentinels are asked for the master, so that one that was replaced is left while it still answers."""
ADMIT_SECONDS = ASK_SECONDS / 2
"""How long a new connection waits for the Sentinels' word; a part of the shortest deadlines that make sense."""
LATE_SECONDS = 0.1
"""How long the others are waited for once most Sentinels have answered."""
GOSSIP_SECONDS = 10.0
"""Within so many seconds all Sentinels know of a failover: they tell each other every two."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """
    What one Sentinel says of the master.

    Attributes:
        address: Where it is.
        config_epoch: The number of the failover that made it so; the highest is the latest.
        is_content: Whether the Sentinel neither takes it for dead nor is replacing it.
        answered_at: When it last answered the Sentinel, at the earliest (event loop time).
    """

    address: Address
    config_epoch: int
    is_content: bool
    answered_at: float


class Sentinels(Topology):
    """
    The master of a name, as most of the Sentinels know it.

    1. A master that was replaced may go on answering, cut off from the others, and what it is told is lost. So the
       Sentinels are asked all the time, and not only when the master fails (redis-py #3874).
    2. A new connection is used only if the Sentinels, asked after it was made, name its server: what ended the last
       one may have been the failover.
    3. A server without its data is used only once most Sentinels have heard it since, and none of those that answer
       takes it for dead or is about to replace it: by then no replica can come to take its place that has the data.
    4. Sentinels that are gone don't matter to a master that has its data.
    """

    def __init__(self, addresses: Sequence[Address], master: str, dialler: Dialler, witness: Witness) -> None:
        """
        Args:
            addresses: The Sentinels, all of them.
            master: The name by which they know the master.
            dialler: Connects to them.
            witness: Tells whether the master has its data.
        """
        self._master = master
        self._pools = [Pool(dialler.dial, address, size=2) for address in addresses]
        self._witness = witness
        self._known: Address | None = None
        self._config_epoch = -1
        self._named_at = -math.inf
        self._opinions: list[Opinion] = []
        self._look_at: str | None = None
        self._learning = Learning(self._learn)

    async def locate(self, key: str, deadline: float) -> Address:  # noqa: ARG002 - the master has every key
        if self._known is None:
            await self.relearn(asyncio.get_running_loop().time(), deadline)
        if self._known is None:
            why = f"no Sentinel names a master {self._master!r}"
            raise StoreError(why, retry_after_seconds=WATCH_SECONDS, look_at=self._look_at)
        return self._known

    def known(self, key: str) -> Address | None:  # noqa: ARG002 - the master has every key
        return self._known

    def addresses(self) -> AbstractSet[Address]:
        return {self._known} if self._known is not None else set()

    async def relearn(self, since: float, deadline: float) -> None:
        await self._learning.after(since, deadline)

    async def admit(self, connection: Connection, address: Address) -> None:
        connected_at = asyncio.get_running_loop().time()
        await self.relearn(connected_at, connected_at + ADMIT_SECONDS)
        if address != self._known:
            raise Unreachable(f"redis at {address} is no longer the master")
        if (found_at := await self._witness.found_at(connection)) is None:
            return
        if not self._hold_on_to(address, found_at):
            raise Unreachable(f"redis at {address} is empty, and may be about to be replaced")
        await self._witness.take(connection)

    def _hold_on_to(self, address: Address, since: float) -> bool:
        """Return whether the Sentinels have heard the master after *since* and keep it."""
        agreeing = [
            opinion
            for opinion in self._opinions
            if opinion.address == address and opinion.is_content and opinion.answered_at > since
        ]
        return len(agreeing) == len(self._opinions) and self._is_majority(agreeing)

    def _is_majority(self, opinions: Sequence[Opinion]) -> bool:
        return 2 * len(opinions) > len(self._pools)

    async def _learn(self) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ASK_SECONDS
        asking = [loop.create_task(self._ask(pool, deadline)) for pool in self._pools]
        try:
            await asyncio.wait(asking, timeout=LATE_SECONDS)
            if not self._is_majority(_heard(asking)):
                await asyncio.wait(asking, timeout=deadline - loop.time())
            self._opinions = _heard(asking)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.wait(asking)
        return self._adopt(self._opinions, deadline - ASK_SECONDS)

    async def _ask(self, pool: Pool, deadline: float) -> Opinion | None:
        asked_at = asyncio.get_running_loop().time()
        try:
            [reply] = await pool.exchange([("SENTINEL", "MASTER", self._master)], deadline)
        except StoreError as fault:
            self._look_at = fault.look_at
            return None
        return _read_master(reply, asked_at)

    def _adopt(self, opinions: Sequence[Opinion], asked_at: float) -> bool:
        # Few Sentinels may be those on the wrong side of a partition. They are believed only if nothing is known yet.
        if not opinions or not (self._is_majority(opinions) or self._known is None):
            return False
        votes = Counter((opinion.config_epoch, opinion.address) for opinion in opinions)
        latest = max(opinions, key=lambda one: (one.config_epoch, votes[one.config_epoch, one.address]))
        # After a failover most may not have heard of it yet. Numbers that stay lower are of Sentinels that were set up
        # anew.
        if latest.config_epoch < self._config_epoch and asked_at - self._named_at < GOSSIP_SECONDS:
            return False
        if latest.address != self._known:
            log.info("redis_master", extra={"address": str(latest.address), "before": str(self._known)})
        self._known, self._config_epoch, self._named_at = latest.address, latest.config_epoch, asked_at
        return True

    async def watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self.relearn(loop.time(), loop.time() + ASK_SECONDS)
            await asyncio.sleep(WATCH_SECONDS)

    async def close(self) -> None:
        await self._learning.close()
        for pool in self._pools:
            await pool.close()


def _heard(asking: Sequence[asyncio.Task[Opinion | None]]) -> list[Opinion]:
    answers = (task.result() for task in asking if task.done())
    return [answer for answer in answers if answer is not None]


def _read_master(reply: Reply, asked_at: float) -> Opinion | None:
    """Read the answer to SENTINEL MASTER, a flat list of names and values."""
    if not isinstance(reply, list):
        return None
    facts = dict(zip(reply[::2], reply[1::2], strict=False))
    try:
        return Opinion(
            address=Address(facts[b"ip"].decode(), int(facts[b"port"])),
            config_epoch=int(facts[b"config-epoch"]),
            is_content=facts[b"flags"] == b"master",
            answered_at=asked_at - int(facts[b"last-ok-ping-reply"]) / 1000,
        )
    except (KeyError, ValueError, AttributeError):
        return None

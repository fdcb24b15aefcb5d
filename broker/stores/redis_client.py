"""Calls to Redis, wherever the key is, with one deadline over all that may go wrong on the way."""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field

import hiredis
from redis.asyncio.connection import Connection
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from broker.errors import StoreError
from broker.stores.options import Address
from broker.stores.redis_connection import Command, Dialler, Pool, Reply, Unreachable, drop, explain
from broker.stores.redis_lane import LaneKeeper
from broker.stores.redis_topology import Topology

ATTEMPTS = 4
"""How many servers, or states of one server, a call may meet on its way."""
PAUSE_SECONDS = 0.05
"""How long a call waits where a failover or a migration is under way, the first time."""
WAIT_SHARE = 0.35
"""Which part of the time that is left the replicas may take; less than a half (``Pool.exchange``)."""
QUEUE_TIMEOUTS = 3
"""How many deadlines a call waits for a connection at most, as long as the server answers the others."""
PATIENT_TIMEOUTS = 10
"""The same, for a call that begins something new: that is less urgent than what has been begun."""
CLOSE_SECONDS = 0.5
"""How long the end waits for what is done behind the callers' backs."""

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


@dataclass(slots=True)
class _Call:
    """
    A call on its way.

    Attributes:
        key: A key of the slot.
        commands: Makes the commands of an attempt, from this.
        deadline: The event loop's time at which to give up.
        is_patient: Whether it lets all others go first.
        seconds: What is left of it at the begin of the attempt.
        is_script_known: Whether the server is thought to know the script.
        redirected: Where a migration has sent this attempt, and no other.
        refusal: The last error after which another attempt makes sense.
    """

    key: str
    commands: Callable[["_Call"], list[Command]]
    deadline: float
    is_patient: bool = False
    seconds: float = 0.0
    is_script_known: bool = True
    redirected: Address | None = None
    refusal: ResponseError | None = None


class RedisClient:
    """Sends each command to the server that has its key."""

    def __init__(self, topology: Topology, dialler: Dialler, *, timeout_seconds: float, max_connections: int) -> None:
        """
        Args:
            topology: Knows the servers. It is closed with the client.
            dialler: Connects to them.
            timeout_seconds: How long a call may take, with all its detours, once it has its turn.
            max_connections: How many connections one server gets.
        """
        self.topology = topology
        self._dialler = dialler
        self.timeout_seconds = timeout_seconds
        self._max_connections = max_connections
        self._pools: dict[Address, Pool] = {}
        self._lanes: dict[Address, LaneKeeper] = {}
        self._afterwards: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def dial(self, address: Address) -> Connection:
        """
        Return a connection to a server that the topology vouches for.

        Raises:
            Unreachable: If there is none to be had, or the server is not to be believed.
        """
        connection = await self._dialler.dial(address)
        try:
            await self.topology.admit(connection, address)
        except BaseException as fault:
            await drop(connection)
            if isinstance(fault, RedisError | OSError):
                raise Unreachable(f"redis at {address}: {explain(fault)}") from fault
            raise
        return connection

    async def call(self, key: str, *words: Word) -> Reply:
        """
        Return what Redis answers to a command on *key*, which may be carried out twice.

        Raises:
            StoreError: If it answers an error, or nothing in time.
        """
        deadline = asyncio.get_running_loop().time() + self.timeout_seconds
        [reply] = await self._complete(key, lambda _: [words], deadline)
        return reply

    async def read(self, key: str, *words: Word) -> Reply:
        """As :meth:`call`, for a command that writes nothing: cheaper, since reads share a connection."""
        lane = self._lane(key)
        answer = None if lane is None else lane.ask(_packed(words))
        # Not asyncio's running loop, where it is known otherwise: that takes a call of the kernel (getpid).
        loop = asyncio.get_running_loop() if answer is None else answer.get_loop()
        deadline = loop.time() + self.timeout_seconds
        if answer is not None:
            try:
                reply = await answer
            except Unreachable:
                reply = None
            else:
                if not isinstance(reply, Exception):
                    return reply
        [reply] = await self._complete(key, lambda _: [words], deadline)
        return reply

    def _lane(self, key: str) -> LaneKeeper | None:
        """Return the lane to where *key* is, if a call has found its way there before."""
        address = self.topology.known(key)
        if address is None:
            return None
        lane = self._lanes.get(address)
        if lane is None and address in self._pools:
            lane = LaneKeeper(self.dial, address, timeout_seconds=self.timeout_seconds)
            self._lanes[address] = lane
        return lane

    async def run(
        self, script: Script, keys: Sequence[str], *arguments: Word, replicas: int = 0, is_patient: bool = False
    ) -> Reply:
        """
        Return what *script* returns.

        Args:
            script: What to run.
            keys: The keys that it uses, all of one slot.
            arguments: Its other arguments.
            replicas: How many replicas must have what it wrote.
            is_patient: Whether it begins something new, and lets all others go first where calls have to wait.

        Raises:
            StoreError: If it fails, if there is no answer in time, or if too few replicas have it.
        """

        def commands(call: _Call) -> list[Command]:
            wait = [("WAIT", replicas, max(1, int(call.seconds * WAIT_SHARE * 1000)))] if replicas else []
            return [script.command(keys, arguments, is_known=call.is_script_known), *wait]

        deadline = asyncio.get_running_loop().time() + self.timeout_seconds
        reply, *waited = await self._complete(keys[0], commands, deadline, is_patient=is_patient)
        for count in waited:
            if not isinstance(count, int) or count < replicas:
                raise StoreError(f"written, but not by {replicas} replicas in time: {count!r:.100}")
        return reply

    def afterwards(self, work: Coroutine[None, None, None]) -> None:
        """Do *work* behind the caller's back. It doesn't raise, and is given up soon after the client is closed."""
        task = asyncio.get_running_loop().create_task(work, name="redis-afterwards")
        self._afterwards.add(task)
        task.add_done_callback(self._afterwards.discard)

    async def _complete(
        self, key: str, commands: Callable[[_Call], list[Command]], deadline: float, *, is_patient: bool = False
    ) -> list[Reply]:
        """Send the commands to where *key* is, until they are answered or the loop's *deadline*. Raises StoreError."""
        call = _Call(key, commands, deadline, is_patient)
        for attempt in range(ATTEMPTS):
            if (replies := await self._attempt(call)) is not None:
                return replies
            if call.refusal is not None:
                await asyncio.sleep(PAUSE_SECONDS * (attempt + 1))
        why = explain(call.refusal) if call.refusal is not None else "from server to server"
        raise StoreError(f"redis sends us in circles: {why}", retry_after_seconds=1.0)

    async def _attempt(self, call: _Call) -> list[Reply] | None:
        """Return the answers, or None if another attempt may find a better server. Raises StoreError."""
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        address = call.redirected or await self.topology.locate(call.key, call.deadline)
        asking: list[Command] = [("ASKING",)] if call.redirected else []
        call.redirected, call.refusal, call.seconds = None, None, call.deadline - began_at
        try:
            pool = await self._pool(address)
            timeouts = PATIENT_TIMEOUTS if call.is_patient else QUEUE_TIMEOUTS
            async with pool.turn(timeouts * self.timeout_seconds, is_patient=call.is_patient) as waited:
                # The server isn't to blame for how busy this process is.
                call.deadline += waited
                replies = await pool.exchange([*asking, *call.commands(call)], call.deadline)
        except Unreachable as fault:
            await self.topology.relearn(began_at, call.deadline)
            is_elsewhere = address != await self.topology.locate(call.key, call.deadline)
            if loop.time() >= call.deadline or not (fault.was_idle or is_elsewhere):
                raise
            return None
        del replies[: len(asking)]
        if not isinstance(replies[0], ResponseError):
            return replies
        await self._take_refusal(call, replies[0], address, began_at)
        return None

    async def _take_refusal(self, call: _Call, refusal: ResponseError, address: Address, began_at: float) -> None:
        """Do what the refusal asks for; nothing was done by the server. Raises StoreError where that is the end."""
        match refusal:
            case MovedError():
                await self.topology.relearn(began_at, call.deadline)
                self.topology.moved(refusal)
            case AskError():
                call.redirected = Address(refusal.host, refusal.port)
            case NoScriptError():
                call.is_script_known = False
            case ReadOnlyError() | ClusterDownError() | TryAgainError():  # a failover, or slots on their way
                call.refusal = refusal
                await self._forget_connections(address)
                await self.topology.relearn(began_at, call.deadline)
            case _:
                # What the user may not do is granted where the user is named.
                look_at = "store.url" if isinstance(refusal, NoPermissionError) else None
                raise StoreError(f"redis at {address}: {explain(refusal)}", look_at=look_at)

    async def _pool(self, address: Address) -> Pool:
        if self._is_closed:
            raise StoreError("the store is closed")
        if (pool := self._pools.get(address)) is None:
            pool = self._pools[address] = Pool(self.dial, address, size=self._max_connections)
            for gone in self._pools.keys() - self.topology.addresses() - {address}:
                await self._leave(gone)
        return pool

    async def _forget_connections(self, address: Address) -> None:
        """Drop the connections to a server that can't do its work: behind the name another may have taken its place."""
        await (await self._pool(address)).reset()
        if address in self._lanes:
            self._lanes[address].reset()

    async def _leave(self, address: Address) -> None:
        await self._pools.pop(address).close()
        if (lane := self._lanes.pop(address, None)) is not None:
            await lane.close()

    async def close(self) -> None:
        """Drop all connections, for good."""
        if self._afterwards:
            _, late = await asyncio.wait(self._afterwards, timeout=CLOSE_SECONDS)
            for task in late:
                task.cancel()
        self._is_closed = True
        await self.topology.close()
        for address in list(self._pools):
            await self._leave(address)


def _packed(words: tuple[Word, ...]) -> bytes:
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub says: exactly one
    return packed


def milliseconds(seconds: float) -> int:
    """Return a lifetime as Redis takes it, at least 1."""
    return max(1, round(seconds * 1000))

"""
Events over Redis: one channel for all processes, heard on a connection of its own.

Publishers and subscribers of a cluster use the node that has the channel's slot, so that an event needn't cross the
cluster's bus; while they disagree on which one that is, the bus carries it.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable

from redis.asyncio.connection import Connection
from redis.exceptions import RedisError

from broker.errors import StoreError
from broker.stores.base import Event, Topic
from broker.stores.listeners import RESYNC
from broker.stores.options import Address
from broker.stores.redis_client import RedisClient
from broker.stores.redis_connection import Reply, drop, explain

PING_SECONDS = 1.0
"""How long the channel may be silent before the server has to show that it is there, and how long that may take."""
PAUSE_SECONDS = 0.2
"""How long after a fault the next connection is tried."""

log = logging.getLogger(__name__)


class EventChannel:
    """Hears what is published on a channel, and connects again for ever."""

    def __init__(self, client: RedisClient, channel: str, tell: Callable[[Event], None]) -> None:
        """
        Args:
            client: Knows where the channel is.
            channel: Its name.
            tell: Called with each event; and with RESYNC once the channel is heard, if it was not all the time.
        """
        self._client = client
        self._channel = channel
        self._tell = tell
        self._is_heard = asyncio.Event()
        self._fault = "no answer in time"
        self._look_at: str | None = None
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """
        Hear the channel from now on.

        Raises:
            StoreError: If it can't be heard yet. It will be as soon as it can.
        """
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="redis-events")
        try:
            async with asyncio.timeout(self._client.timeout_seconds):
                await self._is_heard.wait()
        except TimeoutError:
            raise StoreError(f"events can't be heard: {self._fault}", look_at=self._look_at) from None

    async def close(self) -> None:
        """Stop hearing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def publish(self, event: Event) -> None:
        """Publish *event*. Raises StoreError."""
        await self._client.call(self._channel, "PUBLISH", self._channel, _write(event))

    async def _run(self) -> None:
        while True:
            try:
                await self._hear()
            except (StoreError, RedisError, OSError) as fault:
                self._interrupted(explain(fault), fault.look_at if isinstance(fault, StoreError) else None)
            except Exception as fault:  # a fault of ours must not leave the process deaf
                log.exception("events_failed")
                self._interrupted(explain(fault))
            self._is_heard.clear()
            await asyncio.sleep(PAUSE_SECONDS)

    def _interrupted(self, why: str, look_at: str | None = None) -> None:
        self._fault, self._look_at = why, look_at
        if self._is_heard.is_set():
            log.warning("events_interrupted", extra={"error": why, "look_at": look_at})

    async def _hear(self) -> None:
        """Hear the channel until its connection ends, or until it should be heard elsewhere."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._client.timeout_seconds
        began_at = loop.time()
        async with asyncio.timeout_at(deadline):
            address = await self._client.topology.locate(self._channel, deadline)
            try:
                connection = await self._client.dial(address)
            except StoreError:
                await self._client.topology.relearn(began_at, deadline)
                raise
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(drop, connection)
            async with asyncio.timeout_at(deadline):
                await connection.send_command("SUBSCRIBE", self._channel)
                await connection.read_response()
            self._is_heard.set()
            self._tell(RESYNC)
            await self._listen(connection, address)

    async def _listen(self, connection: Connection, address: Address) -> None:
        is_silent = False
        while address == await self._client.topology.locate(self._channel, 0.0):
            reply = await connection.read_response(timeout=PING_SECONDS)
            if reply is None and is_silent:
                raise StoreError(f"redis at {address} has fallen silent")
            if reply is None:
                await connection.send_command("PING")
            elif (event := _read(reply)) is not None:
                self._tell(event)
            is_silent = reply is None
        log.info("events_moved", extra={"address": str(address)})


def _write(event: Event) -> str:
    return f"{event.topic.value} {event.number} {event.key}"


def _read(reply: Reply) -> Event | None:
    """Read a message. What isn't ours is left out: a newer release may know more topics."""
    match reply:
        case [b"message", bytes(), bytes() as text]:
            fields = _MESSAGE.fullmatch(text)
            if fields is not None and (topic := fields[1].decode()) in _KNOWN:
                return Event(Topic(topic), fields[3].decode(), int(fields[2]))
            log.warning("event_not_understood", extra={"text": repr(text[:100])})
        case _:
            pass
    return None


_KNOWN = frozenset(topic.value for topic in Topic if topic is not Topic.RESYNC)
_MESSAGE = re.compile(rb"([a-z_]+) (-?[0-9]{1,19}) ([!-~]{1,512})")

"""
A key by which a Redis server that has its data is told from one that was started again empty.

A master without persistence that is restarted at once is an empty one until the Sentinels put a replica in its place,
and everybody whose session it doesn't know would be logged out, though the replica has them all.
"""

import asyncio
import logging

from redis.asyncio.connection import Connection

from broker.stores.base import Randomness
from broker.stores.redis_connection import Unreachable, exchange

KEPT = b"kept"
"""What the key holds once the data was taken for what it is. Before, it holds a nonce: which emptied server this is."""

log = logging.getLogger(__name__)


class Witness:
    """
    The key, which never expires and goes only with all the rest.

    It lives in the server, so that the first process that takes an empty server for the store settles it for all.
    """

    def __init__(self, key: str, randomness: Randomness) -> None:
        """
        Args:
            key: Its name in Redis.
            randomness: For the nonces.
        """
        self._key = key
        self._randomness = randomness
        self._nonce = b""
        self._found_at = 0.0

    async def found_at(self, connection: Connection) -> float | None:
        """
        Return when this process found the server empty (event loop time), or None if it has its data.

        Raises:
            Unreachable: If it doesn't say, or takes no writes.
        """
        [held] = await exchange(connection, [("GET", self._key)])
        if held is None:
            nonce = self._randomness.token_bytes(16).hex()
            written, held = await exchange(connection, [("SET", self._key, nonce, "NX"), ("GET", self._key)])
            if held is None:
                raise Unreachable(f"redis lacks a witness: {written!r:.200}")
        if not isinstance(held, bytes):
            raise Unreachable(f"redis holds no witness: {held!r:.200}")
        if held == KEPT:
            return None
        if held != self._nonce:
            self._nonce, self._found_at = held, asyncio.get_running_loop().time()
            log.warning("redis_is_empty", extra={"address": f"{connection.host}:{connection.port}"})
        return self._found_at

    async def take(self, connection: Connection) -> None:
        """Take the server for the store, empty as it is: there is no other that has the data."""
        [_] = await exchange(connection, [("SET", self._key, KEPT)])
        log.warning("redis_taken_empty", extra={"address": f"{connection.host}:{connection.port}"})

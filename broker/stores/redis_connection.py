"""Connections to one Redis server: made, shared out, dropped on any doubt."""

import asyncio
import contextlib
import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

from redis.asyncio.connection import Connection, SSLConnection
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as ConnectionError_

from broker.core.secret import Secret
from broker.errors import StoreError
from broker.stores.options import Address
from broker.stores.redis_queue import Queue
from broker.stores.redis_tls import RedisTls

REST_SECONDS = 0.5
"""How long a server that failed is left alone. After that one call tries it, and the others go on failing at once."""

_OF_ANOTHER_NAME = frozenset({62, 64})
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH (X509_STORE_CTX_get_error(3))."""

Command = tuple[str | bytes | int | float, ...]
"""The words of one command."""
Reply = object
"""What a server answers. An error reply is a value too: a ``ResponseError``."""


class Unreachable(StoreError):
    """
    The server could not be asked, or its answer did not come. Whether it did what it was told is open.

    Attributes:
        was_idle: Whether the connection was one that had been idle before, which says little about the server.
    """

    def __init__(self, detail: str, *, was_idle: bool = False, look_at: str | None = None) -> None:
        super().__init__(detail, retry_after_seconds=REST_SECONDS, look_at=look_at)
        self.was_idle = was_idle


class Dialler:
    """Makes connections, all with the same credentials."""

    def __init__(
        self,
        *,
        username: str | None,
        password: Secret | None,
        database: int = 0,
        tls: RedisTls | None = None,
        at: str = "store.password",
    ) -> None:
        """
        Args:
            username: The ACL user; None for the default user.
            password: Its password.
            database: The number of the database.
            tls: How TLS is spoken, if it is.
            at: The key of the configuration that holds the password, or would.
        """
        self._password_key = at
        self._username = username
        self._password = password
        self._database = database
        self._tls = tls

    async def dial(self, address: Address) -> Connection:
        """
        Return a connection that is ready for commands.

        Raises:
            Unreachable: If there is none to be had, or the server refuses the credentials.
        """
        context = None if self._tls is None else await asyncio.to_thread(self._tls.context)
        connection = self._connection(address, context)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException as fault:
            await drop(connection)
            if isinstance(fault, RedisError | OSError):
                detail = f"redis at {address}: {explain(fault)}"
                raise Unreachable(detail, look_at=self._key_to_look_at(fault)) from fault
            raise
        return connection

    def _key_to_look_at(self, fault: RedisError | OSError) -> str | None:
        """Return the key that may explain why a connection didn't come about; None where it may pass by itself."""
        match fault:
            case NoPermissionError():
                return "store.url"  # it names the user
            case AuthenticationError() | AuthenticationWrongNumberOfArgsError():
                return self._password_key
            case ResponseError():
                return "store.url" if self._database else None  # it names the database, which is selected last
            case _:
                return self._key_of_tls(fault)

    def _key_of_tls(self, fault: BaseException) -> str | None:
        causes = list(_causes(fault))
        refusal = next((each for each in causes if isinstance(each, ssl.SSLError)), None)
        if isinstance(refusal, ssl.SSLCertVerificationError):
            return "store.url" if refusal.verify_code in _OF_ANOTHER_NAME else "store.tls.ca_file"
        if refusal is not None:
            # An alert is the server's word against us, and of us it sees the client certificate. Other faults come of
            # a server that speaks no TLS.
            return "store.tls.cert_file" if "ALERT" in (refusal.reason or "") else "store.url"
        # Whoever hangs up on the first words may be waiting for TLS, or for a certificate, of whose lack TLS 1.3 tells
        # only then. What isn't there, or is slow, says nothing.
        hung_up = not any(isinstance(each, OSError) for each in causes) or isinstance(causes[-1], ConnectionResetError)
        if type(fault) is not ConnectionError_ or not hung_up:
            return None
        return "store.url" if self._tls is None else "store.tls.cert_file"

    def _connection(self, address: Address, tls: ssl.SSLContext | None) -> Connection:
        # Deadlines and retries are the caller's. RESP2 has no pushes, so each answer belongs to a command.
        arguments: dict[str, Any] = {
            "host": address.host,
            "port": address.port,
            "db": self._database,
            "username": self._username,
            "password": None if self._password is None else self._password.reveal(),
            "socket_timeout": None,
            "socket_connect_timeout": None,
            "protocol": 2,
            "driver_info": None,
            "client_name": "token-broker",
        }
        if tls is None:
            return Connection(**arguments)
        connection = SSLConnection(**arguments)
        connection.ssl_context.context = tls
        return connection


class Pool:
    """
    Up to *size* connections to one server, each carrying one exchange at a time.

    A connection whose exchange did not come to its end, for whatever reason, is dropped: an answer that is still on
    its way could otherwise reach the next caller (CVE-2023-28858, CVE-2023-28859).

    While the server is known to be down, exchanges fail at once instead of piling up.
    """

    def __init__(self, dial: Callable[[Address], Awaitable[Connection]], address: Address, *, size: int) -> None:
        self._dial = dial
        self._address = address
        self._queue = Queue(size)
        self._idle: list[Connection] = []
        self._is_closed = False
        self._succeeded_at = -math.inf
        self._down_until: float | None = None
        self._detail = ""
        self._look_at: str | None = None
        self._probe: object | None = None

    @contextlib.asynccontextmanager
    async def turn(self, patience_seconds: float, *, is_patient: bool = False) -> AsyncIterator[float]:
        """
        Wait until fewer than *size* others hold a turn, and yield how many seconds that took.

        Args:
            patience_seconds: How long to wait.
            is_patient: Whether to let all others go first.

        Raises:
            StoreError: If it takes longer than *patience_seconds*.
        """
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        try:
            async with asyncio.timeout_at(began_at + patience_seconds):
                await self._queue.take(is_patient=is_patient)
        except TimeoutError:
            why = f"too many calls wait for redis at {self._address}"
            raise StoreError(why, retry_after_seconds=REST_SECONDS) from None
        try:
            yield loop.time() - began_at
        finally:
            self._queue.give_back()

    async def exchange(self, commands: Sequence[Command], deadline: float) -> list[Reply]:
        """
        Send *commands* in one go and return their answers. Whoever shares the pool with many takes a turn first.

        On a connection that was idle, only half of the time is used: it may have gone silently, and what is left is
        for another attempt, on a new one.

        Args:
            commands: At least one.
            deadline: The time of the event loop at which to give up.

        Raises:
            Unreachable: If not all answers came in time.
            StoreError: If the server was found down a moment ago.
        """
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        self._admit(began_at)
        try:
            async with fair_timeout_at(deadline):
                replies = await self._exchange(commands, deadline)
        except (Unreachable, RedisError, OSError) as fault:  # TimeoutError is an OSError
            unreachable = fault if isinstance(fault, Unreachable) else self._unreachable(fault)
            # Another's success since then shows that the server is up.
            if not unreachable.was_idle and self._succeeded_at <= began_at:
                self._detail, self._down_until = str(unreachable), loop.time() + REST_SECONDS
                self._look_at = unreachable.look_at
            raise unreachable from fault
        finally:
            if self._probe is asyncio.current_task():
                self._probe = None
        self._succeeded_at, self._down_until = loop.time(), None
        return replies

    def _admit(self, now: float) -> None:
        """Raise StoreError while the server is known to be down; let one caller through to see if it still is."""
        if self._down_until is None:
            return
        if now < self._down_until or self._probe is not None:
            detail = f"{self._detail} (a moment ago)"
            raise StoreError(detail, retry_after_seconds=REST_SECONDS, look_at=self._look_at)
        self._probe = asyncio.current_task()

    async def _exchange(self, commands: Sequence[Command], deadline: float) -> list[Reply]:
        if (connection := await self._take()) is None:
            return await self._exchange_on(await self._dial(self._address), commands)
        try:
            async with fair_timeout_at((asyncio.get_running_loop().time() + deadline) / 2):
                return await self._exchange_on(connection, commands)
        except (RedisError, OSError) as fault:  # TimeoutError is one
            await self.reset()  # the others have probably gone with it
            raise self._unreachable(fault, was_idle=True) from fault

    async def _exchange_on(self, connection: Connection, commands: Sequence[Command]) -> list[Reply]:
        try:
            replies = await exchange(connection, commands)
        except BaseException:
            await drop(connection)
            raise
        if self._is_closed:
            await drop(connection)
        else:
            self._idle.append(connection)
        return replies

    def _unreachable(self, fault: Exception, *, was_idle: bool = False) -> Unreachable:
        why = "no answer in time" if isinstance(fault, TimeoutError) else explain(fault)
        return Unreachable(f"redis at {self._address}: {why}", was_idle=was_idle)

    async def _take(self) -> Connection | None:
        """Return an idle connection that the server has not closed."""
        while self._idle:
            connection = self._idle.pop()
            with contextlib.suppress(RedisError, OSError):
                if not await connection.can_read():  # nor an answer that nobody asked for
                    return connection
            await drop(connection)
        return None

    async def reset(self) -> None:
        """Drop the idle connections. Exchanges that are under way go on."""
        idle, self._idle = self._idle, []
        for connection in idle:
            await drop(connection)

    async def close(self) -> None:
        """Drop the connections, those in use as soon as their exchange ends."""
        self._is_closed = True
        await self.reset()


@contextlib.asynccontextmanager
async def fair_timeout_at(deadline: float) -> AsyncIterator[None]:
    """
    Raise TimeoutError at *deadline* (event loop time); if this process was late to notice, then a little later.

    The answer may have come while the event loop was busy with others, which reads it only after its timers have run.
    It gets as much time again as the process was late, and at most doubles what it had.
    """
    loop = asyncio.get_running_loop()
    seconds = deadline - loop.time()

    def expire() -> None:
        late = loop.time() - deadline
        limit.reschedule(loop.time() + max(0.0, min(late, seconds)))

    async with asyncio.timeout(None) as limit:
        timer = loop.call_at(deadline, expire)
        try:
            yield
        finally:
            timer.cancel()


async def exchange(connection: Connection, commands: Sequence[Command]) -> list[Reply]:
    """Send *commands* in one go and return their answers. After any fault *connection* must be dropped."""
    await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
    return [await _reply(connection) for _ in commands]


async def _reply(connection: Connection) -> Reply:
    try:
        return await connection.read_response()
    except ResponseError as refusal:
        return refusal


async def drop(connection: Connection) -> None:
    """Close *connection* at once, without waiting for its end."""
    with contextlib.suppress(RedisError, OSError):
        await connection.disconnect(nowait=True)


def _causes(fault: BaseException) -> Iterator[BaseException]:
    """Yield *fault* and what led to it: redis-py raises its own without naming the cause."""
    cause: BaseException | None = fault
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def explain(fault: BaseException) -> str:
    """Return what a fault says, bounded: the server may say anything."""
    return f"{type(fault).__name__}: {fault}"[:200]

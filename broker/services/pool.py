"""
The connections to an upstream's hosts: kept, capped, queued for, and given up when they fail.

A host that fails several times in a row is given a rest while another one works. Connections are retired after a while,
so that a change of the DNS comes through without a restart.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from ssl import SSLContext, SSLError

from broker.core.upstream_options import Balance, UpstreamAddress, UpstreamOptions
from broker.errors import UpstreamBusy, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from broker.services.connection_faults import describe_fault
from broker.services.tasks import Tasks
from broker.services.tls import client_context
from broker.services.upstream import Exchange
from broker.services.upstream_protocol import UpstreamConnection

SWEEP_SECONDS = 0.25
"""How often deadlines are looked at. One timer for all connections costs nothing per request."""
MAX_AGE_SECONDS = 300.0
"""A connection isn't used again when it is older than this."""

log = logging.getLogger(__name__)


class UpstreamHost:
    """The connections to one host."""

    def __init__(
        self, address: UpstreamAddress, options: UpstreamOptions, tls: SSLContext | None, pool: "UpstreamPool"
    ) -> None:
        self.address = address
        self._options = options
        self._tls = tls
        self._pool = pool
        self._idle: list[UpstreamConnection] = []
        self._waiting: deque[asyncio.Future[UpstreamConnection | None]] = deque()
        self._failures = 0
        self._opening = 0
        self.resting_until = 0.0
        self.connections: set[UpstreamConnection] = set()

    @property
    def load(self) -> int:
        """How many exchanges are under way or wait."""
        return len(self.connections) - len(self._idle) + self._opening + len(self._waiting)

    # --- for the pool

    def take(self) -> UpstreamConnection | None:
        """Return an idle connection, the one that was used last."""
        now = self._pool.loop.time()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable and now < connection.retires_at:
                return connection
            connection.close()
        return None

    async def acquire(self, until: float) -> UpstreamConnection:
        """
        Return a connection, after opening one or waiting for one.

        Args:
            until: When, on the loop's clock, that is given up.

        Raises:
            UpstreamBusy: If too many wait already.
            UpstreamTimeout: If none came about in time.
            UpstreamUnavailable: If the host takes no connection.
        """
        while True:
            connection = self.take()
            if connection is not None:
                return connection
            if len(self.connections) + self._opening < self._options.max_connections:
                return await self._open(until)
            if len(self._waiting) >= self._options.max_waiting:
                raise UpstreamBusy(f"too many requests wait for {self.address.label}", retry_after_seconds=1)
            try:
                async with asyncio.timeout_at(until):
                    handed = await self._wait()
            except TimeoutError:
                raise UpstreamTimeout(f"no connection to {self.address.label} became free in time") from None
            if handed is not None and handed.is_usable:
                return handed

    async def _wait(self) -> UpstreamConnection | None:
        waiter: asyncio.Future[UpstreamConnection | None] = self._pool.loop.create_future()
        self._waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.cancelled() or not waiter.done():
                with suppress(ValueError):
                    self._waiting.remove(waiter)
            elif (handed := waiter.result()) is None:
                self._hand_on(None)
            else:
                self.released(handed)
            raise

    async def _open(self, until: float) -> UpstreamConnection:
        self._opening += 1
        loop = self._pool.loop
        connection = UpstreamConnection(self, loop)
        try:
            async with asyncio.timeout_at(until):
                await self._connect(connection)
        except (OSError, SSLError) as error:  # a timeout is an OSError; a caller that leaves is none
            self.failed()
            log.warning(
                "upstream_connect_failed", extra={"upstream": self.address.label, "error": describe_fault(error)}
            )
            if isinstance(error, TimeoutError):
                raise UpstreamTimeout(f"no connection to {self.address.label} came about in time") from error
            raise UpstreamUnavailable(f"{self.address.label} takes no connection") from error
        finally:
            self._opening -= 1
            if connection.is_usable:
                connection.retires_at = loop.time() + MAX_AGE_SECONDS
                self.connections.add(connection)
            else:
                self._hand_on(None)
        return connection

    async def _connect(self, connection: UpstreamConnection) -> None:
        loop = self._pool.loop
        address = self.address
        if address.socket_path:
            await loop.create_unix_connection(lambda: connection, address.socket_path)
        elif self._tls is None:
            await loop.create_connection(lambda: connection, address.host, address.port)
        else:
            name = self._options.sni or address.host
            await loop.create_connection(
                lambda: connection, address.host, address.port, ssl=self._tls, server_hostname=name
            )

    def _hand_on(self, connection: UpstreamConnection | None) -> bool:
        """Wake the next request that waits: with *connection*, or to open one. Returns whether one waited."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return True
        return False

    def sweep(self, now: float) -> None:
        """Give up what is over its time."""
        for connection in [each for each in self.connections if each.deadline <= now]:
            connection.expire()

    def close(self) -> None:
        """Close every connection."""
        for connection in list(self.connections):
            connection.close()
        while self._hand_on(None):
            pass

    # --- for its connections (upstream_protocol.Owner)

    def released(self, connection: UpstreamConnection) -> None:
        now = self._pool.loop.time()
        if now >= connection.retires_at or self._pool.closed:
            connection.close()
        elif self._waiting and self._hand_on(connection):
            connection.deadline = now + self._options.keepalive_timeout_seconds
        elif len(self._idle) < self._options.max_idle_connections:
            connection.deadline = now + self._options.keepalive_timeout_seconds
            self._idle.append(connection)
        else:
            connection.close()

    def lost(self, connection: UpstreamConnection) -> None:
        self.connections.discard(connection)
        with suppress(ValueError):
            self._idle.remove(connection)
        self._hand_on(None)

    def answered(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        self._failures += 1
        if self._failures >= self._options.max_failures:
            self._failures = 0
            self.resting_until = self._pool.loop.time() + self._options.rest_seconds
            log.warning("upstream_host_rests", extra={"upstream": self.address.label})

    def cut_off(self) -> None:
        # An operator whose upstream never says over TLS that an answer is over finds that here.
        if not self._pool.closed:
            log.warning("upstream_cut_off", extra={"upstream": self.address.label})

    def restart(self, exchange: Exchange) -> None:
        self._pool.restart(exchange)


class UpstreamPool:
    """The hosts of one upstream (services.upstream.Upstream)."""

    def __init__(self, options: UpstreamOptions, loop: asyncio.AbstractEventLoop, tasks: Tasks) -> None:
        """
        Args:
            options: The hosts, and how they are spoken to.
            loop: Runs it.
            tasks: Runs what no caller waits for.

        Raises:
            ConfigError: If TLS can't be set up as configured.
        """
        self.options = options
        self.loop = loop
        self.closed = False
        self._tasks = tasks
        self._turn = 0
        addresses = options.addresses
        tls = client_context(options.tls) if addresses[0].tls else None
        self.hosts = tuple(UpstreamHost(address, options, tls, self) for address in addresses)
        self._only_host = self.hosts[0] if len(self.hosts) == 1 else None
        self.authority = addresses[0].authority.encode()

    def try_start(self, exchange: Exchange) -> bool:
        """Send *exchange* at once on an idle connection. Returns False, with nothing done, if there is none."""
        host = self._only_host or self._in_order()[0]
        connection = host.take()
        if connection is None:
            return False
        self._turn += 1
        connection.start(exchange)
        return True

    async def start(self, exchange: Exchange) -> bool:
        """See ``Upstream.start``."""
        return self.try_start(exchange) or await self._wait_and_start(exchange, exchange.renew)

    async def _wait_and_start(self, exchange: Exchange, is_current: Callable[[], bool] | None) -> bool:
        """As :meth:`start`. *is_current* tells, after the wait, whether the exchange may be sent."""
        hosts = self._in_order()
        self._turn += 1
        error: UpstreamError = UpstreamUnavailable("no host takes a connection")
        ends_at = self.loop.time() + exchange.timeouts.connect_seconds
        for tried, host in enumerate(hosts):
            # One that swallows connections must leave the next one its time.
            now = self.loop.time()
            until = now + (ends_at - now) / (len(hosts) - tried)
            try:
                connection = await host.acquire(until)
            except UpstreamError as fault:
                # Nothing was sent, so any request may go to the next host.
                error = fault
            else:
                is_fit = is_current is None or is_current()
                if is_fit and not exchange.ended:
                    connection.start(exchange)
                else:
                    host.released(connection)
                return is_fit
        raise error

    def _in_order(self) -> Sequence[UpstreamHost]:
        """The hosts, the best first; those that rest only if all do."""
        if len(self.hosts) == 1:
            return self.hosts
        now = self.loop.time()
        hosts = [host for host in self.hosts if host.resting_until <= now] or list(self.hosts)
        first = self._turn % len(hosts)
        hosts = hosts[first:] + hosts[:first]
        if self.options.balance is Balance.LEAST_CONNECTIONS:
            hosts.sort(key=lambda host: host.load)
        return hosts

    def restart(self, exchange: Exchange) -> None:
        """Send *exchange* again; its receiver hears of it if that can't be done."""
        _ = self._tasks.spawn(self._restart(exchange), name="upstream-restart")

    async def _restart(self, exchange: Exchange) -> None:
        exchange.channel = None
        if exchange.ended:
            return
        if exchange.recompose is not None:
            exchange.head = exchange.recompose()
        is_current = exchange.receiver.is_current
        try:
            is_sent = is_current() and (self.try_start(exchange) or await self._wait_and_start(exchange, is_current))
        except UpstreamError as error:
            if not exchange.ended:
                exchange.ended = True
                exchange.receiver.on_failed(error)
        else:
            if not is_sent and not exchange.ended:
                exchange.receiver.on_outdated()

    def sweep(self, now: float) -> None:
        """Give up what is over its time."""
        for host in self.hosts:
            host.sweep(now)

    def close(self) -> None:
        """Close every connection."""
        self.closed = True
        for host in self.hosts:
            host.close()


class UpstreamPools(Mapping[UpstreamOptions, UpstreamPool]):
    """Every upstream of the configuration; routes with equal options share one, so that its caps hold for all."""

    def __init__(self, all_options: Iterable[UpstreamOptions]) -> None:
        """
        Args:
            all_options: The options of every route's upstream.

        Raises:
            ConfigError: If TLS can't be set up as configured.
        """
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks()
        self._pools: dict[UpstreamOptions, UpstreamPool] = {}
        for options in all_options:
            if options not in self._pools:
                self._pools[options] = UpstreamPool(options, self._loop, self._tasks)
        self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def __getitem__(self, options: UpstreamOptions) -> UpstreamPool:
        return self._pools[options]

    def __iter__(self) -> Iterator[UpstreamOptions]:
        return iter(self._pools)

    def __len__(self) -> int:
        return len(self._pools)

    def _sweep(self) -> None:
        now = self._loop.time()
        for pool in self._pools.values():
            pool.sweep(now)
        self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    async def close(self) -> None:
        """Close every connection; exchanges that are under way fail."""
        self._timer.cancel()
        for pool in self._pools.values():
            pool.close()
        await self._tasks.cancel()

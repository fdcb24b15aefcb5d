"""
One attempt to send a call up: its body goes up as it comes, and the answer comes down through a relay.

A small body is waited for first. Whether there is a second attempt the proxy decides.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from broker.core.limit_options import LimitOptions
from broker.errors import BrokerError
from broker.services import metrics
from broker.services.tasks import Tasks
from broker.services.upstream import Exchange
from broker.web.body import RequestBody
from broker.web.connection import CallerConnection
from broker.web.gate import Call, Gate
from broker.web.incoming import Content
from broker.web.proven_relay import ProvenRelay
from broker.web.relay import Relay
from broker.web.scrub import scrub
from broker.web.streams import Streams

MAX_AWAITED_BYTES = 16 << 10
"""A body of at most this length is waited for: callers that drip one hold no connection to an upstream."""


@dataclass(slots=True)
class Transit:
    """
    A call that is under way.

    Attributes:
        call: The call.
        connection: Where it came from.
        body: Its body, if it has one.
        relay: What relays the answer of its present attempt.
    """

    call: Call
    connection: CallerConnection
    body: RequestBody | None = None
    relay: Relay | None = None

    @property
    def may_send_again(self) -> bool:
        """Whether it can be sent a second time, after a 401."""
        return self.call.may_retry and (self.body is None or self.body.is_replayable)


class Sender:
    """Sends calls up."""

    def __init__(self, gate: Gate, streams: Streams, tasks: Tasks, limits: LimitOptions) -> None:
        """
        Args:
            gate: Admits calls again that have waited.
            streams: The answers that sessions have open.
            tasks: Runs what sends bodies.
            limits: How long callers may take.
        """
        self._gate = gate
        self._streams = streams
        self._tasks = tasks
        self._limits = limits
        self._loop = asyncio.get_running_loop()

    def take(self, call: Call, connection: CallerConnection, content: Content) -> Transit:
        """
        Take a call over, with its body.

        Args:
            call: The call.
            connection: Where it came from.
            content: Its body, if its head says that there is one.
        """
        if not call.head.has_body:
            return Transit(call, connection)
        route = call.lane.route
        body = RequestBody(
            content,
            self._loop,
            max_bytes=route.max_body_bytes,
            max_kept_bytes=route.max_replay_body_bytes if call.may_retry else 0,
            pause_seconds=self._limits.body_timeout_seconds,
        )
        if call.head.expects_continue and connection.transport is not None and not body.is_here:
            # Only now: whoever may not call is told so before it sends its body (RFC 9110 section 10.1.1).
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return Transit(call, connection, body)

    async def attempt(self, transit: Transit) -> Relay:
        """
        Send the request, and relay its answer; once more, if all that it lacked was the upstream's nonce.

        Faults before the answer are in the relay's ``error``.
        """
        relay = await self._send(transit)
        if relay.rejected and relay.proof_refused and relay.nonce_given and transit.may_send_again:
            metrics.UPSTREAM_401_RETRY.labels("nonce").inc()
            relay = await self._send(transit)
        return relay

    async def _send(self, transit: Transit) -> Relay:
        call, body = transit.call, transit.body
        transit.relay = relay = self._relay(transit)
        if body is not None and (error := await self._await_small(transit, body)) is not None:
            relay.refuse(error)
            return relay
        exchange = Exchange(call.head.method, b"", relay, call.lane.answers, call.lane.route.timeout)
        exchange.upgrade = call.head.upgrade
        exchange.renew = partial(self._renew, transit, exchange)
        if body is not None and (error := _announce(body, exchange, chunked=call.head.block.chunked)) is not None:
            relay.refuse(error)
            return relay
        try:
            relay = await self._start(transit, exchange)
            if body is not None and not exchange.complete:
                relay.be_watched()
                await self._send_body(transit.connection, body, exchange, relay)
            await relay.wait()
            while relay.is_outdated:
                relay = await self._start(transit, exchange)
                await relay.wait()
        finally:
            transit.relay.leave()
        return relay

    async def _start(self, transit: Transit, exchange: Exchange) -> Relay:
        """
        Send the head of a call that is admitted at that moment: whoever has waited may have lost its leave.

        Returns:
            The relay of its answer.
        """
        is_sent = False
        while not is_sent:
            if self._gate.is_outdated(transit.call):
                await self._gate.admit_again(transit.call)
                transit.relay = self._relay(transit)
            self._make_ready(transit, exchange)
            is_sent = await transit.call.lane.upstream.start(exchange)
        assert transit.relay is not None
        return transit.relay

    def _renew(self, transit: Transit, exchange: Exchange) -> bool:
        """See ``Exchange.renew``."""
        if not self._gate.is_outdated(transit.call):
            return True
        if not self._gate.admit_again_at_once(transit.call):
            return False
        transit.relay = self._relay(transit)
        with suppress(BrokerError):  # which is said when it is tried again
            self._make_ready(transit, exchange)
            return True
        return False

    @staticmethod
    def _make_ready(transit: Transit, exchange: Exchange) -> None:
        """Have *exchange* carry what the call is admitted with, and what comes of it relayed."""
        call, relay = transit.call, transit.relay
        assert relay is not None
        exchange.head = call.compose()
        exchange.recompose = call.compose if call.is_bound else None  # a proof is good once (RFC 9449 section 11.1)
        exchange.receiver = relay
        relay.exchange = exchange
        if call.lane.route.scrub and call.token is not None:
            scrub(exchange, call.token)

    @staticmethod
    async def _await_small(transit: Transit, body: RequestBody) -> BrokerError | None:
        """Wait for a small body before an upstream's connection is taken for it. Returns why it can't be sent whole."""
        length = transit.call.head.block.content_length
        if body.is_here or length is None or length > MAX_AWAITED_BYTES:
            return None
        transit.connection.receive(body)
        try:
            return await body.gather()
        finally:
            transit.connection.body = None

    def _relay(self, transit: Transit) -> Relay:
        """Return what relays the answer, as it has to for the token that the call is admitted with."""
        kind = ProvenRelay if transit.call.is_bound else Relay
        return kind(transit.connection, transit.call, streams=self._streams)

    async def _send_body(
        self, connection: CallerConnection, body: RequestBody, exchange: Exchange, relay: Relay
    ) -> None:
        connection.receive(body)
        sending = self._tasks.spawn(_send_all(body, exchange, relay), name="proxy:body")
        try:
            await relay.wait()
            if relay.rejected and body.is_replayable:
                # The rest of it is needed for the second attempt.
                await sending
        finally:
            sending.cancel()
            connection.body = None


def _announce(body: RequestBody, exchange: Exchange, *, chunked: bool) -> BrokerError | None:
    """Have *body* go out with the head if it has come, or after it. Returns why it can't be sent, if it can't."""
    if not body.is_here:
        exchange.expect_body(chunked=chunked)
        return None
    whole = body.take()
    if isinstance(whole, BrokerError):
        return whole
    exchange.carry(whole, chunked=chunked)
    return None


async def _send_all(body: RequestBody, exchange: Exchange, relay: Relay) -> None:
    error = await body.send(exchange)
    if error is not None:
        relay.refuse(error)

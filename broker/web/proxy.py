"""
The proxy: a request that the gate lets through goes up, and what comes back goes down.

An upstream's 401 is held back, as long as the request can be sent again, while the token broker is asked for a newer
token; with one the request goes up once more, and without one the 401 goes down. If the grant has ended, and the route
goes on without it, the request goes up once more as nobody's. A 401 that asks for a stronger login (RFC 9470) is no
matter of tokens: the caller is told how to log in. Nor is one that refuses the proof of possession (RFC 9449): if it
brings a nonce, the request goes up once more with that.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import assert_never

from aiohttp import web

from broker.core.challenge import read_step_up
from broker.core.forwarded import TrustedProxies
from broker.core.limit_options import LimitOptions
from broker.core.outcome import LoginNeeded, Token, TokenResult, Unavailable
from broker.core.routing import Route
from broker.errors import BadRequest, BrokerError, CallerError, PayloadTooLarge, RequestTimeout, StepUpRequired
from broker.services import metrics
from broker.services.clock import Clock, Randomness, SystemClock, SystemRandomness
from broker.services.dpop import Proofs
from broker.services.limits import Rates, own_rates
from broker.services.logs import REQUEST_ID
from broker.services.pool import UpstreamPools
from broker.services.tasks import Tasks
from broker.web.access_log import access_line
from broker.web.connection import CallerConnection
from broker.web.gate import Call, CallerSource, Gate, SessionSource, TokenSource
from broker.web.incoming import Content
from broker.web.middleware import ROUTE, request_names
from broker.web.owners import Owners
from broker.web.relay import CLOSED, KEPT, Relay
from broker.web.sending import Sender, Transit
from broker.web.streams import Streams, Subscription

FLUSH_SECONDS = 1.0

log = logging.getLogger(__name__)


class Proxy:
    """
    Forwards requests.

    Attributes:
        gate: Judges them.
        base_path: The path of the broker's own endpoints.
        streams: The answers that callers have open.
        tasks: What runs beside the calls, or for those that no task of aiohttp's serves.
    """

    def __init__(
        self,
        *,
        routes: Sequence[Route],
        upstreams: UpstreamPools,
        public_url: str,
        sessions: SessionSource,
        tokens: TokenSource,
        trusted_proxies: TrustedProxies | None = None,
        standing_grants: Mapping[str, str] | None = None,
        callers: CallerSource | None = None,
        allowed_parameters: Mapping[str, Collection[str]] | None = None,
        base_path: str = "/bff",
        limits: LimitOptions | None = None,
        events: Subscription | None = None,
        access_log: Callable[[str], None] | None = None,
        clock: Clock | None = None,
        randomness: Randomness | None = None,
        rates: Rates | None = None,
    ) -> None:
        """
        Args:
            routes: Where requests go. The configuration has made sure that no two match alike.
            upstreams: The pools of every route's upstream.
            public_url: The origin under which browsers reach the broker.
            sessions: Finds sessions.
            tokens: Gives tokens.
            trusted_proxies: Whose forwarding fields are believed; by default nobody's.
            standing_grants: The ids of standing grants by their configured names.
            callers: Finds the grants of callers without a browser; by default there are none.
            allowed_parameters: What a login URL may ask for, by providers; for upstreams that want a stronger login.
            base_path: The path of the broker's own endpoints.
            limits: How long callers may take.
            events: Tells of sessions, handles and grants that end, so that their streams end too.
            access_log: Takes one line of JSON for each request that an upstream answered; the others are the
                middleware's.
            clock: Time.
            randomness: For the names of requests, and for proofs.
            rates: Makes the buckets of rate limits; by default this process keeps them alone.
        """
        clock, randomness = clock or SystemClock(), randomness or SystemRandomness()
        self.base_path = base_path
        self.gate = Gate(
            routes=routes,
            upstream_of=lambda route: upstreams[route.upstream_options],
            public_url=public_url,
            sessions=sessions,
            tokens=tokens,
            trusted_proxies=trusted_proxies or TrustedProxies(),
            standing_grants=standing_grants or {},
            callers=callers,
            base_path=base_path,
            rates=rates or own_rates(clock.monotonic),
            proofs=Proofs(clock, randomness),
            providers=allowed_parameters or {},
        )
        self._allowed_parameters = allowed_parameters or {}
        self._access_log = access_log
        self._clock = clock
        owners = Owners(sessions=sessions, tokens=tokens, callers=callers)
        self.streams = Streams(owner_of=owners.of, clock=clock, endings=self.gate.endings, events=events)
        self._new_request_id = request_names(randomness)
        self.tasks = Tasks()
        self._sender = Sender(self.gate, self.streams, self.tasks, limits or LimitOptions())
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(FLUSH_SECONDS, self._flush)

    def register(self, app: web.Application) -> None:
        """Take every request of *app* that no earlier route of it takes."""
        app.router.add_route("*", "/{path:.*}", self.handle, expect_handler=_answer_expectations_later)

    async def close(self, timeout_seconds: float = 5.0) -> None:
        """Let what runs in the background end."""
        await self.tasks.drain(timeout_seconds)
        self._timer.cancel()
        self.streams.close()
        for lane in self.gate.lanes:
            lane.stats.flush()

    def _flush(self) -> None:
        for lane in self.gate.lanes:
            lane.stats.flush()
        self._timer = self._loop.call_later(FLUSH_SECONDS, self._flush)

    def request_id(self, call: Call, peer: str) -> str:
        """Return the id of a request that the outermost middleware doesn't see."""
        given = self.gate.given_request_id(call, peer) if b"x-request-id" in call.head.block.read else None
        return given or self._new_request_id()

    def finished(self, call: Call, status: int, seconds: float) -> None:
        """
        Count and log a request that an upstream answered, or whose caller has gone.

        Args:
            call: The request.
            status: The answer's status; 0 if the caller had nothing of it.
            seconds: How long it took.
        """
        lane, head, session = call.lane, call.head, call.session
        lane.stats.count(status, seconds)
        if self._access_log is not None:
            self._access_log(
                access_line(
                    now=self._clock.now(),
                    request_id=call.request_id,
                    client=call.caller.address,
                    method=head.method,
                    path=head.target.path.decode(),
                    status=status,
                    seconds=seconds,
                    more=lane.logged if session is None else f'{lane.logged},"session":"{session.key}"',
                )
            )

    def failed(self, call: Call, error: Exception, seconds: float) -> None:
        """Count a request that the broker itself has to answer; the outermost middleware logs it."""
        call.lane.stats.count(error.status if isinstance(error, BrokerError) else BrokerError.status, seconds)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """
        Forward *request*, or say what came of one that was forwarded past aiohttp.

        Raises:
            BrokerError: If it isn't forwarded, or no answer came. Nothing of an answer is written then.
        """
        connection = request.protocol
        assert isinstance(connection, CallerConnection)
        failure, connection.failure = connection.failure, None
        if failure is not None:
            request[ROUTE] = failure.route
            if failure.closes:
                connection.close_soon()
            raise failure.error
        began_at = self._loop.time()
        call = self._judge(connection, request)
        request[ROUTE] = call.lane.route.name
        try:
            await self.gate.admit(call)
            self.gate.limit(call)
            relay = await self.carry(call, connection, request.content)
        except asyncio.CancelledError:
            self.finished(call, connection.begun_status, self._loop.time() - began_at)
            raise
        except BrokerError as error:
            self.failed(call, error, self._loop.time() - began_at)
            raise
        seconds = self._loop.time() - began_at
        if relay.error is not None and not relay.started:
            self.failed(call, relay.error, seconds)
            if is_fault_of_body(relay.error):
                connection.close_soon()
            raise relay.error
        self.finished(call, relay.status, seconds)
        return KEPT if relay.keep_alive else CLOSED

    async def carry(self, call: Call, connection: CallerConnection, content: Content) -> Relay:
        """
        Send an admitted call up, as often as it takes.

        Args:
            call: The call.
            connection: Where it came from.
            content: Its body, if its head says that there is one.

        Returns:
            What became of it. If no answer came, its ``error`` says why, and nothing is written.
        """
        transit = self._sender.take(call, connection, content)
        relay = await self._sender.attempt(transit)
        return await self._conclude(transit, relay)

    async def go_on(self, call: Call, connection: CallerConnection, content: Content, relay: Relay) -> Relay:
        """As :meth:`carry`, for a call whose first attempt has ended in *relay*, with all of its body."""
        transit = self._sender.take(call, connection, content)
        if transit.body is not None:
            transit.body.take()
        return await self._conclude(transit, relay)

    def _judge(self, connection: CallerConnection, request: web.Request) -> Call:
        message = request._message  # noqa: SLF001 - its target is the one that came; request.path is decoded
        try:
            call = self.gate.judge(
                method=message.method,
                target=message.path.encode("utf-8", "surrogateescape"),
                version=(message.version.major, message.version.minor),
                block=connection.block_of(message.raw_headers, self.gate.fields),
                peer=connection.peer,
            )
        except CallerError as error:
            # What follows on a connection whose requests can't be told apart isn't read (SECURITY SM-01).
            if isinstance(error, BadRequest | PayloadTooLarge) or message.method == "CONNECT":
                connection.close_soon()
            raise
        call.request_id = REQUEST_ID.get("")
        return call

    async def _conclude(self, transit: Transit, relay: Relay) -> Relay:
        """Make the best of a first attempt, if it ended with 401."""
        call = transit.call
        if relay.status != 401 and not relay.rejected:
            return relay
        if relay.proof_refused:
            self._note_refused_proof(call)
        elif relay.status == 401 and call.token is not None:
            # It's too large to be held, but the next request shall have a newer token.
            self.tasks.launch(self._renew(call), name="proxy:renew")
        if relay.rejected and not relay.proof_refused and read_step_up(relay.challenges) is None:
            relay = await self._retry(transit, relay)
        if relay.rejected:
            self._pass_on(call, relay)
        return relay

    async def _retry(self, transit: Transit, rejected: Relay) -> Relay:
        """
        Send the request again with a newer token, or as nobody's where the route takes that and the grant has ended.

        Returns:
            The first answer if there is neither.
        """
        call = transit.call
        assert call.token is not None
        if not transit.may_send_again:
            # It can't be sent again, but the next request shall have a newer token.
            self.tasks.launch(self._renew(call), name="proxy:renew")
        else:
            refused = call.token.generation
            result = await self._renew(call)
            newer = self.gate.usable(result, call)
            if newer is None or newer.generation != refused:
                call.token = newer
                return await self._sender.attempt(transit)
        return rejected

    def _note_refused_proof(self, call: Call) -> None:
        """Neither the caller nor a newer token mends that: the clock, the proof's URL, or a body that wasn't kept."""
        metrics.UPSTREAM_401_RETRY.labels("proof_refused").inc()
        log.warning("proof_refused", extra={"route": call.lane.route.name, "look_at": "routes[].external_url"})

    def _pass_on(self, call: Call, rejected: Relay) -> None:
        """Let a 401 go down. If a stronger login helps, the caller learns how to ask for it (RFC 9470)."""
        step_up = read_step_up(rejected.challenges)
        if step_up is None or call.session is None:
            rejected.release()
            return
        provider = call.session.provider
        error = StepUpRequired("the upstream wants a stronger login")
        allowed = self._allowed_parameters.get(provider, ())
        asked = {name: value for name, value in step_up.parameters.items() if name in allowed}
        if len(asked) < len(step_up.parameters):
            left_out = ", ".join(sorted(step_up.parameters.keys() - asked.keys()))
            log.warning(
                "step_up_not_allowed",
                extra={"look_at": f"providers.{provider}.allowed_parameters", "left_out": left_out},
            )
        error.login_parameters = {"provider": provider, **asked}
        rejected.error = error
        metrics.UPSTREAM_401_RETRY.labels("step_up").inc()

    async def _renew(self, call: Call) -> TokenResult:
        result = await self.gate.renew(call)
        metrics.UPSTREAM_401_RETRY.labels(_word_for(result, call)).inc()
        return result


def is_fault_of_body(error: BrokerError) -> bool:
    """Whether a call failed by its body: where that ends isn't known then, or isn't waited for."""
    return isinstance(error, BadRequest | PayloadTooLarge | RequestTimeout)


def _word_for(result: TokenResult, call: Call) -> str:
    match result:
        case Token(generation=generation):
            return "passed_on" if call.token is not None and generation == call.token.generation else "replayed"
        case LoginNeeded():
            return "login_needed"
        case Unavailable():
            return "unavailable"
        case _:
            assert_never(result)


async def _answer_expectations_later(request: web.Request) -> None:
    """``100 Continue`` is sent once the request is allowed, not before (see ``Sender.take``)."""

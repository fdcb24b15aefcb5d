"""
The proxy: which request goes on, with whose token, and what comes back.

    read the head ▸ host ▸ route ▸ session ▸ CSRF ▸ token ▸ forward ▸ (401: newer token, once more) ▸ relay

Everything is judged before the first byte goes upstream, and whatever can't be judged is refused.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, assert_never
from urllib.parse import urlsplit

from aiohttp import web

from broker.core import csrf
from broker.core.audience import Audience
from broker.core.cookies import CookieNames, read_cookie
from broker.core.forwarded import Caller, TrustedProxies
from broker.core.headers import RequestFields
from broker.core.hosts import KnownHosts
from broker.core.outcome import Cause, LoginNeeded, Token, TokenResult, Unavailable
from broker.core.request_head import RequestHead, read_head
from broker.core.routing import Navigation, Route, RouteTable, TokenKind
from broker.errors import (
    BadRequest,
    NoSession,
    PayloadTooLarge,
    ProviderError,
    SessionExpired,
    StoreError,
)
from broker.services import metrics
from broker.services.logs import REQUEST_ID
from broker.services.pool import UpstreamPools
from broker.services.sessions import LiveSession
from broker.services.tasks import Tasks
from broker.services.upstream import Exchange
from broker.web.body import RequestBody
from broker.web.connection import CallerConnection
from broker.web.lanes import Lane
from broker.web.relay import Relay, RelayedResponse

log = logging.getLogger(__name__)

WEBSOCKET = b"websocket"


class SessionSource(Protocol):
    """Where sessions are found (``services.sessions.Sessions``)."""

    def peek(self, session_id: bytes, *, used: bool = True) -> LiveSession | None: ...

    async def load(self, session_id: bytes, *, used: bool = True) -> LiveSession | None: ...


class TokenSource(Protocol):
    """Where tokens come from (``services.tokens.TokenBroker``)."""

    def peek(self, grant_id: str, audience: Audience = ...) -> Token | None: ...

    async def token(
        self, grant_id: str, audience: Audience = ..., *, rejected_generation: int | None = None
    ) -> TokenResult: ...


@dataclass(slots=True)
class Call:
    """
    A request that may go on.

    Attributes:
        connection: Where it came from.
        head: Its head.
        lane: Where it goes.
        caller: Who sent it.
        request_id: Its id.
        session: The caller's session, if the route looks at one.
        grant_id: Whose token goes along; None for none.
        token: That token.
        body: Its body; None if there is none.
    """

    connection: CallerConnection
    head: RequestHead
    lane: Lane
    caller: Caller
    request_id: str
    session: LiveSession | None = None
    grant_id: str | None = None
    token: Token | None = None
    body: RequestBody | None = None


class Proxy:
    """Forwards requests."""

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
        """
        parts = urlsplit(public_url)
        self._own_origin = f"{parts.scheme}://{parts.netloc}"
        cookies = CookieNames.for_public_url(public_url)
        self._session_cookie = cookies.session.encode()
        self._sessions = sessions
        self._tokens = tokens
        self._trusted = trusted_proxies or TrustedProxies()
        self._standing_grants = standing_grants or {}
        self._tasks = Tasks()
        self._table = RouteTable(
            (route, Lane(route, upstreams[route.upstream_options], public_url=public_url, cookies=cookies))
            for route in routes
        )
        self._hosts = KnownHosts(public_url, sorted(self._table.hosts))
        self._fields = RequestFields(name for route in routes for name in route.headers.assign)

    def register(self, app: web.Application) -> None:
        """Take every request of *app* that no earlier route of it takes."""
        app.router.add_route("*", "/{path:.*}", self.handle, expect_handler=_answer_expectations_later)

    async def close(self, timeout_seconds: float = 5.0) -> None:
        """Let what runs in the background end."""
        await self._tasks.drain(timeout_seconds)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """
        Forward *request*.

        Raises:
            BrokerError: If it isn't forwarded, or no answer came. Nothing of an answer is written then.
        """
        connection = request.protocol
        assert isinstance(connection, CallerConnection)
        call = self._read(connection, request)
        call.session = await self._find_session(call)
        await self._find_token(call)
        self._check_body(call, request)
        return await self._forward(call)

    # --- judging

    def _read(self, connection: CallerConnection, request: web.Request) -> Call:
        message = request._message  # noqa: SLF001 - its target is the one that came; request.path is decoded
        try:
            head = read_head(
                method=message.method,
                target=message.path.encode("utf-8", "surrogateescape"),
                version=(message.version.major, message.version.minor),
                fields=message.raw_headers,
                rules=self._fields,
            )
            host = self._hosts.match(head.authority) if head.authority else self._hosts.own_host
        except BadRequest:
            # What follows on a connection whose requests can't be told apart isn't read (SECURITY SM-01).
            connection.close()
            raise
        lane = self._table.match(head.target, host, head.method)
        peer = connection.peername
        address = peer[0] if isinstance(peer, tuple) else ""
        caller = self._trusted.caller(address, head.values(b"x-forwarded-for"))
        if head.upgrade and not (head.upgrade == WEBSOCKET and lane.route.websocket and _is_handshake(head)):
            # A server may ignore an Upgrade (RFC 9110 section 7.8).
            head.upgrade = b""
        return Call(connection, head, lane, caller, REQUEST_ID.get(""))

    async def _find_session(self, call: Call) -> LiveSession | None:
        route = call.lane.route
        kind = route.token.kind
        if kind is TokenKind.NONE or kind is TokenKind.GRANT:
            return None
        session_id = read_cookie(call.head.values(b"cookie"), self._session_cookie)
        session = None
        if session_id is not None:
            session = self._sessions.peek(session_id) or await self._sessions.load(session_id)
        if session is not None and route.provider not in {None, session.provider}:
            session = None
        if session is None:
            if kind is TokenKind.USER:
                raise NoSession("no session" if session_id is None else "the cookie names no live session")
            return None
        self._judge_origin(call)
        return session

    def _judge_origin(self, call: Call) -> None:
        head, route = call.head, call.lane.route
        if head.upgrade:
            origins = head.getall("Origin", ())
            if len(origins) == 1 and origins[0] in route.origins:
                return
        csrf.judge(
            method=head.method,
            headers=head,
            own_origin=self._own_origin,
            navigation_allowed=route.navigation is Navigation.ALLOW,
            websocket=bool(head.upgrade),
        )

    async def _find_token(self, call: Call) -> None:
        grant = call.lane.route.token.grant
        if grant is not None:
            call.grant_id = self._standing_grants.get(grant)
            if call.grant_id is None:
                raise ProviderError("the standing grant is not there yet", retry_after_seconds=5)
        elif call.session is not None:
            call.grant_id = call.session.grant_id
        if call.grant_id is None:
            return
        audience = call.lane.audience
        result: TokenResult | None = self._tokens.peek(call.grant_id, audience)
        if result is None:
            result = await self._tokens.token(call.grant_id, audience)
        call.token = _usable(result, call.lane.route.token.kind)

    def _check_body(self, call: Call, request: web.Request) -> None:
        head, route = call.head, call.lane.route
        if not head.has_body:
            return
        if head.content_length is not None and head.content_length > route.max_body_bytes:
            raise PayloadTooLarge("the body is larger than the route allows")
        keep = call.token is not None and call.lane.may_retry(head)
        call.body = RequestBody(
            request.content,
            max_bytes=route.max_body_bytes,
            max_kept_bytes=route.max_replay_body_bytes if keep else 0,
        )
        if head.expects_continue and request.transport is not None and not call.body.is_here:
            # Only now: whoever may not call is told so before it sends its body (RFC 9110 section 10.1.1).
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # --- forwarding

    async def _forward(self, call: Call) -> web.StreamResponse:
        relay = await self._attempt(call, hold_401=call.token is not None and call.lane.may_retry(call.head))
        if relay.rejected:
            relay = await self._retry(call, relay)
        elif relay.status == 401 and call.token is not None and call.grant_id is not None:
            # It can't be sent again, but the next request shall have a newer token.
            renewal = self._tokens.token(call.grant_id, call.lane.audience, rejected_generation=call.token.generation)
            _ = self._tasks.spawn(renewal, name="proxy:renew")
            metrics.UPSTREAM_401_RETRY.labels("passed_on").inc()
        if relay.error is not None and not relay.started:
            raise relay.error
        return RelayedResponse(relay)

    async def _retry(self, call: Call, rejected: Relay) -> Relay:
        """Send the request again with a newer token; without one, the 401 passes on."""
        assert call.token is not None
        assert call.grant_id is not None
        if call.body is None or call.body.is_replayable:
            refused = call.token.generation
            result = await self._tokens.token(call.grant_id, call.lane.audience, rejected_generation=refused)
            metrics.UPSTREAM_401_RETRY.labels(_retry_result(result, refused)).inc()
            newer = _usable(result, call.lane.route.token.kind)
            if newer is not None and newer.generation != refused:
                call.token = newer
                return await self._attempt(call, hold_401=False)
        rejected.release()
        return rejected

    async def _attempt(self, call: Call, *, hold_401: bool) -> Relay:
        """Send the request, and relay its answer. Faults before the answer are in the relay's ``error``."""
        head = call.head
        relay = Relay(connection=call.connection, request=head, rules=call.lane.answers, hold_401=hold_401)
        exchange = Exchange(
            method=head.method,
            head=self._compose(call),
            receiver=relay,
            timeouts=call.lane.route.timeout,
            complete=call.body is None,
            chunked=head.chunked,
            upgrade=head.upgrade,
        )
        relay.exchange = exchange
        try:
            await call.lane.upstream.start(exchange)
            if call.body is not None:
                await self._send_body(call.body, exchange, relay)
            await relay.wait()
        finally:
            relay.leave()
        return relay

    async def _send_body(self, body: RequestBody, exchange: Exchange, relay: Relay) -> None:
        if body.is_here:
            error = await body.send(exchange)
            if error is not None:
                relay.refuse(error)
            return
        sending = self._tasks.spawn(_send(body, exchange, relay), name="proxy:body")
        try:
            await relay.wait()
            if relay.rejected and body.is_replayable:
                # The rest of it is needed for the second attempt.
                await sending
        finally:
            sending.cancel()

    def _compose(self, call: Call) -> bytes:
        lane, session, token = call.lane, call.session, call.token
        claims = b""
        if session is not None and lane.needs_claims:
            key = (session.key, session.version)
            claims = lane.rendered(key) or lane.render(key, _claims(session))
        return lane.compose(
            call.head,
            forwarded_for=call.caller.forwarded_for,
            request_id=call.request_id.encode(),
            authorization=_authorization(token) if token is not None else b"",
            claims=claims,
        )


async def _send(body: RequestBody, exchange: Exchange, relay: Relay) -> None:
    error = await body.send(exchange)
    if error is not None:
        relay.refuse(error)


def _claims(session: LiveSession) -> Mapping[str, object]:
    record = session.session
    return {**record.claims, "sub": record.subject, "iss": record.issuer}


def _authorization(token: Token) -> bytes:
    value = token.access_token.reveal()
    if not (value.isascii() and value.isprintable()):
        raise ProviderError("the access token holds a byte that no header field may hold")
    return b"Authorization: %b %b\r\n" % (token.token_type.encode(), value.encode())


def _usable(result: TokenResult, kind: TokenKind) -> Token | None:
    """The token that goes upstream; None where none is needed. Raises what the caller is told otherwise."""
    match result:
        case Token():
            return result
        case LoginNeeded(reason):
            if kind is TokenKind.USER_OR_NONE:
                return None
            if kind is TokenKind.GRANT:
                raise ProviderError(f"the standing grant has ended: {reason}", retry_after_seconds=60)
            raise SessionExpired(f"the grant has ended: {reason}")
        case Unavailable(cause, retry_after_seconds):
            fault = StoreError if cause is Cause.STORE else ProviderError
            raise fault("no token can be had now", retry_after_seconds=retry_after_seconds)
        case _:
            assert_never(result)


def _is_handshake(head: RequestHead) -> bool:
    """Whether it is the client's side of a WebSocket's opening handshake (RFC 6455 section 4.2.1)."""
    return (
        head.method == "GET"
        and head.is_http11
        and not head.has_body
        and len(head.values(b"sec-websocket-key")) == 1
        and list(head.values(b"sec-websocket-version")) == [b"13"]
    )


def _retry_result(result: TokenResult, refused_generation: int) -> str:
    match result:
        case Token(generation=generation):
            return "passed_on" if generation == refused_generation else "replayed"
        case LoginNeeded():
            return "login_needed"
        case Unavailable():
            return "unavailable"
        case _:
            assert_never(result)


async def _answer_expectations_later(request: web.Request) -> None:
    """``100 Continue`` is sent once the request is allowed, not before (see ``_check_body``)."""

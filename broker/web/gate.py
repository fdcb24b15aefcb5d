"""
The gate: who may go where, with whose token.

    head ▸ host ▸ route ▸ session ▸ origin ▸ token

Everything is judged before the first byte goes upstream, and whatever can't be judged is refused. The fast path and the
slow one ask the same gate; they differ in whether they wait for what this process doesn't know yet.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, assert_never
from urllib.parse import urlsplit

from broker.core import csrf
from broker.core.audience import Audience
from broker.core.cookies import CookieNames
from broker.core.forwarded import Caller, TrustedProxies
from broker.core.hosts import KnownHosts
from broker.core.outcome import Cause, LoginNeeded, Token, TokenResult, Unavailable
from broker.core.paths import MAX_REMEMBERED, MAX_REMEMBERED_BYTES, Target
from broker.core.request_fields import FieldBlock, FieldRules
from broker.core.request_head import RequestHead, read_head
from broker.core.routing import Navigation, Route, RouteTable, TokenKind
from broker.errors import (
    BadRequest,
    BrokerError,
    Forbidden,
    NoSession,
    Overloaded,
    PayloadTooLarge,
    ProviderError,
    SessionExpired,
    StoreError,
    TooManyRequests,
)
from broker.services.callers import Shown
from broker.services.dpop import Proofs
from broker.services.handles import Bounds
from broker.services.limits import EVERYBODY, Rates
from broker.services.memory import Shedding
from broker.services.sessions import LiveSession
from broker.services.upstream import Upstream
from broker.web.lanes import Lane

WEBSOCKET = b"websocket"
GRANT_RETRY_SECONDS = 5.0
"""What the caller of a standing grant that has ended is told to wait."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

# Looked up once: finding a member in its Enum takes Python 3.11 0.2 microseconds, and each call asks thrice.
_NONE, _USER, _USER_OR_NONE, _GRANT = TokenKind.NONE, TokenKind.USER, TokenKind.USER_OR_NONE, TokenKind.GRANT


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


class CallerSource(Protocol):
    """Whom callers without a browser speak for (``services.callers.Callers``)."""

    def names_handle(self, authorization: Sequence[bytes]) -> bool: ...

    def peek(self, shown: Shown) -> str | None: ...

    def bounds_of(self, shown: Shown) -> Bounds | None: ...

    async def grant_of(self, shown: Shown) -> str | None: ...


@dataclass(slots=True)
class Endings:
    """
    What has ended: sessions, handles, grants.

    Attributes:
        count: How often this process has heard of one, or may have missed one. What was let in before may have to be
            asked for its leave again.
    """

    count: int = 0

    def outdate(self, call: "Call") -> bool:
        """Whether something has ended since *call* was admitted."""
        return call.endings != self.count


@dataclass(slots=True)
class Call:
    """
    A request on its way through the gate.

    Attributes:
        head: Its head.
        lane: Where it goes.
        caller: Who sent it.
        session: The caller's session, if the route looks at one and there is one; there is a grant then.
        grant_id: Whose token goes along; None for none.
        token: That token, once it is known.
        request_id: Its id.
        endings: How many endings had been heard of when it was judged.
    """

    head: RequestHead
    lane: Lane
    caller: Caller
    session: LiveSession | None = None
    grant_id: str | None = None
    token: Token | None = None
    request_id: str = ""
    endings: int = 0

    @property
    def may_retry(self) -> bool:
        """Whether a 401 of the upstream may be answered with a newer token."""
        return self.token is not None and self.lane.may_retry(self.head)

    @property
    def is_bound(self) -> bool:
        """Whether the token is bound to a key, so that the request needs a proof (RFC 9449)."""
        return self.token is not None and self.token.dpop_key is not None

    def disown(self) -> None:
        """Make it nobody's, as long as nobody else is found who sent it."""
        self.session = self.grant_id = self.token = None

    def compose(self) -> bytes:
        """Return the head of the request to the upstream. Raises ``ProviderError`` if the token can't be sent."""
        return self.lane.compose(
            self.head,
            forwarded_for=self.caller.forwarded_for,
            request_id=self.request_id.encode(),
            token=self.token,
            session=self.session,
        )


class Gate:
    """
    Judges requests.

    Attributes:
        lanes: The routes, made ready.
        fields: Reads the field lines of requests.
        endings: What has ended.
        shedding: What is refused because memory is nearly out.
    """

    def __init__(
        self,
        *,
        routes: Sequence[Route],
        upstream_of: Callable[[Route], Upstream],
        public_url: str,
        sessions: SessionSource,
        tokens: TokenSource,
        trusted_proxies: TrustedProxies,
        standing_grants: Mapping[str, str],
        base_path: str,
        rates: Rates,
        proofs: Proofs,
        callers: CallerSource | None = None,
        providers: Collection[str] = (),
    ) -> None:
        """
        Args:
            routes: Where requests go. The configuration has made sure that no two match alike.
            upstream_of: The pool of a route's upstream.
            public_url: The origin under which browsers reach the broker.
            sessions: Finds sessions.
            tokens: Gives tokens.
            trusted_proxies: Whose forwarding fields are believed.
            standing_grants: The ids of standing grants by their configured names.
            base_path: The path of the broker's own endpoints, which no reading of a forwarded path may name.
            rates: Makes the buckets of rate limits.
            proofs: Makes proofs for tokens that are bound to a key.
            callers: Finds the grants of callers without a browser; None if there are none.
            providers: The names of the providers at which a user can log in.
        """
        parts = urlsplit(public_url)
        self._own_origin = f"{parts.scheme}://{parts.netloc}"
        self._own_origins = [self._own_origin.encode()]
        self.endings = Endings()
        self.shedding = Shedding()
        cookies = CookieNames.for_public_url(public_url)
        self._sessions = sessions
        self._tokens = tokens
        self._trusted = trusted_proxies
        self._standing_grants = standing_grants
        self._callers = callers
        self._providers = providers
        self.lanes = tuple(
            Lane(route, upstream_of(route), public_url=public_url, cookies=cookies, rates=rates, proofs=proofs)
            for route in routes
        )
        self._table = RouteTable(zip(routes, self.lanes, strict=True), reserved=(base_path,))
        self._hosts = KnownHosts(public_url, sorted(self._table.hosts))
        self._usual_lane = lru_cache(maxsize=MAX_REMEMBERED)(self._lane_of)
        self.fields = FieldRules(
            session_cookie=cookies.session.encode(),
            is_own_cookie=cookies.matcher(),
            own_names=[name for route in routes for name in route.headers.assign],
        )

    def judge(self, *, method: str, target: bytes, version: tuple[int, int], block: FieldBlock, peer: str) -> Call:
        """
        Judge a request's head, and find where it goes.

        Args:
            method: The method.
            target: The request target, as it came.
            version: The HTTP version.
            block: Its field lines, as :attr:`fields` read them.
            peer: The address at the other end of the connection; empty for a Unix socket.

        Raises:
            CallerError: If it is refused.
            Overloaded: If no request is taken now. Nothing has been done for it: no session was looked for.
        """
        head = read_head(method=method, target=target, version=version, block=block)
        find_lane = self._usual_lane if len(target) <= MAX_REMEMBERED_BYTES else self._lane_of
        lane = find_lane(head.target, block.authority, method)
        if head.upgrade and not (head.upgrade == WEBSOCKET and lane.route.websocket and _is_handshake(head)):
            # A server may ignore an Upgrade (RFC 9110 section 7.8).
            head.upgrade = b""
        if block.content_length is not None and block.content_length > lane.max_body_bytes:
            raise PayloadTooLarge("the body is larger than the route allows")
        if self.shedding.requests:
            raise Overloaded("memory is nearly out")
        if b"client-cert" in block.read and not self._trusted.trusts(peer):
            del block.read[b"client-cert"]  # whoever ends TLS must be a trusted proxy to say this (RFC 9440 section 4)
        caller = self._trusted.caller(peer, block.read.get(self._trusted.field, ()))
        return Call(head, lane, caller, endings=self.endings.count)

    def _lane_of(self, target: Target, authority: bytes, method: str) -> Lane:
        """Find where a request goes. Raises ``CallerError`` if that is nowhere."""
        host = self._hosts.match(authority) if authority else self._hosts.own_host
        return self._table.match(target, host, method)

    def admit_at_once(self, call: Call) -> bool:
        """
        Find the call's session and token, if this process knows them.

        Returns:
            False if it doesn't: then :meth:`find_out`.

        Raises:
            BrokerError: If the call is refused.
        """
        kind = call.lane.kind
        if kind is _NONE:
            return True
        if kind is _GRANT:
            call.grant_id = self._standing_grant(call)
        else:
            block = call.head.block
            if block.is_session_ambiguous:
                raise BadRequest("the session cookie came twice")
            if block.session_id is not None and not (b"authorization" in block.read and self._names_handle(block)):
                session = self._sessions.peek(block.session_id)
                if session is None:
                    return False
                self._take_session(call, session)
            elif self._callers is not None and self._shows_caller(block):
                call.grant_id = self._callers.peek(shown_by(call))
                if call.grant_id is None:
                    return False
                self._judge_certificate(call)
            else:
                self._take_session(call, None)
        if call.grant_id is not None:
            token = self._tokens.peek(call.grant_id, call.lane.audience)
            if token is None or (call.lane.provider is not None and call.lane.provider != token.provider):
                return False
            call.token = token
        return True

    async def admit(self, call: Call) -> None:
        """
        Find the call's session and token.

        Raises:
            BrokerError: If the call is refused.
        """
        if not self.admit_at_once(call):
            await self.find_out(call)

    def is_outdated(self, call: Call) -> bool:
        """Whether something has ended since the call was admitted: it may have waited for its body or a connection."""
        return self.endings.outdate(call)

    async def admit_again(self, call: Call) -> None:
        """
        Admit a call that has waited, as if it came now.

        Raises:
            BrokerError: If it is refused now.
        """
        endings = self.endings.count
        call.disown()
        await self.admit(call)
        call.endings = endings

    def admit_again_at_once(self, call: Call) -> bool:
        """As :meth:`admit_again`, if nothing need be waited for. Returns False otherwise, or if that will refuse it."""
        endings = self.endings.count
        call.disown()
        try:
            is_admitted = self.admit_at_once(call)
        except BrokerError:
            return False
        if is_admitted:
            call.endings = endings
        return is_admitted

    async def find_out(self, call: Call) -> None:
        """
        Find what :meth:`admit_at_once` didn't.

        Raises:
            BrokerError: If the call is refused.
        """
        if call.grant_id is None:
            await self._find_grant(call)
        await self._ask_for_token(call)

    async def _find_grant(self, call: Call) -> None:
        """A handle goes before the cookie, and the cookie before any other credential: frontends may send one along."""
        block = call.head.block
        session = None
        if block.session_id is not None and not self._names_handle(block):
            session = await self._sessions.load(block.session_id)
        if session is None and self._callers is not None and self._shows_caller(block):
            call.grant_id = await self._callers.grant_of(shown_by(call))
            self._judge_certificate(call)
        if call.grant_id is None:
            self._take_session(call, session)

    def _shows_caller(self, block: FieldBlock) -> bool:
        return self._callers is not None and (b"authorization" in block.read or b"client-cert" in block.read)

    def _names_handle(self, block: FieldBlock) -> bool:
        authorization = block.read.get(b"authorization")
        return authorization is not None and self._callers is not None and self._callers.names_handle(authorization)

    def limit(self, call: Call) -> None:
        """
        Count the call against its caller's rate, and everybody's.

        Raises:
            TooManyRequests: If one of the route's limits is exceeded. A call that is refused takes nothing.
        """
        buckets, total = call.lane.buckets, call.lane.total
        if buckets is not None and (wait := buckets.take(_who(call))):
            raise TooManyRequests("the route's rate_limit is exceeded", retry_after_seconds=wait)
        if total is not None and (wait := total.take(EVERYBODY)):
            if buckets is not None:
                buckets.give_back(_who(call))
            raise TooManyRequests("the route's total_rate_limit is exceeded", retry_after_seconds=wait)

    def unlimit(self, call: Call) -> None:
        """Take back what :meth:`limit` counted: the call begins anew."""
        if call.lane.buckets is not None:
            call.lane.buckets.give_back(_who(call))
        if call.lane.total is not None:
            call.lane.total.give_back(EVERYBODY)

    def given_request_id(self, call: Call, peer: str) -> str | None:
        """Return the request's id, if a trusted proxy gave it one."""
        given = call.head.values(b"x-request-id")
        if not given or not self._trusted.trusts(peer) or not _REQUEST_ID.fullmatch(given[0]):
            return None
        return given[0].decode()

    async def renew(self, call: Call) -> TokenResult:
        """Ask for a newer token than the call's, which the upstream has rejected."""
        assert call.grant_id is not None
        assert call.token is not None
        return await self._tokens.token(call.grant_id, call.lane.audience, rejected_generation=call.token.generation)

    def usable(self, result: TokenResult, call: Call) -> Token | None:
        """
        Return the token that goes upstream; None where the route goes on without one: the call is nobody's then.

        Raises:
            BrokerError: What the caller is told otherwise.
        """
        match result:
            case Token():
                _judge_provider(call, result)
                return result
            case LoginNeeded(reason):
                self._go_on_without_grant(call, reason)
                return None
            case Unavailable(cause, retry_after_seconds):
                fault = StoreError if cause is Cause.STORE else ProviderError
                raise fault("no token can be had now", retry_after_seconds=retry_after_seconds)
            case _:
                assert_never(result)

    def _go_on_without_grant(self, call: Call, reason: str) -> None:
        """
        Let a browser's call go on as nobody's, where its route takes that. Raises ``BrokerError`` elsewhere.

        Whoever shows a credential wants to be somebody, and is told that it isn't good (``services.callers``).
        """
        if call.lane.kind is _USER_OR_NONE and call.session is not None:
            # Nor is its session good any more: a user whose grant was revoked is named nowhere (SECURITY SE-03).
            call.disown()
            return
        if call.lane.kind is _GRANT:
            # It begins anew by itself, unless its tokens must be handed over (services.standing).
            name = call.lane.route.token.grant
            raise ProviderError(
                f"grants.{name}: the standing grant has ended: {reason}", retry_after_seconds=GRANT_RETRY_SECONDS
            )
        provider = None if call.session is None else call.session.provider
        # A session may be older than the configuration, which names its provider no more.
        raise SessionExpired(
            f"the grant has ended: {reason}", provider=provider if provider in self._providers else None
        )

    def _take_session(self, call: Call, session: LiveSession | None) -> None:
        needed = call.lane.provider
        if session is not None and needed is not None and needed != session.provider:
            session = None
        if session is not None:
            self._judge_origin(call)
            call.session = session
            call.grant_id = session.grant_id
        elif call.lane.kind is _USER:
            error = NoSession("no live session")
            error.leads_back = call.lane.route.navigation is Navigation.ALLOW
            if needed is not None:
                error.login_parameters = {"provider": needed}
            raise error

    def _judge_origin(self, call: Call) -> None:
        head, route = call.head, call.lane.route
        read = head.block.read
        # What nearly every call looks like. It passes the rules below, too, but they take longer.
        if (
            read.get(b"x-csrf") == _MARKED
            and read.get(b"sec-fetch-site") in _OWN_SITE
            and not head.upgrade
            and (b"origin" not in read or read[b"origin"] == self._own_origins)
        ):
            return
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

    def _judge_certificate(self, call: Call) -> None:
        if call.grant_id is not None and b"authorization" not in call.head.block.read:
            own = (self._own_origin, *call.lane.route.origins)
            csrf.judge_certificate(headers=call.head, own_origins=own)

    async def _ask_for_token(self, call: Call) -> None:
        if call.grant_id is None:
            return
        result = await self._tokens.token(call.grant_id, call.lane.audience)
        call.token = self.usable(result, call)

    def _standing_grant(self, call: Call) -> str:
        grant_id = self._standing_grants.get(call.lane.route.token.grant or "")
        if grant_id is None:
            raise ProviderError("the standing grant is not there yet", retry_after_seconds=5)
        return grant_id


_MARKED = [b"1"]
_OWN_SITE = (None, [b"same-origin"], [b"none"])


def shown_by(call: Call) -> Shown:
    """Return what a call shows of its caller."""
    read = call.head.block.read
    return Shown(read.get(b"authorization", ()), read.get(b"client-cert", ()), call.caller.address, call.head.target)


def _judge_provider(call: Call, token: Token) -> None:
    """
    Refuse a token of another provider than the one whose tokens the upstream is meant for (RFC 9700 section 4.9).

    It is a caller's without a browser: of sessions only those of the route's provider count.
    """
    needed = call.lane.provider
    if needed is not None and needed != token.provider:
        raise Forbidden(f"the route is for provider {needed}, and the caller's grant is of {token.provider}")


def _who(call: Call) -> str:
    """Whose rate a call counts against."""
    return call.session.key if call.session is not None else call.caller.address


def _is_handshake(head: RequestHead) -> bool:
    """Whether it is the client's side of a WebSocket's opening handshake (RFC 6455 section 4.2.1)."""
    return (
        head.method == "GET"
        and head.is_http11
        and not head.has_body
        and len(head.values(b"sec-websocket-key")) == 1
        and list(head.values(b"sec-websocket-version")) == [b"13"]
    )

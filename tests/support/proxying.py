"""A proxy on 127.0.0.1 with sessions and tokens that a test sets, and a caller that speaks raw bytes."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web

from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.forwarded import ForwardingField, TrustedProxies
from broker.core.limit_options import LimitOptions
from broker.core.outcome import LoginNeeded, Token, TokenResult
from broker.core.routing import Route, TokenChoice, TokenKind
from broker.core.secret import AccessToken
from broker.core.session import Session, encode
from broker.errors import BrokerError, StoreError
from broker.services.clock import Clock, SystemClock
from broker.services.logs import REQUEST_ID
from broker.services.pool import UpstreamPools
from broker.services.session_cache import LiveSession
from broker.services.session_records import StoredSession
from broker.web.connections import ProxyRunner
from broker.web.gate import CallerSource
from broker.web.proxy import Proxy
from broker.web.streams import Subscription

ANONYMOUS = TokenChoice(TokenKind.NONE)
USER = TokenChoice(TokenKind.USER)
USER_OR_NONE = TokenChoice(TokenKind.USER_OR_NONE)
PUBLIC_URL = "https://app.example.com"
HOST = b"app.example.com"
SESSION_COOKIE = b"__Host-Http-session"
ALICE = b"a" * 43
"""The session id that Alice's cookie holds."""


def token(text: str, generation: int = 1, *, provider: str = "corp") -> Token:
    return Token(AccessToken(text), "Bearer", generation, 4e9, provider)


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass(slots=True)
class FakeSessions:
    """Sessions by their ids."""

    known: dict[bytes, LiveSession] = field(default_factory=dict)
    cached: bool = True
    down: bool = False
    loads: list[str] = field(default_factory=list)
    """How each load ended."""
    may_load: asyncio.Event = field(default_factory=_set)

    def add(self, session_id: bytes, subject: str = "alice", **claims: object) -> LiveSession:
        session = Session(
            grant_id=f"grant-of-{subject}",
            provider="corp",
            issuer="https://idp.example.com",
            subject=subject,
            claims=claims,
            authenticated_at=0.0,
            last_seen_at=0.0,
            ends_at=4e9,
        )
        stored = StoredSession(f"session:{subject}", 1, session, encode(session))
        live = self.known[session_id] = LiveSession.of(stored, idle_timeout_seconds=4e9, read_at=0.0)
        return live

    def peek(self, session_id: bytes, *, used: bool = True) -> LiveSession | None:
        return self.known.get(session_id) if self.cached else None

    async def load(self, session_id: bytes, *, used: bool = True) -> LiveSession | None:
        if self.down:
            raise StoreError("down")
        self.loads.append("begun")
        try:
            await self.may_load.wait()
        except asyncio.CancelledError:
            self.loads[-1] = "cancelled"
            raise
        self.loads[-1] = "done"
        return self.known.get(session_id)


@dataclass(slots=True)
class FakeTokens:
    """Tokens by grant; a rejected one is followed by the next of its list."""

    known: dict[str, list[Token]] = field(default_factory=dict)
    answer: TokenResult | None = None
    asked: list[tuple[str, str, int | None]] = field(default_factory=list)

    def peek(self, grant_id: str, audience: Audience = DEFAULT_AUDIENCE) -> Token | None:
        tokens = self.known.get(grant_id)
        return tokens[0] if tokens and self.answer is None else None

    async def token(
        self, grant_id: str, audience: Audience = DEFAULT_AUDIENCE, *, rejected_generation: int | None = None
    ) -> TokenResult:
        self.asked.append((grant_id, audience.key, rejected_generation))
        await asyncio.sleep(0)
        if self.answer is not None:
            return self.answer
        tokens = self.known.get(grant_id, [])
        if tokens and tokens[0].generation == rejected_generation and len(tokens) > 1:
            tokens.pop(0)
        return tokens[0] if tokens else LoginNeeded("unknown_grant")


async def _errors_by_code(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    REQUEST_ID.set("test-request")
    try:
        return await handler(request)
    except BrokerError as error:
        document = {"code": error.code, "login_parameters": dict(error.login_parameters)}
        return web.json_response(document, status=error.status)


class Way:
    """Whether proxies under test have the fast path, where a test doesn't say."""

    fast = True


@dataclass(slots=True)
class ProxyUnderTest:
    """
    A running proxy.

    Attributes:
        routes: Its routes.
        sessions: Its sessions; Alice has one.
        tokens: Its tokens; Alice has one.
    """

    routes: list[Route]
    trusted: tuple[str, ...] = ()
    forwarding_field: ForwardingField = ForwardingField.X_FORWARDED_FOR
    public_url: str = PUBLIC_URL
    sessions: FakeSessions = field(default_factory=FakeSessions)
    tokens: FakeTokens = field(default_factory=FakeTokens)
    standing_grants: dict[str, str] = field(default_factory=dict)
    callers: CallerSource | None = None
    fast: bool = field(default_factory=lambda: Way.fast)
    access_log: Callable[[str], None] | None = None
    limits: LimitOptions = field(default_factory=LimitOptions)
    events: Subscription | None = None
    clock: Clock = field(default_factory=SystemClock)
    providers: tuple[str, ...] = ("corp",)
    port: int = 0
    proxy: Proxy | None = None
    pools: UpstreamPools | None = None
    _runner: ProxyRunner | None = None

    async def __aenter__(self) -> Self:
        self.sessions.add(ALICE, "alice", email="alice@example.com")
        self.tokens.known.setdefault("grant-of-alice", [token("alices-token")])
        self.pools = UpstreamPools(route.upstream_options for route in self.routes)
        self.proxy = Proxy(
            routes=self.routes,
            upstreams=self.pools,
            public_url=self.public_url,
            sessions=self.sessions,
            tokens=self.tokens,
            trusted_proxies=TrustedProxies(self.trusted, self.forwarding_field),
            standing_grants=self.standing_grants,
            callers=self.callers,
            allowed_parameters=dict.fromkeys(self.providers, ()),
            access_log=self.access_log,
            limits=self.limits,
            events=self.events,
            clock=self.clock,
        )
        self._runner = ProxyRunner(
            web.Application(),
            proxy=self.proxy,
            outermost=_errors_by_code,
            shutdown_timeout_seconds=2,
            limits=self.limits,
            fast=self.fast,
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        assert self.pools is not None
        assert self.proxy is not None
        await self._runner.cleanup()
        await self.proxy.close(1)
        await self.pools.close()

    @property
    def handled(self) -> int:
        """How many requests aiohttp's handler took, not the fast path."""
        assert self._runner is not None
        assert self._runner.server is not None
        return self._runner.server.requests_count

    async def connect(self) -> "RawCaller":
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
        return RawCaller(reader, writer)

    async def send(self, data: bytes) -> "Answer":
        """Send one request on a connection of its own, and return its answer."""
        async with await self.connect() as caller:
            await caller.send(data)
            return await caller.answer()


@dataclass(slots=True)
class Answer:
    """An answer: its head, its body without framing."""

    head: bytes
    body: bytes

    @property
    def status(self) -> int:
        return int(self.head[9:12])

    def fields(self, name: bytes) -> list[bytes]:
        lines = (line.partition(b":") for line in self.head.split(b"\r\n")[1:])
        return [value.strip() for key, _, value in lines if key.lower() == name.lower()]

    @property
    def code(self) -> str:
        found = re.search(rb'"code": "(\w+)"', self.body)
        return found[1].decode() if found else ""


@dataclass(slots=True)
class RawCaller:
    """A caller's connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)

    async def answer(self, *, method: str = "GET") -> Answer:
        """Return the next final answer. Raises ``IncompleteReadError`` if it is cut."""
        head = await self.head()
        while head[9:10] == b"1" and head[9:12] != b"101":
            head = await self.head()
        status = int(head[9:12])
        if method == "HEAD" or status in {101, 204, 304}:
            return Answer(head, b"")
        return Answer(head, await asyncio.wait_for(self._body(head), 30))

    async def _body(self, head: bytes) -> bytes:
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)\r\n", head)
        if length is not None:
            return await self.reader.readexactly(int(length[1]))
        if re.search(rb"(?i)\r\ntransfer-encoding: *chunked\r\n", head) is None:
            return await self.reader.read()
        body = b""
        while True:
            line = await self.reader.readuntil(b"\r\n")
            if not int(line, 16):
                assert b"\r\n" == await self.reader.readexactly(2)
                return body
            body += await self.reader.readexactly(int(line, 16))
            assert b"\r\n" == await self.reader.readexactly(2)

    async def is_closed(self, within_seconds: float = 5.0) -> bool:
        """Return whether the other side closes, without sending more."""
        try:
            return b"" == await asyncio.wait_for(self.reader.read(1), within_seconds)
        except ConnectionError:
            return True
        except TimeoutError:
            return False


def request(
    target: str = "/", *fields: str, method: str = "GET", host: bytes = HOST, cookie: bytes = b"", body: bytes = b""
) -> bytes:
    """Return a request's bytes; ``cookie`` is a session id."""
    lines = [f"{method} {target} HTTP/1.1".encode("latin-1"), b"Host: " + host]
    lines += [line.encode("latin-1") for line in fields]
    if cookie:
        lines.append(b"Cookie: " + SESSION_COOKIE + b"=" + cookie)
    if body:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body

"""An upstream API that takes only live bearer tokens and shows what it received."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from aiohttp import web

from tests.support.authorization_server import CLIENT_ID, CLIENT_SECRET, LedgerServer, introspection
from tests.support.ports import free_port

CLAIMS = web.RequestKey("claims", Mapping[str, Any])

INVALID_TOKEN = 'Bearer error="invalid_token"'

TokenCheck = Callable[[str], Awaitable[Mapping[str, Any]]]
"""Returns the introspection response (RFC 7662 section 2.2) for an access token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """
    One request as it arrived.

    Attributes:
        method: The method.
        target: The request target, byte for byte.
        headers: The header lines in their order, names as they were spelt.
        body: The content; empty where it was streamed.
        claims: What the token check said of its bearer; empty without one.
        status: What it was answered.
    """

    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    claims: Mapping[str, Any]
    status: int

    def header(self, name: str) -> list[str]:
        """Return the values of every line named *name*."""
        wanted = name.lower().encode()
        return [value.decode("latin-1") for key, value in self.headers if key.lower() == wanted]


class Upstream:
    """
    A real server on 127.0.0.1.

    Paths: ``/echo`` streams the content back as it comes, ``/events`` sends server-sent events, ``/socket`` echoes
    WebSocket messages, ``/status/NNN`` answers that, ``/delay/SECONDS`` answers later, ``/public`` needs no token. Every
    other path answers JSON about the request. The token itself is never in an answer.
    """

    def __init__(self, *, check: TokenCheck | None = None, audience: str | None = None, records: bool = True) -> None:
        """
        Args:
            check: Judges bearer tokens; None takes requests without a token, too.
            audience: What the token's ``aud`` must hold.
            records: Whether requests are kept; a storm needs only the counts.
        """
        self.url = ""
        self.received: list[Received] = []
        self.statuses: dict[int, int] = {}
        self.misdirected: list[Mapping[str, Any]] = []
        self.refuse_next = 0
        self.running = 0
        self._challenge = INVALID_TOKEN
        self._check = check
        self._audience = audience
        self._records = records
        self._runner: web.AppRunner | None = None
        self._port = free_port()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; after :meth:`stop`, on the same port again."""
        app = web.Application(client_max_size=64 * 2**20, middlewares=[self._guard])
        app.router.add_route("*", "/echo", self._echo)
        app.router.add_get("/events", self._events)
        app.router.add_get("/socket", self._socket)
        app.router.add_route("*", "/status/{status}", self._status)
        app.router.add_route("*", "/delay/{seconds}", self._delay)
        app.router.add_route("*", "/{rest:.*}", self._describe)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, auto_decompress=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, backlog=2048).start()
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Refuse connections, and close those that are open."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def refuse(self, count: int = 1, *, challenge: str = INVALID_TOKEN) -> None:
        """Answer the next *count* requests 401 with *challenge*, whatever their token."""
        self.refuse_next += count
        self._challenge = challenge

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
        """Judge the bearer before anything else, and write down what came and what it was answered."""
        claims = await self._judge(request)
        if claims is None:
            await request.read()
            response: web.StreamResponse = web.Response(status=401, headers={"WWW-Authenticate": self._challenge})
            self._challenge = INVALID_TOKEN if self.refuse_next == 0 else self._challenge
        else:
            request[CLAIMS] = claims
            self.running += 1
            try:
                response = await handler(request)
            finally:
                self.running -= 1
        self.statuses[response.status] = self.statuses.get(response.status, 0) + 1
        if self._records:
            self.received.append(
                Received(
                    method=request.method,
                    target=request.raw_path.encode("utf-8", "surrogateescape"),
                    headers=tuple(request.raw_headers),
                    body=request._read_bytes or b"",
                    claims=claims or {},
                    status=response.status,
                )
            )
        return response

    async def _judge(self, request: web.Request) -> Mapping[str, Any] | None:
        """Return the claims of the request's bearer, or None if it must be refused."""
        if self.refuse_next > 0:
            self.refuse_next -= 1
            return None
        if self._check is None or request.path.startswith("/public"):
            return {}
        lines = request.headers.getall("Authorization", [])
        scheme, _, token = lines[0].partition(" ") if len(lines) == 1 else ("", "", "")
        claims: Mapping[str, Any] = {"active": False}
        if scheme.lower() == "bearer":
            claims = await self._check(token)
        if not claims["active"]:
            return None
        if self._audience is not None and self._audience not in claims["aud"]:
            self.misdirected.append(claims)
            return None
        return claims

    async def _describe(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        claims = request[CLAIMS]
        return web.json_response(
            {
                "method": request.method,
                "target": request.raw_path,
                "body_bytes": len(body),
                **{name: claims.get(name) for name in ("sub", "generation", "jti", "aud")},
            }
        )

    async def _echo(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        await response.prepare(request)
        async for chunk in request.content.iter_any():
            await response.write(chunk)
        return response

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        for number in range(int(request.query.get("count", "3"))):
            await response.write(f"id: {number}\ndata: event {number}\n\n".encode())
            await asyncio.sleep(float(request.query.get("interval", "0")))
        return response

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=("echo",))
        await socket.prepare(request)
        async for message in socket:
            match message.type:
                case aiohttp.WSMsgType.TEXT:
                    await socket.send_str(message.data)
                case aiohttp.WSMsgType.BINARY:
                    await socket.send_bytes(message.data)
                case _:
                    break
        return socket

    async def _status(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(status=int(request.match_info["status"]))

    async def _delay(self, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(float(request.match_info["seconds"]))
        return await self._describe(request)


def tokens_of(server: LedgerServer) -> TokenCheck:
    """Judge tokens by a LedgerServer of the same process."""

    async def check(token: str) -> Mapping[str, Any]:
        return introspection(server.access_token(token))

    return check


class Introspection:
    """Judge tokens at the introspection endpoint of a server in another process."""

    def __init__(self, url: str, *, cache_seconds: float = 0.0) -> None:
        """
        Args:
            url: The server.
            cache_seconds: How long a live token is believed to live; a dead one never comes back to life.
        """
        self._url = url
        self._cache_seconds = cache_seconds
        self._known: dict[str, tuple[float, Mapping[str, Any]]] = {}
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(self._url, connector=aiohttp.TCPConnector(limit=32))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._http is not None:
            await self._http.close()

    async def __call__(self, token: str) -> Mapping[str, Any]:
        believed_until, claims = self._known.get(token, (0.0, {}))
        if time.monotonic() < believed_until:
            return claims
        assert self._http is not None
        form = {"token": token, "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
        async with self._http.post("/introspect", data=form) as response:
            claims = dict(await response.json())
        believed = self._cache_seconds if claims["active"] else 3600.0
        self._known[token] = (time.monotonic() + believed, claims)
        return claims

"""
A sample API behind the broker, and the page that calls it.

The API checks its bearer token and answers what it learned from it. It never shows the token, nor does any part of the
broker: that is what the page demonstrates.
"""

import logging
import socket
from importlib.resources import files

import aiohttp
from aiohttp import web

from broker.demo.bearer import BearerCheck, InvalidToken
from broker.services.clock import Clock

AUDIENCE = "demo-api"
CONTENT_TYPES = {
    "index.html": "text/html",
    "app.js": "text/javascript",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
}
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
SHOWN_FIELDS = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded", "x-request-id")
"""The request's fields whose values the answer repeats. Of all others it names only the name."""

log = logging.getLogger(__name__)


class SampleApi:
    """The upstream of the demo."""

    def __init__(self, *, issuer: str, clock: Clock) -> None:
        """
        Args:
            issuer: Whose tokens it takes.
            clock: The time.
        """
        self.url = ""
        self._issuer = issuer
        self._clock = clock
        self._runner: web.AppRunner | None = None
        self._http: aiohttp.ClientSession | None = None
        self._bearer: BearerCheck | None = None
        self._files = {name: (files("broker.demo") / "page" / name).read_bytes() for name in CONTENT_TYPES}

    async def start(self, listening: socket.socket | None = None) -> None:
        """Listen on the socket *listening*, or on a free port of 127.0.0.1."""
        self._http = aiohttp.ClientSession()
        self._bearer = BearerCheck(issuer=self._issuer, audience=AUDIENCE, clock=self._clock, http=self._http)
        app = web.Application()
        app.router.add_get("/", self._page)
        app.router.add_get("/{name:app\\.js|style\\.css|icon\\.svg}", self._page)
        app.router.add_route("*", "/api/token", self._token)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        if listening is not None:
            await web.SockSite(self._runner, listening).start()
        else:
            await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._http is not None:
            await self._http.close()

    async def _page(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name", "index.html")
        return web.Response(
            body=self._files[name],
            content_type=CONTENT_TYPES[name],
            charset="utf-8",
            headers={
                "Content-Security-Policy": PAGE_POLICY,
                "Cache-Control": "no-cache",
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
            },
        )

    async def _token(self, request: web.Request) -> web.Response:
        """Answer what the bearer token says, and what else the request carried."""
        assert self._bearer is not None
        try:
            claims = await self._bearer.claims(request.headers.get("Authorization"))
        except InvalidToken as refused:
            log.info("demo_api_refused", extra={"reason": str(refused)})
            return web.json_response(
                {"error": "invalid_token"}, status=401, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'}
            )
        return web.json_response(
            {
                "subject": claims["sub"],
                "generation": claims["generation"],
                "jti": claims["jti"],
                "issued_at": claims["iat"],
                "expires_at": claims["exp"],
                "expires_in": round(claims["exp"] - self._clock.now(), 3),
                "fields": sorted({name.lower() for name in request.headers}),
                "forwarded": {name: request.headers[name] for name in SHOWN_FIELDS if name in request.headers},
            }
        )

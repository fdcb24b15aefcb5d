"""What stands between the broker and a real token endpoint: it sees every token request, and may lose an answer."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import parse_qsl

import aiohttp
from aiohttp import web

END_TO_END = ("Authorization", "Content-Type", "Accept", "DPoP")
FROM_SERVER = ("Content-Type", "WWW-Authenticate", "Retry-After", "DPoP-Nonce")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """
    One token request, and what the server answered.

    Attributes:
        form: What was posted.
        authorization: The header field.
        status: Of the answer.
        content: Of the answer.
        answer: The answer as JSON; empty if it is none.
    """

    form: dict[str, str]
    authorization: str
    status: int
    content: bytes
    answer: dict[str, Any]

    @property
    def grant_type(self) -> str:
        return self.form["grant_type"]

    @property
    def refresh_token(self) -> str:
        return self.form.get("refresh_token", "")


class TokenTap:
    """A token endpoint on 127.0.0.1 that passes on to a real one what it gets, unchanged."""

    def __init__(self, token_endpoint: str) -> None:
        self.url = ""
        self.requests: list[TokenRequest] = []
        self.running = 0
        self._target = token_endpoint
        self._lose = 0
        self._runner: web.AppRunner | None = None
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/token", self._token)
        self._http = aiohttp.ClientSession(auto_decompress=False)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/token"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._runner is not None
        assert self._http is not None
        await self._runner.cleanup()
        await self._http.close()

    def lose_answers(self, count: int) -> None:
        """Break the connection in place of the next *count* answers: the server has done its work by then."""
        self._lose = count

    def refreshes(self) -> list[TokenRequest]:
        """Return the requests that presented a refresh token."""
        return [request for request in self.requests if request.grant_type == "refresh_token"]

    def statuses(self) -> dict[int, int]:
        """Return how often each status came as the answer to a refresh."""
        return dict(Counter(request.status for request in self.refreshes()))

    def presented_twice(self) -> list[str]:
        """Return the refresh tokens that came more than once."""
        times = Counter(request.refresh_token for request in self.refreshes())
        return [token for token, count in times.items() if count > 1]

    async def _token(self, request: web.Request) -> web.StreamResponse:
        assert self._http is not None
        body = await request.read()
        headers = {name: request.headers[name] for name in END_TO_END if name in request.headers}
        self.running += 1
        try:
            async with self._http.post(self._target, data=body, headers=headers) as response:
                content = await response.read()
        finally:
            self.running -= 1
        is_json = response.content_type == "application/json" and content.strip()
        self.requests.append(
            TokenRequest(
                form=dict(parse_qsl(body.decode("ascii"), keep_blank_values=True)),
                authorization=request.headers.get("Authorization", ""),
                status=response.status,
                content=content,
                answer=await response.json() if is_json else {},
            )
        )
        if self._lose:
            self._lose -= 1
            assert request.transport is not None
            request.transport.abort()
        passed_on = {name: response.headers[name] for name in FROM_SERVER if name in response.headers}
        return web.Response(status=response.status, headers=passed_on, body=content)

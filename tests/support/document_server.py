"""A real HTTP server that gives out what a test puts there, and writes down who asked for what."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web
from multidict import CIMultiDict

from tests.support.waiting import until


@dataclass(frozen=True)
class Request:
    """What came."""

    method: str
    path: str
    query: str
    headers: CIMultiDict[str] = field(repr=False)
    content: bytes


Answer = tuple[int, Any] | Callable[[Request], Awaitable[web.Response]]


class DocumentServer:
    """Paths and their answers: ``(status, JSON or bytes)``, or a coroutine that makes one. Unknown paths get 404."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[Request] = []
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def count(self, path: str) -> int:
        """How often *path* was asked for."""
        return sum(request.path == path for request in self.requests)

    async def wait_for(self, path: str, count: int = 1) -> None:
        """Wait until *path* was asked for *count* times."""
        await until(lambda: self.count(path) >= count)

    async def _answer(self, request: web.Request) -> web.Response:
        received = Request(
            request.method,
            request.path,
            request.query_string,
            CIMultiDict(request.headers),
            await request.read(),
        )
        self.requests.append(received)
        answer = self.answers.get(request.path, (404, b""))
        if callable(answer):
            return await answer(received)
        status, content = answer
        if isinstance(content, bytes):
            return web.Response(status=status, body=content)
        return web.Response(status=status, text=json.dumps(content), content_type="application/json")

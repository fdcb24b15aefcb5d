"""A whole installation: the broker in its processes, an API, and between broker and token endpoint a tap."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from tests.interop.form_browser import FormBrowser
from tests.interop.introspection import Introspection
from tests.interop.token_tap import TokenTap
from tests.support.broker_process import Answer, BrokerProcess
from tests.support.upstream import Upstream
from tests.support.waiting import until_async

ON_THE_WAY_SECONDS = 0.02
"""How long a request takes from the broker to the API's check of its token, which may die on the way."""


class Installation:
    """A broker in front of an API that takes only tokens that live, with one real authorization server, ``corp``."""

    def __init__(
        self,
        directory: Path,
        *,
        token_endpoint: str,
        provider: Mapping[str, Any],
        check: Introspection,
        port: int | None = None,
        token: object = "user",  # noqa: S107 - whose token it is
        **settings: Any,
    ) -> None:
        """
        Args:
            directory: For the broker's files.
            token_endpoint: Of the server.
            provider: How the broker speaks to it.
            check: Judges tokens for the API.
            port: Where the broker listens, for servers that must know it beforehand.
            token: Of the route to the API.
            settings: More of the broker's configuration.
        """
        directory.mkdir(exist_ok=True)
        self.tap = TokenTap(token_endpoint)
        self.check = check
        self.upstream = Upstream(check=self._check_later)
        self.broker = BrokerProcess(directory, port=port, **settings)
        self._provider = provider
        self._token = token

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FormBrowser]:
        """Run it, and give a browser that nobody has logged in with."""
        async with AsyncExitStack() as stack:
            for part in (self.tap, self.check, self.upstream):
                await stack.enter_async_context(part)
            self.broker.settings |= {
                "providers": {"corp": {"token_endpoint": self.tap.url, **self._provider}},
                "routes": [{"path": "/api", "upstream": self.upstream.url, "token": self._token}],
            }
            await stack.enter_async_context(self.broker)
            yield await stack.enter_async_context(FormBrowser(self.broker.url))

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return what the broker logged under *name*."""
        return [record for record in self.broker.log() if record["event"] == name]

    async def _check_later(self, token: str) -> Mapping[str, Any]:
        await asyncio.sleep(ON_THE_WAY_SECONDS)
        return await self.check(token)


async def calls_for(browser: FormBrowser, seconds: float, *, callers: int = 4) -> set[int]:
    """Return the statuses that *callers* get who call without a pause for a while."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    statuses = set()

    async def call() -> None:
        while loop.time() < end:
            statuses.add((await browser.get("/api/items")).status)

    await asyncio.gather(*(call() for _ in range(callers)))
    return statuses


async def calls_at_once(browser: FormBrowser, number: int) -> set[int]:
    """Return the statuses that *number* parallel calls get."""
    answers = await asyncio.gather(*(browser.get(f"/api/{each}") for each in range(number)))
    return {answer.status for answer in answers}


async def until_answered(browser: FormBrowser, status: int, *, code: str = "", seconds: float) -> None:
    """Call until the answer has *status* and, if it is the broker's own, *code*."""

    async def has_come() -> bool:
        answer = await browser.get("/api/items")
        return status == answer.status and (not code or code == problem(answer))

    await until_async(has_come, seconds=seconds, what=f"{status} {code}")


def problem(answer: Answer) -> str:
    """Return the code of a problem; empty if the answer isn't the broker's."""
    is_problem = answer.headers.get("Content-Type", "").startswith("application/problem+json")
    return str(answer.json()["code"]) if is_problem else ""


async def log_in(browser: FormBrowser, *fields: Mapping[str, str]) -> None:
    """Log in by filling in one form after the other."""
    page = await browser.begin_login()
    for each in fields:
        page = await browser.submit(page, each)
    assert browser.is_home(page), page

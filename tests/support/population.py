"""Users that keep a broker busy as browsers do, and write down what they were told."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import aiohttp

from tests.support.broker_process import Browser
from tests.support.checker import Call, History, now

LOGIN_SECONDS = 20.0
CALL_SECONDS = 40.0
PARALLEL_CALLS = 5
"""How many calls a user has under way at most, and so how many connections a browser may keep."""


class User:
    """One browser. Its calls say who sends them, so that the upstream can tell whether the token fits."""

    def __init__(self, name: str, origin: str, history: History) -> None:
        self.name = name
        self.session = 0
        self.browser = Browser(origin)
        self._history = history
        self._sent = 0

    async def log_in(self) -> None:
        """Log in, again and again if it must be."""
        deadline = now() + LOGIN_SECONDS
        while True:
            try:
                await self.browser.log_in(user=self.name)
                break
            except (aiohttp.ClientError, OSError, AssertionError):
                if now() > deadline:
                    raise
                await asyncio.sleep(0.2)
        self.session += 1
        self._history.logins[self.name] += 1
        self._history.secrets |= {cookie.value for cookie in self.browser.http.cookie_jar}

    async def log_out(self) -> int | None:
        """Log out, and return what that was answered."""
        call = await self.call("/bff/logout", method="POST")
        if call.status is not None and call.status < 400:
            self._history.logged_out[self.name, self.session] = call.ended
        return call.status

    async def call(self, path: str, *, method: str = "GET", **options: Any) -> Call:
        """Send one request and write it down."""
        session, began = self.session, now()
        self._sent += 1
        mark = f"{self.name} {self._sent}"
        try:
            headers = {"X-Caller": self.name, "X-Call": mark, **options.pop("headers", {})}
            options.setdefault("timeout", aiohttp.ClientTimeout(total=CALL_SECONDS))
            answer = await self.browser.request(method, path, headers=headers, **options)
        except (aiohttp.ClientError, OSError, TimeoutError) as fault:
            call = Call(
                user=self.name,
                session=session,
                path=path,
                began=began,
                ended=now(),
                status=None,
                error=repr(fault),
                mark=mark,
            )
        else:
            call = Call(
                user=self.name,
                session=session,
                path=path,
                began=began,
                ended=now(),
                status=answer.status,
                has_retry_after="Retry-After" in answer.headers,
                mark=mark,
                **_told(answer.body),
            )
        self._history.calls.append(call)
        return call

    async def hang_up(self, path: str, after_seconds: float) -> None:
        """Send one request, and leave before it is answered."""
        with suppress(TimeoutError):
            async with asyncio.timeout(after_seconds):
                await self.call(path)
                return
        self._history.hung_up += 1

    async def close(self) -> None:
        await self.browser.http.close()


def _told(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    if not isinstance(document, dict):
        return {}
    return {"seen_as": document.get("sub"), "code": str(document.get("code", ""))}


class Population:
    """A number of users, all at it at once."""

    def __init__(
        self,
        origin: str,
        *,
        users: int | Sequence[str] = 8,
        seed: int = 0,
        pace_seconds: float = 0.1,
        hangs_up: bool = True,
        logs_in_again: bool = False,
    ) -> None:
        """
        Args:
            origin: The broker.
            users: How many, or their names.
            seed: Of everything they do.
            pace_seconds: How long each rests between two deeds, on average.
            hangs_up: Whether they leave before the answer now and then.
            logs_in_again: Whether they do if they are told to.
        """
        self.history = History()
        names = [f"user-{number}" for number in range(users)] if isinstance(users, int) else users
        self.users = [User(name, origin, self.history) for name in names]
        self.nobody = User("", origin, self.history)
        self._seed = seed
        self._pace_seconds = pace_seconds
        self._hangs_up = hangs_up
        self._logs_in_again = logs_in_again
        self._stopped = asyncio.Event()

    async def __aenter__(self) -> Self:
        for user in self.users:
            await user.log_in()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for user in (*self.users, self.nobody):
            await user.close()

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Let them call until the block ends, and wait for what they began."""
        self._stopped.clear()
        async with asyncio.TaskGroup() as group:
            for number, user in enumerate(self.users):
                _ = group.create_task(self._work(user, random.Random(f"{self._seed}:{number}")))
            try:
                yield
            finally:
                self._stopped.set()

    async def everybody_calls(self, path: str = "/api/last") -> list[Call]:
        """One call of each, all at once."""
        return await asyncio.gather(*(user.call(path) for user in self.users))

    async def _work(self, user: User, rng: random.Random) -> None:
        while not self._stopped.is_set():
            await self._do_something(user, rng)
            await asyncio.sleep(rng.expovariate(1 / self._pace_seconds) if self._pace_seconds else 0)

    async def _do_something(self, user: User, rng: random.Random) -> None:
        calls: list[Call] = []
        match rng.randrange(20):
            case 0:
                calls = await asyncio.gather(
                    *(user.call(f"/api/parallel/{number}") for number in range(PARALLEL_CALLS))
                )
            case 1 | 2:
                calls = [await user.call("/api/post", method="POST", data=rng.randbytes(rng.randrange(4000)))]
            case 3 | 4 if self._hangs_up:
                await user.hang_up("/api/hang-up", rng.uniform(0, 0.03))
            case 5:
                await self.nobody.call("/public/x")
                await self.nobody.call("/api/nobody")
            case _:
                calls = [await user.call("/api/get")]
        if self._logs_in_again and any(call.status == 401 for call in calls):
            await user.log_in()

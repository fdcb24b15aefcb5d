"""
Many callers at once, in a process of their own, so that they take no time of the broker's test.

    python -m tests.support.crowd keeping PORT IDLE ACTIVE ROUNDS
    python -m tests.support.crowd slow PORT COUNT

It prints a line of JSON when a phase is over, and waits for a line before the next.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
SOURCES = [f"127.0.0.{number}" for number in range(2, 6)]
"""One address has too few ports for some crowds."""
AT_ONCE = 200


class Crowd:
    """Runs the other process."""

    def __init__(self, *arguments: object) -> None:
        self._arguments = [str(each) for each in arguments]
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.crowd", *self._arguments, cwd=ROOT, stdin=pipe, stdout=pipe
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def report(self, *, seconds: float = 90) -> dict[str, Any]:
        """Wait for the end of the phase, and return what came of it."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), seconds)
        found: dict[str, Any] = json.loads(line)
        return found

    def go_on(self) -> None:
        """Let the next phase begin."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")


class Caller:
    """A connection that asks and is answered."""

    def __init__(self, port: int, number: int) -> None:
        self._port = port
        self._source = SOURCES[number % len(SOURCES)]
        self.waits: list[float] = []
        self.outcomes: Counter[str] = Counter()
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def connect(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", self._port, local_addr=(self._source, 0), limit=1 << 14
        )

    async def ask(self) -> None:
        """Send one request, and count what comes: a status, or how it failed."""
        assert self.reader is not None
        assert self.writer is not None
        began_at = time.monotonic()
        try:
            self.writer.write(f"GET /open/x HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n\r\n".encode())
            answer = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\nok"), 60)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            self.outcomes[type(error).__name__] += 1
            return
        self.waits.append(time.monotonic() - began_at)
        self.outcomes[answer[9:12].decode()] += 1


async def each(crowd: list[Coroutine[Any, Any, None]], at_once: int = AT_ONCE) -> None:
    """Run all, so many at a time."""
    turns = asyncio.Semaphore(at_once)

    async def run(one: Coroutine[Any, Any, None]) -> None:
        async with turns:
            await one

    await asyncio.gather(*(run(one) for one in crowd))


async def keeping(port: int, idle: int, active: int, rounds: int) -> None:
    """Idle callers, who ask once; then active ones, who ask again and again; then the idle ones once more."""
    sleepers = [Caller(port, number) for number in range(idle)]

    async def begin(caller: Caller) -> None:
        await caller.connect()
        await caller.ask()

    async def insist(caller: Caller) -> None:
        await caller.connect()
        for _ in range(rounds):
            await caller.ask()

    await each([begin(caller) for caller in sleepers])
    await tell(sleepers)
    workers = [Caller(port, number) for number in range(active)]
    await each([insist(caller) for caller in workers], active)
    await tell(workers)
    for caller in sleepers:
        caller.outcomes.clear()
    await each([caller.ask() for caller in sleepers])
    await tell(sleepers)


async def tell(callers: list[Caller]) -> None:
    outcomes = sum((caller.outcomes for caller in callers), Counter[str]())
    waits = sorted(wait for caller in callers for wait in caller.waits) or [0.0]
    print(json.dumps({"outcomes": outcomes, "p99_seconds": waits[len(waits) * 99 // 100]}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)


class Slow:
    """A caller that drips its head, stops in its body, or takes nothing of its answer, for ever."""

    def __init__(self, port: int, number: int) -> None:
        self._port = port
        self._kind = number % 3
        self._source = SOURCES[number % len(SOURCES)]

    async def drip(self, connected: Counter[str]) -> None:
        host = f"Host: 127.0.0.1:{self._port}\r\n"
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", self._port, local_addr=(self._source, 0), limit=1 << 12
                )
                connected[("head", "body", "reader")[self._kind]] += 1
                match self._kind:
                    case 0:
                        writer.write(f"GET /open/x HTTP/1.1\r\n{host}X-Slow: ".encode())
                    case 1:
                        writer.write(f"POST /open/x HTTP/1.1\r\n{host}Content-Length: 100000\r\n\r\nbody".encode())
                    case _:
                        writer.write(f"GET /open/large HTTP/1.1\r\n{host}\r\n".encode())
                        await reader.readexactly(1000)
                ended = asyncio.ensure_future(reader.read() if self._kind < 2 else asyncio.sleep(3600))
                try:
                    while not ended.done():
                        if not self._kind:
                            writer.write(b"x")
                        await asyncio.wait([ended], timeout=0.5)
                    await ended
                finally:
                    ended.cancel()
                    writer.close()


async def slow(port: int, count: int) -> None:
    """Slow callers of three kinds. Whoever is cut comes again."""
    connected: Counter[str] = Counter()
    tasks = [asyncio.create_task(Slow(port, number).drip(connected)) for number in range(count)]
    while sum(connected.values()) < count:
        await asyncio.sleep(0.05)
    print(json.dumps({"connected": connected}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print(json.dumps({"connected": connected}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


if __name__ == "__main__":
    kind, *numbers = sys.argv[1:]
    runs: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {"keeping": keeping, "slow": slow}
    asyncio.run(runs[kind](*map(int, numbers)))

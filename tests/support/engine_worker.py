"""
One replica of the engine in a process of its own, told what to do over its standard input, a JSON line at a time.

``python -m tests.support.engine_worker OPTIONS`` answers each line with one, too. It is what storms and kills are run on.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from broker.core.grant import EndReason, Origin
from broker.core.outcome import LoginNeeded, Token, Unavailable
from broker.core.secret import Secret
from broker.errors import StoreError
from broker.services.clock import SystemClock, SystemRandomness
from broker.services.keyring import Keyring
from broker.services.spool import Spool
from broker.services.tokens import TokenBroker
from broker.services.vault import Vault
from broker.stores.open import open_store
from broker.stores.options import StoreOptions, StoreUrl
from tests.support.authorization_server import token_set
from tests.support.engine import KEY, PROVIDER, TTL_SECONDS, authorization_server

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60.0


class Worker:
    """A replica, as the composition root makes it."""

    def __init__(self, options: dict[str, Any]) -> None:
        clock, randomness = SystemClock(), SystemRandomness()
        ring = Keyring([Secret(options["key"])])
        self.store = open_store(StoreOptions(url=StoreUrl.parse(options["store"])), clock, randomness)
        self.spool = Spool(Path(options["spool"]), ring, randomness)
        self.server = authorization_server(options["provider"], **options.get("provider_options", {}))
        self.vault = Vault(self.store, ring)
        self.broker = TokenBroker(
            store=self.store,
            vault=self.vault,
            spool=self.spool,
            servers={PROVIDER: self.server},
            clock=clock,
            randomness=randomness,
        )

    async def start(self) -> None:
        self.spool.open()
        while True:
            with suppress(StoreError):
                await self.store.start()
                break
            await asyncio.sleep(0.1)
        await self.broker.recover()

    async def close(self) -> None:
        await self.broker.close(10)
        await self.server.close()
        await self.store.close()
        self.spool.close()

    async def adopt(self, logins: Sequence[dict[str, Any]]) -> list[str]:
        """Make a grant of each token response, with an access token that lives as long as it says."""
        grants = []
        for login in logins:
            tokens = token_set(login["tokens"], requested_at=login["requested_at"])
            grant = await self.broker.adopt(
                PROVIDER,
                tokens,
                subject=login["subject"],
                origin=Origin.BROWSER,
                keep_until=None,
                ttl_seconds=TTL_SECONDS,
            )
            grants.append(grant.id)
        return grants

    async def call(self, grant_ids: Sequence[str], callers: int) -> dict[str, Any]:
        """Let *callers* call at once for each grant, as callers do that obey what they are told."""
        calls = [self._persistently(grant_id) for grant_id in grant_ids for _ in range(callers)]
        results = await asyncio.gather(*calls)
        return {
            "seconds": [seconds for seconds, _, _ in results],
            "told_to_wait": sum(waits for _, waits, _ in results),
            "failed": [outcome for _, _, outcome in results if outcome is not None],
        }

    async def _persistently(self, grant_id: str) -> tuple[float, int, str | None]:
        began, waits = time.monotonic(), 0
        while True:
            result = await self.broker.token(grant_id)
            match result:
                case Token():
                    return time.monotonic() - began, waits, None
                case LoginNeeded(reason):
                    return time.monotonic() - began, waits, reason
                case Unavailable(_, retry_after):
                    if time.monotonic() - began > PATIENCE_SECONDS:
                        return time.monotonic() - began, waits, "unavailable"
                    waits += 1
                    await asyncio.sleep(min(retry_after, 1.0))

    async def held(self, grant_ids: Sequence[str]) -> list[dict[str, Any]]:
        """What is stored of each grant."""
        answers = []
        for grant_id in grant_ids:
            grant = await self.broker.grant(grant_id)
            token = None if grant is None or grant.refresh_token is None else grant.refresh_token.reveal()
            ended = None if grant is None or grant.ended is None else grant.ended.reason.value
            answers.append({"refresh_token": token, "ended": ended, "generation": grant and grant.generation})
        return answers

    async def end(self, grant_ids: Sequence[str]) -> list[bool]:
        return [await self.broker.end(grant_id, EndReason.LOGOUT, revoke=False) is not None for grant_id in grant_ids]


async def serve(options: dict[str, Any]) -> None:
    worker = Worker(options)
    await worker.start()
    print(json.dumps("ready"), flush=True)
    reader = asyncio.StreamReader(limit=1 << 26)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command, *arguments = json.loads(line)
        print(json.dumps(await getattr(worker, command)(*arguments)), flush=True)
    await worker.close()


class EngineProcess:
    """Starts a worker, and speaks to it."""

    def __init__(
        self, *, store: str, spool: Path, provider: str, command: Sequence[str] = (), **provider_options: Any
    ) -> None:
        self._command = command or (sys.executable, "-m", "tests.support.engine_worker")
        self._options = {
            "store": store,
            "spool": str(spool),
            "provider": provider,
            "provider_options": provider_options,
            "key": KEY.reveal(),
        }
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            json.dumps(self._options),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 26,
        )
        assert "ready" == await self._answer()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def ask(self, command: str, *arguments: Any) -> Any:
        """Return what the worker answers to *command*; raises ``ConnectionResetError`` if it dies meanwhile."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, *arguments]).encode() + b"\n")
        return await self._answer()

    def send_signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def is_stopped(self) -> bool:
        """Return whether it stands still after SIGSTOP."""
        assert self._process is not None
        state = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "T"

    async def death(self) -> int:
        """Wait for its end, and return how it ended."""
        assert self._process is not None
        return await self._process.wait()

    async def _answer(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise ConnectionResetError("the worker has died")
        return json.loads(line)


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))

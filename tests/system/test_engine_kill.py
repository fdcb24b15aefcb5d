"""SIGKILL at every await point of a refresh and of a logout, on the engine alone; restarted each time."""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.engine_worker import EngineProcess
from tests.support.ledger import Ledger
from tests.support.redis_server import RedisServer
from tests.support.remote_authorization_server import RemoteLedgerServer

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(240)]

DRIVER = (sys.executable, "-m", "tests.support.kill_driver")
MOST_MOMENTS = 200


def store_url(kind: str, directory: Path, redis: RedisServer) -> str:
    return f"sqlite://{directory}/broker.db" if kind == "sqlite" else f"redis://127.0.0.1:{redis.port}/0"


class Killed:
    """What came of all the lives of a worker: its grants, and how each was when it died."""

    def __init__(self, provider: RemoteLedgerServer, **options: Any) -> None:
        self.provider = provider
        self.options = options
        self.grants: list[str] = []
        self.deaths = 0

    def worker(self) -> EngineProcess:
        return EngineProcess(
            provider=self.provider.url, command=DRIVER, token_endpoint_timeout_seconds=1.0, **self.options
        )

    async def die_at_every_moment(self, command: str, *arguments: Any) -> None:
        """Let *command* be done to a grant of its own for each moment, and kill at that moment, until it gets through."""
        for moment in range(1, MOST_MOMENTS):
            worker = self.worker()
            await worker.__aenter__()
            subject = f"user{moment}"
            login = {
                "subject": subject,
                "tokens": await self.provider.issue(subject),
                "requested_at": time.time() - 301,
            }
            (grant_id,) = await worker.ask("adopt", [login])
            self.grants.append(grant_id)
            await worker.ask("arm", moment)
            try:
                await worker.ask(command, [grant_id], *arguments)
                await asyncio.sleep(0.05)
                await worker.ask("disarm")
            except (ConnectionResetError, BrokenPipeError):
                assert -9 == await worker.death()
                self.deaths += 1
                continue
            await worker.__aexit__()
            return
        raise AssertionError("it never got through")

    async def settle(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Start once more, and let everybody call."""
        async with self.worker() as worker:
            answers = await worker.ask("call", self.grants, 1)
            held = await worker.ask("held", self.grants)
        return held, answers


def lost_on_the_wire(ledger: Ledger) -> int:
    """How many families were revoked for reuse, each of which must have an answer that nobody read."""
    return len(ledger.families_revoked("reuse"))


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
@pytest.mark.parametrize("rotation", ["grace", "strict"])
async def test_ft_11_an_engine_killed_at_any_moment_of_a_refresh_loses_no_grant(
    kind: str, rotation: str, tmp_path: Path, provider: RemoteLedgerServer, redis_server: RedisServer
) -> None:
    """
    With grace nobody logs in again; with strict only who died between the server's answer and its arrival, and no
    refresh token is sent twice but under an intent of its own.
    """
    await provider.configure(rotation=rotation, rotation_grace_seconds=600, omit_at_refresh=frozenset({"id_token"}))
    options = {"rotation": rotation, "rotation_grace_seconds": 600.0}
    killed = Killed(provider, store=store_url(kind, tmp_path, redis_server), spool=tmp_path / "spool", **options)
    await killed.die_at_every_moment("call", 1)
    held, answers = await killed.settle()

    ledger = await provider.ledger()
    ended = [grant for grant in held if grant["ended"]]
    print(f"{kind}, {rotation}: {killed.deaths} deaths, {len(ended)} logins needed")
    assert killed.deaths > 10
    assert [] == ledger.lost_tokens(grant["refresh_token"] for grant in held if grant["refresh_token"])
    assert len(ended) == len(answers["failed"]) == lost_on_the_wire(ledger)
    if rotation == "grace":
        assert [] == ended
    else:
        # The server had rotated, and the process died before it had read the answer: while it waited for it.
        assert len(ended) < killed.deaths / 2
        assert all(entry["ended"] == "invalid_grant" for entry in ended)
    assert set(ledger.sent_twice().values()) <= {2}


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_ft_11_an_engine_killed_at_any_moment_of_a_logout_ends_the_grant_or_not_at_all(
    kind: str, tmp_path: Path, provider: RemoteLedgerServer, redis_server: RedisServer
) -> None:
    """What ended stays ended, and holds no token; what did not goes on."""
    await provider.configure(omit_at_refresh=frozenset({"id_token"}))
    killed = Killed(provider, store=store_url(kind, tmp_path, redis_server), spool=tmp_path / "spool")
    await killed.die_at_every_moment("end_counted")
    held, answers = await killed.settle()

    ended = [grant["ended"] for grant in held if grant["ended"]]
    assert killed.deaths > 2
    assert {"logout"} == set(ended)
    assert len(ended) == len(answers["failed"])
    assert all((grant["ended"] is None) == (grant["refresh_token"] is not None) for grant in held)

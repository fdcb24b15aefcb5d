"""FT-15: the wall clocks of two brokers on one store are set forth and back by an hour while their users work."""

import asyncio
import random
import sys
from datetime import datetime
from pathlib import Path

import pytest

from tests.support.broker_process import BrokerProcess
from tests.support.checker import violations
from tests.support.population import Population, User
from tests.support.redis_server import RedisServer
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.shifted_clock import Shift
from tests.support.upstream import Introspection, Upstream
from tests.system.test_faults_load import settings

pytestmark = [pytest.mark.system, pytest.mark.slow]

HOUR = 3600.0
TOKEN_SECONDS = 2
JUMPS = [(HOUR, 0.0), (HOUR, HOUR), (0.0, HOUR), (-HOUR, HOUR), (-HOUR, 0.0), (0.0, 0.0)]
"""By how much the clocks of the two are off, one stage after the other."""


async def wander(users: list[User], brokers: list[BrokerProcess], rng: random.Random) -> None:
    """Let a balancer send each user now to the one, now to the other."""
    while True:
        for user in users:
            user.browser.origin = rng.choice(brokers).url
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("rotation", ["strict", "grace"])
async def test_ft_15_clocks_that_jump_by_an_hour_log_nobody_out(
    rotation: str, tmp_path: Path, provider: RemoteLedgerServer, redis_server: RedisServer
) -> None:
    """Nor do they fail a call, or have a refresh token presented twice, whichever clock is wrong and by how much."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    await provider.configure(access_token_seconds=TOKEN_SECONDS, rotation=rotation, rotation_grace_seconds=600)
    shifts = [Shift(tmp_path / name) for name in ("a.shift", "b.shift")]
    async with Introspection(provider.url, cache_seconds=0.2) as check, Upstream(check=check) as upstream:
        options = settings(provider, upstream, corp={"rotation": rotation, "token_endpoint_timeout": "5s"})
        options["store"] = {"url": f"redis://127.0.0.1:{redis_server.port}/0"}
        brokers = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            command = (sys.executable, "-m", "tests.support.shifted_clock", tmp_path / f"{name}.shift")
            brokers.append(BrokerProcess(tmp_path / name, command=command, **options))
        brokers[1].settings |= {"keys": brokers[0].settings["keys"], "public_url": brokers[0].url}
        async with (
            brokers[0],
            brokers[1],
            Population(brokers[0].url, users=8, seed=seed, pace_seconds=0.05, hangs_up=False) as population,
        ):
            for user in (*population.users, population.nobody):
                user.browser.headers["Host"] = f"127.0.0.1:{brokers[0].port}"
            wandering = asyncio.create_task(wander(population.users, brokers, random.Random(seed)))
            async with population.at_work():
                for jump in JUMPS:
                    for shift, seconds in zip(shifts, jump, strict=True):
                        shift.seconds = seconds
                    await asyncio.sleep(3 * TOKEN_SECONDS)
            wandering.cancel()
            last = await population.everybody_calls()
    ledger, history = await provider.ledger(), population.history
    print(f"{dict(history.statuses())}, refreshes: {ledger.count('refresh_token')}")

    logged = [
        datetime.fromisoformat(record["time"]).timestamp()
        for record in brokers[0].log()
        if isinstance(record["time"], str)
    ]
    assert max(logged) - min(logged) > 1.9 * HOUR, "its clock was set"
    assert {200} == {call.status for call in last}
    assert {} == ledger.sent_twice()
    assert [] == ledger.families_revoked()
    assert [] == violations(history, ledger, upstream.received)[:10]
    assert ledger.count("refresh_token") > 8 * len(JUMPS)

"""The refresh storm, smaller than in benchmarks/refresh_storm.py, on three processes."""

from pathlib import Path

import pytest

from benchmarks.refresh_storm import storm
from tests.support.redis_server import RedisServer

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_tk_01_a_storm_causes_one_token_request_per_session(
    kind: str, tmp_path: Path, redis_server: RedisServer
) -> None:
    """300 sessions, 20 calls each, all at once, a token endpoint that takes up to 3 s: nothing lost, nothing failed."""
    stores = {"sqlite": f"sqlite://{tmp_path}/broker.db", "redis": f"redis://127.0.0.1:{redis_server.port}/0"}
    print("seed 1")

    result = await storm(stores[kind], tmp_path, sessions=300, callers=20, latency_seconds=(0.0, 3.0), seed=1)

    assert (300, 0, 0, 0) == (result.token_calls, result.sent_twice, result.lost, result.failed)

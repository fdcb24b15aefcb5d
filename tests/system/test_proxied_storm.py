"""A small refresh storm; benchmarks.proxied_storm.py makes a large one."""

from pathlib import Path

import pytest

from benchmarks.proxied_storm import storm
from tests.support.redis_server import RedisServer

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.mark.parametrize("store", ["sqlite", "redis"])
async def test_tk_01_a_storm_costs_one_token_request_for_each_grant(
    store: str, tmp_path: Path, redis_server: RedisServer
) -> None:
    """Fifty dead tokens, twenty parallel calls for each, over three processes: fifty requests, and every call answered."""
    urls = {"sqlite": f"sqlite://{tmp_path}/broker.db", "redis": f"redis://127.0.0.1:{redis_server.port}/0"}

    result = await storm(tmp_path, urls[store], store=store, grants=50, calls_per_grant=20, latency=(0.0, 1.0))

    assert result.is_calm, str(result)

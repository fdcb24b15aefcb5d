"""
The refresh storm through the whole broker: a thousand grants whose access tokens are dead, twenty parallel calls for each, three processes.

The authorization server rotates refresh tokens, revokes on reuse, takes up to three seconds for each token request, and
keeps a ledger. It must see exactly one token request for each grant, and every call must be answered.

    python -m benchmarks.proxied_storm [--grants 1000] [--calls 20] [--store sqlite|redis]
"""

import argparse
import asyncio
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.broker_process import BrokerProcess, provider_options
from tests.support.redis_server import RedisServer, running
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.upstream import Introspection, Upstream

ADMIN_TOKEN = "for-the-storm-on-loopback-alone-1"
WORKERS = 3
IN_FLIGHT = 4000
"""Calls that are under way at once: as many as this machine's file descriptors allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    """What came of one storm."""

    store: str
    grants: int
    calls: int
    token_requests: int
    revoked: int
    statuses: dict[int, int]
    seconds: float
    latencies: list[float]

    @property
    def is_calm(self) -> bool:
        """Whether nothing was lost, asked for twice, or refused."""
        return self.token_requests == self.grants and not self.revoked and self.statuses == {200: self.calls}

    def __str__(self) -> str:
        cuts = statistics.quantiles(self.latencies, n=100)
        return (
            f"{self.store:7} {self.grants} grants, {self.calls} calls, {WORKERS} processes: "
            f"token requests {self.token_requests}, families revoked {self.revoked}, statuses {self.statuses}, "
            f"{self.seconds:.1f} s in all, call p50 {cuts[49]:.2f} s, p99 {cuts[98]:.2f} s"
        )


async def storm(
    directory: Path, store_url: str, *, store: str, grants: int, calls_per_grant: int, latency: tuple[float, float]
) -> Storm:
    """Let one storm pass over a new installation."""
    async with (
        RemoteLedgerServer(latency_seconds=latency, seed=1) as provider,
        Introspection(provider.url, cache_seconds=60) as check,
        Upstream(check=check, records=False) as upstream,
    ):
        options = provider_options(provider.url)
        options["token_endpoint_timeout"] = "30s"
        broker = BrokerProcess(
            directory,
            providers={"corp": options},
            routes=[
                {
                    "path": "/",
                    "upstream": {"urls": [upstream.url], "max_connections": 1000, "max_waiting": 20000},
                    "token": "user",
                }
            ],
            workers=WORKERS,
            store={"url": store_url, "timeout": "10s"},
            log={"access": False},
        )
        broker.settings["admin"]["token"] = {"value": ADMIN_TOKEN}
        async with broker:
            handles = await import_grants(broker, provider, grants)
            before = time.monotonic()
            results = await call_all(broker, handles, calls_per_grant)
            seconds = time.monotonic() - before
        ledger = await provider.ledger()
    return Storm(
        store=store,
        grants=grants,
        calls=grants * calls_per_grant,
        token_requests=ledger.count("refresh_token"),
        revoked=len(ledger.families_revoked()),
        statuses=dict(Counter(status for status, _ in results)),
        seconds=seconds,
        latencies=[latency for _, latency in results],
    )


async def import_grants(broker: BrokerProcess, provider: RemoteLedgerServer, count: int) -> list[str]:
    """Hand over *count* grants without an access token, so that the first call of each must refresh."""
    issued = await provider.issue_many([f"user-{number}" for number in range(count)])
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    handles = []
    async with aiohttp.ClientSession(broker.admin_url, headers=headers) as http:
        for number, tokens in enumerate(issued):
            document = {"provider": "corp", "subject": f"user-{number}", "refresh_token": tokens["refresh_token"]}
            async with http.post("/api/grants", json=document) as response:
                response.raise_for_status()
                handles.append((await response.json())["handle"])
    return handles


async def call_all(broker: BrokerProcess, handles: list[str], calls_per_grant: int) -> list[tuple[int, float]]:
    """Call for every grant at once, as often as asked."""
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
    timeout = aiohttp.ClientTimeout(total=180)
    async with aiohttp.ClientSession(broker.url, connector=connector, timeout=timeout) as http:

        async def call(handle: str) -> tuple[int, float]:
            started = time.monotonic()
            try:
                async with http.get("/items", headers={"Authorization": f"Bearer {handle}"}) as response:
                    await response.read()
                    return response.status, time.monotonic() - started
            except (aiohttp.ClientError, TimeoutError):
                return 0, time.monotonic() - started

        return await asyncio.gather(*(call(handle) for handle in handles for _ in range(calls_per_grant)))


async def main(arguments: argparse.Namespace) -> int:
    """Run the storms that were asked for. Returns the exit code."""
    calm = True
    with tempfile.TemporaryDirectory() as name:
        for store in arguments.store:
            directory = Path(name) / store
            redis = RedisServer(directory / "redis")
            urls = {"sqlite": f"sqlite://{directory}/broker.db", "redis": f"redis://127.0.0.1:{redis.port}/0"}
            options: dict[str, Any] = {"grants": arguments.grants, "calls_per_grant": arguments.calls}
            with running(redis):
                result = await storm(directory, urls[store], store=store, latency=(0.0, 3.0), **options)
            print(result, flush=True)
            calm = calm and result.is_calm
    return 0 if calm else 1


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grants", type=int, default=1000)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--store", nargs="*", default=["sqlite", "redis"], choices=["sqlite", "redis"])
    sys.exit(asyncio.run(main(parser.parse_args())))

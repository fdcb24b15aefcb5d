"""
The refresh storm: every session's token expires at once, and every session's calls come at once, over three processes.

    python -m benchmarks.refresh_storm [--sessions 1000] [--callers 20] [--stores sqlite,redis]

A token endpoint takes up to three seconds. It prints how many token requests were made (as many as there are sessions, or
something is wrong), how many sessions were lost, how many calls failed, and how long the calls took.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.support.engine_worker import EngineProcess
from tests.support.ledger import Ledger
from tests.support.redis_server import RedisServer, running
from tests.support.remote_authorization_server import RemoteLedgerServer

PROCESSES = 3


@dataclass(frozen=True, kw_only=True)
class Storm:
    """
    What came of a storm.

    Attributes:
        token_calls: Token requests.
        lost: Sessions without a usable refresh token, or ended.
        failed: Calls that were told to log in, or never got a token.
        told_to_wait: How often a call was told to come again.
        sent_twice: Refresh tokens that were sent more than once.
        seconds: How long each call took, sorted.
        took: How long all of it took, in seconds.
    """

    token_calls: int
    lost: int
    failed: int
    told_to_wait: int
    sent_twice: int
    seconds: list[float]
    took: float

    def at(self, share: float) -> float:
        """Return within how many seconds this share of the calls had their token."""
        return self.seconds[min(int(share * len(self.seconds)), len(self.seconds) - 1)]


async def storm(
    store: str, directory: Path, *, sessions: int, callers: int, latency_seconds: tuple[float, float], seed: int = 1
) -> Storm:
    """Run one storm on the store at the URL *store*."""
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(
            RemoteLedgerServer(
                access_token_seconds=300.0,
                latency_seconds=latency_seconds,
                seed=seed,
                omit_at_refresh=frozenset({"id_token"}),
            )
        )
        workers = [
            await stack.enter_async_context(
                EngineProcess(
                    store=store, spool=directory / "spool", provider=provider.url, token_endpoint_timeout_seconds=20.0
                )
            )
            for _ in range(PROCESSES)
        ]
        subjects = [f"user{number}" for number in range(sessions)]
        issued = await provider.issue_many(subjects)
        # As if they had been issued long ago: every access token is dead.
        logins = [
            {"subject": subject, "tokens": tokens, "requested_at": time.time() - 301}
            for subject, tokens in zip(subjects, issued, strict=True)
        ]
        grants = await workers[0].ask("adopt", logins)
        shares = [callers // PROCESSES + (number < callers % PROCESSES) for number in range(PROCESSES)]
        began = time.monotonic()
        answers = await asyncio.gather(
            *(worker.ask("call", grants, share) for worker, share in zip(workers, shares, strict=True))
        )
        took = time.monotonic() - began
        held = await workers[0].ask("held", grants)
        ledger = await provider.ledger()
    return Storm(
        token_calls=ledger.count("refresh_token"),
        lost=_lost(ledger, held),
        failed=sum(len(answer["failed"]) for answer in answers),
        told_to_wait=sum(answer["told_to_wait"] for answer in answers),
        sent_twice=len(ledger.sent_twice()),
        seconds=sorted(seconds for answer in answers for seconds in answer["seconds"]),
        took=took,
    )


def _lost(ledger: Ledger, held: list[dict[str, str | None]]) -> int:
    kept = [token for grant in held if (token := grant["refresh_token"]) is not None]
    return len(ledger.lost_tokens(kept)) + len(ledger.families_revoked()) + len(held) - len(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--callers", type=int, default=20)
    parser.add_argument("--latency", type=float, default=3.0, help="the greatest latency of the token endpoint")
    parser.add_argument("--stores", default="sqlite,redis")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(f"{arguments.sessions} sessions x {arguments.callers} calls, {PROCESSES} processes, seed {arguments.seed}")
    for kind in arguments.stores.split(","):
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            url = f"sqlite://{directory}/broker.db"
            if kind == "redis":
                server = RedisServer(directory / "redis")
                stack.enter_context(running(server))
                url = f"redis://127.0.0.1:{server.port}/0"
            result = asyncio.run(
                storm(
                    url,
                    directory,
                    sessions=arguments.sessions,
                    callers=arguments.callers,
                    latency_seconds=(0.0, arguments.latency),
                    seed=arguments.seed,
                )
            )
        print(
            f"{kind}: {result.token_calls} token requests ({result.sent_twice} sent twice), {result.lost} lost, "
            f"{result.failed} failed, {result.told_to_wait} told to wait; "
            f"p50 {result.at(0.5):.2f} s, p99 {result.at(0.99):.2f} s, mean {statistics.fmean(result.seconds):.2f} s, "
            f"all in {result.took:.1f} s"
        )


if __name__ == "__main__":
    main()

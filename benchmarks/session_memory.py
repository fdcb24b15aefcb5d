"""
What one process keeps of many sessions: memory, and the pause of a full garbage collection.

    python -m benchmarks.session_memory REDIS_PORT COUNT
"""

import asyncio
import gc
import json
import os
import statistics
import sys
import time

from benchmarks.data_plane import HOST
from benchmarks.machine import memory_kib
from broker.core.grant import Origin
from broker.core.oauth import TokenSet
from broker.core.provider import ProviderOptions
from broker.core.secret import AccessToken, RefreshToken, Secret
from broker.core.session import Session, SessionOptions
from broker.services.clock import SystemClock, SystemRandomness
from broker.services.keyring import Keyring, new_key
from broker.services.outbound import Outbound
from broker.services.provider import AuthorizationServer
from broker.services.sessions import Sessions
from broker.services.spool import Spool
from broker.services.tokens import TokenBroker
from broker.services.vault import Vault
from broker.stores.open import open_store
from broker.stores.options import StoreOptions, StoreUrl
from broker.web.server import settle

AT_ONCE = 64


async def main(redis_port: int, count: int) -> dict[str, float]:
    clock, randomness = SystemClock(), SystemRandomness()
    url = StoreUrl.from_option(f"redis://{HOST}:{redis_port}/1")
    store = open_store(StoreOptions(url=url), clock, randomness)
    await store.start()
    keyring = Keyring([new_key(randomness)], randomness)
    spool = Spool(None, keyring, randomness)
    spool.open()
    server = AuthorizationServer(
        "corp",
        ProviderOptions(issuer="https://idp.example.com", client_id="bench", client_secret=Secret("unused")),
        outbound=Outbound(None),
        clock=clock,
        randomness=randomness,
    )
    tokens = TokenBroker(
        store=store,
        vault=Vault(store, keyring),
        spool=spool,
        servers={"corp": server},
        clock=clock,
        randomness=randomness,
    )
    sessions = Sessions(store, keyring, SessionOptions(), clock, randomness)
    now = clock.now()

    async def start_session(number: int) -> None:
        claims = {"name": f"User {number}", "email": f"user{number}@example.com", "groups": "g" * 1500}
        await sessions.start(
            Session(
                grant_id=f"grant-{number}",
                provider="corp",
                issuer="https://idp.example.com",
                subject=f"user-{number}",
                claims=claims,
                authenticated_at=now,
                last_seen_at=now,
                ends_at=now + 86400,
            )
        )

    async def adopt_grant(number: int) -> None:
        tail = f"{number:08d}"
        answer = TokenSet(
            access_token=AccessToken("a" * 700 + tail),
            refresh_token=RefreshToken("r" * 50 + tail),
            expires_at=now + 86400,
            requested_at=now,
        )
        await tokens.adopt(
            "corp", answer, subject=tail, origin=Origin.BROWSER, keep_until=now + 86400, ttl_seconds=86400
        )

    figures: dict[str, float] = {}
    settle()
    for name, make in (("session_kib", start_session), ("grant_kib", adopt_grant)):
        await make(0)
        gc.collect()
        before = memory_kib(os.getpid())
        for first in range(1, count, AT_ONCE):
            await asyncio.gather(*(make(number) for number in range(first, min(first + AT_ONCE, count))))
        gc.collect()
        figures[name] = (memory_kib(os.getpid()) - before) / count
    pauses = []
    for number in range(count, count + 5):
        # Something new each time: what hasn't changed since the last collection costs the next one nothing.
        await asyncio.gather(start_session(number), adopt_grant(number))
        pauses.append(_collection_ms())
    figures["gc_ms"] = statistics.median(pauses)
    figures["count"] = count
    await tokens.close(1)
    await sessions.close()
    await server.close()
    await store.close()
    return figures


def _collection_ms() -> float:
    began = time.perf_counter()
    gc.collect()
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    with asyncio.Runner() as runner:
        print(json.dumps(runner.run(main(int(sys.argv[1]), int(sys.argv[2])))))

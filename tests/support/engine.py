"""The refresh engine put together as the composition root does it, as many replicas as a test wants."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.core.grant import Grant, Origin
from broker.core.oauth import TokenSet
from broker.core.outcome import Token, TokenResult
from broker.core.secret import Secret
from broker.services.clock import Clock, Randomness, SystemClock, SystemRandomness
from broker.services.keepalive import KeepAlive
from broker.services.keyring import Keyring, new_key
from broker.services.outbound import Outbound
from broker.services.provider import AuthorizationServer
from broker.services.spool import Spool
from broker.services.tokens import TokenBroker
from broker.services.vault import Vault
from broker.stores.base import Store
from broker.stores.memory import MemoryBackend, MemoryStore
from tests.support.authorization_server import CLIENT_ID, CLIENT_SECRET
from tests.support.grants import provider_options
from tests.support.troubled_store import TroubledStore

KEY = new_key(SystemRandomness())
NEWER_KEY = new_key(SystemRandomness())
PROVIDER = "corp"
TTL_SECONDS = 30 * 86400.0


def ring() -> Keyring:
    """The keyring that every replica of a test shares."""
    return Keyring([KEY])


def newer_vault(store: Store) -> Vault:
    """The vault of a replica that seals with a key which the others don't have yet: it opens what is theirs."""
    return Vault(store, Keyring([NEWER_KEY, KEY]))


def authorization_server(url: str, *, clock: Clock | None = None, **options: Any) -> AuthorizationServer:
    """Speak to the LedgerServer at *url*."""
    return AuthorizationServer(
        PROVIDER,
        provider_options(
            **{
                "client_id": CLIENT_ID,
                "client_secret": Secret(CLIENT_SECRET),
                "token_endpoint": f"{url}/token",
                "revocation_endpoint": f"{url}/revoke",
                "token_endpoint_timeout_seconds": 3.0,
                **options,
            }
        ),
        outbound=Outbound(),
        clock=clock or SystemClock(),
        randomness=SystemRandomness(),
    )


class LeapingClock:
    """The clocks of the operating system, which a test can let leap forward."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def now(self) -> float:
        return time.time() + self._ahead

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass at once."""
        self._ahead += seconds


@dataclass(slots=True)
class Replica:
    """One process' worth of engine."""

    store: TroubledStore
    vault: Vault
    spool: Spool
    broker: TokenBroker
    keep_alive: KeepAlive
    servers: Mapping[str, AuthorizationServer]

    async def close(self, timeout_seconds: float = 5.0) -> None:
        """Stop as at a shutdown."""
        await self.broker.close(timeout_seconds)
        self.spool.close()
        await self.store.close()

    async def crash(self) -> None:
        """Stop as at a kill -9: whatever runs is cut off, and only what is on the disk remains."""
        self.store.go_down()  # a dead process releases no lease
        await self.broker.close(0)
        if self.spool._file is not None:
            self.spool._pending.clear()
            os.close(self.spool._file)
            self.spool._file = None
        await self.store.close()

    async def adopt(self, tokens: TokenSet, *, subject: str = "alice", **changes: Any) -> Grant:
        """Make a grant, as a login does."""
        values: dict[str, Any] = {"origin": Origin.BROWSER, "keep_until": None, "ttl_seconds": TTL_SECONDS, **changes}
        return await self.broker.adopt(PROVIDER, tokens, subject=subject, **values)

    async def grant(self, grant_id: str) -> Grant:
        """The grant as it is stored."""
        grant = await self.broker.grant(grant_id)
        assert grant is not None
        return grant


@dataclass
class Engine:
    """
    Replicas that share a store.

    Attributes:
        directory: Of the spools: the replicas are processes of one host.
        clock: The time, for all of them.
        randomness: For all of them.
        servers: Of every replica, unless it is opened with others.
        replicas: Those that are open.
    """

    directory: Path
    clock: Clock
    randomness: Randomness
    servers: Mapping[str, AuthorizationServer]
    backend: MemoryBackend = field(init=False)
    replicas: list[Replica] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.backend = MemoryBackend(self.clock)

    async def open(
        self,
        *,
        store: Store | None = None,
        servers: Mapping[str, AuthorizationServer] | None = None,
        directory: Path | None = None,
        keyring: Keyring | None = None,
        **options: Any,
    ) -> Replica:
        """Start a replica; without *store* on the shared memory."""
        keyring = keyring or ring()
        faulty = TroubledStore(store or MemoryStore(self.backend))
        await faulty.start()
        vault = Vault(faulty, keyring)
        spool = Spool(directory or self.directory, keyring, self.randomness)
        spool.open()
        servers = servers or self.servers
        broker = TokenBroker(
            store=faulty,
            vault=vault,
            spool=spool,
            servers=servers,
            clock=self.clock,
            randomness=self.randomness,
            **options,
        )
        keep_alive = KeepAlive(vault, broker.refresher, broker.revocations, self.clock, self.randomness)
        replica = Replica(faulty, vault, spool, broker, keep_alive, servers)
        self.replicas.append(replica)
        return replica

    async def close(self) -> None:
        for replica in self.replicas:
            replica.store.heal()
            await replica.close()


def access_token(result: TokenResult) -> str:
    """The access token of a result that must be one."""
    assert isinstance(result, Token), result
    return result.access_token.reveal()

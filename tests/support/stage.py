"""A scripted server, a clock that stands still, and replicas on one memory: where the engine's parts are tested."""

import asyncio
from pathlib import Path
from typing import Any

from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.breaker import THRESHOLD
from broker.core.grant import Grant
from broker.core.outcome import TokenResult
from broker.services.refresher import Want
from broker.services.vault import StoredGrant
from tests.support.clock import ManualClock, SeededRandomness
from tests.support.engine import PROVIDER, Engine, Replica, access_token, newer_vault
from tests.support.grants import LIFE, NOW, failure
from tests.support.scripted_server import ScriptedServer


class Stage:
    """
    Attributes:
        clock: For wall and monotonic time; it stands still.
        server: The only provider.
        engine: Opens further replicas.
        one: The first replica, with one grant.
        grant_id: The id of that grant, which belongs to alice.
    """

    def __init__(self, directory: Path, **options: Any) -> None:
        self.clock = ManualClock(NOW)
        self.server = ScriptedServer(self.clock, **options)
        self.engine = Engine(directory, self.clock, SeededRandomness(), {PROVIDER: self.server})
        self.one: Replica
        self.grant_id = ""

    async def start(self, **options: Any) -> "Stage":
        self.one = await self.engine.open(**options)
        self.grant_id = (await self.one.adopt(self.server.login_tokens())).id
        return self

    async def close(self) -> None:
        self.server.recover()
        await self.engine.close()

    def expire(self) -> None:
        """Let every access token die."""
        self.clock.advance(LIFE)

    def come_due(self) -> None:
        """Let the first access token come inside its leeway."""
        self.clock.advance(LIFE - 30)

    async def refresh(
        self,
        replica: Replica | None = None,
        audience: Audience = DEFAULT_AUDIENCE,
        *,
        rejected_generation: int | None = None,
    ) -> TokenResult:
        """Refresh the grant, past whatever is known in process."""
        want = Want(grant_id=self.grant_id, audience=audience, rejected_generation=rejected_generation)
        return await (replica or self.one).broker.refresher.refresh(want)

    async def refresh_unsaved(self, replica: Replica) -> str:
        """Refresh while the store takes the intent and nothing else. Returns the access token that the caller got."""
        replica.store.trouble("replace", "fails", skip=1, count=None)
        return access_token(await self.refresh(replica))

    def family(self, number: int = 0) -> str:
        """The id of a family of refresh tokens at the server: the first is that of the grant."""
        return list(self.server.families.by_id)[number]

    async def rest_the_provider(self) -> None:
        """Let it fail until its breaker opens, and then rest until one request may probe it."""
        health = self.one.broker.providers[PROVIDER].health
        for _ in range(THRESHOLD):
            await health.observe(failure("transient"))
        await asyncio.sleep(0)  # its own events come back, too
        self.clock.advance(1)

    async def grant(self) -> Grant:
        """The grant as it is stored."""
        return await self.one.grant(self.grant_id)

    async def stored(self) -> StoredGrant:
        """The same, for whoever writes it."""
        found = await self.one.vault.read(self.grant_id)
        assert found is not None
        return found

    async def seal_anew(self) -> None:
        """Let a replica that has a newer key claim the grant: the others can't open its record any more."""
        vault = newer_vault(self.one.store)
        found = await vault.read(self.grant_id)
        assert found is not None
        assert await vault.replace(found, found.grant, due_at=None)

    def presented(self) -> list[str]:
        """The refresh tokens that were presented, in order."""
        return [token for token, _ in self.server.refreshes]

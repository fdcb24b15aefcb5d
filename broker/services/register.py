"""Where grants stand: written down, told to this process and to every other, and the one place where one is ended."""

import logging

from broker.core.grant import EndReason, Grant
from broker.core.provider import ProviderOptions
from broker.core.refresh import end
from broker.core.upkeep import due_at, life_after_end, revocation_at
from broker.errors import StoreError
from broker.services import metrics
from broker.services.clock import Clock, Randomness
from broker.services.known import KnownGrants
from broker.services.news import News
from broker.services.vault import StoredGrant, Vault

log = logging.getLogger(__name__)


class Register:
    """Writes down and tells what became of grants."""

    def __init__(self, vault: Vault, known: KnownGrants, news: News, clock: Clock, randomness: Randomness) -> None:
        self._vault = vault
        self._known = known
        self._news = news
        self._clock = clock
        self._randomness = randomness

    async def write(self, stored: StoredGrant, after: Grant, *, options: ProviderOptions) -> StoredGrant | None:
        """
        Put *after* in the place of *stored*, with the time at which the keep-alive should look at it.

        Args:
            stored: The grant as it was read.
            after: What became of it.
            options: Of its provider.

        Returns:
            What is stored now; None if *stored* isn't any more.

        Raises:
            StoreError: If it isn't known whether that was written.
        """
        jitter = self._randomness.uniform(0, 1)
        return await self._vault.replace(
            stored,
            after,
            due_at=due_at(after, options, now=self._clock.now(), jitter=jitter),
            ttl_seconds=life_after_end(after),
        )

    async def tell(self, grant: Grant) -> None:
        """Tell everybody where *grant* stands in the store."""
        self._known.learn(grant)
        self._news.heard(grant.id)
        await self._vault.announce(grant)

    async def tell_end(self, grant: Grant) -> None:
        """Tell everybody that *grant* has ended, which is written already."""
        assert grant.ended is not None
        metrics.GRANT_EVENTS.labels(grant.provider, "ended").inc()
        log.warning("grant_ended", extra={**about(grant), "reason": grant.ended.reason})
        await self.tell(grant)

    async def end(self, grant_id: str, reason: EndReason, *, revoke: bool) -> Grant | None:
        """
        End a grant on every replica, and keep what remembers it.

        Args:
            grant_id: The grant.
            reason: Why.
            revoke: Whether its refresh token is to be revoked; services.revocations does it.

        Returns:
            The grant as it was just before; None if there was none.

        Raises:
            StoreError: If it isn't known whether that was written.
        """
        before: Grant | None = None
        while (stored := await self._vault.read(grant_id)) is not None:
            if stored.grant.ended is not None:
                if before is None:
                    return None
                # The write that seemed to fail was done.
                await self.tell_end(stored.grant)
                return before
            now, jitter = self._clock.now(), self._randomness.uniform(0, 1)
            after = end(stored.grant, reason, now=now, revoke=revoke)
            try:
                written = await self._vault.replace(
                    stored,
                    after,
                    due_at=revocation_at(after, now=now, jitter=jitter),
                    ttl_seconds=life_after_end(after),
                )
            except StoreError:
                if before is not None:
                    raise
                written = None
            before = stored.grant
            if written is not None:
                await self.tell_end(after)
                return before
        return None


def about(grant: Grant) -> dict[str, object]:
    """Return what a log record says of a grant."""
    return {"grant": grant.id, "generation": grant.generation, "provider": grant.provider}

"""
Refreshing the grants of absent users before their refresh tokens end, and settling those that a crash left in doubt.

The store keeps when each grant is due. Whoever moves the due time on by compare-and-set has claimed it.
"""

import asyncio
import logging
from typing import assert_never

from broker.core.audience import DEFAULT_AUDIENCE
from broker.core.grant import Grant
from broker.core.outcome import LoginNeeded, Token, TokenResult, Unavailable
from broker.errors import StoreError
from broker.services import metrics
from broker.services.clock import Clock, Randomness
from broker.services.refresher import Refresher, Want
from broker.services.vault import StoredGrant, Vault

SCAN_SECONDS = 1.0
CLAIM_SECONDS = 30.0
"""A grant that was claimed and not settled is looked at again after this."""
BATCH = 50

log = logging.getLogger(__name__)


class KeepAlive:
    """Looks for due grants, for as long as :meth:`run` runs. Every replica runs one."""

    def __init__(self, vault: Vault, refresher: Refresher, clock: Clock, randomness: Randomness) -> None:
        self._vault = vault
        self._refresher = refresher
        self._clock = clock
        self._randomness = randomness

    async def run(self) -> None:
        """Scan until cancelled."""
        while True:
            await asyncio.sleep(SCAN_SECONDS * self._randomness.uniform(0.5, 1.5))
            try:
                await self.scan()
            except StoreError as fault:
                log.warning("keep_alive_without_store", extra={"error": str(fault)})

    async def scan(self) -> int:
        """
        Refresh what is due now.

        Returns:
            How many grants this process claimed.

        Raises:
            StoreError: If the store can't be asked.
        """
        claimed = 0
        for key in await self._vault.due(self._clock.now(), BATCH):
            stored = await self._vault.read_key(key)
            if stored is not None and await self._claim(stored):
                claimed += 1
                await self._refresh(stored.grant)
        return claimed

    async def _claim(self, stored: StoredGrant) -> bool:
        later = None if stored.grant.ended else self._clock.now() + CLAIM_SECONDS * self._randomness.uniform(0.8, 1.2)
        claimed = await self._vault.replace(stored, stored.grant, due_at=later)
        return claimed is not None and stored.grant.ended is None

    async def _refresh(self, grant: Grant) -> None:
        provider = self._refresher.providers.get(grant.provider)
        if provider is None:
            return
        result = await self._refresher.refresh(Want(grant_id=grant.id, rejected_generation=_to_be_replaced(grant)))
        outcome = _word(result)
        metrics.KEEP_ALIVE.labels(grant.provider, outcome).inc()
        log.info("kept_alive", extra={"grant": grant.id, "provider": grant.provider, "result": outcome})
        await asyncio.sleep(1 / provider.server.options.keep_alive_per_second)


def _to_be_replaced(grant: Grant) -> int | None:
    """A live access token says nothing of the refresh token. But one in doubt is left to the rules for it."""
    held = grant.tokens.get(DEFAULT_AUDIENCE.key)
    return None if held is None or grant.intent is not None else held.generation


def _word(result: TokenResult) -> str:
    match result:
        case Token():
            return "success"
        case LoginNeeded():
            return "ended"
        case Unavailable():
            return "unavailable"
        case _ as never:
            assert_never(never)

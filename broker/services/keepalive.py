"""
What nobody waits for: refreshing the grants of absent users before their refresh tokens end, settling those that a
crash left in doubt, and revoking those that have ended.

The store keeps when each grant is due. Whoever moves the due time on by compare-and-set has claimed it.
"""

import asyncio
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import assert_never

from broker.core.audience import DEFAULT_AUDIENCE
from broker.core.grant import Grant
from broker.core.outcome import LoginNeeded, Token, TokenResult, Unavailable
from broker.core.upkeep import keep_alive_at, revocation_at
from broker.errors import StoreError
from broker.services import metrics
from broker.services.clock import Clock, Randomness
from broker.services.health import Provider
from broker.services.refresher import Refresher, Want
from broker.services.revocations import Revocations
from broker.services.store_watch import StoreWatch
from broker.services.vault import ForeignRecord, StoredGrant, Vault

SCAN_SECONDS = 1.0
CLAIM_SECONDS = 30.0
"""A grant that was claimed and not settled is looked at again after this."""
UNREADABLE_SECONDS = 600.0
"""A record that can't be opened, or is of no use here, is looked at again after this: else such ones would hide the
others for ever."""
PROVIDER_SECONDS = 10.0
"""How long one scan spends on one provider. A slow one must not keep the others' grants waiting."""
BATCH = 200
"""How many due grants are looked at, at once."""
SET_BACK_SECONDS = 60.0
"""What the wall clock loses on the monotonic one between two scans; less of it does no grant any harm."""
LONGEST_LOOK_BACK = 64 * BATCH
"""How many grants are looked through after that, those first that are due first."""
LONGEST_LOOK = 10 * BATCH
"""How many due grants one scan looks at, where more are due of one provider than it can serve."""

log = logging.getLogger(__name__)


class KeepAlive:
    """Looks for due grants, for as long as :meth:`run` runs. Every replica runs one."""

    def __init__(
        self, vault: Vault, refresher: Refresher, revocations: Revocations, clock: Clock, randomness: Randomness
    ) -> None:
        self._vault = vault
        self._refresher = refresher
        self._revocations = revocations
        self._clock = clock
        self._randomness = randomness
        self._store_watch = StoreWatch(clock)  # nobody else asks the store so regularly
        self._clocks = clock.now(), clock.monotonic()
        self._ahead_seconds = 0.0

    async def run(self) -> None:
        """Scan until cancelled. A refresh that is under way then goes on to its end."""
        while True:
            await asyncio.sleep(SCAN_SECONDS * self._randomness.uniform(0.5, 1.5))
            try:
                await self.scan()
                self._store_watch.worked()
            except StoreError as fault:
                self._store_watch.failed(fault)
            except Exception:  # a fault of ours must not end it: idle grants would end one after the other, unnoticed
                log.exception("keep_alive_failed")

    async def scan(self) -> int:
        """
        Refresh what is due now, the providers side by side.

        Returns:
            How many grants this process claimed.

        Raises:
            StoreError: If the store can't be asked.
        """
        await self._date_anew()
        by_provider = await self._look()
        return sum(await asyncio.gather(*(self._keep_alive(grants) for grants in by_provider.values())))

    async def _date_anew(self) -> None:
        """
        Look through what was refreshed while the wall clock was ahead, and make it due when it should be.

        By its record it was refreshed that much later, and its server may end it before it is due.
        """
        now, monotonic = self._clock.now(), self._clock.monotonic()
        lost = (monotonic - self._clocks[1]) - (now - self._clocks[0])
        self._clocks = now, monotonic
        if lost > SET_BACK_SECONDS:
            log.warning("clock_set_back", extra={"seconds": round(lost)})
            self._ahead_seconds += lost
        if not self._ahead_seconds:
            return
        seen: set[str] = set()
        # What is dated well stays where it is, so the look has to grow beyond it.
        while len(seen) < LONGEST_LOOK_BACK:
            unseen = set(await self._vault.due(math.inf, 2 * len(seen) + BATCH)) - seen
            if not unseen:
                break
            seen |= unseen
            for key in unseen:
                stored = await self._read(key)
                if stored is not None and stored.grant.refreshed_at > now and stored.grant.ended is None:
                    await self._redate(stored, now)
        self._ahead_seconds = 0.0

    async def _redate(self, stored: StoredGrant, now: float) -> None:
        grant, provider = stored.grant, self._refresher.providers.get(stored.grant.provider)
        if provider is None:
            return
        ends_at = grant.refresh_expires_at
        dated = replace(
            grant,
            refreshed_at=grant.refreshed_at - self._ahead_seconds,
            refresh_expires_at=None if ends_at is None else ends_at - self._ahead_seconds,
        )
        due = keep_alive_at(dated, provider.server.options, jitter=self._randomness.uniform(0, 1))
        if grant.intent is not None:
            due = now
        if due is not None:
            _ = await self._vault.replace(stored, grant, due_at=max(due, now))

    async def _look(self) -> Mapping[str, Sequence[StoredGrant]]:
        """
        Return what is due, by provider: all of it, or as much of each as a scan has time for.

        A provider that was down for a while has a backlog, which the grants of others stand behind. What is beyond its
        share of a scan is due later then, about when its turn comes.
        """
        by_provider: dict[str, list[StoredGrant]] = defaultdict(list)
        put_off: Counter[str] = Counter()
        kept: set[str] = set()
        while len(kept) + put_off.total() < LONGEST_LOOK:
            keys = await self._vault.due(self._clock.now(), len(kept) + BATCH)
            is_all = len(keys) < len(kept) + BATCH
            for key in keys:
                stored = None if key in kept else await self._read(key)
                if stored is None:
                    continue
                name = stored.grant.provider
                if is_all or len(by_provider[name]) < self._share(name):
                    by_provider[name].append(stored)
                    kept.add(key)
                else:
                    put_off[name] += 1
                    await self._put_off(stored, place=put_off[name])
            if is_all:
                break
        return by_provider

    def _share(self, name: str) -> float:
        """Return how many grants of a provider one scan has time for."""
        options = self._refresher.providers[name].server.options
        return max(1.0, PROVIDER_SECONDS * options.keep_alive_per_second)

    async def _put_off(self, stored: StoredGrant, *, place: int) -> None:
        """Make a grant due later that has *place* others of its provider before it, its own included."""
        turn = place / self._refresher.providers[stored.grant.provider].server.options.keep_alive_per_second
        # No later than what was claimed in vain: other processes serve the same provider.
        later = min(turn, CLAIM_SECONDS) * self._randomness.uniform(1.0, 1.2)
        _ = await self._vault.replace(stored, stored.grant, due_at=self._clock.now() + later)

    async def _read(self, key: str) -> StoredGrant | None:
        stored = None
        try:
            stored = await self._vault.read_key(key)
        except ForeignRecord:
            pass
        except StoreError:
            raise
        except Exception:  # nor must one record that is none hide the others
            log.exception("keep_alive_failed", extra={"record": key})
        if stored is not None and self._may_be_helped(stored):
            return stored
        await self._vault.postpone(key, self._clock.now() + UNREADABLE_SECONDS * self._randomness.uniform(0.8, 1.2))
        return None

    def _may_be_helped(self, stored: StoredGrant) -> bool:
        """Return whether its provider is known here, and whoever asks for the grant would find this record of it."""
        is_known = stored.grant.provider in self._refresher.providers
        return is_known and (stored.grant.ended is not None or self._vault.is_findable(stored))

    async def _keep_alive(self, grants: Sequence[StoredGrant]) -> int:
        """Refresh the due grants of one provider one after the other, as fast as its budget allows."""
        claimed = 0
        until = self._clock.monotonic() + PROVIDER_SECONDS
        for stored in grants:
            if self._clock.monotonic() >= until:
                break
            if (mine := await self._claim(stored)) is not None:
                claimed += 1
                try:
                    await self._help(mine)
                except StoreError:
                    raise
                except Exception:  # it is claimed, so those behind it have their turn
                    log.exception("keep_alive_failed", extra={"grant": mine.grant.id})
        return claimed

    async def _claim(self, stored: StoredGrant) -> StoredGrant | None:
        now, jitter = self._clock.now(), self._randomness.uniform(0, 1)
        if stored.grant.ended is None:
            later: float | None = now + CLAIM_SECONDS * (0.8 + 0.4 * jitter)
        else:
            later = revocation_at(stored.grant, now=now, jitter=jitter)
        return await self._vault.replace(stored, stored.grant, due_at=later)

    async def _help(self, stored: StoredGrant) -> None:
        provider = self._refresher.providers[stored.grant.provider]
        if stored.grant.ended is not None:
            _ = await self._revocations.settle(stored)
        else:
            await self._refresh(provider, stored.grant)
        if not provider.health.breaker.is_open(self._clock.now()):  # else nothing was asked
            await asyncio.sleep(1 / provider.server.options.keep_alive_per_second)

    async def _refresh(self, provider: Provider, grant: Grant) -> None:
        ends_soon = keep_alive_at(grant, provider.server.options, jitter=1.0)
        urgent = ends_soon is not None and self._clock.now() >= ends_soon
        want = Want(grant_id=grant.id, rejected_generation=_to_be_replaced(grant), urgent=urgent)
        # Shielded: the end of this process must not cut off a rotation. It is drained as all others are.
        result = await asyncio.shield(self._refresher.start(want))
        outcome = _word(result)
        metrics.KEEP_ALIVE.labels(provider.server.name, outcome).inc()
        log.info("kept_alive", extra={"grant": grant.id, "provider": provider.server.name, "result": outcome})


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

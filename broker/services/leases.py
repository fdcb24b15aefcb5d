"""Holding a lease while something slow is done under it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker.errors import StoreError
from broker.services.tasks import Tasks
from broker.stores.base import Lease

LEASE_SECONDS = 4.0
"""
How long others wait for a process that died, and for nobody at all where the store gave the lease and couldn't say so.
It may be shorter than a token request, because the lease is renewed, and because it isn't what protects the grant: the
committed intent and the versions are.
"""

log = logging.getLogger(__name__)


@asynccontextmanager
async def renewed(lease: Lease, tasks: Tasks, *, ttl_seconds: float = LEASE_SECONDS) -> AsyncIterator[None]:
    """Renew *lease* until the block ends, then release it."""
    renewing = tasks.spawn(_renew(lease, ttl_seconds), name="lease-renewal")
    try:
        yield
    finally:
        renewing.cancel()
        await lease.release()


async def _renew(lease: Lease, ttl_seconds: float) -> None:
    while True:
        await asyncio.sleep(ttl_seconds / 3)
        try:
            if not await lease.renew(ttl_seconds):
                # The versions keep what is written safe; whoever has it now sees the open intent.
                log.warning("lease_lost")
                return
        except StoreError as fault:
            log.warning("lease_renewal_failed", extra={"error": str(fault)})

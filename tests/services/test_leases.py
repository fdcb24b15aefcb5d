"""Holding a lease while something slow is done under it."""

import asyncio
from dataclasses import dataclass, field

from broker.errors import StoreError
from broker.services.leases import LEASE_SECONDS, renewed
from broker.services.tasks import Tasks
from tests.support.waiting import until


@dataclass
class CountingLease:
    answers: list[bool | StoreError] = field(default_factory=list)
    renewals: int = 0
    released: int = 0

    async def renew(self, ttl_seconds: float) -> bool:
        self.renewals += 1
        answer = self.answers.pop(0) if self.answers else True
        if isinstance(answer, StoreError):
            raise answer
        return answer

    async def release(self) -> None:
        self.released += 1


async def test_tk_01_a_lease_is_renewed_as_long_as_its_holder_works() -> None:
    """A token endpoint that is slower than the lease loses nothing; a store that fails meanwhile is asked again."""
    lease, tasks = CountingLease([StoreError("down"), True]), Tasks()

    async with renewed(lease, tasks, ttl_seconds=0.03):
        await until(lambda: lease.renewals >= 4)
        assert 0 == lease.released
    seen = lease.renewals
    await asyncio.sleep(0.05)

    assert (seen, 1, 0) == (lease.renewals, lease.released, len(tasks))


async def test_a_lost_lease_is_not_fought_for() -> None:
    """Renewing ends; what was begun goes on, since versions guard what is written."""
    lease, tasks = CountingLease([False]), Tasks()

    async with renewed(lease, tasks, ttl_seconds=0.03):
        await until(lambda: lease.renewals == 1)
        await asyncio.sleep(0.05)

    assert (1, 1) == (lease.renewals, lease.released)


def test_nobody_waits_longer_than_five_seconds_for_a_dead_holder() -> None:
    """Invariant I7: service is normal within 5 s after a fault."""
    assert LEASE_SECONDS < 5

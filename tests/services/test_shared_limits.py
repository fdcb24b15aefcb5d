"""Rates that several processes keep together."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from broker.core.routing import RateLimitOptions
from broker.services.clock import SystemClock, SystemRandomness
from broker.services.keyring import Keyring, new_key
from broker.services.limits import TokenBuckets
from broker.services.shared_limits import SharedLimits
from broker.stores.memory import MemoryBackend, MemoryStore
from tests.support.clock import ManualClock
from tests.support.faulty_store import FaultyStore
from tests.support.waiting import until

RATE = RateLimitOptions(requests_per_second=10, burst=5)
KEYS = Keyring([new_key(SystemRandomness())])


class Host:
    """Processes on one store, on a clock that stands still."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.backend = MemoryBackend(self.clock)
        self.store = FaultyStore(MemoryStore(self.backend))
        self.limits: list[SharedLimits] = []

    def process(self, name: str = "thing", rate: RateLimitOptions = RATE) -> TokenBuckets:
        limits = SharedLimits(self.store, KEYS, self.clock.monotonic)
        self.limits.append(limits)
        return limits.buckets(name, rate)

    async def settled(self) -> None:
        """Wait until everybody has heard what was taken."""
        await until(lambda: not any(each._timer or len(each._tasks) for each in self.limits), what="silence")


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    host = Host()
    yield host
    for each in host.limits:
        await each.close()


def taken(buckets: TokenBuckets, tries: int, caller: str = "a") -> int:
    return sum(buckets.take(caller) == 0.0 for _ in range(tries))


async def test_ds_04_what_one_process_takes_is_missing_in_the_others(host: Host) -> None:
    """Once they have heard of it, all together have what is left; what another caller has is its own."""
    one, other = host.process(), host.process()
    assert 3 == taken(one, 3)
    await host.settled()
    assert 1 == taken(other, 1)  # it hears of the others with its first
    await host.settled()

    assert 1 == taken(other, 20)
    assert 5 == taken(other, 20, caller="b")


async def test_ds_04_the_sum_stays_within_the_rate_and_a_burst_for_each_further_process(host: Host) -> None:
    """Three processes under a flood admit ten a second together; the surplus of the first moment is paid back."""
    processes = [host.process() for _ in range(3)]
    admitted, seconds = 0, 8.0
    for _ in range(int(seconds / 0.05)):
        admitted += sum(taken(each, 10) for each in processes)
        await host.settled()
        host.clock.advance(0.05)

    assert 5 + 10 * seconds - 2 <= admitted <= 5 + 10 * seconds + 2 * 5
    # Of a process that comes later, only what it takes before it has heard is too much.
    late = host.process()
    assert 5 == taken(late, 100)
    await host.settled()
    assert 0 == taken(late, 100)


async def test_ds_04_a_store_that_is_down_fails_nothing(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """Each process keeps the rate by itself, says so once, and together again when the store is back."""
    one, other = host.process(), host.process()
    host.store.down = True
    assert (5, 5) == (taken(one, 20), taken(other, 20))
    await until(lambda: "rate_limits_not_shared" in caplog.text, what="the warning")
    await host.settled()
    assert (0, 0) == (taken(one, 20), taken(other, 20))
    host.clock.advance(0.1)
    assert (1, 1) == (taken(one, 20), taken(other, 20))
    await host.settled()
    host.store.down = False
    host.clock.advance(1)
    assert 5 == taken(one, 20)
    await until(lambda: "rate_limits_shared_again" in caplog.text, what="the end of the warning")
    await host.settled()
    taken(other, 1)
    await host.settled()
    assert 0 == taken(other, 20)
    warned = [record.message for record in caplog.records].count("rate_limits_not_shared")
    assert len(host.limits) >= warned


async def test_a_store_that_is_slow_holds_nobody_up(host: Host) -> None:
    """While an answer is awaited, requests are judged by what is known, and are told of with the next call."""
    one, other = host.process(), host.process()
    reached, release = host.store.hold("draw")
    assert 2 == taken(one, 2)
    await asyncio.wait_for(reached.wait(), 5)
    assert 2 == taken(one, 2)
    release.set()
    await host.settled()
    taken(other, 1)
    await host.settled()
    assert 0 == taken(other, 20)


async def test_cr_03_the_store_holds_no_callers_name(host: Host) -> None:
    """Addresses are personal data: the store sees HMACs."""
    taken(host.process(), 1, caller="192.0.2.1")
    await host.settled()

    assert "192.0.2.1" not in repr(host.backend.buckets)
    assert 1 == len(host.backend.buckets)


async def test_an_alone_process_asks_nobody() -> None:
    """Without a shared store there is nothing to tell."""
    limits = SharedLimits(None, KEYS, SystemClock().monotonic)
    buckets = limits.buckets("thing", RATE)

    assert 5 == taken(buckets, 20)
    assert not buckets.has_news

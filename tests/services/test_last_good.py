"""A fetched value that outlives the failures of its source."""

import asyncio

import pytest

from broker.errors import ProviderError
from broker.services.last_good import FAILURE_REST_SECONDS, LastGood
from tests.support.clock import ManualClock


class Source:
    """Counts fetches; fails, hangs or answers as it is told."""

    def __init__(self) -> None:
        self.count = 0
        self.fails = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(self) -> int:
        self.count += 1
        count = self.count
        await self.gate.wait()
        if self.fails:
            raise ProviderError("down")
        return count


def make(source: Source, clock: ManualClock) -> LastGood[int]:
    return LastGood("document", source.fetch, clock=clock, ttl_seconds=100, cooldown_seconds=30, at="providers.corp")


async def test_a_value_is_fetched_once_while_it_is_fresh() -> None:
    """Within its life a value is fetched once; after it, once more."""
    clock, source = ManualClock(), Source()
    document = make(source, clock)

    assert [1, 1] == [await document.get(), await document.get()]
    clock.advance(100)
    assert 2 == await document.get()


async def test_many_callers_share_one_fetch_that_no_cancellation_stops() -> None:
    """A hundred callers at once cause one fetch; one that hangs up takes nobody with it."""
    source = Source()
    source.gate.clear()
    document = make(source, ManualClock())
    callers = [asyncio.ensure_future(document.get()) for _ in range(100)]
    await asyncio.sleep(0)

    callers[0].cancel()
    await asyncio.sleep(0)
    source.gate.set()

    assert [1] * 99 == await asyncio.gather(*callers[1:])
    assert 1 == source.count


async def test_a_failure_leaves_the_last_good_value() -> None:
    """An old value is used while no newer one can be had, and the source is left in peace meanwhile."""
    clock, source = ManualClock(), Source()
    document = make(source, clock)
    await document.get()
    source.fails = True
    clock.advance(100)

    assert [1, 1] == [await document.get(), await document.get()]
    assert 2 == source.count

    clock.advance(2)
    source.fails = False
    assert 3 == await document.get()


async def test_without_any_value_a_failure_is_raised() -> None:
    """The first fetch fails: so does the caller, at once for the next two seconds, and all is well after that."""
    clock, source = ManualClock(), Source()
    document = make(source, clock)
    source.fails = True

    for _ in range(3):
        with pytest.raises(ProviderError, match="down"):
            await document.get()
    assert 1 == source.count
    assert document.known is None

    source.fails = False
    clock.advance(2)
    assert 2 == await document.get() == document.known


async def test_a_refetch_happens_once_per_cooldown() -> None:
    """Whoever misses something gets a new value, but not more often than once per cooldown."""
    clock, source = ManualClock(), Source()
    document = make(source, clock)
    await document.get()

    assert [2, 2, 2] == [await document.refetch() for _ in range(3)]
    clock.advance(30)
    assert 3 == await document.refetch()


async def test_a_refetch_that_fails_says_so_and_rests_shortly() -> None:
    """What is missed may be in the value that can't be had. The cooldown begins when one is had again."""
    clock, source = ManualClock(), Source()
    document = make(source, clock)
    await document.get()
    source.fails = True

    for _ in range(3):
        with pytest.raises(ProviderError, match="down") as raised:
            await document.refetch()
        assert FAILURE_REST_SECONDS == raised.value.retry_after_seconds
    assert (1, 2) == (await document.get(), source.count)

    source.fails = False
    clock.advance(FAILURE_REST_SECONDS)
    assert [3, 3] == [await document.refetch() for _ in range(2)]
    clock.advance(29)
    assert 3 == await document.refetch()
    clock.advance(1)
    assert 4 == await document.refetch()


async def test_a_refetch_after_a_failed_renewal_says_so() -> None:
    """Also where the fetch that failed was for the value's age."""
    clock, source = ManualClock(), Source()
    document = make(source, clock)
    await document.refetch()
    source.fails = True
    clock.advance(100)

    assert 1 == await document.get()
    with pytest.raises(ProviderError, match="down"):
        await document.refetch()
    assert 2 == source.count


async def test_a_refetch_joins_a_fetch_under_way() -> None:
    """A fetch under way is new enough."""
    source = Source()
    source.gate.clear()
    document = make(source, ManualClock())
    first = asyncio.ensure_future(document.get())
    await asyncio.sleep(0)
    second = asyncio.ensure_future(document.refetch())
    await asyncio.sleep(0)
    source.gate.set()

    assert [1, 1] == [await first, await second]


async def test_closing_stops_a_fetch() -> None:
    """Nothing is left running after close."""
    source = Source()
    source.gate.clear()
    document = make(source, ManualClock())
    caller = asyncio.ensure_future(document.get())
    await asyncio.sleep(0)

    await document.close()

    with pytest.raises(asyncio.CancelledError):
        await caller

"""Reads of the store that are remembered."""

import asyncio

import pytest

from broker.errors import StoreError
from broker.services.lookups import MAX_KEPT, Lookups
from tests.support.clock import ManualClock


class Source:
    """What is read."""

    def __init__(self) -> None:
        self.value: str | None = "one"
        self.reads = 0
        self.down = False
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def read(self) -> str | None:
        self.reads += 1
        value = self.value
        await asyncio.sleep(0)
        await self.goes_on.wait()
        if self.down:
            raise StoreError("down")
        return value


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def lookups(clock: ManualClock) -> Lookups[str, str]:
    return Lookups(clock, ttl_seconds=5.0, grace_seconds=60.0)


async def test_all_who_ask_at_once_share_one_read(lookups: Lookups[str, str]) -> None:
    """Whether something is found or not."""
    source = Source()
    assert {"one"} == set(await asyncio.gather(*(lookups.find("a", source.read) for _ in range(20))))
    source.value = None
    assert {None} == set(await asyncio.gather(*(lookups.find("b", source.read) for _ in range(20))))
    assert [None, None] == [await lookups.find("b", source.read), lookups.peek("b")]
    assert 2 == source.reads


async def test_what_is_forgotten_is_read_again(lookups: Lookups[str, str]) -> None:
    """That alone."""
    source = Source()
    assert "one" == await lookups.find("a", source.read)
    source.value = "two"
    assert "two" == await lookups.find("b", source.read)

    lookups.forget(lambda found: found == "one")

    assert [None, "two"] == [lookups.peek("a"), lookups.peek("b")]


@pytest.mark.parametrize("happens", ["forget", "distrust"])
async def test_se_03_what_was_read_before_a_change_is_not_kept(lookups: Lookups[str, str], happens: str) -> None:
    """It may be what has changed."""
    source = Source()
    source.goes_on.clear()
    reading = asyncio.create_task(lookups.find("a", source.read))
    await asyncio.sleep(0.01)
    if happens == "forget":
        lookups.forget(lambda _: False)
    else:
        lookups.distrust()
    source.goes_on.set()

    assert "one" == await reading
    assert None is lookups.peek("a")


async def test_what_is_distrusted_serves_on_while_the_store_is_down(
    lookups: Lookups[str, str], clock: ManualClock
) -> None:
    """A store that has failed isn't asked for a second, and then once."""
    source = Source()
    assert "one" == await lookups.find("a", source.read)
    clock.advance(1)
    lookups.distrust()
    assert None is lookups.peek("a")
    source.down = True

    assert ["one"] * 5 == [await lookups.find("a", source.read) for _ in range(5)]
    assert 2 == source.reads
    clock.advance(1)
    assert ["one"] * 5 == [await lookups.find("a", source.read) for _ in range(5)]
    assert 3 == source.reads
    source.down, source.value = False, "two"
    clock.advance(1)
    assert "two" == await lookups.find("a", source.read)


async def test_they_are_bounded(lookups: Lookups[str, str]) -> None:
    """The one that was read longest ago goes first."""
    source = Source()
    for number in range(MAX_KEPT + 1):
        await lookups.find(str(number), source.read)

    assert [None, "one", "one"] == [lookups.peek(name) for name in ("0", "1", str(MAX_KEPT))]


async def test_what_is_not_there_pushes_out_nothing(lookups: Lookups[str, str], clock: ManualClock) -> None:
    """A flood of forged credentials leaves those of others usable while the store is down, and is bounded itself."""
    source, nothing = Source(), Source()
    nothing.value = None
    assert "one" == await lookups.find("a", source.read)
    for number in range(MAX_KEPT + 1):
        assert None is await lookups.find(f"forged {number}", nothing.read)
    assert None is await lookups.find(f"forged {MAX_KEPT}", nothing.read)
    assert MAX_KEPT + 1 == nothing.reads

    source.down = True
    clock.advance(11)
    assert "one" == await lookups.find("a", source.read)


async def test_what_comes_and_goes_is_known_as_it_is(lookups: Lookups[str, str], clock: ManualClock) -> None:
    """Neither its absence nor its presence outlives the other."""
    source = Source()
    for value in (None, "one", None, "two"):
        source.value = value
        clock.advance(1000)
        assert [value, value] == [await lookups.find("a", source.read) for _ in range(2)]
        assert value == lookups.peek("a")
    assert 4 == source.reads

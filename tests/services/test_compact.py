"""Many values, which the garbage collector needn't visit."""

import gc
from dataclasses import astuple, dataclass

import pytest

from broker.services.compact import MAX_READY, CompactDict


@dataclass(frozen=True, slots=True)
class Fact:
    name: str
    size: float
    parts: tuple[tuple[str, int | None, bytes], ...] = ()


@pytest.fixture
def facts() -> CompactDict[str, Fact]:
    return CompactDict(MAX_READY * 3, pack=astuple, unpack=lambda packed: Fact(*packed))


def test_what_is_put_is_found_after_others_were_used(facts: CompactDict[str, Fact]) -> None:
    """A value that isn't ready any more is made again, equal in every part."""
    first = Fact("é", float("inf"), (("key", None, b"\x00\xff"), ("", 1 << 70, b"")))
    facts.put("first", first)
    assert facts.ready("first") is first
    for number in range(MAX_READY):
        facts.put(str(number), Fact("", number))

    assert facts.ready("first") is None
    assert first == facts.get("first")
    assert facts.ready("first") is facts.get("first")


def test_only_a_bounded_number_of_values_is_ready(facts: CompactDict[str, Fact]) -> None:
    """What is used again and again is an object; what is only kept is bytes, of which the collector visits none."""
    for number in range(2 * MAX_READY):
        facts.put(str(number), Fact("", number))
        facts.get("0")

    assert sum(facts.ready(str(number)) is not None for number in range(2 * MAX_READY)) <= MAX_READY
    assert not any(map(gc.is_tracked, facts._packed.values()))


def test_the_value_that_was_put_longest_ago_goes_first() -> None:
    """Putting it again makes it the newest; what goes is told, and isn't ready either."""
    few: CompactDict[str, Fact] = CompactDict(2, pack=astuple, unpack=lambda packed: Fact(*packed))
    assert few.put("a", Fact("a", 1)) is None
    assert few.put("b", Fact("b", 1)) is None
    assert few.put("a", Fact("a", 2)) is None

    assert ("b", Fact("b", 1)) == few.put("c", Fact("c", 1))
    assert (2, None, None) == (len(few), few.ready("b"), few.get("b"))
    assert Fact("a", 2) == few.get("a")


def test_what_is_forgotten_is_gone(facts: CompactDict[str, Fact]) -> None:
    """It is returned once, and never served from the ready values."""
    facts.put("a", Fact("a", 1))

    assert Fact("a", 1) == facts.pop("a")
    assert (None, None, None, 0) == (facts.ready("a"), facts.get("a"), facts.pop("a"), len(facts))


def test_a_value_that_was_put_again_is_the_one_that_is_found(facts: CompactDict[str, Fact]) -> None:
    """Whether the old one was packed, ready or both; and dropping one that is packed returns it."""
    facts.put("a", Fact("a", 1))
    for number in range(MAX_READY):
        facts.put(str(number), Fact("", number))
    assert Fact("a", 1) == facts.get("a")
    facts.put("a", Fact("a", 2))
    for number in range(MAX_READY):
        facts.put(str(number), Fact("", number))

    assert facts.ready("a") is None
    assert Fact("a", 2) == facts.get("a")
    for number in range(MAX_READY):
        facts.put(str(number), Fact("", number))
    assert Fact("a", 2) == facts.pop("a")
    assert facts.get("a") is None

"""One read for all who want the same."""

import asyncio
from collections import Counter

import pytest

from broker.services.together import Together
from tests.support.waiting import until


class Source:
    """Counts its reads, and answers when it is told."""

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()
        self.open = asyncio.Event()
        self.together: Together[str, int] = Together()

    async def read(self, key: str) -> int:
        self.reads[key] += 1
        await self.open.wait()
        return self.reads[key]

    def ask(self, key: str) -> "asyncio.Task[int]":
        return asyncio.get_running_loop().create_task(self.together.read(key, self.read, key))


async def test_those_who_ask_at_the_same_time_share_one_read() -> None:
    """And nobody else's; whoever asks afterwards causes another."""
    source = Source()
    asking = [source.ask(key) for key in "aaab"]
    await until(lambda: len(source.together) == 2, what="the reads")
    source.open.set()

    assert [1, 1, 1, 1] == await asyncio.gather(*asking)
    assert 2 == await source.ask("a")
    assert {"a": 2, "b": 1} == source.reads
    assert 0 == len(source.together)


async def test_a_reader_that_is_cancelled_leaves_the_work_to_the_next() -> None:
    """The others don't notice, whether one of them or the reader hangs up."""
    source = Source()
    reader, waiting, leaving = (source.ask("a") for _ in range(3))
    await until(lambda: source.reads["a"] == 1, what="the first read")
    leaving.cancel()
    reader.cancel()
    await until(lambda: source.reads["a"] == 2, what="the second read")
    source.open.set()

    assert 2 == await waiting
    assert (True, True) == (reader.cancelled(), leaving.cancelled())


async def test_a_fault_is_its_readers_alone() -> None:
    """Who waited reads for itself."""
    together: Together[str, int] = Together()
    begun = asyncio.Event()

    async def fail() -> int:
        begun.set()
        await asyncio.sleep(0)
        raise LookupError

    async def succeed() -> int:
        return 1

    loop = asyncio.get_running_loop()
    failing = loop.create_task(together.read("a", fail))
    await begun.wait()
    waiting = loop.create_task(together.read("a", succeed))

    with pytest.raises(LookupError):
        await failing
    assert 1 == await waiting

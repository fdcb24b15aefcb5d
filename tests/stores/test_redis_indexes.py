"""Indexes may name too much and never too little: what they name is asked for, and cleaned up with care."""

from collections.abc import AsyncIterator

import pytest

from broker.stores.base import Store
from broker.stores.open import open_store
from broker.stores.options import StoreOptions, StoreUrl
from broker.stores.redis_indexes import GRACE_SECONDS, Due
from tests.stores.store_contract import KEY, LONG
from tests.support.clock import ManualClock, SeededRandomness
from tests.support.redis_server import RedisServer, raw

TAG, DUE, RECORD = "token-broker:tag:user", "token-broker:due:grant", f"token-broker:{{{KEY}}}"

YEAR = 365 * 86400.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(redis_server: RedisServer, clock: ManualClock) -> AsyncIterator[Store]:
    url = StoreUrl.parse(f"redis://127.0.0.1:{redis_server.port}")
    store = open_store(StoreOptions(url=url), clock, SeededRandomness())
    await store.start()
    yield store
    await store.close()


def size(server: RedisServer, index: str) -> int:
    count: int = raw(server, "ZCARD", index)
    return count


async def test_an_entry_whose_record_may_be_on_its_way_is_left(
    redis_server: RedisServer, store: Store, clock: ManualClock
) -> None:
    """An entry without its record isn't reported; it is taken out once no call can be under way any more."""
    await store.create(KEY, b"1", ttl_seconds=LONG, tags=["user"], due_at=1)
    record = raw(redis_server, "DUMP", RECORD)
    raw(redis_server, "DEL", RECORD)
    for _ in range(2):
        assert [] == await store.find("user")
        assert [] == await store.due("grant", 1, 10)
    raw(redis_server, "RESTORE", RECORD, 0, record)
    assert [KEY] == await store.find("user")
    assert [KEY] == await store.due("grant", 1, 10)
    raw(redis_server, "DEL", RECORD)
    clock.advance(GRACE_SECONDS + 1)
    assert [] == await store.find("user")
    assert [] == await store.due("grant", 1, 10)
    assert (0, 0) == (size(redis_server, TAG), size(redis_server, DUE))


async def test_indexes_do_not_grow_with_writes(redis_server: RedisServer, store: Store) -> None:
    """However often a record is replaced, made anew or refused, each index names it once, and at last not at all."""
    for turn in range(5):
        version = await store.create(KEY, b"1", ttl_seconds=LONG, tags=["user"], due_at=turn)
        assert None is await store.create(KEY, b"1", ttl_seconds=LONG, tags=["user"], due_at=turn)
        for number in range(20):
            assert version is not None
            assert None is await store.replace(KEY, b"late", 1, due_at=number)
            version = await store.replace(KEY, b"2", version, due_at=number)
        await store.touch(KEY, LONG)
        assert (1, 1) == (size(redis_server, TAG), size(redis_server, DUE))
        await store.delete(KEY)
        assert (0, 0) == (size(redis_server, TAG), size(redis_server, DUE))


@pytest.mark.parametrize("garbage", ["garbage", "", "@", "grant:00@", "grant:00@x-1", b"\xff\xfe"])
async def test_what_is_no_entry_hides_none_and_is_taken_out(
    redis_server: RedisServer, store: Store, garbage: str | bytes
) -> None:
    """Whatever wrote it there: those that are entries are found, and nothing is raised."""
    await store.create(KEY, b"1", ttl_seconds=LONG, tags=["user"], due_at=2)
    for index in (TAG, DUE):
        raw(redis_server, "ZADD", index, 1, garbage)

    assert [KEY] == await store.due("grant", 10, 10)
    assert [KEY] == await store.find("user")
    if isinstance(garbage, str):
        assert (1, 1) == (size(redis_server, TAG), size(redis_server, DUE))


async def test_dead_entries_do_not_hide_live_ones(redis_server: RedisServer, store: Store) -> None:
    """More entries without a record than the limit, older than a due one, do not keep it from being reported."""
    for number in range(30):
        await store.create(f"grant:{number:02x}", b"1", ttl_seconds=LONG, due_at=number)
        raw(redis_server, "DEL", f"token-broker:{{grant:{number:02x}}}")
    for number in range(30, 40):
        await store.create(f"grant:{number:02x}", b"1", ttl_seconds=LONG, due_at=number)
    assert [f"grant:{number:02x}" for number in range(30, 35)] == await store.due("grant", 100, 5)


async def test_indexes_end_by_themselves_after_their_records(redis_server: RedisServer, store: Store) -> None:
    """An index outlives every record that it names, also after a touch, and not for ever."""
    await store.create(KEY, b"1", ttl_seconds=10, tags=["user"], due_at=1)
    await store.touch(KEY, 1000)
    assert 1000 < raw(redis_server, "TTL", TAG) < 2100
    assert 1000 < raw(redis_server, "TTL", DUE) < 101 * 86400
    await store.create("grant:01", b"1", ttl_seconds=10, tags=["user"], due_at=1)
    assert 1000 < raw(redis_server, "TTL", TAG), "a shorter life doesn't shorten the index"


async def test_the_index_of_due_times_outlives_what_is_due(redis_server: RedisServer, store: Store) -> None:
    """A grant whose server lets refresh tokens live for years is still looked at in time, whatever else is due."""
    version = await store.create(KEY, b"1", ttl_seconds=10 * YEAR)
    assert version is not None
    now = float(raw(redis_server, "TIME")[0])
    assert await store.replace(KEY, b"2", version, due_at=now + YEAR + 0.123456)
    await store.create("grant:01", b"1", ttl_seconds=LONG, due_at=now + LONG)

    assert YEAR + 29 * 86400 < raw(redis_server, "TTL", DUE) < YEAR + 31 * 86400


async def test_a_life_that_writes_prolong_is_that_of_the_tags_too(redis_server: RedisServer, store: Store) -> None:
    """A session in constant use is found by its user's name, however long ago it began."""
    version = await store.create(KEY, b"1", ttl_seconds=10, tags=["user"])
    for _ in range(3):
        assert version is not None
        version = await store.replace(KEY, b"2", version, ttl_seconds=1000)

    (entry,) = raw(redis_server, "ZRANGE", TAG, 0, -1)
    lives_until_ms = float(raw(redis_server, "ZSCORE", TAG, entry))
    assert raw(redis_server, "TTL", RECORD) < raw(redis_server, "TTL", TAG)
    assert float(raw(redis_server, "TIME")[0]) + 1000 < lives_until_ms / 1000
    assert [KEY] == await store.find("user")


async def test_a_tag_forgets_the_records_that_expired(redis_server: RedisServer, store: Store) -> None:
    """A user who logs in again and again leaves no trail of entries behind, though nobody asks for the tag."""
    await store.create("session:00", b"1", ttl_seconds=LONG, tags=["user"])
    raw(redis_server, "ZADD", TAG, 1, "session:dead@1-1")
    await store.create("session:01", b"1", ttl_seconds=LONG, tags=["user"])
    assert 2 == size(redis_server, TAG)


@pytest.mark.parametrize("text", ["", "x", "x@y", "@"])
def test_a_due_time_that_is_none_is_read_as_none(text: str) -> None:
    """What isn't a due time counts as none."""
    assert None is Due.read(text)


def test_a_due_time_is_read_as_it_was_written() -> None:
    """Nothing of it is rounded away."""
    due = Due(1_700_000_000.123456, "6553f100-aabb")
    assert due == Due.read(str(due))

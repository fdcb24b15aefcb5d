"""
The one conformance suite that every store passes.

A test module inherits :class:`StoreContract` and gives it a fixture ``backing``: something on which any number of
store instances open, as replicas of a broker would.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Protocol

import pytest

from broker.errors import StoreError
from broker.stores.base import Busy, Event, Lease, LeaseOutcome, Record, Store, StoreDown, Topic
from tests.support.waiting import until

KEY = "grant:00ff"
OTHER = "grant:11ee"
SHORT = 0.6
"""A lifetime in seconds that a test lets pass, and in which a busy machine does four writes."""
OVER = 1.25 * SHORT
LONG = 600.0


class Backing(Protocol):
    """What stores share. It closes the stores that it opened."""

    async def open(self) -> Store:
        """Return a started store, another one at each call."""
        ...

    async def elapse(self, seconds: float) -> None:
        """Let *seconds* pass, as the stores see it."""
        ...


def held(outcome: LeaseOutcome) -> Lease:
    """Return the lease that *outcome* must be."""
    assert not isinstance(outcome, Busy | StoreDown), outcome
    return outcome


class Heard:
    """Listens to a store."""

    def __init__(self, store: Store) -> None:
        self.events: list[Event] = []
        self.stop = store.subscribe(self.events.append)

    async def gets(self, *expected: Event) -> None:
        await until(lambda: set(expected) <= set(self.events), what=f"hearing {expected}; heard {self.events}")


async def listening(store: Store) -> Heard:
    heard = Heard(store)
    await store.get("grant:none")  # whatever is published after this is heard
    return heard


class StoreContract:
    """What every store does."""

    @pytest.fixture
    async def store(self, backing: Backing) -> Store:
        return await backing.open()

    @pytest.fixture
    async def replica(self, backing: Backing) -> Store:
        return await backing.open()

    # -- records

    async def test_a_missing_record_is_none(self, store: Store) -> None:
        """What was never written is not there, and can't be replaced, touched or deleted."""
        assert None is await store.get(KEY)
        assert None is await store.replace(KEY, b"x", 1)
        assert False is await store.touch(KEY, LONG)
        assert False is await store.delete(KEY)
        assert False is await store.delete(KEY, 1)

    async def test_a_record_is_read_as_it_was_written(self, store: Store, replica: Store) -> None:
        """Any bytes come back unchanged, in every process."""
        value = bytes(range(256)) * 64
        version = await store.create(KEY, value, ttl_seconds=LONG)
        assert version is not None
        assert version > 0
        assert Record(value, version) == await store.get(KEY)
        assert Record(value, version) == await replica.get(KEY)
        assert [version, version] == [await store.version(KEY), await replica.version(KEY)]
        assert [None, None] == [await store.get(OTHER), await store.version(OTHER)]

    async def test_an_empty_value_is_a_value(self, store: Store) -> None:
        """A record of no bytes is there."""
        version = await store.create(KEY, b"", ttl_seconds=LONG)
        assert version is not None
        assert Record(b"", version) == await store.get(KEY)

    async def test_a_record_is_created_once(self, store: Store, replica: Store) -> None:
        """A second creation is refused and changes nothing."""
        version = await store.create(KEY, b"first", ttl_seconds=LONG, tags=["a"], due_at=10)
        assert version is not None
        assert None is await replica.create(KEY, b"second", ttl_seconds=LONG, tags=["b"], due_at=20)
        assert Record(b"first", version) == await replica.get(KEY)
        assert [] == await store.find("b")
        assert [KEY] == await store.due("grant", 10, 10)

    async def test_replace_needs_the_version_that_was_read(self, store: Store, replica: Store) -> None:
        """Of two writers that read the same version, the second is told so."""
        first = await store.create(KEY, b"1", ttl_seconds=LONG)
        assert first is not None
        second = await store.replace(KEY, b"2", first)
        assert second is not None
        assert second > first
        assert second == await replica.version(KEY)
        assert None is await replica.replace(KEY, b"late", first)
        assert Record(b"2", second) == await replica.get(KEY)
        third = await replica.replace(KEY, b"3", second)
        assert third is not None
        assert third > second

    async def test_one_of_fifty_parallel_writers_wins(self, store: Store, replica: Store) -> None:
        """Compare-and-set has exactly one winner, and its value is the one that stays."""
        version = await store.create(KEY, b"0", ttl_seconds=LONG)
        assert version is not None
        outcomes = await asyncio.gather(*((store, replica)[n % 2].replace(KEY, b"%d" % n, version) for n in range(50)))
        winners = [n for n, outcome in enumerate(outcomes) if outcome is not None]
        assert 1 == len(winners)
        record = await store.get(KEY)
        assert record is not None
        assert Record(b"%d" % winners[0], outcomes[winners[0]] or 0) == record

    async def test_one_of_fifty_parallel_creators_wins(self, store: Store, replica: Store) -> None:
        """A record comes into being once."""
        outcomes = await asyncio.gather(
            *((store, replica)[n % 2].create(KEY, b"%d" % n, ttl_seconds=LONG) for n in range(50))
        )
        assert 1 == sum(outcome is not None for outcome in outcomes)

    async def test_a_counter_that_many_raise_loses_nothing(self, store: Store, replica: Store) -> None:
        """Twenty writers that each try until they succeed leave twenty more than there was."""
        await store.create(KEY, b"0", ttl_seconds=LONG)

        async def raise_it(by: Store) -> None:
            while True:
                record = await by.get(KEY)
                assert record is not None
                if await by.replace(KEY, b"%d" % (int(record.value) + 1), record.version) is not None:
                    return

        await asyncio.gather(*(raise_it((store, replica)[n % 2]) for n in range(20)))
        record = await store.get(KEY)
        assert record is not None
        assert b"20" == record.value

    async def test_delete_ends_a_record_everywhere(self, store: Store, replica: Store) -> None:
        """A deleted record is gone for all, and only one of two is told that it deleted it."""
        await store.create(KEY, b"1", ttl_seconds=LONG, tags=["user"], due_at=1)
        assert [True, False] == sorted(await asyncio.gather(store.delete(KEY), replica.delete(KEY)), reverse=True)
        assert None is await replica.get(KEY)
        assert [] == await replica.find("user")
        assert [] == await replica.due("grant", 2, 10)

    async def test_delete_by_version_spares_a_newer_record(self, store: Store, replica: Store) -> None:
        """Who read an old version deletes nothing."""
        first = await store.create(KEY, b"1", ttl_seconds=LONG)
        assert first is not None
        second = await store.replace(KEY, b"2", first)
        assert second is not None
        assert False is await replica.delete(KEY, first)
        assert Record(b"2", second) == await store.get(KEY)
        assert await replica.delete(KEY, second) is True
        assert None is await store.get(KEY)

    async def test_a_version_is_never_used_again(self, store: Store, backing: Backing) -> None:
        """A record that was deleted or expired and made anew refuses the versions of its forerunners."""
        seen: list[int] = []
        for ending in ("delete", "expire", "delete", "none"):
            created = await store.create(KEY, b"1", ttl_seconds=SHORT if ending == "expire" else LONG)
            assert created is not None
            replaced = await store.replace(KEY, b"2", created)
            assert replaced is not None
            assert replaced > created
            assert not {created, replaced} & set(seen)
            for old in seen:
                assert None is await store.replace(KEY, b"late", old)
                assert False is await store.delete(KEY, old)
            seen += [created, replaced]
            if ending == "delete":
                assert await store.delete(KEY) is True
            elif ending == "expire":
                await backing.elapse(OVER)

    # -- lifetimes

    async def test_an_expired_record_is_not_there(self, store: Store, replica: Store, backing: Backing) -> None:
        """After its lifetime a record can't be read, found, replaced, touched or deleted, but made anew."""
        version = await store.create(KEY, b"1", ttl_seconds=SHORT, tags=["user"], due_at=1)
        assert version is not None
        await backing.elapse(OVER)
        assert [None, None] == [await replica.get(KEY), await replica.version(KEY)]
        assert [] == await replica.find("user")
        assert [] == await replica.due("grant", 2, 10)
        assert None is await store.replace(KEY, b"2", version)
        assert False is await store.touch(KEY, LONG)
        assert False is await store.delete(KEY)
        assert None is not await store.create(KEY, b"3", ttl_seconds=LONG)
        assert [] == await replica.find("user")
        assert [] == await replica.due("grant", 2, 10)

    async def test_touch_prolongs_and_changes_nothing_else(self, store: Store, backing: Backing) -> None:
        """A touched record lives on with its value, version, tags and due time."""
        version = await store.create(KEY, b"1", ttl_seconds=SHORT, tags=["user"], due_at=7)
        assert version is not None
        assert await store.touch(KEY, LONG) is True
        await backing.elapse(OVER)
        assert Record(b"1", version) == await store.get(KEY)
        assert [KEY] == await store.find("user")
        assert [KEY] == await store.due("grant", 7, 10)

    async def test_touch_can_shorten(self, store: Store, backing: Backing) -> None:
        """The lifetime that a touch gives counts from the touch."""
        await store.create(KEY, b"1", ttl_seconds=LONG)
        assert await store.touch(KEY, SHORT) is True
        await backing.elapse(OVER)
        assert None is await store.get(KEY)

    async def test_replace_keeps_the_end_unless_told(self, store: Store, backing: Backing) -> None:
        """A replacement without a lifetime ends when its forerunner would have; one with a lifetime lives that long."""
        kept = await store.create(KEY, b"1", ttl_seconds=SHORT)
        longer = await store.create(OTHER, b"1", ttl_seconds=SHORT)
        assert kept is not None
        assert longer is not None
        assert None is not await store.replace(KEY, b"2", kept)
        new = await store.replace(OTHER, b"2", longer, ttl_seconds=LONG)
        assert new is not None
        await backing.elapse(OVER)
        assert None is await store.get(KEY)
        assert Record(b"2", new) == await store.get(OTHER)

    # -- buckets

    async def test_buckets_are_drawn_from_by_all(self, backing: Backing, store: Store, replica: Store) -> None:
        """What processes take adds up, and each hears of it; a bucket fills steadily, and once it is full it is new."""
        keys = [f"rate:{number:02x}" for number in range(0, 256, 5)]
        assert {} == await store.draw({})
        began_at = time.monotonic()
        first = await store.draw(dict.fromkeys(keys, 0.5))
        assert set(keys) == set(first)
        assert all(0.4 < full_in <= 0.5 for full_in in first.values())
        added = (await replica.draw({keys[0]: 0.5}))[keys[0]]
        # Where the clock can't be moved it also fills while the calls take their time.
        assert 0.99 - (time.monotonic() - began_at) < added <= 1.0
        await backing.elapse(0.3)
        left = (await store.draw({keys[0]: 0.001}))[keys[0]]
        assert 0.69 - max(0.0, time.monotonic() - began_at - 0.3) < left <= 0.71
        await backing.elapse(0.8)
        assert 0.4 < (await store.draw({keys[0]: 0.5}))[keys[0]] <= 0.5

    async def test_parallel_draws_are_all_counted(self, store: Store, replica: Store) -> None:
        """None is lost."""
        await asyncio.gather(*(one.draw({"rate:00": 10.0}) for one in (store, replica) for _ in range(20)))
        assert 395 < (await store.draw({"rate:00": 0.001}))["rate:00"] <= 400.1

    # -- tags and due times

    async def test_records_are_found_by_each_of_their_tags(self, store: Store, replica: Store) -> None:
        """Every live record with a tag is found in every process, also after it was replaced."""
        version = await store.create("session:01", b"1", ttl_seconds=LONG, tags=["user", "sid"])
        await replica.create("session:02", b"1", ttl_seconds=LONG, tags=["user"])
        assert version is not None
        assert None is not await store.replace("session:01", b"2", version)
        for one in (store, replica):
            assert ["session:01", "session:02"] == sorted(await one.find("user"))
            assert ["session:01"] == await one.find("sid")
            assert [] == await one.find("use")
        assert await replica.delete("session:02") is True
        assert ["session:01"] == await store.find("user")

    async def test_due_reports_the_oldest_first(self, store: Store, replica: Store) -> None:
        """Records of a kind are reported from their due time on, oldest first, up to a limit."""
        for number, due_at in enumerate((30.0, 10.0, 20.5, None)):
            await store.create(f"grant:0{number}", b"1", ttl_seconds=LONG, due_at=due_at)
        await store.create("session:09", b"1", ttl_seconds=LONG, due_at=1.0)
        assert [] == await replica.due("grant", 9.9, 10)
        assert ["grant:01"] == await replica.due("grant", 10.0, 10)
        assert ["grant:01", "grant:02", "grant:00"] == await replica.due("grant", 1e10, 10)
        assert ["grant:01", "grant:02", "grant:00"] == await replica.due("grant", math.inf, 10)
        assert ["grant:01", "grant:02"] == await replica.due("grant", 1e10, 2)
        assert ["session:09"] == await replica.due("session", 1.0, 10)
        assert [] == await replica.due("sess", 1e10, 10)

    async def test_replace_sets_the_due_time_anew(self, store: Store, replica: Store) -> None:
        """A replacement's due time takes the place of the old one, earlier or later; without one, it is never due."""
        version = await store.create(KEY, b"1", ttl_seconds=LONG, due_at=10)
        for due_at, earlier, reported in ((20, 19, 20), (5, 4, 5)):
            assert version is not None
            version = await store.replace(KEY, b"2", version, due_at=due_at)
            assert [] == await replica.due("grant", earlier, 10)
            assert [KEY] == await replica.due("grant", reported, 10)
        assert version is not None
        assert None is not await replica.replace(KEY, b"3", version)
        assert [] == await store.due("grant", 1e10, 10)

    async def test_a_lost_replace_leaves_the_due_time(self, store: Store, replica: Store) -> None:
        """A replacement that came too late does not move the winner's due time."""
        first = await store.create(KEY, b"1", ttl_seconds=LONG, due_at=10)
        assert first is not None
        await store.replace(KEY, b"2", first, due_at=20)
        assert None is await replica.replace(KEY, b"late", first, due_at=5)
        assert [] == await store.due("grant", 19, 10)
        assert None is await replica.replace(KEY, b"late", first, due_at=500)
        assert [KEY] == await store.due("grant", 20, 10)

    async def test_a_record_made_anew_has_only_its_own_tags_and_due_time(self, store: Store) -> None:
        """Nothing of a deleted record clings to its successor."""
        await store.create(KEY, b"1", ttl_seconds=LONG, tags=["old"], due_at=1)
        await store.delete(KEY)
        await store.create(KEY, b"2", ttl_seconds=LONG, tags=["new"])
        assert [] == await store.find("old")
        assert [KEY] == await store.find("new")
        assert [] == await store.due("grant", 1e10, 10)

    async def test_many_due_records_are_claimed_in_portions(self, store: Store) -> None:
        """Nothing is left out when there are more due records than the limit."""
        keys = {f"grant:{number:04x}" for number in range(120)}
        await asyncio.gather(*(store.create(key, b"1", ttl_seconds=LONG, due_at=1) for key in keys))
        seen: set[str] = set()
        while portion := await store.due("grant", 1, 50):
            assert 50 >= len(portion)
            seen |= set(portion)
            await asyncio.gather(*(store.delete(key) for key in portion))
        assert keys == seen

    # -- leases

    async def test_a_lease_has_one_holder(self, store: Store, replica: Store) -> None:
        """Of fifty that ask in two processes, one holds it, and the others are told that it is busy."""
        outcomes = await asyncio.gather(*((store, replica)[n % 2].lease(KEY, LONG) for n in range(50)))
        assert 49 == sum(isinstance(outcome, Busy) for outcome in outcomes)
        assert 1 == sum(not isinstance(outcome, Busy | StoreDown) for outcome in outcomes)

    async def test_a_released_lease_is_free(self, store: Store, replica: Store) -> None:
        """Once given back, another may hold it; giving it back twice takes it from nobody."""
        first = held(await store.lease(KEY, LONG))
        assert isinstance(await replica.lease(KEY, LONG), Busy)
        await first.release()
        second = held(await replica.lease(KEY, LONG))
        await first.release()
        assert False is await first.renew(LONG)
        assert isinstance(await store.lease(KEY, LONG), Busy)
        assert await second.renew(LONG) is True

    async def test_a_lease_ends_by_itself(self, store: Store, replica: Store, backing: Backing) -> None:
        """A holder that does nothing loses it; it can neither renew it nor release it from under the next one."""
        late = held(await store.lease(KEY, SHORT))
        await backing.elapse(OVER)
        next_one = held(await replica.lease(KEY, LONG))
        assert False is await late.renew(LONG)
        await late.release()
        assert isinstance(await store.lease(KEY, LONG), Busy)
        assert await next_one.renew(LONG) is True

    async def test_an_ended_lease_is_not_renewed(self, store: Store, backing: Backing) -> None:
        """A lease that ended is lost, even if nobody took it."""
        late = held(await store.lease(KEY, SHORT))
        await backing.elapse(OVER)
        assert False is await late.renew(LONG)
        assert await held(await store.lease(KEY, LONG)).renew(LONG) is True

    async def test_a_renewed_lease_lives_on(self, store: Store, replica: Store, backing: Backing) -> None:
        """Renewing counts from now."""
        lease = held(await store.lease(KEY, SHORT))
        assert await lease.renew(LONG) is True
        await backing.elapse(OVER)
        assert isinstance(await replica.lease(KEY, LONG), Busy)

    async def test_a_lease_and_a_record_do_not_meet(self, store: Store) -> None:
        """A lease and a record of one key know nothing of each other."""
        lease = held(await store.lease(KEY, LONG))
        assert None is await store.get(KEY)
        version = await store.create(KEY, b"1", ttl_seconds=LONG)
        assert version is not None
        assert await store.delete(KEY) is True
        assert await lease.renew(LONG) is True
        assert False is await store.touch(KEY, LONG)

    # -- events

    async def test_every_process_hears_an_event(self, store: Store, replica: Store) -> None:
        """Subscribers in all processes, the publisher's too, hear what is published, with every field."""
        here, there = await listening(store), await listening(replica)
        event = Event(Topic.GENERATION, KEY, 2**53)
        await store.publish(event)
        await here.gets(event)
        await there.gets(event)

    async def test_events_come_in_order(self, store: Store, replica: Store) -> None:
        """What one process publishes in order is heard in order."""
        heard = await listening(replica)
        events: Sequence[Event] = [Event(Topic.GENERATION, KEY, number) for number in range(1, 51)]
        for event in events:
            await store.publish(event)
        await heard.gets(*events)
        assert events == [event for event in heard.events if event in events]

    async def test_an_event_tells_of_what_can_be_read(self, store: Store, replica: Store) -> None:
        """Who hears of a write reads it."""
        version = await store.create(KEY, b"1", ttl_seconds=LONG)
        heard = await listening(replica)
        for number in range(2, 12):
            assert version is not None
            version = await store.replace(KEY, b"%d" % number, version)
            await store.publish(Event(Topic.GENERATION, KEY, number))
            await heard.gets(Event(Topic.GENERATION, KEY, number))
            record = await replica.get(KEY)
            assert record is not None
            assert b"%d" % number == record.value

    async def test_a_subscription_ends(self, store: Store) -> None:
        """After its end a listener hears nothing, and others still do; ending twice is harmless."""
        gone, stays = await listening(store), await listening(store)
        gone.stop()
        gone.stop()
        await store.publish(Event(Topic.SESSION_ENDED, "session:01"))
        await stays.gets(Event(Topic.SESSION_ENDED, "session:01"))
        assert [] == gone.events

    async def test_a_faulty_listener_does_not_silence_others(
        self, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A listener that raises is logged, and the next one hears the event."""

        def faulty(event: Event) -> None:
            raise ValueError(event)

        store.subscribe(faulty)
        stays = await listening(store)
        await store.publish(Event(Topic.GRANT_ENDED, KEY))
        await stays.gets(Event(Topic.GRANT_ENDED, KEY))
        assert "listener_failed" in [record.message for record in caplog.records]

    # -- life of a store

    async def test_start_and_close_may_be_repeated(self, store: Store, backing: Backing) -> None:
        """Starting twice changes nothing, and closing twice neither; what was written stays."""
        await store.create(KEY, b"1", ttl_seconds=LONG)
        await store.start()
        await store.ping()
        assert None is not await store.get(KEY)
        await store.close()
        await store.close()
        assert None is not await (await backing.open()).get(KEY)

    async def test_cancelled_calls_leave_the_store_usable(self, store: Store, replica: Store) -> None:
        """Calls that are cancelled at any moment neither break the store nor mix up what others read."""
        versions = {
            f"grant:{number:02x}": await store.create(f"grant:{number:02x}", b"%d" % number, ttl_seconds=LONG)
            for number in range(20)
        }
        for turn in range(100):
            calls = [asyncio.get_running_loop().create_task(store.get(key)) for key in versions]
            for _ in range(turn % 7):
                await asyncio.sleep(0)
            for call in calls[turn % 3 :: 3]:
                call.cancel()
            answers = await asyncio.gather(*calls, return_exceptions=True)
            for number, answer in enumerate(answers):
                assert not isinstance(answer, StoreError)
                if not isinstance(answer, asyncio.CancelledError):
                    assert Record(b"%d" % number, versions[f"grant:{number:02x}"] or 0) == answer
        await store.ping()
        assert Record(b"7", versions["grant:07"] or 0) == await replica.get("grant:07")

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TypeAlias

import pytest

from broker.core.handle import Handle
from broker.core.secret import Secret
from broker.errors import StoreError
from broker.services.handles import KIND, Handles
from broker.services.keyring import Keyring, new_key
from broker.stores.base import Record
from broker.stores.memory import MemoryBackend, MemoryStore
from tests.support.clock import ManualClock, SeededRandomness
from tests.support.faulty_store import FaultyStore

KEYS = [new_key(SeededRandomness())]
Rotated: TypeAlias = tuple[Handle, Secret] | None
Meanwhile: TypeAlias = Callable[[Handles, Handle], Awaitable[None]]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def replicas(clock: ManualClock) -> tuple[Handles, Handles]:
    backend = MemoryBackend(clock)
    made = []
    for seed in (1, 2):
        store = MemoryStore(backend)
        await store.start()
        made.append(Handles(store, Keyring(KEYS), clock, SeededRandomness(seed)))
    return made[0], made[1]


async def test_an_issued_handle_is_found_by_its_credential_alone(clock: ManualClock) -> None:
    """Every replica finds it; another credential finds nothing."""
    first, second = await replicas(clock)
    issued = first.new("g1", label="batch", routes=("/api",))

    credential = await first.issue(issued)

    assert issued == await second.find(credential.reveal().encode())
    assert None is await second.find(b"tbh_" + b"A" * 43)
    assert None is await second.find(credential.reveal().encode() + b"A")


async def test_lk_01_no_credential_is_logged_or_listed(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """What is kept and shown of a handle doesn't let anybody use it."""
    caplog.set_level(logging.DEBUG)
    handles, _ = await replicas(clock)

    credential = await handles.issue(handles.new("g1"))

    assert credential.reveal() not in repr(await handles.issued()) + caplog.text + repr(credential)


async def test_ft_14_what_a_later_release_made_of_a_handle_is_not_guessed(clock: ManualClock) -> None:
    """A member that isn't known here may narrow what it permits: it isn't taken, and its record is left unharmed."""
    handles, _ = await replicas(clock)
    credential = (await handles.issue(issued := handles.new("g1"))).reveal()
    stored = await handles._read(credential)
    assert stored is not None
    sealed = handles._keyring.seal(
        KIND, stored.key, json.dumps({"v": 1, **asdict(issued), "methods": ["GET"]}).encode()
    )
    await handles._store.replace(stored.key, sealed, stored.version)

    with pytest.raises(StoreError, match="unknown format"):
        await handles.find(credential.encode())
    record = await handles._store.get(stored.key)
    assert record is not None
    assert sealed == record.value


async def test_a_revoked_handle_is_dead_on_every_replica_at_once(clock: ManualClock) -> None:
    """Replicas that have it in their caches hear of it."""
    first, second = await replicas(clock)
    issued = first.new("g1")
    credential = (await first.issue(issued)).reveal().encode()
    assert await second.find(credential)

    assert await first.revoke(issued.id)
    await asyncio.sleep(0)  # the event is heard in the next turn of the loop

    assert None is await second.find(credential)
    assert None is await first.find(credential)
    assert not await first.revoke(issued.id)


async def test_a_rotated_handle_is_taken_for_the_overlap(clock: ManualClock) -> None:
    """Both work until the overlap is over; then only the new one does."""
    handles, other = await replicas(clock)
    issued = handles.new("g1", networks=("192.0.2.0/24",))
    old = (await handles.issue(issued)).reveal().encode()

    rotated = await handles.rotate(issued.id, overlap_seconds=60)

    assert rotated is not None
    successor, new = rotated
    assert issued.networks == successor.networks
    assert await other.find(old)
    assert await other.find(new.reveal().encode())
    clock.advance(61)
    assert None is await other.find(old)
    assert successor == await other.find(new.reveal().encode())


async def interrupted(clock: ManualClock, call: int, meanwhile: Meanwhile) -> tuple[Handles, Rotated]:
    """Rotate a handle, and do something else on another replica just before the *call*-th call of the store."""
    backend = MemoryBackend(clock)
    store, other = FaultyStore(MemoryStore(backend)), MemoryStore(backend)
    await store.start()
    await other.start()
    one = Handles(store, Keyring(KEYS), clock, SeededRandomness(1))
    two = Handles(other, Keyring(KEYS), clock, SeededRandomness(2))
    issued = one.new("g1")
    await one.issue(issued)
    reached, go_on = store.hold_call(call)
    rotating = asyncio.create_task(one.rotate(issued.id, overlap_seconds=60))
    await asyncio.wait([rotating, asyncio.ensure_future(reached.wait())], return_when=asyncio.FIRST_COMPLETED)
    assert not rotating.done()
    await meanwhile(two, issued)
    go_on.set()
    return two, await rotating


@pytest.mark.parametrize("revoke_all", [False, True])
@pytest.mark.parametrize(("call", "rotates"), [(1, False), (2, False), (3, False), (4, False), (5, True)])
async def test_se_07_a_revoked_handle_has_no_successor(
    clock: ManualClock, call: int, rotates: bool, revoke_all: bool
) -> None:
    """Wherever the revocation comes between: before the old handle is given its end, there is nothing left to rotate."""

    async def meanwhile(handles: Handles, issued: Handle) -> None:
        await (handles.revoke_all("g1") if revoke_all else handles.revoke(issued.id))

    handles, rotated = await interrupted(clock, call, meanwhile)

    assert rotates == (rotated is not None)
    left = [each.handle.id for each in await handles.issued()]
    assert left == ([] if rotated is None or revoke_all else [rotated[0].id])


async def test_a_handle_may_be_rotated_twice_at_once(clock: ManualClock) -> None:
    """Both have a successor; the old one ends when the first of the two says."""
    rotated = []

    async def meanwhile(handles: Handles, issued: Handle) -> None:
        rotated.append(await handles.rotate(issued.id, overlap_seconds=30))

    handles, second = await interrupted(clock, 4, meanwhile)
    ends = sorted(each.handle.ends_at or 0 for each in await handles.issued())
    (first,) = rotated

    assert first is not None
    assert second is not None
    assert [0, 0, clock.now() + 30] == ends


async def test_what_has_ended_is_not_rotated(clock: ManualClock) -> None:
    """Its successor would have ended, too: also where it ends while it is rotated."""
    handles, _ = await replicas(clock)
    issued = handles.new("g1")
    await handles.issue(issued)
    assert await handles.rotate(issued.id, overlap_seconds=0)
    assert None is await handles.rotate(issued.id, overlap_seconds=60)

    async def meanwhile(handles: Handles, issued: Handle) -> None:
        await handles.rotate(issued.id, overlap_seconds=0)

    handles, second = await interrupted(clock, 4, meanwhile)
    assert None is second
    assert 1 == sum(each.handle.ends_at is None for each in await handles.issued())


async def test_a_rotation_that_is_written_succeeds(clock: ManualClock) -> None:
    """Also where the other processes can't be told: the successor's credential is said now, or never."""
    store = FaultyStore(MemoryStore(MemoryBackend(clock)))
    await store.start()
    handles = Handles(store, Keyring(KEYS), clock, SeededRandomness())
    issued = handles.new("g1")
    await handles.issue(issued)
    store.failing = {"publish"}

    rotated = await handles.rotate(issued.id, overlap_seconds=0)

    assert rotated is not None
    assert rotated[0] == await handles.find(rotated[1].reveal().encode())


@pytest.mark.parametrize("method", ["create", "replace"])
async def test_a_rotation_that_fails_leaves_the_old_handle(clock: ManualClock, method: str) -> None:
    """Whether a successor was stored or not: nobody has seen that."""
    backend = MemoryBackend(clock)
    store = FaultyStore(MemoryStore(backend))
    await store.start()
    handles = Handles(store, Keyring(KEYS), clock, SeededRandomness())
    issued = handles.new("g1")
    old = (await handles.issue(issued)).reveal().encode()
    store.failing = {method}

    with pytest.raises(StoreError):
        await handles.rotate(issued.id, overlap_seconds=0)
    assert issued == await handles.find(old)


async def test_a_handle_ends_at_its_end_even_in_a_cache(clock: ManualClock) -> None:
    """The end is judged at each use."""
    handles, _ = await replicas(clock)
    credential = (await handles.issue(handles.new("g1", ends_at=clock.now() + 2))).reveal().encode()
    assert await handles.find(credential)

    clock.advance(2)

    assert None is await handles.find(credential)


async def test_the_handles_of_a_grant_are_listed_and_revoked_together(clock: ManualClock) -> None:
    """Another grant's handles stay."""
    handles, _ = await replicas(clock)
    for grant in ("g1", "g1", "g2"):
        await handles.issue(handles.new(grant))

    await handles.revoke_all("g1")

    assert [] == await handles.issued("g1")
    assert ["g2"] == [each.handle.grant_id for each in await handles.issued()]


async def test_cr_04_listed_handles_say_which_keys_they_need(clock: ManualClock) -> None:
    """That under which each was issued, and that which sealed it last."""
    store = MemoryStore(MemoryBackend(clock))
    await store.start()
    newer = new_key(SeededRandomness(9))
    before = Handles(store, Keyring(KEYS), clock, SeededRandomness(1))
    after = Handles(store, Keyring([newer, *KEYS]), clock, SeededRandomness(2))
    first = before.new("g1", label="old")
    await before.issue(first)
    assert [(2,)] == [each.keys for each in await after.issued()]

    assert await after.rotate(first.id, overlap_seconds=60)

    assert [(1,), (1, 2)] == sorted(each.keys for each in await after.issued("g1"))
    await after.revoke(first.id)
    last = Handles(store, Keyring([newer]), clock, SeededRandomness(3))
    assert ["old"] == [each.handle.label for each in await last.issued()]


async def test_many_first_calls_with_one_handle_read_it_once(clock: ManualClock) -> None:
    """Callers that come at once share one read of the store."""

    class Counting(MemoryStore):
        reads = 0

        async def get(self, key: str) -> Record | None:
            self.reads += 1
            await asyncio.sleep(0)
            return await super().get(key)

    store = Counting(MemoryBackend(clock))
    await store.start()
    handles = Handles(store, Keyring(KEYS), clock, SeededRandomness())
    credential = (await handles.issue(handles.new("g1"))).reveal().encode()

    found = await asyncio.gather(*(handles.find(credential) for _ in range(20)))

    assert {"g1"} == {handle.grant_id for handle in found if handle is not None}
    assert 1 == store.reads

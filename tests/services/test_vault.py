"""Grants in a store, sealed."""

import json
from dataclasses import replace

import pytest

from broker.core.grant import EndReason, Grant, Origin, encode
from broker.core.refresh import end
from broker.core.secret import Secret
from broker.errors import StoreError
from broker.services.clock import SystemRandomness
from broker.services.keyring import Keyring, new_key
from broker.services.vault import KIND, ForeignRecord, Unchanged, Vault
from broker.stores.base import Busy, Event, Topic
from broker.stores.memory import MemoryBackend, MemoryStore
from tests.support.clock import ManualClock
from tests.support.grants import NOW, grant
from tests.support.troubled_store import TroubledStore
from tests.support.waiting import until

OLD, NEW = new_key(SystemRandomness()), new_key(SystemRandomness())
TTL = 3600.0


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend(ManualClock(NOW))


@pytest.fixture
async def store(backend: MemoryBackend) -> TroubledStore:
    store = TroubledStore(MemoryStore(backend))
    await store.start()
    return store


@pytest.fixture
def vault(store: TroubledStore) -> Vault:
    return Vault(store, Keyring([NEW]))


async def test_what_is_read_is_what_was_written(vault: Vault) -> None:
    """A grant survives its home."""
    created = await vault.create(grant(), ttl_seconds=TTL, due_at=None)

    assert created == await vault.read(grant().id)
    assert await vault.read("unknown") is None


async def test_a_grant_that_is_known_is_not_opened_again(vault: Vault) -> None:
    """Its version tells; any other version, and a grant that is gone, is told as by a first read."""
    first = await vault.create(grant(), ttl_seconds=TTL, due_at=None)
    assert Unchanged() == await vault.read_again(grant().id, version=first.version)

    second = await vault.replace(first, replace(first.grant, generation=2), due_at=None)
    assert second is not None
    assert second == await vault.read_again(grant().id, version=first.version)

    await vault.delete(grant().id)
    assert await vault.read_again(grant().id, version=second.version) is None


async def test_a_known_grant_under_an_older_key_is_asked_for_its_version_alone(store: TroubledStore) -> None:
    """After a change of keys, too, nothing is read that is known."""
    first = await Vault(store, Keyring([OLD])).create(grant(), ttl_seconds=TTL, due_at=None)
    store.calls.clear()

    assert Unchanged() == await Vault(store, Keyring([NEW, OLD])).read_again(grant().id, version=first.version)
    assert ["version", "version"] == store.calls


async def test_an_older_grant_never_wins(vault: Vault) -> None:
    """Of two writers that read the same version, the second writes nothing."""
    read = await vault.create(grant(), ttl_seconds=TTL, due_at=None)

    first = await vault.replace(read, replace(read.grant, generation=2), due_at=None)
    second = await vault.replace(read, replace(read.grant, generation=9), due_at=None)

    assert first is not None
    assert second is None
    assert first == await vault.read(grant().id)


async def test_a_grant_is_not_created_twice(vault: Vault) -> None:
    """An id that exists is refused, whatever it holds."""
    await vault.create(grant(), ttl_seconds=TTL, due_at=None)

    with pytest.raises(StoreError):
        await vault.create(grant(), ttl_seconds=TTL, due_at=None)


async def test_cr_03_the_store_sees_neither_tokens_nor_names(vault: Vault, backend: MemoryBackend) -> None:
    """A dump of the store holds no secret, no subject and no usable id."""
    await vault.create(grant(subject="alice@example.com"), ttl_seconds=TTL, due_at=None)
    dump = repr(backend.records)

    assert not [word for word in ("rt-1", "at-1", "alice", "corp", grant().id) if word in dump]


async def test_cr_01_a_record_that_was_moved_or_altered_is_no_grant(vault: Vault, store: TroubledStore) -> None:
    """To the caller it is as if it were not there."""
    mine = await vault.create(grant(id="a" * 32), ttl_seconds=TTL, due_at=None)
    other = await vault.create(grant(id="b" * 32), ttl_seconds=TTL, due_at=None)
    record = await store.get(other.key)
    assert record is not None

    await store.replace(mine.key, record.value, mine.version)
    assert await vault.read("a" * 32) is None
    await store.replace(other.key, record.value[:-1] + bytes([record.value[-1] ^ 1]), other.version)
    assert await vault.read("b" * 32) is None


async def test_cr_04_a_grant_outlives_a_change_of_keys(vault: Vault, store: TroubledStore) -> None:
    """With the old key behind the new one its record is found, replaced, touched and deleted under its old name."""
    old_vault, both = Vault(store, Keyring([OLD])), Vault(store, Keyring([NEW, OLD]))
    await old_vault.create(grant(), ttl_seconds=TTL, due_at=None)

    found = await both.read(grant().id)
    assert found is not None
    replaced = await both.replace(found, replace(found.grant, generation=2), due_at=NOW)
    assert replaced is not None
    await both.touch(grant().id, TTL)
    assert [replaced.key] == await both.due(NOW, 10)
    assert [replaced.grant] == [stored.grant for stored in await both.find("corp", "alice")]
    assert await vault.read(grant().id) is None  # the old key is gone: a clean re-login
    assert await both.delete(grant().id)
    assert not await both.delete(grant().id)


async def test_cr_04_a_stored_grant_says_which_keys_it_needs(store: TroubledStore) -> None:
    """That under which it began, for ever, and that which sealed it last."""
    before, after = Vault(store, Keyring([OLD])), Vault(store, Keyring([NEW, OLD]))
    created = await before.create(grant(), ttl_seconds=TTL, due_at=None)
    found = await after.read(grant().id)
    assert found is not None
    replaced = await after.replace(found, grant(), due_at=NOW)
    assert replaced is not None

    assert [(1,), (2,), (1, 2)] == [each.keys for each in (created, found, replaced)]
    assert [(1, 2)] == [each.keys for each in await after.find("corp", "alice")]
    assert replaced == await after.read_key(replaced.key)
    assert (1,) == (await after.create(grant(id="b" * 32), ttl_seconds=TTL, due_at=None)).keys


async def test_cr_04_a_record_under_a_newer_key_is_not_gone(vault: Vault, store: TroubledStore) -> None:
    """A replica that doesn't have the key yet can't read it, and can tell it from one that isn't there."""
    created = await vault.create(grant(), ttl_seconds=TTL, due_at=None)
    newer = Vault(store, Keyring([new_key(SystemRandomness()), NEW]))
    assert await newer.replace(created, grant(), due_at=None)

    assert None is await vault.read(grant().id)
    with pytest.raises(ForeignRecord, match="can't be opened"):
        await vault.confirm_gone(grant().id)
    await vault.delete(grant().id)
    await vault.confirm_gone(grant().id)


@pytest.mark.parametrize(
    ("one", "other"),
    [([OLD], [OLD, NEW]), ([OLD, NEW], [NEW, OLD]), ([NEW, OLD], [NEW])],
    ids=["added", "in_front", "removed"],
)
async def test_cr_04_replicas_at_neighbouring_steps_of_a_rotation_share_a_lease(
    store: TroubledStore, one: list[Secret], other: list[Secret]
) -> None:
    """While a change of keys is rolled out, a refresh token is still presented by one of them at a time."""
    held = await Vault(store, Keyring(one)).lease(grant().id, 5)

    assert not isinstance(held, Busy)
    assert Busy() == await Vault(store, Keyring(other)).lease(grant().id, 5)


async def test_ft_14_a_record_of_a_later_release_is_refused_unharmed(vault: Vault, store: TroubledStore) -> None:
    """It is an error of the store, not the end of a session, and nothing is written over it."""
    created = await vault.create(grant(), ttl_seconds=TTL, due_at=NOW)
    document = {**json.loads(encode(grant())), "v": 2}
    sealed = Keyring([NEW]).seal(KIND, created.key, json.dumps(document).encode())
    await store.replace(created.key, sealed, created.version, due_at=NOW)

    for read in (vault.read(grant().id), vault.read_key(created.key)):
        with pytest.raises(ForeignRecord):
            await read
    await vault.postpone(created.key, NOW + 60)
    record = await store.get(created.key)

    assert record is not None
    assert sealed == record.value
    assert [] == await vault.due(NOW, 10)
    assert [created.key] == await vault.due(NOW + 60, 10)


async def test_postponing_what_is_gone_does_nothing(vault: Vault) -> None:
    """The record may have expired meanwhile."""
    await vault.postpone("grant:gone", NOW)

    assert [] == await vault.due(NOW, 10)


async def test_grants_are_found_by_subject_and_by_absence_of_a_browser(vault: Vault) -> None:
    """A user's grants are the provider's user's, and unattended are all that no browser brought."""

    def named(name: str, **changes: object) -> Grant:
        return grant(id=name * 32, **changes)

    for each in (
        named("a"),
        named("b", origin=Origin.STANDING),
        named("c", provider="other"),
        named("d", subject="bob", origin=Origin.IMPORTED),
    ):
        await vault.create(each, ttl_seconds=TTL, due_at=None)

    assert ["a" * 32, "b" * 32] == sorted(stored.grant.id for stored in await vault.find("corp", "alice"))
    assert ["b" * 32, "d" * 32] == sorted(stored.grant.id for stored in await vault.find_unattended())


async def test_rt_12_no_two_users_share_a_name(vault: Vault) -> None:
    """However provider and subject are cut."""
    await vault.create(grant(provider='a", "b', subject="c"), ttl_seconds=TTL, due_at=None)

    assert [] == await vault.find("a", 'b", "c')


async def test_announcing_tells_where_a_grant_stands_and_never_fails(vault: Vault, store: TroubledStore) -> None:
    """The others read again in time."""
    heard: list[Event] = []
    store.subscribe(heard.append)

    store.trouble("publish", "fails")
    await vault.announce(grant())
    await vault.announce(replace(grant(), generation=7))
    await vault.announce(end(grant(generation=7), EndReason.LOGOUT, now=NOW))
    await until(lambda: len(heard) == 2)

    assert [Event(Topic.GENERATION, grant().id, 7), Event(Topic.GRANT_ENDED, grant().id, 7)] == heard

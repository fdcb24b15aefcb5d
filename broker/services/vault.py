"""Grants in a store, sealed. A grant is written only over the version that was read: an older one never wins."""

import json
import logging
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256

from broker.core.grant import Grant, Origin, UnknownFormat, decode, encode
from broker.errors import KeyringError, StoreError
from broker.services.keyring import Keyring
from broker.stores.base import Event, LeaseOutcome, Store, Topic

KIND = "grant"
SUBJECT_TAG = "grant-subject"
UNATTENDED_TAG = "grant-unattended"
MAX_REMEMBERED_KEYS = 1024

log = logging.getLogger(__name__)


class ForeignRecord(StoreError):
    """
    A record that is there and can't be read here. It is left, unharmed, to those who can read it.

    A later release wrote it (rolling upgrades, there and back), or a process that has a newer key.
    """


@dataclass(frozen=True, slots=True)
class StoredGrant:
    """
    A grant as it stands in the store.

    Attributes:
        grant: The grant.
        key: Its store key.
        version: The version that a write must name.
        keys: The configured keys that it depends on, by their places there, counted from 1.
    """

    grant: Grant
    key: str
    version: int
    keys: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The record is the one that is known."""


class GrantExists(StoreError):
    """Another grant has this id."""


class Vault:
    """The home of grants."""

    def __init__(self, store: Store, keyring: Keyring) -> None:
        self._store = store
        self._keyring = keyring
        # A grant's id is no secret, so its keys may be remembered.
        self._keys_of = lru_cache(MAX_REMEMBERED_KEYS)(partial(keyring.lookup_keys, KIND))

    async def read(self, grant_id: str) -> StoredGrant | None:
        """
        Return the grant, or None if it isn't there or can't be opened. Who must tell them apart asks
        :meth:`confirm_gone`.

        Raises:
            StoreError: If the store can't be asked.
            ForeignRecord: If a later release wrote the record. It is a ``StoreError`` to its caller.
        """
        found = await self.read_again(grant_id, version=0)
        assert not isinstance(found, Unchanged)
        return found

    async def read_again(self, grant_id: str, *, version: int) -> StoredGrant | Unchanged | None:
        """
        As :meth:`read`, of a grant that may be known in *version*; 0 is never one.

        No version is ever used twice under one key, so what has the same one needn't be opened again.
        """
        for key in self._keys_of(grant_id):
            if version:
                found = await self._store.version(key)
                if found == version:
                    return Unchanged()
                if found is None:
                    continue
            record = await self._store.get(key)
            if record is not None:
                grant = self._open(key, record.value)
                return None if grant is None else self._stored(grant, key, record.version, record.value)
        return None

    async def confirm_gone(self, grant_id: str) -> None:
        """
        Make sure that there is no record of a grant that :meth:`read` didn't find: one may be sealed with a newer key.

        Raises:
            StoreError: If the store can't be asked.
            ForeignRecord: If there is one.
        """
        for key in self._keys_of(grant_id):
            if await self._store.version(key) is not None:
                raise ForeignRecord("the record of a grant can't be opened")

    async def read_key(self, key: str) -> StoredGrant | None:
        """Return the grant under a store key, as :meth:`Store.due` reports it; else as :meth:`read`."""
        record = await self._store.get(key)
        grant = None if record is None else self._open(key, record.value)
        return None if grant is None or record is None else self._stored(grant, key, record.version, record.value)

    def _stored(self, grant: Grant, key: str, version: int, sealed: bytes) -> StoredGrant:
        return StoredGrant(grant, key, version, self._keyring.needed_for(self._keys_of(grant.id), key, sealed))

    def is_findable(self, stored: StoredGrant) -> bool:
        """
        Return whether :meth:`read` looks where *stored* is.

        It doesn't if the key that made the record's name was removed; another record of the grant may have begun since.
        """
        return stored.key in self._keys_of(stored.grant.id)

    def _open(self, key: str, sealed: bytes) -> Grant | None:
        try:
            return decode(self._keyring.open(KIND, key, sealed))
        except KeyringError:
            log.error("grant_record_refused", extra={"record": key})  # noqa: TRY400 - its traceback says nothing more
            return None
        except UnknownFormat as unknown:
            raise ForeignRecord(f"the record of a grant has an unknown format: {unknown}") from None

    async def create(self, grant: Grant, *, ttl_seconds: float, due_at: float | None) -> StoredGrant:
        """
        Store a new grant.

        Args:
            grant: The grant.
            ttl_seconds: How long its record lives.
            due_at: Unix seconds at which it is kept alive.

        Raises:
            StoreError: If the store doesn't take it.
        """
        key = self._keys_of(grant.id)[0]
        sealed = self._keyring.seal(KIND, key, encode(grant))
        tags = list(self._keyring.lookup_keys(SUBJECT_TAG, subject_name(grant.provider, grant.subject))[:1])
        if grant.origin is not Origin.BROWSER:
            tags += self._keyring.lookup_keys(UNATTENDED_TAG, "")[:1]
        version = await self._store.create(key, sealed, ttl_seconds=ttl_seconds, tags=tags, due_at=due_at)
        if version is None:
            raise GrantExists("a grant with this id exists")
        return self._stored(grant, key, version, sealed)

    async def begin(self, grant: Grant, *, ttl_seconds: float) -> bool:
        """Store a grant that has no tokens yet, unless it is there. Returns whether it was stored. ``StoreError``."""
        try:
            await self.create(grant, ttl_seconds=ttl_seconds, due_at=None)
        except GrantExists:
            return False
        return True

    async def replace(
        self, stored: StoredGrant, grant: Grant, *, due_at: float | None, ttl_seconds: float | None = None
    ) -> StoredGrant | None:
        """
        Write *grant* over *stored*.

        Args:
            stored: The grant as it was read.
            grant: What takes its place.
            due_at: Unix seconds at which it is looked at; None for never.
            ttl_seconds: How long its record lives from now on; None keeps its end.

        Returns:
            What is stored now, or None if somebody else wrote or deleted it since it was read.

        Raises:
            StoreError: If the store doesn't take it, or doesn't say so.
        """
        sealed = self._keyring.seal(KIND, stored.key, encode(grant))
        version = await self._store.replace(stored.key, sealed, stored.version, due_at=due_at, ttl_seconds=ttl_seconds)
        return None if version is None else self._stored(grant, stored.key, version, sealed)

    async def delete(self, grant_id: str) -> bool:
        """Delete the grant's record. Returns whether there was one. Raises ``StoreError``."""
        deleted = [await self._store.delete(key) for key in self._keys_of(grant_id)]
        return any(deleted)

    async def touch(self, grant_id: str, ttl_seconds: float) -> None:
        """Let the grant's record live *ttl_seconds* from now. It isn't rewritten. Raises ``StoreError``."""
        for key in self._keys_of(grant_id):
            if await self._store.touch(key, ttl_seconds):
                return

    async def find(self, provider: str, subject: str) -> list[StoredGrant]:
        """Return the live grants of a provider's subject. Raises ``StoreError``."""
        return await self._tagged(SUBJECT_TAG, subject_name(provider, subject))

    async def find_unattended(self) -> list[StoredGrant]:
        """Return the live grants that no browser brought. Raises ``StoreError``."""
        return await self._tagged(UNATTENDED_TAG, "")

    async def _tagged(self, kind: str, word: str) -> list[StoredGrant]:
        keys = [key for tag in self._keyring.lookup_keys(kind, word) for key in await self._store.find(tag)]
        found = [await self.read_key(key) for key in keys]
        return [stored for stored in found if stored is not None]

    async def due(self, before: float, limit: int) -> list[str]:
        """Return the store keys of up to *limit* grants due at *before* (Unix seconds). Raises ``StoreError``."""
        return await self._store.due(KIND, before, limit)

    async def postpone(self, key: str, due_at: float) -> None:
        """Make a record that can't be read due later, and leave it as it is else. Raises ``StoreError``."""
        record = await self._store.get(key)
        if record is not None:
            await self._store.replace(key, record.value, record.version, due_at=due_at)

    async def lease(self, grant_id: str, ttl_seconds: float) -> LeaseOutcome:
        """
        Try once to hold the grant's lease.

        Its name is made with no key: while a key is added or removed, replicas that have different keys contend for it.
        A grant's id is no secret, so there is nothing to hide either.
        """
        return await self._store.lease(f"{KIND}:{sha256(grant_id.encode()).hexdigest()}", ttl_seconds)

    async def announce(self, grant: Grant) -> None:
        """Tell every process where the grant stands. A store that can't is not an error: they read again in time."""
        if grant.ended is None:
            event = Event(Topic.GENERATION, grant.id, grant.generation)
        else:
            event = Event(Topic.GRANT_ENDED, grant.id, grant.generation)
        try:
            await self._store.publish(event)
        except StoreError as fault:
            log.warning("publish_failed", extra={"grant": grant.id, "error": str(fault)})


def subject_name(provider: str, subject: str) -> str:
    """Return one text for a provider's subject, which no other pair shares."""
    return json.dumps([provider, subject])

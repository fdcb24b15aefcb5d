"""Handles in a store: found by an HMAC of what the caller sends, and never shown again once they are issued."""

import base64
import json
import logging
import math
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from hashlib import sha256
from typing import NamedTuple

from broker.core.handle import PREFIX, Handle, is_handle
from broker.core.secret import Secret
from broker.errors import KeyringError, StoreError
from broker.services.clock import Clock, Randomness
from broker.services.keyring import Keyring
from broker.services.lookups import Lookups
from broker.stores.base import Event, Record, Store, Topic

KIND = "handle"
_TAG = "handle-tag"
_MEMBERS = frozenset(field.name for field in fields(Handle))
FOREVER_SECONDS = 50 * 365 * 86400.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredHandle:
    """A handle as it stands in the store: what it stands for, its store key, and the version a write must name."""

    handle: Handle
    key: str
    version: int


@dataclass(frozen=True, slots=True)
class ListedHandle:
    """
    A handle as operators see it.

    Attributes:
        handle: What it stands for.
        keys: The configured keys that its record depends on, by their places there, counted from 1.
    """

    handle: Handle
    keys: tuple[int, ...]


class Bounds(NamedTuple):
    """
    How long a credential lets its caller in.

    Attributes:
        key: Names it in events and in the log; of a handle, its store key.
        ends_at: Unix seconds from which it isn't taken; infinity for never.
    """

    key: str
    ends_at: float


class Handles:
    """Issues, finds and revokes handles."""

    def __init__(
        self,
        store: Store,
        keyring: Keyring,
        clock: Clock,
        randomness: Randomness,
        *,
        cache_ttl_seconds: float = 5.0,
        outage_grace_seconds: float = 60.0,
    ) -> None:
        """
        Args:
            store: Where they are kept.
            keyring: Seals them, and makes the names under which they are found.
            clock: Time.
            randomness: Makes them.
            cache_ttl_seconds: How long one isn't read again while nothing is heard of it.
            outage_grace_seconds: How long one that is known is taken while the store is down.
        """
        self._store = store
        self._keyring = keyring
        self._clock = clock
        self._randomness = randomness
        # By a hash, so that a heap dump holds no usable handle.
        self._found: Lookups[bytes, StoredHandle] = Lookups(
            clock, ttl_seconds=cache_ttl_seconds, grace_seconds=outage_grace_seconds
        )
        store.subscribe(self._heard)

    async def issue(self, handle: Handle) -> Secret:
        """
        Store *handle* under a new credential.

        Returns:
            The credential. This is the only time that anybody sees it.

        Raises:
            StoreError: If it can't be stored.
        """
        random = base64.urlsafe_b64encode(self._randomness.token_bytes(32)).rstrip(b"=")
        credential = Secret((PREFIX + random).decode())
        key = self._keyring.lookup_keys(KIND, credential.reveal())[0]
        tags = [self._tags(word)[0] for word in ("all", f"grant:{handle.grant_id}", f"id:{handle.id}")]
        await self._store.create(key, self._seal(key, handle), ttl_seconds=self._ttl(handle), tags=tags)
        log.info("handle_issued", extra={"handle": handle.id, "grant": handle.grant_id})
        return credential

    def new(self, grant_id: str, **attributes: object) -> Handle:
        """Return a handle for *grant_id* with a new id; *attributes* are those of :class:`Handle`."""
        made = Handle(id=self._randomness.token_bytes(6).hex(), grant_id=grant_id, created_at=self._clock.now())
        return replace(made, **attributes)  # type: ignore[arg-type]  # the admin API checks them

    def peek(self, credential: bytes) -> Handle | None:
        """Return what *credential* stands for if this process knows it for sure, or None: then ask :meth:`find`."""
        return self._live(self._found.peek(sha256(credential).digest()))

    def bounds(self, credential: bytes) -> Bounds | None:
        """Return how long a handle is taken that was found before, perhaps some time ago; None if it is none."""
        found = self._found.last(sha256(credential).digest())
        if found is None:
            return None
        ends_at = found.handle.ends_at
        return Bounds(found.key, math.inf if ends_at is None else ends_at)

    async def find(self, credential: bytes) -> Handle | None:
        """
        Return what *credential* stands for, or None if it isn't a live handle.

        Raises:
            StoreError: If the store is down and nothing that may still be used is known.
        """
        if not is_handle(credential):
            return None
        digest = sha256(credential).digest()
        return self._live(await self._found.find(digest, partial(self._read, credential.decode())))

    def _live(self, found: StoredHandle | None) -> Handle | None:
        if found is None or (found.handle.ends_at is not None and self._clock.now() >= found.handle.ends_at):
            return None
        return found.handle

    async def issued(self, grant_id: str | None = None) -> list[ListedHandle]:
        """Return the live handles, of one grant or all. Raises ``StoreError``."""
        tags = self._tags("all" if grant_id is None else f"grant:{grant_id}")
        return [
            # Its tags were made with its name, by one key.
            ListedHandle(stored.handle, self._keyring.needed_for(tags, tag, record.value))
            async for tag, record, stored in self._under(tags)
        ]

    async def rotate(self, handle_id: str, *, overlap_seconds: float) -> tuple[Handle, Secret] | None:
        """
        Replace a handle by a new one for the same purpose; the old one is taken for *overlap_seconds* more.

        Returns:
            The new handle and its credential, or None if there is no handle *handle_id*, or it ends meanwhile.

        Raises:
            StoreError: If it isn't known whether that was written. Nobody has the new one then.
        """
        for stored in await self._tagged(f"id:{handle_id}"):
            if self._live(stored) is None:
                continue
            # Before the old one is given its end: whoever is interrupted in between has both, and never none.
            successor = replace(stored.handle, id=self._randomness.token_bytes(6).hex(), created_at=self._clock.now())
            credential = await self.issue(successor)
            if await self._end(stored, self._clock.now() + overlap_seconds):
                return successor, credential
            await self.revoke(successor.id)
        return None

    async def revoke(self, handle_id: str) -> bool:
        """End a handle now, in every process. Returns whether there was one. Raises ``StoreError``."""
        return await self._revoke_tagged(f"id:{handle_id}")

    async def revoke_all(self, grant_id: str) -> None:
        """End every handle of a grant, and what those that are rotated meanwhile leave. Raises ``StoreError``."""
        while await self._revoke_tagged(f"grant:{grant_id}"):
            pass

    async def _revoke_tagged(self, word: str) -> bool:
        found = await self._tagged(word)
        for stored in found:
            await self._store.delete(stored.key)
            await self._store.publish(Event(Topic.SESSION_ENDED, stored.key))
            log.info("handle_revoked", extra={"handle": stored.handle.id, "grant": stored.handle.grant_id})
        return bool(found)

    async def _end(self, stored: StoredHandle, ends_at: float) -> bool:
        """Let a handle end at *ends_at*, unless it ends sooner. Returns False if it has ended meanwhile."""
        current: StoredHandle | None = stored
        while current is not None and self._live(current) is not None:
            former = current.handle.ends_at
            ending = replace(current.handle, ends_at=ends_at if former is None else min(former, ends_at))
            sealed = self._seal(current.key, ending)
            ttl = self._ttl(ending)
            if await self._store.replace(current.key, sealed, current.version, ttl_seconds=ttl) is not None:
                await self._tell_changed(current.key)
                return True
            current = await self._read_key(current.key)
        return False

    async def _tell_changed(self, key: str) -> None:
        try:
            await self._store.publish(Event(Topic.SESSION_ENDED, key))
        except StoreError as fault:
            # It is written. The others hear of it by the RESYNC that follows, or when their cache_ttl is over.
            log.warning("handle_change_not_published", extra={"record": key, "error": str(fault)})

    async def _read(self, credential: str) -> StoredHandle | None:
        for key in self._keyring.lookup_keys(KIND, credential):
            record = await self._store.get(key)
            if record is not None:
                return self._open(key, record)
        return None

    async def _read_key(self, key: str) -> StoredHandle | None:
        record = await self._store.get(key)
        return None if record is None else self._open(key, record)

    async def _tagged(self, word: str) -> list[StoredHandle]:
        return [stored async for _, _, stored in self._under(self._tags(word))]

    async def _under(self, tags: Iterable[str]) -> AsyncIterator[tuple[str, Record, StoredHandle]]:
        for tag in tags:
            for key in await self._store.find(tag):
                record = await self._store.get(key)
                stored = None if record is None else self._open(key, record)
                if record is not None and stored is not None:
                    yield tag, record, stored

    def _tags(self, word: str) -> tuple[str, ...]:
        return self._keyring.lookup_keys(_TAG, word)

    def _seal(self, key: str, handle: Handle) -> bytes:
        return self._keyring.seal(KIND, key, json.dumps({"v": 1, **asdict(handle)}).encode())

    def _open(self, key: str, record: Record) -> StoredHandle | None:
        try:
            document = json.loads(self._keyring.open(KIND, key, record.value))
        except KeyringError:
            log.error("handle_record_refused", extra={"record": key})  # noqa: TRY400 - its traceback says nothing more
            return None
        # A member that isn't known here may narrow what the handle permits, so it isn't left out.
        if document.pop("v") != 1 or not document.keys() <= _MEMBERS:
            raise StoreError("the record of a handle has an unknown format")
        document["routes"], document["networks"] = tuple(document["routes"]), tuple(document["networks"])
        return StoredHandle(Handle(**document), key, record.version)

    def _ttl(self, handle: Handle) -> float:
        return FOREVER_SECONDS if handle.ends_at is None else max(handle.ends_at - self._clock.now(), 1.0)

    def _heard(self, event: Event) -> None:
        if event.topic is Topic.RESYNC:
            self._found.distrust()
        elif event.topic is Topic.SESSION_ENDED and event.key.startswith(f"{KIND}:"):
            self._found.forget(lambda found: found.key == event.key)

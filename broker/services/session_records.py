"""Browser sessions as sealed records of the store, under names that a dump of the store can't be used with."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from broker.core import session as core
from broker.core.session import Index, Session
from broker.errors import KeyringError, StoreError
from broker.services.keyring import Keyring
from broker.stores.base import Record, Store

KIND = "session"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredSession:
    """
    A session as it was read.

    Attributes:
        key: The store key. It names the session in logs and events, and opens nothing.
        version: The version of the record.
        session: Who logged in.
        document: The same, as it is stored in clear.
    """

    key: str
    version: int
    session: Session
    document: bytes


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The record is the one that is known."""


class SessionRecords:
    """The records of all sessions. Every method raises ``StoreError`` if the store is down."""

    def __init__(self, store: Store, keyring: Keyring) -> None:
        self._store = store
        self._keyring = keyring

    def key_of(self, session_id: str) -> str:
        """Return the store key under which a session of this id is created."""
        return self._keyring.lookup_keys(KIND, session_id)[0]

    async def create(self, session_id: str, session: Session, *, ttl_seconds: float) -> StoredSession:
        """Keep *session* under an id that was drawn for it."""
        document = core.encode(session)
        key = self.key_of(session_id)
        version = await self._store.create(
            key,
            self._keyring.seal(KIND, key, document),
            ttl_seconds=ttl_seconds,
            tags=[self._keyring.lookup_keys(index, word)[0] for index, word in core.index_words(session).items()],
        )
        if version is None:
            raise StoreError("two sessions have drawn one id: the source of randomness is broken")
        return StoredSession(key, version, session, document)

    async def read(self, session_id: str) -> StoredSession | None:
        """Return the session of an id, whether or not it is over; None if there is none that can be opened."""
        for key in self._keyring.lookup_keys(KIND, session_id):
            record = await self._store.get(key)
            if record is not None:
                return self._open(key, record)
        return None

    async def read_key(self, key: str) -> StoredSession | None:
        """As :meth:`read`, by the store key."""
        record = await self._store.get(key)
        return None if record is None else self._open(key, record)

    async def read_again(self, key: str, version: int) -> StoredSession | Unchanged | None:
        """
        As :meth:`read`, of a session that was read before, under its store key and in *version*.

        No version is ever used twice under one key, so what has the same one needn't be opened again.
        """
        found = await self._store.version(key)
        if found == version:
            return Unchanged()
        return None if found is None else await self.read_key(key)

    async def replace(
        self, stored: StoredSession, session: Session, *, ttl_seconds: float | None = None
    ) -> StoredSession | None:
        """
        Write *session* in place of what was read.

        Args:
            stored: What was read.
            session: What it is now.
            ttl_seconds: How long it lives from now; None keeps its end.

        Returns:
            What is now stored; None if it ended or was written by somebody else since.
        """
        document = core.encode(session)
        sealed = self._keyring.seal(KIND, stored.key, document)
        version = await self._store.replace(stored.key, sealed, stored.version, ttl_seconds=ttl_seconds)
        return None if version is None else StoredSession(stored.key, version, session, document)

    async def delete(self, key: str) -> Session | None:
        """Delete the session of a store key. Returns it, if it was there, can be opened, and nobody was faster."""
        stored = await self.read_key(key)
        deleted = await self._store.delete(key)
        return None if stored is None or not deleted else stored.session

    async def find(self, index: Index, words: Sequence[str]) -> list[StoredSession]:
        """
        Return every session that an index names.

        The sealed record decides whether it belongs there, not the index: whoever can write to the store can't have one
        user's logout end another's session (SECURITY SE-08).
        """
        word = core.index_word(*words)
        found = []
        for tag in self._keyring.lookup_keys(index, word):
            for key in await self._store.find(tag):
                record = await self._store.get(key)
                stored = self._open(key, record) if record is not None else None
                if stored is not None and core.index_words(stored.session).get(index) == word:
                    found.append(stored)
        return found

    def _open(self, key: str, record: Record) -> StoredSession | None:
        try:
            document = self._keyring.open(KIND, key, record.value)
            session = core.decode(document)
        except (KeyringError, core.UnknownFormat) as refusal:
            log.warning("session_record_refused", extra={"session": key, "reason": type(refusal).__name__})
            return None
        return StoredSession(key, record.version, session, document)

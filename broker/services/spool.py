"""
Token responses on the local disk, from the moment they arrive until the store has them.

A rotated refresh token exists once: in the response that brought it. Between that response and the store's
acknowledgement a crash would lose it, and with it the login. So each response is appended here, sealed, before anything
else is done with it, in the same step of the event loop in which it arrived: a ``write`` reaches the page cache, which
outlives a killed process. When the store doesn't take it at once, the file is also fsynced, to outlive a power cut.

Each process has a file of its own, which it holds locked. A file that can be locked belongs to a dead process, and
whoever locks it saves what it holds.
"""

import asyncio
import fcntl
import json
import logging
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from broker.core.audience import Audience
from broker.core.oauth import TokenSet
from broker.core.secret import AccessToken, IdToken, RefreshToken
from broker.errors import KeyringError
from broker.services.clock import Randomness
from broker.services.keyring import Keyring

KIND = "spool"
SUFFIX = ".spool"
_LENGTH = struct.Struct(">I")
_MAX_RECORD_BYTES = 1 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """
    A token response and the place where it belongs.

    Attributes:
        attempt: The intent that it answers; it names the entry.
        grant_id: The grant.
        base_generation: The generation whose refresh token was presented.
        audience: For whom it was asked.
        answer: The response.
    """

    attempt: str
    grant_id: str
    base_generation: int
    audience: Audience
    answer: TokenSet


class Spool:
    """The spool file of this process."""

    def __init__(self, directory: Path | None, keyring: Keyring, randomness: Randomness) -> None:
        """
        Args:
            directory: Shared by the processes of one host. It must outlive a restart. None: answers are kept in
                memory alone, and a crash before the store has them loses them.
            keyring: Seals the entries.
            randomness: Makes the file's name.
        """
        self._directory = directory
        self._keyring = keyring
        self._randomness = randomness
        self._file: int | None = None
        self._path: Path | None = None
        self._pending: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def open(self) -> None:
        """
        Create and lock this process' file.

        Raises:
            OSError: If the directory can't be written. The start is refused: a promise would be broken.
        """
        if self._directory is None:
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            path = self._directory / f"{os.getpid()}-{self._randomness.token_bytes(8).hex()}{SUFFIX}"
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file).st_nlink:
                    self._file, self._path = file, path
                    return
            # Another process took it for a dead one's in the moment before it was locked.
            os.close(file)

    def append(self, entry: Entry) -> None:
        """
        Keep *entry* until :meth:`done`. Blocks for one ``write`` into the page cache, which is the point of it.

        A full disk is logged and counted, not raised: the store may still take the answer.
        """
        self._pending[entry.attempt] = entry
        self._write(_encode(entry))

    def _write(self, plaintext: bytes) -> None:
        if self._file is None:
            return
        sealed = self._keyring.seal(KIND, KIND, plaintext)
        try:
            os.write(self._file, _LENGTH.pack(len(sealed)) + sealed)
        except OSError as fault:
            log.critical("spool_write_failed", extra={"error": str(fault)})

    async def sync(self) -> None:
        """Let what was appended outlive a power cut. A failure is logged."""
        if self._file is None:
            return
        try:
            await asyncio.to_thread(os.fsync, self._file)
        except OSError as fault:
            log.critical("spool_sync_failed", extra={"error": str(fault)})

    def done(self, attempt: str) -> None:
        """Forget an entry: the store has it, or it isn't needed any more."""
        if self._pending.pop(attempt, None) is None or self._file is None:
            return
        if self._pending:
            self._write(json.dumps({"done": attempt}).encode())
        else:
            with suppress(OSError):
                os.ftruncate(self._file, 0)

    def orphans(self) -> list[Entry]:
        """
        Take over what dead processes of this host left behind, into this process' own file.

        Returns:
            The entries that were taken over now; each stays pending until :meth:`done`.
        """
        taken: list[Entry] = []
        if self._directory is None:
            return taken
        for path in sorted(self._directory.glob(f"*{SUFFIX}")):
            if path != self._path:
                taken += self._take_over(path)
        return taken

    def pending(self) -> list[Entry]:
        """Return the entries that the store doesn't have yet."""
        return list(self._pending.values())

    def _take_over(self, path: Path) -> list[Entry]:
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return []
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            entries = list(self._entries(file))
            for entry in entries:
                self.append(entry)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            return []  # its owner lives
        except OSError as fault:
            log.error("spool_unreadable", extra={"file": path.name, "error": str(fault)})  # noqa: TRY400
            return []
        finally:
            os.close(file)
        log.warning("spool_taken_over", extra={"file": path.name, "entries": len(entries)})
        return entries

    def _entries(self, file: int) -> Iterator[Entry]:
        """The entries of a file without those that were done; a cut record at the end was never acknowledged."""
        found: dict[str, Entry] = {}
        with os.fdopen(os.dup(file), "rb") as reader:
            while len(prefix := reader.read(_LENGTH.size)) == _LENGTH.size:
                (length,) = _LENGTH.unpack(prefix)
                sealed = reader.read(length) if length <= _MAX_RECORD_BYTES else b""
                if len(sealed) != length:
                    break
                try:
                    document = json.loads(self._keyring.open(KIND, KIND, sealed))
                except KeyringError:
                    log.error("spool_record_refused")  # noqa: TRY400 - its traceback says nothing more
                    continue
                if "done" in document:
                    found.pop(document["done"], None)
                else:
                    found[document["attempt"]] = _decode(document)
        yield from found.values()

    def close(self) -> None:
        """Remove the file if the store has everything; else leave it to the next start."""
        if self._file is None:
            return
        if self._path is not None and not self._pending:
            self._path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = None


def _encode(entry: Entry) -> bytes:
    answer = entry.answer
    return json.dumps(
        {
            "attempt": entry.attempt,
            "grant_id": entry.grant_id,
            "base_generation": entry.base_generation,
            "audience": {
                "resource": entry.audience.resource,
                "audience": entry.audience.audience,
                "scope": entry.audience.scope,
                "exchange": entry.audience.exchange,
            },
            "answer": {
                "access_token": answer.access_token.reveal(),
                "token_type": answer.token_type,
                "expires_at": answer.expires_at,
                "requested_at": answer.requested_at,
                "refresh_token": answer.refresh_token and answer.refresh_token.reveal(),
                "refresh_expires_at": answer.refresh_expires_at,
                "id_token": answer.id_token and answer.id_token.reveal(),
                "scope": answer.scope,
                "session_id": answer.session_id,
            },
        }
    ).encode()


def _decode(document: dict[str, object]) -> Entry:
    audience, answer = document["audience"], document["answer"]
    assert isinstance(audience, dict)
    assert isinstance(answer, dict)
    return Entry(
        attempt=str(document["attempt"]),
        grant_id=str(document["grant_id"]),
        base_generation=int(str(document["base_generation"])),
        audience=Audience(**audience),
        answer=TokenSet(
            **{
                **answer,
                "access_token": AccessToken(answer["access_token"]),
                "refresh_token": answer["refresh_token"] and RefreshToken(answer["refresh_token"]),
                "id_token": answer["id_token"] and IdToken(answer["id_token"]),
            }
        ),
    )

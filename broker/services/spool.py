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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from broker.core.audience import Audience
from broker.core.oauth import TokenSet
from broker.core.secret import AccessToken, IdToken, RefreshToken
from broker.core.stored_form import of_known_members
from broker.errors import ConfigError, KeyringError
from broker.services.clock import Randomness
from broker.services.keyring import Keyring

KIND = "spool"
SUFFIX = ".spool"
FORMAT = 1
"""
Version of the entries. A file that holds entries of another is left to the release that wrote it.

A member that older releases can do without needs no new one: they read what they know, and theirs lack it. One
that says for whom a token is does: without it, the token would be taken for another's.
"""
COMPACT_BYTES = 1 << 20
"""A file that has grown by this is written anew with what is pending."""
_LENGTH = struct.Struct(">I")
_MAX_RECORD_BYTES = 1 << 22

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """
    A token response and the place where it belongs.

    Attributes:
        attempt: The intent that it answers; it names the entry.
        grant_id: The grant.
        provider: Whose answer it is; None if a release wrote it that didn't say so.
        subject: Whose tokens they are, as far as that is known. Of a login it is what an unchecked id token says.
        chain_length: The length of the grant's chain when its refresh token was presented; 0 where a login brought the
            answer.
        chain_started_at: When that chain began, as its grant tells it; None if a release wrote the entry that didn't
            say so, or a login brought the answer.
        audience: For whom it was asked.
        answer: The response.
    """

    attempt: str
    grant_id: str
    provider: str | None
    subject: str | None
    chain_length: int
    chain_started_at: float | None = None
    audience: Audience
    answer: TokenSet

    @property
    def is_login(self) -> bool:
        """Whether a login brought it, whose grant is only to be made."""
        return self.chain_length == 0


class Spool:
    """The spool file of this process."""

    def __init__(
        self, directory: Path | None, keyring: Keyring, randomness: Randomness, *, key: str = "spool_dir"
    ) -> None:
        """
        Args:
            directory: Shared by the processes of one host. It must outlive a restart. None: answers are kept in
                memory alone, and a crash before the store has them loses them.
            keyring: Seals the entries.
            randomness: Makes the file's name.
            key: The key of the configuration that says where the directory is.
        """
        self._directory = directory
        self._key = key
        self._keyring = keyring
        self._randomness = randomness
        self._file: int | None = None
        self._path: Path | None = None
        self._pending: dict[str, Entry] = {}
        self._written: set[str] = set()
        self._left: set[Path] = set()
        self._size = 0
        self._is_synced = False
        self._compact_at = COMPACT_BYTES

    def __len__(self) -> int:
        return len(self._pending)

    def open(self) -> None:
        """
        Create and lock this process' file.

        Raises:
            ConfigError: If the directory can't be made or written. The start is refused: a promise would be broken.
        """
        if self._directory is None:
            return
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file, self._path = self._create(self._directory)
        except OSError as fault:
            what = f"the spool {self._directory} can't be made or written"
            raise ConfigError(f"{self._key}: {what}: {fault.strerror or fault}") from fault

    def _create(self, directory: Path) -> tuple[int, Path]:
        while True:
            path = directory / f"{os.getpid()}-{self._randomness.token_bytes(8).hex()}{SUFFIX}"
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file).st_nlink:
                    _sync_directory(directory)
                    return file, path
            # Another process took it for a dead one's in the moment before it was locked.
            os.close(file)

    def append(self, entry: Entry) -> bool:
        """
        Keep *entry* until :meth:`done`. Blocks for one ``write`` into the page cache, which is the point of it.

        A full disk is logged and counted, not raised: the store may still take the answer.

        Returns:
            Whether it was written to the file.
        """
        self._pending[entry.attempt] = entry
        is_written = self._write(_encode(entry))
        if is_written:
            self._written.add(entry.attempt)
        return is_written

    def _append_all(self, entries: Sequence[Entry]) -> bool:
        """Append each of *entries*, and return whether all are in the file."""
        return [self.append(entry) for entry in entries].count(False) == 0

    def _write(self, plaintext: bytes) -> bool:
        if self._file is None:
            return False
        sealed = self._keyring.seal(KIND, KIND, plaintext)
        record = _LENGTH.pack(len(sealed)) + sealed
        try:
            if os.write(self._file, record) == len(record):
                self._size += len(record)
                return True
            # The disk is full. What follows a cut record could not be read.
            os.ftruncate(self._file, self._size)
        except OSError as fault:
            log.critical("spool_write_failed", extra={"error": str(fault)})
            return False
        log.critical("spool_write_failed", extra={"error": "no space left"})
        return False

    async def sync(self) -> None:
        """Let what was appended outlive a power cut. A failure is logged."""
        if self._file is None:
            return
        self._is_synced = True
        try:
            await asyncio.to_thread(os.fsync, self._file)
        except OSError as fault:
            log.critical("spool_sync_failed", extra={"error": str(fault)})

    def _sync_now(self) -> bool:
        """
        As :meth:`sync`, in one step with what comes before and after. Blocks for as long as the disk needs.

        Returns:
            Whether it was done.
        """
        assert self._file is not None
        self._is_synced = True
        try:
            os.fsync(self._file)
        except OSError as fault:
            log.critical("spool_sync_failed", extra={"error": str(fault)})
            return False
        return True

    def done(self, attempt: str) -> None:
        """Forget an entry: the store has it, or it isn't needed any more."""
        self._written.discard(attempt)
        if self._pending.pop(attempt, None) is None or self._file is None:
            return
        if not self._pending:
            with suppress(OSError):
                os.ftruncate(self._file, 0)
                self._size = 0
                self._is_synced = False
        elif self._write(json.dumps({"v": FORMAT, "done": attempt}).encode()) and self._size >= self._compact_at:
            self._compact()

    def _compact(self) -> None:
        """
        Go on in a new file, which holds only what is pending. A crash on the way leaves both, and nothing twice.

        What was to outlive a power cut does so at each moment: it is on the disk anew before its former file goes.
        """
        assert self._directory is not None
        former = self._file, self._path, self._size
        try:
            self._file, self._path = self._create(self._directory)
        except OSError as fault:
            log.critical("spool_write_failed", extra={"error": str(fault)})
            return
        self._size = 0
        if self._append_all(self.pending()) and (not self._is_synced or self._sync_now()):
            _remove(former[0], former[1])
        else:
            _remove(self._file, self._path)
            self._file, self._path, self._size = former
        self._compact_at = self._size + COMPACT_BYTES

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
            if path != self._path and path not in self._left:
                taken += self._take_over(path)
        return taken

    def find(self, grant_id: str) -> list[Entry]:
        """
        Return the answers for a grant that this process has, or another living one of this host.

        One that lives may be cut off from the store, or too busy to save. Its file is only read.
        """
        found = {entry.attempt: entry for entry in self._pending.values() if entry.grant_id == grant_id}
        if self._directory is not None:
            for path in self._directory.glob(f"*{SUFFIX}"):
                if path != self._path:
                    found |= {entry.attempt: entry for entry in self._peek(path) if entry.grant_id == grant_id}
        return list(found.values())

    def _peek(self, path: Path) -> list[Entry]:
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return []
        try:
            return self._read(file, quietly=True)[0]
        except OSError:
            return []
        finally:
            os.close(file)

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
            if not os.fstat(file).st_nlink:
                return []  # its owner lives, and goes on in another file
            entries, is_whole = self._read(file)
            new = [entry for entry in entries if entry.attempt not in self._pending]
            unwritten = [entry for entry in entries if entry.attempt not in self._written]
            # The dead process may have had its file on the disk: so must this one's be before that goes.
            is_safe = self._append_all(unwritten) and (not entries or self._sync_now())
            if not is_whole:
                self._left.add(path)  # to a process that has its key, or to the release that wrote it
            elif is_safe:
                path.unlink(missing_ok=True)
        except BlockingIOError:
            return []  # its owner lives
        except OSError as fault:
            log.error("spool_unreadable", extra={"file": path.name, "error": str(fault)})  # noqa: TRY400
            return []
        finally:
            os.close(file)
        if new:
            log.warning("spool_taken_over", extra={"file": path.name, "entries": len(new)})
        return new

    def _read(self, file: int, *, quietly: bool = False) -> tuple[list[Entry], bool]:
        """
        Return the entries of a file without those that were done, and whether every record could be read.

        A cut record at the end was never acknowledged.
        """
        found: dict[str, Entry] = {}
        is_whole = True
        with os.fdopen(os.dup(file), "rb") as reader:
            while len(prefix := reader.read(_LENGTH.size)) == _LENGTH.size:
                (length,) = _LENGTH.unpack(prefix)
                sealed = reader.read(length) if length <= _MAX_RECORD_BYTES else b""
                if len(sealed) != length:
                    break
                try:
                    document = json.loads(self._keyring.open(KIND, KIND, sealed))
                except KeyringError:
                    document = {}
                if document.get("v") != FORMAT:
                    if not quietly:
                        log.error("spool_record_refused", extra={"format": document.get("v")})
                    is_whole = False
                elif "done" in document:
                    found.pop(document["done"], None)
                else:
                    found[document["attempt"]] = _decode(document)
        return list(found.values()), is_whole

    def close(self) -> None:
        """Remove the file if the store has everything; else leave it to the next start."""
        if self._file is None or self._path is None:
            return
        if self._pending:
            os.close(self._file)
        else:
            _remove(self._file, self._path)
        self._file = None


def _remove(file: int | None, path: Path | None) -> None:
    assert file is not None
    assert path is not None
    path.unlink(missing_ok=True)
    os.close(file)


def _sync_directory(directory: Path) -> None:
    """Let the file's name outlive a power cut too."""
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _encode(entry: Entry) -> bytes:
    answer = entry.answer
    return json.dumps(
        {
            "v": FORMAT,
            "attempt": entry.attempt,
            "grant_id": entry.grant_id,
            "provider": entry.provider,
            "subject": entry.subject,
            "chain_length": entry.chain_length,
            "chain_started_at": entry.chain_started_at,
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
    provider, subject = document.get("provider"), document.get("subject")
    chain_started_at = document.get("chain_started_at")
    assert isinstance(audience, dict)
    assert isinstance(answer, dict)
    return Entry(
        attempt=str(document["attempt"]),
        grant_id=str(document["grant_id"]),
        provider=None if provider is None else str(provider),
        subject=None if subject is None else str(subject),
        chain_length=int(str(document["chain_length"])),
        chain_started_at=float(chain_started_at) if isinstance(chain_started_at, int | float) else None,
        audience=of_known_members(Audience, audience),
        answer=of_known_members(
            TokenSet,
            {
                **answer,
                "access_token": AccessToken(answer["access_token"]),
                "refresh_token": answer["refresh_token"] and RefreshToken(answer["refresh_token"]),
                "id_token": answer["id_token"] and IdToken(answer["id_token"]),
            },
        ),
    )

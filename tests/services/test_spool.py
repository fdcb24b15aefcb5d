"""Token responses on the local disk."""

import asyncio
import fcntl
import json
import logging
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.oauth import TokenSet
from broker.core.secret import AccessToken, IdToken, RefreshToken
from broker.errors import ConfigError
from broker.services import spool as spool_module
from broker.services.clock import SystemRandomness
from broker.services.keyring import Keyring, new_key
from broker.services.spool import COMPACT_BYTES, Entry, Spool
from tests.support.grants import answer

KEY = new_key(SystemRandomness())
OTHER_KEY = new_key(SystemRandomness())
texts = st.text(min_size=1)
entries = st.builds(
    Entry,
    attempt=texts,
    grant_id=texts,
    provider=texts,
    subject=st.none() | texts,
    chain_length=st.integers(1),
    chain_started_at=st.none() | st.floats(0, 1e12),
    audience=st.builds(Audience, resource=texts, audience=st.none() | texts, scope=st.none() | texts),
    answer=st.builds(
        TokenSet,
        access_token=st.builds(AccessToken, texts),
        token_type=texts,
        expires_at=st.floats(0, 1e12),
        requested_at=st.floats(0, 1e12),
        refresh_token=st.none() | st.builds(RefreshToken, texts),
        refresh_expires_at=st.none() | st.floats(0, 1e12),
        id_token=st.none() | st.builds(IdToken, texts),
        scope=st.none() | texts,
        session_id=st.none() | texts,
    ),
)


def entry(number: int = 1, *, size: int = 0) -> Entry:
    return Entry(
        attempt=f"a{number}",
        grant_id=f"g{number}",
        provider="corp",
        subject="alice",
        chain_length=number,
        chain_started_at=None,
        audience=DEFAULT_AUDIENCE,
        answer=answer(number, session_id="s" * size),
    )


def opened(directory: Path, *keys: object) -> Spool:
    spool = Spool(directory, Keyring([KEY] if not keys else list(keys)), SystemRandomness())  # type: ignore[arg-type]
    spool.open()
    return spool


def die(spool: Spool) -> None:
    """What the kernel does when the process is killed."""
    assert spool._file is not None
    os.close(spool._file)


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.spool"))


@contextmanager
def full_disk(after_bytes: int) -> Iterator[None]:
    """Let no file grow beyond *after_bytes*: a write that would is cut, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@settings(deadline=None, max_examples=50)
@given(written=st.lists(entries, max_size=4, unique_by=lambda each: each.attempt))
def test_what_a_dead_process_had_is_what_the_next_one_gets(
    tmp_path_factory: pytest.TempPathFactory, written: list[Entry]
) -> None:
    """Each entry is read as it was written, once, in its order."""
    directory = tmp_path_factory.mktemp("spool")
    dead, living = opened(directory), opened(directory)
    for each in written:
        dead.append(each)
    die(dead)

    assert written == living.orphans()
    assert written == living.pending()
    assert [] == living.orphans()
    living.close()


def test_what_was_done_is_not_taken_over(tmp_path: Path) -> None:
    """The store has it."""
    dead, living = opened(tmp_path), opened(tmp_path)
    for number in (1, 2, 3):
        dead.append(entry(number))
    dead.done("a2")
    die(dead)

    assert [entry(1), entry(3)] == living.orphans()
    living.close()


def test_a_file_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    """Its owner saves it."""
    one, other = opened(tmp_path), opened(tmp_path)
    one.append(entry())

    assert [] == other.orphans()
    assert [entry()] == one.pending()
    one.close()
    other.close()


def test_a_file_that_its_living_owner_replaces_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking it, the owner goes on in a new file: what can be locked is nobody's any more."""
    one, other = opened(tmp_path), opened(tmp_path)
    one.append(entry())
    lock = fcntl.flock

    def lock_late(file: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        one._compact()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock_late)

    assert [] == other.orphans()
    assert [entry()] == one.pending()
    one.close()
    other.close()


def test_what_a_living_process_has_can_be_found_and_stays_its_own(tmp_path: Path) -> None:
    """It may be too busy to save it; whoever holds the grant's lease can."""
    one, other = opened(tmp_path), opened(tmp_path)
    one.append(entry(1))
    one.append(entry(2))
    one.done("a2")

    assert [entry(1)] == other.find("g1") == one.find("g1")
    assert [] == other.find("g2")
    assert [] == other.pending()
    assert [entry(1)] == one.pending()
    one.close()
    other.close()


def test_what_was_taken_over_survives_the_next_death_too(tmp_path: Path) -> None:
    """It goes into the taker's own file before the dead one's is removed."""
    first, second, third = (opened(tmp_path) for _ in range(3))
    first.append(entry())
    die(first)
    second.orphans()
    assert 2 == len(files(tmp_path))
    die(second)

    assert [entry()] == third.orphans()
    third.close()


def test_a_cut_record_at_the_end_is_ignored(tmp_path: Path) -> None:
    """It was never acknowledged; all before it is read."""
    dead, living = opened(tmp_path), opened(tmp_path)
    dead.append(entry(1))
    dead.append(entry(2))
    assert dead._path is not None
    os.truncate(dead._path, dead._path.stat().st_size - 1)
    die(dead)

    assert [entry(1)] == living.orphans()
    living.close()


def test_ft_16_a_write_that_a_full_disk_cuts_spoils_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The cut record is taken back, so that those that are written once there is room again can be read."""
    dead, living = opened(tmp_path), opened(tmp_path)
    assert dead.append(entry(1))
    with full_disk(after_bytes=dead._size + 20), caplog.at_level(logging.CRITICAL):
        assert not dead.append(entry(2))
    assert dead.append(entry(3))
    assert 3 == len(dead)  # it still knows all of them
    die(dead)

    assert [entry(1), entry(3)] == living.orphans()
    assert "spool_write_failed" in caplog.text
    living.close()


def test_ft_16_a_dead_process_file_stays_while_there_is_no_room_for_it(tmp_path: Path) -> None:
    """Taking over must not make less safe what was safe."""
    dead, second, third = (opened(tmp_path) for _ in range(3))
    dead.append(entry())
    die(dead)

    with full_disk(after_bytes=10):
        assert [entry()] == second.orphans()
    assert 3 == len(files(tmp_path))
    assert [] == second.orphans()  # now there is room
    assert 2 == len(files(tmp_path))
    die(second)
    assert [entry()] == third.orphans()
    third.close()


def test_cr_04_a_record_of_a_missing_key_is_left_where_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A process that has the key can still save it; the others in the file are saved now."""
    dead = opened(tmp_path, OTHER_KEY, KEY)
    dead.append(entry(1))
    die(dead)
    mixed = files(tmp_path)[0]
    # A second process went on in the same file with the old key: its records can be opened.
    ring = Keyring([KEY])
    sealed = ring.seal("spool", "spool", spool_module._encode(entry(2)))
    with mixed.open("ab") as file:
        file.write(len(sealed).to_bytes(4) + sealed)

    poor = opened(tmp_path)
    assert [entry(2)] == poor.orphans()
    assert [] == poor.orphans()
    assert 1 == caplog.text.count("spool_record_refused")
    assert mixed.exists()
    poor.done("a2")
    poor.close()

    rich = opened(tmp_path, OTHER_KEY, KEY)
    assert [entry(1), entry(2)] == rich.orphans()
    assert not mixed.exists()
    rich.close()


def test_ft_14_an_entry_that_does_not_say_whose_it_is_is_read(tmp_path: Path) -> None:
    """Earlier releases wrote such ones, and read those of this one."""
    dead, living = opened(tmp_path), opened(tmp_path)
    document = json.loads(spool_module._encode(entry()))
    del document["provider"], document["subject"], document["chain_started_at"]
    dead._write(json.dumps(document).encode())
    die(dead)

    assert [replace(entry(), provider=None, subject=None)] == living.orphans()
    living.close()


@pytest.mark.parametrize("place", ["", "audience", "answer"])
def test_ft_14_members_that_a_later_release_added_are_left_out(tmp_path: Path, place: str) -> None:
    """Wherever they are, the answer is saved by the release that was gone back to."""
    dead, living = opened(tmp_path), opened(tmp_path)
    document = json.loads(spool_module._encode(entry()))
    (document[place] if place else document)["added"] = {"by": "a later release"}
    dead._write(json.dumps(document).encode())
    die(dead)

    assert [entry()] == living.orphans()
    living.close()


def test_ft_14_entries_of_another_release_are_left_where_they_are(tmp_path: Path) -> None:
    """A rolling upgrade goes there and back."""
    dead, living = opened(tmp_path), opened(tmp_path)
    dead._write(b'{"v": 2, "attempt": "a9", "something": "new"}')
    dead.append(entry())
    path = dead._path
    die(dead)

    assert [entry()] == living.orphans()
    assert path is not None
    assert path.exists()
    living.close()


def test_garbage_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that nobody sealed brings nothing, however long it says that it is."""
    tmp_path.joinpath("1.spool").write_bytes((5).to_bytes(4) + b"12345")
    tmp_path.joinpath("2.spool").write_bytes(b"\xff" * 50)
    living = opened(tmp_path)

    assert [] == living.orphans()
    assert "spool_record_refused" in caplog.text
    living.close()


def test_the_file_is_emptied_whenever_nothing_is_pending(tmp_path: Path) -> None:
    """The usual refresh leaves nothing behind."""
    spool = opened(tmp_path)
    spool.append(entry())
    spool.done("a1")
    spool.done("a1")
    spool.done("never seen")

    assert (0, 0) == (len(spool), files(tmp_path)[0].stat().st_size)
    spool.close()
    assert [] == files(tmp_path)


def test_the_file_stays_small_though_it_is_never_empty(tmp_path: Path) -> None:
    """One answer that can't be saved doesn't let the others fill the disk, and stays safe meanwhile."""
    dead, living = opened(tmp_path), opened(tmp_path)
    dead.append(entry(1))
    for number in range(2, 1000):
        dead.append(entry(number, size=10_000))
        dead.done(f"a{number}")
        assert sum(path.stat().st_size for path in files(tmp_path)) < COMPACT_BYTES + 100_000
    assert 2 == len(files(tmp_path))
    die(dead)

    assert [entry(1)] == living.orphans()
    living.close()


def test_ft_16_a_file_that_can_not_be_written_anew_is_kept(tmp_path: Path) -> None:
    """Compaction needs room; without it the old file goes on."""
    dead, living = opened(tmp_path), opened(tmp_path)
    dead.append(entry(1, size=1000))
    dead._compact_at = 0
    before = files(tmp_path)
    with full_disk(after_bytes=500):
        dead._compact()
    assert before == files(tmp_path)
    dead.append(entry(2))
    die(dead)

    assert [entry(1, size=1000), entry(2)] == living.orphans()
    living.close()


def test_close_keeps_what_the_store_does_not_have(tmp_path: Path) -> None:
    """The next start saves it."""
    stopped = opened(tmp_path)
    stopped.append(entry())
    stopped.close()
    stopped.close()

    living = opened(tmp_path)
    assert [entry()] == living.orphans()
    living.close()


async def test_sync_reaches_the_disk_and_never_raises(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A disk that fails is logged: the store may still take the answer."""
    spool = opened(tmp_path)
    await spool.sync()
    assert "" == caplog.text
    file, spool._file = spool._file, 10_000
    await spool.sync()
    spool._file = file
    spool.close()
    await spool.sync()

    assert 1 == caplog.text.count("spool_sync_failed")


@contextmanager
def noted(happened: list[tuple[str, str]], *, fails: bool = False) -> Iterator[None]:
    """Note which files are synced and which are removed, in order."""
    fsync, unlink = os.fsync, Path.unlink

    def noted_fsync(file: int) -> None:
        if stat.S_ISREG(os.fstat(file).st_mode):
            happened.append(("fsync", Path(f"/proc/self/fd/{file}").readlink().name))
            if fails:
                raise OSError("no disk")
        fsync(file)

    def noted_unlink(path: Path, missing_ok: bool = False) -> None:
        happened.append(("unlink", path.name))
        unlink(path, missing_ok=missing_ok)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", noted_fsync)
        patch.setattr(Path, "unlink", noted_unlink)
        yield


async def grown(directory: Path) -> tuple[Spool, str]:
    """A spool whose entry is on the disk, and which is to be written anew at the next one that is done; its file."""
    spool = opened(directory)
    spool.append(entry(1))
    await spool.sync()
    spool.append(entry(2, size=COMPACT_BYTES))
    return spool, files(directory)[0].name


@pytest.mark.parametrize("fails", [False, True])
async def test_ft_16_what_was_synced_is_synced_anew_before_its_former_file_goes(tmp_path: Path, fails: bool) -> None:
    """The power may fail at any moment; where it can't be synced, the former file stays."""
    spool, former = await grown(tmp_path)
    happened: list[tuple[str, str]] = []

    with noted(happened, fails=fails):
        spool.done("a2")

    (kept,) = (path.name for path in files(tmp_path))
    assert fails == (kept == former)
    if not fails:
        assert [("fsync", kept), ("unlink", former)] == happened


@pytest.mark.parametrize("fails", [False, True])
async def test_ft_16_what_is_taken_over_is_synced_before_the_dead_process_file_goes(
    tmp_path: Path, fails: bool
) -> None:
    """It may have been synced there; where it can't be, the file stays, at the next look as well."""
    dead, former = await grown(tmp_path)
    die(dead)
    spool = opened(tmp_path)
    (mine,) = {path.name for path in files(tmp_path)} - {former}
    happened: list[tuple[str, str]] = []

    with noted(happened, fails=fails):
        assert ["a1", "a2"] == [taken.attempt for taken in spool.orphans()]
        assert [] == spool.orphans()

    assert ([("fsync", mine)] * 2 if fails else [("fsync", mine), ("unlink", former)]) == happened
    assert fails == ((tmp_path / former) in files(tmp_path))


def test_without_a_directory_it_remembers_and_no_more(tmp_path: Path) -> None:
    """A store that serves several hosts may run without a local disk."""
    spool = Spool(None, Keyring([KEY]), SystemRandomness())
    spool.open()
    assert not spool.append(entry())
    assert [] == spool.orphans()
    assert [entry()] == spool.pending()
    spool.done("a1")
    spool.close()

    assert (0, []) == (len(spool), list(tmp_path.iterdir()))


def test_lk_01_neither_the_file_nor_its_name_tells_anything(tmp_path: Path) -> None:
    """Entries are sealed, and only the owner may read the file."""
    spool = opened(tmp_path / "new")
    # A shorter word would be found in one of some hundred sealed entries.
    spool.append(replace(entry(), grant_id="grant-of-alice"))
    (path,) = files(tmp_path / "new")

    assert not [word for word in (b"rt-1", b"at-1", b"grant-of") if word in path.read_bytes()]
    assert (0o600, 0o700) == (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode))
    spool.close()


def test_a_spool_that_can_not_be_written_refuses_to_open(tmp_path: Path) -> None:
    """A promise would be broken: the start is refused, by the key that says where the directory is."""
    tmp_path.joinpath("file").touch()

    with pytest.raises(ConfigError, match=r"^spool_dir: the spool .*/file can't be made or written: File exists$"):
        opened(tmp_path / "file")


WRITER = """
import os, sys
from pathlib import Path
from tests.services.test_spool import entry
from broker.core.secret import Secret
from broker.services.clock import SystemRandomness
from broker.services.keyring import Keyring
from broker.services.spool import Spool
spool = Spool(Path(sys.argv[1]), Keyring([Secret(sys.argv[2])]), SystemRandomness())
spool.open()
spool.append(entry(1))
spool.append(entry(2))
spool.done("a1")
os.kill(os.getpid(), 9)
"""


async def test_tk_02_a_killed_process_leaves_its_answers(tmp_path: Path) -> None:
    """What was written just before a SIGKILL is there, and its lock is free."""
    killed = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(tmp_path), KEY.reveal())
    living = opened(tmp_path)

    assert -9 == await killed.wait()
    assert [entry(2)] == living.orphans()
    living.close()


def test_processes_that_start_at_once_do_not_take_each_other_for_dead(tmp_path: Path) -> None:
    """Between its creation and its lock a file looks like a dead process'."""
    script = (
        "import sys; from pathlib import Path; from tests.services.test_spool import *\n"
        "from broker.core.secret import Secret\n"
        "for number in range(60):\n"
        "    spool = opened(Path(sys.argv[1]), Secret(sys.argv[2]))\n"
        "    spool.append(entry(number))\n"
        "    assert not spool.orphans(), 'took a living process for a dead one'\n"
        "    assert spool._path.exists()\n"
        "    spool.done(f'a{number}')\n"
        "    spool.close()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), KEY.reveal()]
    racers = [subprocess.Popen(command) for _ in range(3)]

    assert [0, 0, 0] == [racer.wait(60) for racer in racers]
    assert [] == files(tmp_path)

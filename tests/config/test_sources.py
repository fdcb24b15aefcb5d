"""Secrets and files outside of the configuration."""

import os
from pathlib import Path

import pytest

from broker.config.sources import MAX_BYTES, HostSource, Located, Missing, Obtained, PretendedSource
from broker.core.secret import Secret
from broker.services.keyring import decode_key


@pytest.fixture
def source(tmp_path: Path) -> HostSource:
    return HostSource({"SET": "s3cret", "EMPTY": "", "_1": "odd"}, tmp_path)


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("name", "obtained"),
    [
        ("SET", Obtained("s3cret")),
        ("_1", Obtained("odd")),
        ("EMPTY", Missing("a secret in the environment variable EMPTY", "that it is empty")),
        ("UNSET", Missing("the environment variable UNSET", "that it isn't set")),
        ("set me", Missing("the name of an environment variable", "a text that can't be one")),
        ("1SET", Missing("the name of an environment variable", "a text that can't be one")),
        ("SÉT", Missing("the name of an environment variable", "a text that can't be one")),
        ("A" * 300, Missing("the name of an environment variable", "a text that can't be one")),
    ],
)
def test_ad_02_secrets_of_the_environment(source: HostSource, name: str, obtained: Obtained | Missing) -> None:
    """A variable must be set and not empty; what can't be a name isn't repeated, since it may be the secret."""
    assert obtained == source.from_environment(name)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"s3cret", "s3cret"),
        (b"s3cret\n", "s3cret"),
        (b"s3cret\r\n", "s3cret"),
        (b"s3cret\n\n", "s3cret\n"),
        (b" s3cret \n", " s3cret "),
        ("sécret".encode(), "sécret"),
        (b"a\nb\n", "a\nb"),
        (b"x" * MAX_BYTES, "x" * MAX_BYTES),
    ],
)
def test_one_line_break_at_the_end_of_a_file_is_not_the_secrets(
    source: HostSource, tmp_path: Path, content: bytes, text: str
) -> None:
    """What an editor or echo adds is taken off, and nothing else."""
    write(tmp_path / "key", content)
    assert Obtained(text) == source.from_file("key")


def test_a_path_from_the_root_is_taken_as_it_is(source: HostSource, tmp_path: Path) -> None:
    """Only relative paths begin at the configuration's directory."""
    assert Obtained("abc") == source.from_file(str(write(tmp_path / "key", b"abc")))


def test_ad_03_a_secret_that_everybody_can_read_is_noticed(source: HostSource, tmp_path: Path) -> None:
    """A world-readable secret file is taken, and said to be one."""
    write(tmp_path / "key", b"abc", mode=0o644)
    assert Obtained("abc", 'the secret file "key" is readable by every user of this host') == source.from_file("key")


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        (b"", Missing('a secret in the file "key"', "that it is empty")),
        (b"\n", Missing('a secret in the file "key"', "that it is empty")),
        (b"\xff\xfe", Missing('text in UTF-8 in the file "key"', "bytes that are none")),
        (b"x" * (MAX_BYTES + 1), Missing('a file "key" of at most 64KiB', "a larger one")),
    ],
)
def test_ad_02_secret_files_that_are_refused(
    source: HostSource, tmp_path: Path, content: bytes, missing: Missing
) -> None:
    """An empty, binary or huge file is no secret."""
    write(tmp_path / "key", content)
    assert missing == source.from_file("key")


def test_ft_18_a_file_that_is_not_there(source: HostSource) -> None:
    """A missing file is named, with the system's reason."""
    assert Missing(
        'a readable file "key" beside the configuration', "the error: No such file or directory"
    ) == source.from_file("key")
    assert Missing(
        'a readable file "key" beside the configuration', "the error: No such file or directory"
    ) == source.locate("key")
    assert Missing('a readable file "a\\u0000b" beside the configuration', "the error: not a path") == source.from_file(
        "a\0b"
    )
    assert Missing('a readable file "a\\u0000b" beside the configuration', "the error: not a path") == source.locate(
        "a\0b"
    )


def test_a_fifo_is_refused_and_never_waited_for(source: HostSource, tmp_path: Path) -> None:
    """A pipe that nobody writes to doesn't hang the start."""
    os.mkfifo(tmp_path / "pipe")
    assert Missing('a regular file "pipe"', "something else") == source.from_file("pipe")
    assert Missing('a regular file "pipe"', "something else") == source.locate("pipe")


def test_files_that_a_component_reads_are_located(source: HostSource, tmp_path: Path) -> None:
    """A certificate's path is made whole, so that the working directory doesn't matter."""
    path = write(tmp_path / "ca.pem", b"abc")
    assert Located(str(path)) == source.locate("ca.pem")
    assert Located(str(path)) == source.locate(str(path))


def test_an_obtained_secret_hides_itself() -> None:
    """The wrapping of a secret doesn't show it either."""
    assert "s3cret" not in repr(Obtained("s3cret"))


def test_pretended_secrets_differ_and_have_the_form_of_keys() -> None:
    """Each name and path has its own pretended secret, which passes for a ring key; every file is there."""
    source = PretendedSource()
    obtained = [source.from_environment("A"), source.from_environment("B"), source.from_file("A")]
    keys = {decode_key(Secret(one.text)) for one in obtained if isinstance(one, Obtained)}
    assert 3 == len(keys)
    assert Located("anything") == source.locate("anything")

"""The command line."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

import broker.__main__ as command_line
from broker import __version__
from broker.__main__ import main
from broker.config.schema import schema_text
from broker.core.secret import Secret
from broker.services.keyring import decode_key
from tests.config.configs import ENVIRONMENT, over_base
from tests.support.certificates import Authority

ROOT = Path(__file__).parents[1]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KEY", ENVIRONMENT["KEY"])
    path = tmp_path / "broker.yaml"
    path.write_text(over_base(""))
    return path


def helps(parser: argparse.ArgumentParser) -> list[str]:
    """Return the help of a parser and of all of its commands."""
    found = [parser.format_help()]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found += helps(command)
    return found


def test_the_commands_are_a_public_surface(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command or an option that comes, goes or changes its name is seen in review: scripts of users depend on it."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    separator = f"\n{'-' * 100}\n"
    assert (ROOT / "tests/golden/cli.txt").read_text() == separator.join(helps(command_line._parser()))


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    """``--version`` names the program and its version."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert 0 == caught.value.code
    assert f"token-broker {__version__}\n" == capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["check"], ["check", "--pretend", "x"], ["keys"], ["run"]])
def test_a_wrong_command_line_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong command line exits with 2 and shows the usage; options can't be abbreviated."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert 2 == caught.value.code
    assert capsys.readouterr().err.startswith("usage: token-broker")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["grants", "list", "c", "--subject", "x"], "--provider and --subject go together"),
        (["grants", "import", "c"], "--provider and --subject go together, or --grant takes their place"),
        (["grants", "import", "c", "--provider", "p"], "--provider and --subject go together, or --grant takes"),
        (["grants", "import", "c", "--provider", "p", "--subject", "s", "--grant", "g"], "--provider and --subject go"),
        (["grants", "import", "c", "--grant", "g", "--label", "x"], "--grant issues no handle that could have bounds"),
        (["login", "c"], "--provider is needed, or --grant in its place"),
        (["login", "c", "--provider", "p", "--grant", "g"], "--provider is needed, or --grant in its place"),
        (["login", "c", "--grant", "g", "--route", "/"], "--grant issues no handle that could have bounds"),
    ],
)
def test_options_that_dont_go_together_are_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are a wrong command line like any other, with the usage of the command; no configuration is read."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    err = capsys.readouterr().err
    assert 2 == caught.value.code
    command = " ".join(arguments[: arguments.index("c")])
    assert err.startswith(f"usage: token-broker {command} ")
    assert f"token-broker {command}: error: {said}" in err


def test_a_good_configuration_is_0(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``check`` says that a configuration is good."""
    assert 0 == main(["check", str(config)])
    assert (f"{config}: good\n", "") == tuple(capsys.readouterr())


def test_ad_03_check_shows_warnings(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``check`` names insecure switches, and takes them."""
    config.write_text(over_base("public_url: http://localhost\n"))
    assert 0 == main(["check", str(config)])
    warning = "without TLS, cookies have no Secure attribute and no prefix: for development"
    assert f"{config}:1:13: warning: public_url: {warning}\n" == capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "run"])
def test_ad_02_a_bad_configuration_is_1(config: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    """Neither ``check`` nor ``run`` takes a bad configuration: each problem is a line on standard error."""
    config.write_text(over_base("workerz: 2\nlog: {access: yes}\n"))
    assert 1 == main([command, str(config)])
    out, err = capsys.readouterr()
    assert not out
    assert [
        f'{config}:1:1: workerz: expected a known key, found the unknown key "workerz" (did you mean workers?)',
        f'{config}:2:15: log.access: expected true or false, found the text "yes"',
    ] == err.splitlines()


@pytest.mark.parametrize("command", ["check", "run"])
def test_cr_07_a_key_of_another_certificate_is_1(
    config: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Both name the option at fault whole, in words of ours; where files are pretended, nothing is said of them."""
    authority = Authority(config.parent)
    own, other = authority.issue("own"), authority.issue("other")
    config.write_text(over_base(f"tls: {{certificate_file: {own.certificate_file}, key_file: {other.key_file}}}\n"))
    assert 1 == main([command, str(config)])
    expected = "expected the private key of the certificate in certificate_file, found that of another one"
    assert [f"tls.key_file: {expected}"] == [line.split(": ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert 0 == main(["check", "--pretend-secrets", str(config)])


def test_check_can_pretend_secrets(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration can be checked where its secrets are not."""
    monkeypatch.delenv("KEY")
    assert 1 == main(["check", str(config)])
    assert 0 == main(["check", "--pretend-secrets", str(config)])


def test_a_new_key_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """``keys new`` prints one key, another one each time."""
    assert (0, 0) == (main(["keys", "new"]), main(["keys", "new"]))
    first, second = capsys.readouterr().out.splitlines()
    assert decode_key(Secret(first)) != decode_key(Secret(second))


def test_a_new_key_is_written_for_its_owner_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``keys new --file`` writes a file that only its owner can read, whatever the umask."""
    path = tmp_path / "key"
    former = os.umask(0)
    try:
        assert 0 == main(["keys", "new", "--file", str(path)])
    finally:
        os.umask(former)
    assert 0o600 == path.stat().st_mode & 0o777
    assert 32 == len(decode_key(Secret(path.read_text().removesuffix("\n"))))
    assert ("", "") == tuple(capsys.readouterr())


def test_a_key_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a file nor what a symbolic link points to is replaced: sessions would be lost with it."""
    path, link = tmp_path / "key", tmp_path / "link"
    path.write_text("precious")
    link.symlink_to(tmp_path / "elsewhere")
    assert (1, 1) == (main(["keys", "new", "--file", str(path)]), main(["keys", "new", "--file", str(link)]))
    assert "precious" == path.read_text()
    assert not (tmp_path / "elsewhere").exists()
    assert f"{path}: the key can't be written: File exists" == capsys.readouterr().err.splitlines()[0]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["keys", "new"], ["schema"]])
def test_output_that_can_not_be_written_is_a_line(arguments: list[str], unbuffered: str) -> None:
    """A full disk is told in one line; who has stopped to read, as ``head`` does, is told nothing."""
    command, environment = [sys.executable, "-m", "broker", *arguments], {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert (1, "token-broker: the output can't be written: No space left on device\n") == (done.returncode, done.stderr)

    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    os.close(writer)
    assert (141, "") == (done.returncode, done.stderr)


def test_a_key_that_can_not_be_written_leaves_no_half_of_it(tmp_path: Path) -> None:
    """The file of a key on a full disk is gone, and the next try isn't refused for it."""
    path = tmp_path / "key"
    program = (
        "import resource, signal, sys; from broker.__main__ import main; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (8, 8)); sys.exit(main(['keys', 'new', '--file', {str(path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (1, f"{path}: the key can't be written: File too large\n") == (done.returncode, done.stderr)
    assert not path.exists()


@pytest.mark.parametrize("port", ["99999", "-1", "http", "9" * 5000])
def test_a_port_that_is_none_is_a_wrong_command_line(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``demo --port`` takes what can be a port."""
    with pytest.raises(SystemExit) as caught:
        main(["demo", f"--port={port}"])
    assert 2 == caught.value.code
    assert "expected a port from 0 to 65535" in capsys.readouterr().err


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """``schema`` prints the JSON Schema, or the reference."""
    assert 0 == main(["schema"])
    assert schema_text() == capsys.readouterr().out
    assert 0 == main(["schema", "--markdown"])
    assert capsys.readouterr().out.startswith("# Configuration\n")


def test_help_needs_no_server() -> None:
    """``--help`` starts without any of the libraries that only serving needs."""
    program = "import sys, runpy; sys.argv = ['x', '--help']; runpy.run_module('broker', run_name='__main__')"
    report = (
        f"try:\n {program}\nexcept SystemExit: print([m for m in ('aiohttp', 'redis', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "[]" == done.stdout.splitlines()[-1]


def test_the_module_is_the_command(config: Path) -> None:
    """``python -m broker`` exits with the command's code."""
    config.write_text("quux: 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "broker", "check", str(config)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert 1 == done.returncode
    assert 3 == len(done.stderr.splitlines())

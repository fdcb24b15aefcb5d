"""A start that is refused says why in one line, which names the key; so does a reload."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.config.configs import ENVIRONMENT, over_base
from tests.support.ports import free_port

pytestmark = pytest.mark.system


def configured(directory: Path, text: str, ports: Mapping[str, int] | None = None) -> Path:
    config = directory / "broker.yaml"
    ports = ports or {"listen": free_port(), "admin.listen": free_port()}
    listen, admin = (f"'127.0.0.1:{port}'" for port in (ports["listen"], ports["admin.listen"]))
    config.write_text(over_base(f"{text}\ngrants: {{}}\nlisten: {listen}\nadmin: {{listen: {admin}}}\n"))
    return config


def command(config: Path) -> list[str]:
    return [sys.executable, "-m", "broker", "run", str(config)]


def refusal(config: Path) -> str:
    """Return the one line that a refused start says."""
    done = subprocess.run(
        command(config), env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=30, check=False
    )
    assert (1, "") == (done.returncode, done.stdout), done.stderr
    [line] = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("spool_dir: /proc/x", "spool_dir: the spool /proc/x can't be made or written"),
        ("store: {url: 'sqlite:///proc/x/broker.db'}", "store.url: the spool /proc/x/broker.db-spool can't be made"),
        ("store: {url: 'sqlite:///proc/x/broker.db'}\nspool_dir: SPOOL", "store.url: /proc/x: No such file"),
        ("store: {url: 'sqlite:///proc/broker.db'}\nspool_dir: SPOOL", "store.url: /proc/broker.db: "),
        ("store: {url: 'sqlite://FILE/broker.db'}\nspool_dir: SPOOL", "store.url: FILE/broker.db: FILE is not a dir"),
        ("store: {url: 'sqlite://FILE'}", "store.url: FILE: SQLITE_NOTADB: file is not a database"),
    ],
)
def test_a_place_that_can_not_be_written_is_named_by_its_key(
    tmp_path: Path, text: str, said: str, workers: int
) -> None:
    """Neither a traceback nor an outage that no waiting ends: one line for all processes, and exit code 1."""
    file = tmp_path / "file"
    file.write_text("not a database, and not a directory " * 100)
    file.chmod(0o600)
    if "store" not in text:
        text = f"store: {{url: 'sqlite://{tmp_path}/broker.db'}}\n{text}"
    for name, path in {"SPOOL": tmp_path / "spool", "FILE": file}.items():
        text, said = text.replace(name, str(path)), said.replace(name, str(path))

    line = refusal(configured(tmp_path, f"{text}\nworkers: {workers}"))

    assert line.startswith(f"token-broker: {said}")


@pytest.mark.parametrize("key", ["listen", "admin.listen"])
def test_an_address_that_is_taken_is_named_with_its_key(tmp_path: Path, key: str) -> None:
    """Of the two listeners it is said which one, and where."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ports = {"listen": free_port(), "admin.listen": free_port()} | {key: taken.getsockname()[1]}
        config = configured(tmp_path, f"store: {{url: 'sqlite://{tmp_path}/broker.db'}}", ports)

        assert f"token-broker: {key}: can't listen on {address}: Address already in use" == refusal(config)


def test_metrics_without_a_place_refuse_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several workers share their metrics in files, whose directory may not be there."""
    config = configured(tmp_path, f"store: {{url: 'sqlite://{tmp_path}/broker.db'}}\nworkers: 2")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/proc/x")

    assert refusal(config).startswith("token-broker: the start failed: [Errno 2] No such file or directory: '/proc/x/")


def test_nothing_is_left_of_a_refused_start(tmp_path: Path) -> None:
    """The spool's file goes with the process that made it."""
    (tmp_path / "file").write_text("x" * 4096)
    (tmp_path / "file").chmod(0o600)

    _ = refusal(configured(tmp_path, f"store: {{url: 'sqlite://{tmp_path}/file'}}\nspool_dir: {tmp_path}/spool"))

    assert [] == list((tmp_path / "spool").iterdir())


def test_a_reload_that_can_not_start_says_why(tmp_path: Path) -> None:
    """The reason comes from the new process, over the pipe by which it would say that it serves."""
    config = configured(tmp_path, f"store: {{url: 'sqlite://{tmp_path}/broker.db'}}")
    before = config.read_text()
    with subprocess.Popen(
        command(config), env={**os.environ, **ENVIRONMENT}, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            assert running.stderr is not None
            said = iter(running.stderr.readline, "")
            assert any('"event":"started"' in line for line in said)
            time.sleep(0.1)
            config.write_text(f"spool_dir: /proc/x\n{before}")
            running.send_signal(signal.SIGHUP)
            line = next(line for line in said if '"event":"reload_refused"' in line)
            assert '"reason":"spool_dir: the spool /proc/x can\'t be made or written' in line
        finally:
            running.terminate()
        assert 0 == running.wait(20)

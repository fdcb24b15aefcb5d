"""A server that nobody here wrote, in processes of its own."""

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

POLL_SECONDS = 0.05


@contextlib.contextmanager
def server_process(
    command: Sequence[str | Path],
    *,
    ready_url: str,
    log: Path,
    seconds: float = 60.0,
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """
    Run *command* until the block ends, and give its pid once *ready_url* answers 200.

    Args:
        command: The program and its arguments.
        ready_url: On loopback.
        log: Takes what it prints.
        seconds: How long its start may take.
        directory: Where it runs.
        environment: Further variables.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=directory,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # a group of its own, so that its children end with it
        )
    try:
        _wait_until_ready(process, ready_url, log, seconds)
        yield process.pid
    finally:
        _end(process)


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        assert process.poll() is None, f"{url} ended at its start:\n{log.read_text()[-4000:]}"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):  # urllib's errors are OSErrors
            return
        assert time.monotonic() < deadline, f"{url} did not answer in {seconds} s:\n{log.read_text()[-4000:]}"
        time.sleep(POLL_SECONDS)  # nothing but an answer says that somebody else's server is ready


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # whoever of the group is left
    process.wait()

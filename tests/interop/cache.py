"""What the servers are made of and Git must not hold: fetched and unpacked once, kept in ``tests/.cache``."""

import fcntl
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".cache"


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """
    Return the directory *name* of the cache, after *make* has filled it if nobody has before.

    What *make* leaves undone is begun anew the next time. The name must change with what is in it.
    """
    CACHE.mkdir(exist_ok=True)
    place, done = CACHE / name, CACHE / f"{name}.done"
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs in one work tree
        if not done.exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            make(place)
            done.touch()
    return place


def run(*command: str | Path, seconds: float, directory: Path | None = None) -> str:
    """Return the output of a command that must succeed within *seconds*."""
    process = subprocess.run(
        [str(word) for word in command],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert process.returncode == 0, f"{' '.join(map(str, command))} failed:\n{process.stdout[-4000:]}"
    return process.stdout

"""
A broker whose wall clock a test sets while it runs.

``python -m tests.support.shifted_clock FILE run CONFIG`` runs the broker as the command line does. The file holds by how
many seconds its clock is off; the operating system's own clock is everybody's, and can't be set for one process.
"""

import mmap
import struct
import sys
import time
from pathlib import Path

_CELL = struct.Struct("d")


class Shift:
    """A number of seconds that the test and the broker share."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(_CELL.pack(0.0))
        with path.open("r+b") as file:
            self._cell = mmap.mmap(file.fileno(), _CELL.size)

    @property
    def seconds(self) -> float:
        value: float = _CELL.unpack_from(self._cell)[0]
        return value

    @seconds.setter
    def seconds(self, value: float) -> None:
        _CELL.pack_into(self._cell, 0, value)


def main(path: Path, arguments: list[str]) -> int:
    shift, unshifted = Shift(path), time.time
    vars(time)["time"] = lambda: unshifted() + shift.seconds

    from broker.__main__ import main as run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))

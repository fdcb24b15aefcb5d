"""
What came of reloads. The supervisor writes it down, and each of its processes can read it.

It is in memory that a fork shares: the process that answers for the metrics was forked long before the reload that the
supervisor refuses, and is none of those that it begins.
"""

import mmap
import struct

_FIELDS = struct.Struct("=QQB")


class Reloads:
    """Counts reloads."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _FIELDS.size)
        _FIELDS.pack_into(self._memory, 0, 0, 0, True)

    def note(self, *, is_successful: bool) -> None:
        """Count one more. Only the supervisor does, so nothing is written by two."""
        succeeded, refused, _ = self._read()
        _FIELDS.pack_into(self._memory, 0, succeeded + is_successful, refused + (not is_successful), is_successful)

    @property
    def succeeded(self) -> int:
        """How many brought a new configuration."""
        return self._read()[0]

    @property
    def refused(self) -> int:
        """How many left the former one."""
        return self._read()[1]

    @property
    def is_last_successful(self) -> bool:
        """Whether the last one succeeded, or there was none: what runs is what the file says, as far as was asked."""
        return self._read()[2]

    def _read(self) -> tuple[int, int, bool]:
        succeeded, refused, is_last_successful = _FIELDS.unpack_from(self._memory)
        return succeeded, refused, bool(is_last_successful)

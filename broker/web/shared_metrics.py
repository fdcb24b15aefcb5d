"""
Where several processes keep the metrics that they share.

prometheus_client decides when it is imported, by a variable, whether it shares. So no process imports it before it
knows with whom it serves, and the supervisor never does.
"""

import os
import shutil
import tempfile
from pathlib import Path

from broker.errors import ConfigError

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


class SharedMetrics:
    """A directory of the supervisor's, unless the operator has named one."""

    def __init__(self) -> None:
        self._own: str | None = None

    @property
    def directory(self) -> str:
        """Its path. It is made when it is asked for first. Raises ``ConfigError`` if there is no place for it."""
        if VARIABLE in os.environ:
            return os.environ[VARIABLE]
        if self._own is None:
            try:
                self._own = tempfile.mkdtemp(prefix="token-broker-metrics-")
            except OSError as fault:
                what = f"the metrics of several workers need a directory for temporary files (TMPDIR, or {VARIABLE})"
                raise ConfigError(f"{what}: {fault.strerror or fault}") from fault
        return self._own

    def forget(self, pid: int) -> None:
        """Take out the gauges of a process that has ended. What it has counted stays."""
        directory = os.environ.get(VARIABLE, self._own)
        for path in Path(directory).glob(f"gauge_live*_{pid}.db") if directory is not None else ():
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Delete the directory, if it is the supervisor's own."""
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)

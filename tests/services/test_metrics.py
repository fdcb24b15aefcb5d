"""Metrics that several processes share."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

SET = "from broker.services import metrics; metrics.LOAD_SHEDDING.set({value}); print('set', flush=True); input()"
READ = "from broker.services import metrics; print(metrics.highest(metrics.LOAD_SHEDDING))"


def python(code: str, directory: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_highest_value_of_all_processes_that_live(tmp_path: Path) -> None:
    """One that was killed has left its file, and counts no more."""

    def read() -> float:
        with python(READ, tmp_path) as reader:
            return float(reader.communicate()[0])

    alone = read()
    with python(SET.format(value=1), tmp_path) as low, python(SET.format(value=2), tmp_path) as high:
        for process in (low, high):
            assert process.stdout is not None
            assert "set\n" == process.stdout.readline()
        both = read()
        high.kill()
        high.wait()
        left = read()
        low.kill()
    ended = read()

    assert (0.0, 2.0, 1.0, 0.0) == (alone, both, left, ended)
    assert list(tmp_path.glob("gauge_livemax_*.db"))

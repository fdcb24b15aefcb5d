import os
import subprocess
import sys

import aiohttp
import pytest

from broker.web.floors import UnsafeLibrary, check_libraries


def test_sm_02_the_installed_libraries_are_taken() -> None:
    """What the constraints pin is safe."""
    check_libraries()


def test_sm_02_an_old_aiohttp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the floor the start is refused, with both versions in the error."""
    monkeypatch.setattr(aiohttp, "__version__", "3.14.4")

    with pytest.raises(UnsafeLibrary, match=r"3\.14\.5 or newer, not 3\.14\.4"):
        check_libraries()


def test_sm_02_the_pure_python_parser_is_refused() -> None:
    """With AIOHTTP_NO_EXTENSIONS a new process refuses to start."""
    run = subprocess.run(
        [sys.executable, "-c", "from broker.web.floors import check_libraries; check_libraries()"],
        env={**os.environ, "AIOHTTP_NO_EXTENSIONS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert 0 != run.returncode
    assert "AIOHTTP_NO_EXTENSIONS" in run.stderr

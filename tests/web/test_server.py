import sys
from types import SimpleNamespace

import pytest

from broker.web.server import is_compiling


@pytest.mark.parametrize("is_on", [True, False])
def test_pythons_experimental_compiler_is_noticed(monkeypatch: pytest.MonkeyPatch, *, is_on: bool) -> None:
    """Where this Python has one; others have none."""
    monkeypatch.delattr(sys, "_jit", raising=False)
    assert not is_compiling()

    monkeypatch.setattr(sys, "_jit", SimpleNamespace(is_enabled=lambda: is_on), raising=False)
    assert is_on == is_compiling()

"""The limits on callers, as the operator configures them."""

import pytest

from broker.core.limit_options import LimitOptions
from broker.core.options import OptionError


@pytest.mark.parametrize(
    ("key", "value", "refused"),
    [
        ("header_timeout_seconds", 3600.0, 3600.1),
        ("body_timeout_seconds", 0.001, 0.0),
        ("reader_timeout_seconds", 1.0, -1.0),
        ("keepalive_timeout_seconds", 75.0, float("nan")),
        ("max_header_field_bytes", 1 << 10, (1 << 10) - 1),
        ("max_header_field_bytes", 1 << 20, (1 << 20) + 1),
        ("max_connections", 1, 0),
        ("max_memory_bytes", 128 << 20, (128 << 20) - 1),
    ],
)
def test_bounds(key: str, value: float, refused: float) -> None:
    """The last good value and the first bad one; the mistake names the key as the YAML spells it."""
    assert value == getattr(LimitOptions(**{key: value}), key)  # type: ignore[arg-type]
    with pytest.raises(OptionError) as error:
        LimitOptions(**{key: refused})  # type: ignore[arg-type]
    assert key.removesuffix("_seconds").removesuffix("_bytes") == error.value.key


def test_no_memory_limit_of_its_own() -> None:
    """Unless it is configured, the container's alone counts."""
    assert LimitOptions().max_memory_bytes is None

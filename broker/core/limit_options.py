"""What callers may take of the broker's time, memory and connections, as the operator configures it."""

from dataclasses import dataclass

from broker.core.options import OptionError, option

MIN_BYTES_PER_SECOND = 256
"""A body that comes more slowly than this is cut off, and so is a caller that takes an answer more slowly."""
GRACE_SECONDS = 30.0
"""How long, at its beginning, a body may be slower."""
MIN_MEMORY_BYTES = 128 << 20
"""With less, a process that has nothing to do would be near its limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitOptions:
    """Limits on callers' connections. Bodies and rates are limited by routes."""

    header_timeout_seconds: float = option(
        "How long the head of a request may take to arrive; and, before it, the handshake of TLS.", default=15.0
    )
    body_timeout_seconds: float = option(
        "How long a caller may send nothing of a body that it has begun. On the whole it must be faster than "
        f"{MIN_BYTES_PER_SECOND} bytes a second.",
        default=30.0,
    )
    reader_timeout_seconds: float = option(
        "How long a caller may take nothing of an answer that waits for it. On the whole, once it has waited for so "
        f"long, it must be taken faster than {MIN_BYTES_PER_SECOND} bytes a second.",
        default=60.0,
    )
    keepalive_timeout_seconds: float = option("How long a connection is kept open between two requests.", default=75.0)
    max_header_field_bytes: int = option("The longest header field, or request target.", default=16 << 10)
    max_connections: int = option("How many connections one process takes.", default=20_000)
    max_memory_bytes: int | None = option(
        "How much memory one process may have in use. Near it new requests are refused with 503 `overloaded`, and then "
        "new connections, until enough is free again. Whether it is set or not, the limit of the container is heeded "
        "in the same way; set it where there is no container, or where one of several `workers` must not take all.",
        default=None,
        example="512MiB",
    )

    def __post_init__(self) -> None:
        for key in ("header_timeout", "body_timeout", "reader_timeout", "keepalive_timeout"):
            if not 0 < getattr(self, f"{key}_seconds") <= 3600:
                raise OptionError(key, "a duration above 0 and at most 1h")
        if not 1 << 10 <= self.max_header_field_bytes <= 1 << 20:
            raise OptionError("max_header_field", "a size from 1KiB to 1MiB")
        if self.max_connections < 1:
            raise OptionError("max_connections", "a number above 0")
        if self.max_memory_bytes is not None and self.max_memory_bytes < MIN_MEMORY_BYTES:
            raise OptionError("max_memory", f"a size of at least {MIN_MEMORY_BYTES >> 20}MiB")

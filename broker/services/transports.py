"""What asyncio's transports, and uvloop's, don't tell alike."""

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import Final

PROBED_AFTER_SECONDS: Final = 60
"""How long nothing may have come from the other end until the kernel asks whether it is there."""
PROBED_EVERY_SECONDS: Final = 15
MAX_PROBES: Final = 4
"""After so many that nobody answered, the connection is lost."""

# Where the system has them; else its own times hold, which are hours.
_PROBING: Final = tuple(
    (getattr(socket, name), value)
    for name, value in (
        ("TCP_KEEPIDLE", PROBED_AFTER_SECONDS),
        ("TCP_KEEPINTVL", PROBED_EVERY_SECONDS),
        ("TCP_KEEPCNT", MAX_PROBES),
    )
    if hasattr(socket, name)
)


def unsent_bytes(transport: asyncio.Transport) -> int:
    """Return how much the loop has yet to give to the kernel. Over TLS that is what isn't encrypted yet."""
    try:
        return transport.get_write_buffer_size()
    except AttributeError:  # asyncio's TLS transport forgets its protocol when it is closed once more
        return 0


def is_end_said(transport: asyncio.BaseTransport) -> bool:
    """
    Return, when no more bytes come, whether the other end has said so: over TLS, by a closure alert. Without one,
    anybody in between may have cut the connection.

    asyncio calls ``eof_received`` in both cases, uvloop only after an alert.

    Source: RFC 8446 section 6.1; RFC 9112 section 9.8.
    """
    tls = transport.get_extra_info("ssl_object")
    if tls is None:
        return True
    try:
        return not tls.read(1)
    except ssl.SSLZeroReturnError:
        return True
    except ssl.SSLError:  # it waits for more
        return False


def probe(transport: asyncio.BaseTransport) -> None:
    """
    Have the kernel find out whether the other end of a connection, which may be silent for ever, is still there.

    Source: RFC 9293 section 3.8.4.
    """
    raw = transport.get_extra_info("socket")
    if raw is None or raw.family == socket.AF_UNIX:
        return
    with suppress(OSError, ValueError):  # it is being closed
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _PROBING:
            raw.setsockopt(socket.IPPROTO_TCP, option, value)

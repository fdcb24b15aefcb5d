"""What asyncio's transports, and uvloop's, don't tell alike."""

import asyncio
import ssl


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

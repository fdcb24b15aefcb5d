"""What asyncio's transports, and uvloop's, don't tell alike."""

import asyncio


def unsent_bytes(transport: asyncio.Transport) -> int:
    """Return how much the loop has yet to give to the kernel. Over TLS that is what isn't encrypted yet."""
    try:
        return transport.get_write_buffer_size()
    except AttributeError:  # asyncio's TLS transport forgets its protocol when it is closed once more
        return 0

"""Ports for servers that are started by their number, or again on the one that they had."""

import random
import socket
from collections import deque

_given: deque[int] = deque(maxlen=2000)
"""One that was given isn't taken yet, perhaps, and nobody may be given it again."""


def free_port() -> int:
    """
    Return a TCP port of 127.0.0.1 that was free a moment ago.

    It is below those that outgoing connections are given, so that none of them takes it before the server does, or while
    the server is down: nor does a client that tries to reach the server then reach itself.
    """
    while True:
        port = random.SystemRandom().randrange(12_000, 32_000)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.append(port)
        return port

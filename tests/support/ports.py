"""Ports for servers that are started by their number, or again on the one that they had."""

import random
import socket


def free_port() -> int:
    """
    Return a TCP port of 127.0.0.1 that was free a moment ago.

    It is below those that outgoing connections are given, so that none of them takes it before the server does, or while
    the server is down: nor does a client that tries to reach the server then reach itself.
    """
    while True:
        port = random.SystemRandom().randrange(12_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port

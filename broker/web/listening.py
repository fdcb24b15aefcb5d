"""The sockets on which the broker listens. They outlive the processes that serve on them, and the configuration."""

import socket
from collections.abc import Mapping, Sequence
from typing import Final

from broker.errors import ConfigError

BACKLOG: Final = 1024
"""How many callers may wait to be accepted on each socket, where the kernel allows as many."""

Address = tuple[str, int]
"""A host and a port."""
Wanted = Mapping[str, tuple[Address, int]]
"""The sockets that there must be, by the key that says where: their address, and how many at least."""


def listening_sockets(host: str, port: int, count: int) -> list[socket.socket]:
    """
    Open *count* sockets on one address.

    Raises:
        OSError: If the address can't be bound.
    """
    opened: list[socket.socket] = []
    try:
        while len(opened) < count:
            opened.append(_listening(host, opened[0].getsockname()[1] if opened else port, joins=bool(opened)))
    except OSError:
        for each in opened:
            each.close()
        raise
    return opened


def _listening(host: str, port: int, *, joins: bool) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if joins:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    # The first one is bound alone, so that a second broker on the same port is refused. Then others may join it.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.setblocking(False)
    return listening


class Listeners:
    """
    The sockets of an installation, by the keys that say where they are.

    A socket whose address stays is never closed: whoever waits in its backlog would be refused.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[str, Address], list[socket.socket]] = {}

    def open(self, wanted: Wanted) -> dict[str, list[socket.socket]]:
        """
        Return the sockets that are *wanted*, and open those that are missing.

        Args:
            wanted: The sockets.

        Raises:
            ConfigError: If an address can't be bound. Then none is opened.
        """
        opened: dict[tuple[str, Address], list[socket.socket]] = {}
        for key, (address, count) in wanted.items():
            try:
                opened[key, address] = _more(self._open.get((key, address), []), address, count)
            except OSError as fault:
                _close(opened)
                raise ConfigError(f"{key}: can't listen on {_shown(address)}: {fault.strerror or fault}") from fault
        for place, sockets in opened.items():
            self._open[place] = [*self._open.get(place, []), *sockets]
        return {key: self._open[key, address] for key, (address, _) in wanted.items()}

    def close_others(self, wanted: Wanted) -> None:
        """Close the sockets whose addresses aren't *wanted*."""
        kept = {(key, address) for key, (address, _) in wanted.items()}
        gone = {place: self._open.pop(place) for place in self._open.keys() - kept}
        _close(gone)

    def close_all_but(self, kept: Sequence[socket.socket]) -> None:
        """Close, in the process of a worker, what belongs to others: else it would listen on for them."""
        for group in self._open.values():
            for each in group:
                if each not in kept:
                    each.close()


def _more(there: list[socket.socket], address: Address, count: int) -> list[socket.socket]:
    host, port = address
    if not there:
        return listening_sockets(host, port, count)
    bound = there[0].getsockname()[1]
    return [_listening(host, bound, joins=True) for _ in range(count - len(there))]


def _shown(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _close(sockets: Mapping[tuple[str, Address], list[socket.socket]]) -> None:
    for group in sockets.values():
        for each in group:
            each.close()

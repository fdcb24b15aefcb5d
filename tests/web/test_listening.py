"""The sockets on which the broker listens."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from broker.errors import ConfigError
from broker.web.listening import Address, Listeners, listening_sockets

ANY = ("127.0.0.1", 0)


@contextmanager
def closing(*sockets: socket.socket) -> Iterator[None]:
    try:
        yield
    finally:
        for each in sockets:
            each.close()


def wanted(public: int, admin: Address = ANY) -> dict[str, tuple[Address, int]]:
    return {"listen": (ANY, public), "admin.listen": (admin, 1)}


def test_the_sockets_of_the_workers_share_one_port() -> None:
    """Port 0 is drawn once."""
    sockets = listening_sockets("127.0.0.1", 0, 3)
    with closing(*sockets):
        assert 1 == len({each.getsockname() for each in sockets})
        with socket.create_connection(sockets[0].getsockname()):
            pass


@pytest.mark.parametrize("count", [1, 2])
def test_a_second_broker_on_the_port_is_refused(count: int) -> None:
    """Workers share a port with one another, and with nobody else."""
    sockets = listening_sockets("127.0.0.1", 0, count)
    with closing(*sockets), pytest.raises(OSError, match="in use"):
        listening_sockets("127.0.0.1", sockets[0].getsockname()[1], count)


def test_a_socket_whose_address_stays_is_kept() -> None:
    """More workers get more sockets beside it; for fewer none is closed, since callers wait in its backlog."""
    listeners = Listeners()
    one = listeners.open(wanted(1))["listen"]
    more = listeners.open(wanted(3))["listen"]
    fewer = listeners.open(wanted(2))["listen"]
    listeners.close_others(wanted(2))
    with closing(*more, *listeners.open(wanted(1))["admin.listen"]):
        assert one == more[:1]
        assert more == fewer
        assert 1 == len({each.getsockname() for each in more})


def test_a_socket_whose_address_is_gone_is_closed() -> None:
    """Once the new configuration serves, nobody waits at an old address in vain."""
    listeners = Listeners()
    old = listeners.open(wanted(1))["admin.listen"][0]
    opened = listeners.open(wanted(1, ("127.0.0.2", 0)))
    assert old.fileno() >= 0
    listeners.close_others(wanted(1, ("127.0.0.2", 0)))
    with closing(*opened["listen"], *opened["admin.listen"]):
        assert -1 == old.fileno()
        assert opened["listen"][0].fileno() >= 0


def test_an_address_that_is_taken_opens_nothing() -> None:
    """What was open stays, nothing is open besides, and the error names the key and the address."""
    listeners = Listeners()
    there = listeners.open(wanted(1))
    taken = listening_sockets("127.0.0.1", 0, 1)[0]
    with closing(taken, *there["listen"], *there["admin.listen"]):
        host, port = taken.getsockname()
        said = f"admin.listen: can't listen on {host}:{port}: Address already in use"
        with pytest.raises(ConfigError, match=f"^{said}$"):
            listeners.open(wanted(2, (host, port)))
        assert there == listeners.open(wanted(1))

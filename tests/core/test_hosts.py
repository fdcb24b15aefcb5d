import pytest

from broker.core.hosts import KnownHosts
from broker.errors import BadRequest, UnknownHost

HOSTS = KnownHosts("https://app.example.com", ["api.example.com", "[2001:db8::1]"])


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        (b"app.example.com", "app.example.com"),
        (b"APP.Example.com", "app.example.com"),
        (b"app.example.com.", "app.example.com"),
        (b"app.example.com:443", "app.example.com"),
        (b"app.example.com.:443", "app.example.com"),
        (b"api.example.com", "api.example.com"),
        (b"[2001:DB8::1]:443", "[2001:db8::1]"),
    ],
)
def test_rt_08_a_host_is_known_in_every_legal_spelling(authority: bytes, host: str) -> None:
    """Case and a trailing dot make no other host, and the default port may be named."""
    assert host == HOSTS.match(authority)


@pytest.mark.parametrize(
    "authority",
    [
        b"evil.example",
        b"app.example.com:444",
        b"app.example.com:80",
        b"example.com",
        b"xapp.example.com",
        b"127.0.0.1",
        b"app.example.com.evil.example",
        b"[::1]",
    ],
)
def test_rt_08_another_host_or_port_is_not_served(authority: bytes) -> None:
    """421 for whatever the configuration doesn't name."""
    with pytest.raises(UnknownHost):
        HOSTS.match(authority)


@pytest.mark.parametrize(
    "authority",
    [
        b"user@app.example.com",
        b"app.example.com, evil.example",
        b"app.example.com evil",
        b"app.example.com/x",
        b":443",
        b"app.example.com:",
        b"app.example.com:x",
        b"app.example.com:443:443",
        b"http://app.example.com",
        b"app..com.",
        b"\xc3\xa4pp.example.com",
        b"app.example.com#",
        b"[::1",
        b"app.example.com:999999",
    ],
)
def test_rt_08_what_is_no_host_is_refused(authority: bytes) -> None:
    """400 for what isn't a host with perhaps a port; a host with an empty label is at least not known."""
    with pytest.raises(BadRequest if authority != b"app..com." else UnknownHost):
        HOSTS.match(authority)


def test_a_port_of_the_public_url_must_be_named() -> None:
    """On another port than the scheme's own, the Host has to say so."""
    hosts = KnownHosts("http://localhost:8080")

    assert "localhost" == hosts.match(b"localhost:8080")
    with pytest.raises(UnknownHost):
        hosts.match(b"localhost")


def test_an_address_can_be_the_public_host() -> None:
    """IPv6 addresses stand in brackets."""
    assert "[::1]" == KnownHosts("http://[::1]:8080").match(b"[::1]:8080")

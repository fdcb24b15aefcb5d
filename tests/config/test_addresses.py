"""Where the broker listens, and where the world finds it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config.addresses import ListenAddress, PublicUrl, is_loopback
from broker.core.options import OptionError


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True), ("LOCALHOST", True), ("localhost.", True), ("app.localhost", True),
        ("127.0.0.1", True), ("127.8.9.10", True), ("::1", True), ("[::1]", True),
        ("localhost.example.com", False), ("notlocalhost", False), ("128.0.0.1", False), ("0.0.0.0", False),
        ("::", False), ("::ffff:10.0.0.1", False), ("example.com", False), ("", False),
    ],
)  # fmt: skip
def test_what_is_loopback(host: str, loopback: bool) -> None:
    """Only 127.0.0.0/8, ::1 and the names of localhost are this machine alone."""
    assert loopback == is_loopback(host)


@pytest.mark.parametrize(
    ("text", "address", "local"),
    [
        ("127.0.0.1:8080", ListenAddress("127.0.0.1", 8080), True),
        ("0.0.0.0:80", ListenAddress("0.0.0.0", 80), False),
        ("localhost:0", ListenAddress("localhost", 0), True),
        ("[::1]:8080", ListenAddress("::1", 8080), True),
        ("[0:0::0]:65535", ListenAddress("::", 65535), False),
        ("Broker.Internal:1", ListenAddress("broker.internal", 1), False),
    ],
)
def test_listen_addresses(text: str, address: ListenAddress, local: bool) -> None:
    """A host and a port, with brackets around an IPv6 address."""
    assert address == ListenAddress.from_option(text)
    assert local == address.is_local
    assert address == ListenAddress.from_option(str(address))


@pytest.mark.parametrize(
    "value",
    [
        "", ":8080", "8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:8080/", "::1:80",
        "[::1]", "[127.0.0.1]:80", "[::1%eth0]:80", "http://127.0.0.1:80", "1.2.3:80", "256.0.0.1:80", "a..b:80",
        "-a:80", "a b:80", "ä:80", "127.0.0.1:٨٠", "127.0.0.1:80\n", "*:80", "a" * 300 + ":80", 8080, None, ["a:1"], 1.5,
    ],
)  # fmt: skip
def test_what_is_no_listen_address(value: object) -> None:
    """Everything else is refused rather than guessed."""
    with pytest.raises(OptionError, match="expected an address such as"):
        ListenAddress.from_option(value)


@pytest.mark.parametrize(
    ("text", "origin", "host", "secure"),
    [
        ("https://app.example.com", "https://app.example.com", "app.example.com", True),
        ("https://app.example.com/", "https://app.example.com", "app.example.com", True),
        ("HTTPS://App.Example.COM", "https://app.example.com", "app.example.com", True),
        ("https://app.example.com:443", "https://app.example.com", "app.example.com", True),
        ("https://app.example.com:8443", "https://app.example.com:8443", "app.example.com", True),
        ("https://[2001:DB8::1]:8443", "https://[2001:db8::1]:8443", "[2001:db8::1]", True),
        ("http://localhost:8080", "http://localhost:8080", "localhost", False),
        ("http://127.0.0.1", "http://127.0.0.1", "127.0.0.1", False),
        ("http://[::1]:80", "http://[::1]", "[::1]", False),
    ],
)
def test_public_urls(text: str, origin: str, host: str, secure: bool) -> None:
    """A public URL is an origin in its normal form, as browsers send it."""
    url = PublicUrl.from_option(text)
    assert (origin, origin, host, secure) == (str(url), url.origin, url.host, url.is_secure)
    assert origin == f"{url.scheme}://{url.authority}"


@pytest.mark.parametrize(
    "value",
    [
        "", "app.example.com", "//app.example.com", "https://", "https:app.example.com", "ftp://app.example.com",
        "https://app.example.com/app", "https://app.example.com?", "https://app.example.com#", "https://a@b",
        "https://app.example.com:0x50", "https://app.example.com:99999", "https://app.example.com:", "https://ä.example",
        "https://app.example.com\\@evil", "https://a b", "https://app.example.com\n", "https://[::1", "https://1.2.3",
        "https://0x7f000001.1", "javascript:alert(1)", 5, None, [],
    ],
)  # fmt: skip
def test_what_is_no_public_url(value: object) -> None:
    """A path, a query, credentials, another scheme or another script is refused."""
    with pytest.raises(OptionError, match="expected an origin such as"):
        PublicUrl.from_option(value)


@pytest.mark.parametrize("value", ["http://app.example.com", "http://10.0.0.1:8080", "http://localhost.example.com"])
def test_ad_03_http_is_refused_off_loopback(value: str) -> None:
    """Without TLS only this machine itself may be the public URL."""
    with pytest.raises(OptionError, match="expected an https URL"):
        PublicUrl.from_option(value)


@given(st.text(max_size=30) | st.text(st.sampled_from("htps:/[]@.?#019ab%\\"), max_size=30).map("https://".__add__))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    """No text makes the readers raise anything but OptionError, and what they take reads as itself."""
    for read in (PublicUrl.from_option, ListenAddress.from_option):
        try:
            value = read(text)
        except OptionError:
            continue
        assert value == read(str(value))

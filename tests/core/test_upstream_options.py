from typing import Any

import pytest

from broker.core.client_auth import TlsOptions
from broker.core.options import OptionError
from broker.core.upstream_options import TimeoutOptions, UpstreamAddress, UpstreamOptions


@pytest.mark.parametrize(
    ("url", "address", "authority"),
    [
        ("http://a.internal", UpstreamAddress("a.internal", 80, tls=False), "a.internal"),
        ("https://A.internal:8443/", UpstreamAddress("a.internal", 8443, tls=True), "a.internal:8443"),
        ("https://a.internal:443", UpstreamAddress("a.internal", 443, tls=True), "a.internal"),
        ("http://a.internal:443", UpstreamAddress("a.internal", 443, tls=False), "a.internal:443"),
        (f"http://{'a' * 63}.internal", UpstreamAddress(f"{'a' * 63}.internal", 80, tls=False), f"{'a' * 63}.internal"),
        ("http://10.0.0.1:8080", UpstreamAddress("10.0.0.1", 8080, tls=False), "10.0.0.1:8080"),
        ("https://[2001:db8::1]:8443", UpstreamAddress("2001:db8::1", 8443, tls=True), "[2001:db8::1]:8443"),
        ("unix:/run/app.sock", UpstreamAddress("", 0, tls=False, socket_path="/run/app.sock"), "localhost"),
    ],
)
def test_an_address_is_read_and_named(url: str, address: UpstreamAddress, authority: str) -> None:
    """Scheme, host and port, or a socket; and what the Host field says to it."""
    assert address == UpstreamAddress.parse(url)
    assert authority == address.authority


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a.internal",
        "//a.internal",
        "ftp://a.internal",
        "http://",
        "http://:80",
        "http://a.internal/x",
        "http://a.internal?x",
        "http://a.internal#x",
        "http://u@a.internal",
        "http://u:p@a.internal",
        "http://a.internal:0",
        "http://a.internal:x",
        "http://a.internal:99999",
        "http://a b",
        "http://-a.internal",
        "http://a..internal\r\n",
        f"http://{'a' * 64}.internal",
        f"http://internal.{'a' * 64}",
        "unix:run",
        "unix:/a\x00b",
        "http://[::1",
    ],
)
def test_rt_02_what_is_no_address_is_refused(url: str) -> None:
    """No path, query or credentials, and no host that isn't one."""
    with pytest.raises(OptionError):
        UpstreamAddress.parse(url)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"urls": ()}, "urls"),
        ({"urls": ("https://a", "https://a")}, "urls"),
        ({"urls": ("https://a", "http://b")}, "urls"),
        ({"urls": ("http://a",), "sni": "b"}, "tls"),
        ({"urls": ("http://a",), "tls": TlsOptions(ca_file="/x")}, "tls"),
        ({"urls": ("https://a",), "sni": "B x"}, "sni"),
        ({"urls": ("https://a",), "sni": "a" * 64}, "sni"),
        ({"urls": ("https://a",), "max_connections": 0}, "max_connections"),
        ({"urls": ("https://a",), "max_idle_connections": -1}, "max_idle_connections"),
        ({"urls": ("https://a",), "max_waiting": -1}, "max_waiting"),
        ({"urls": ("https://a",), "max_failures": 0}, "max_failures"),
        ({"urls": ("https://a",), "keepalive_timeout_seconds": 0}, "keepalive_timeout"),
        ({"urls": ("https://a",), "rest_seconds": float("inf")}, "rest"),
    ],
)
def test_what_an_upstream_must_be(options: dict[str, Any], key: str) -> None:
    """Each mistake is refused with its key."""
    with pytest.raises(OptionError) as refused:
        UpstreamOptions(**options)
    assert key == refused.value.key


@pytest.mark.parametrize("key", ["connect", "response_header", "idle"])
@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 86401])
def test_what_a_timeout_must_be(key: str, seconds: float) -> None:
    """Above 0, and at most a day."""
    with pytest.raises(OptionError) as refused:
        TimeoutOptions(**{f"{key}_seconds": seconds})
    assert key == refused.value.key


def test_equal_options_are_one_upstream() -> None:
    """Routes share a pool by its options, so these are values."""
    assert UpstreamOptions(urls=("https://a",)) == UpstreamOptions(urls=("https://a",))
    assert 1 == len({UpstreamOptions(urls=("https://a",)), UpstreamOptions(urls=("https://a",))})

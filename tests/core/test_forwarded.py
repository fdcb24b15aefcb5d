import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.forwarded import MAX_HOPS, TrustedProxies
from broker.errors import BadRequest

TRUSTED = TrustedProxies(["10.0.0.0/8", "fd00::/8", "127.0.0.1"])


@pytest.mark.parametrize(
    ("why", "peer", "fields", "expected"),
    [
        ("nobody in between", "192.0.2.1", [], ["192.0.2.1"]),
        ("an untrusted peer says nothing", "192.0.2.1", [b"6.6.6.6"], ["192.0.2.1"]),
        ("one proxy", "10.0.0.1", [b"192.0.2.1"], ["192.0.2.1", "10.0.0.1"]),
        ("one proxy, and a forged hop", "10.0.0.1", [b"6.6.6.6, 192.0.2.1"], ["192.0.2.1", "10.0.0.1"]),
        ("one proxy, and forged garbage", "10.0.0.1", [b"<script>, 192.0.2.1"], ["192.0.2.1", "10.0.0.1"]),
        ("two proxies", "10.0.0.1", [b"192.0.2.1, 10.0.0.2"], ["192.0.2.1", "10.0.0.2", "10.0.0.1"]),
        ("a forged trusted hop", "10.0.0.1", [b"10.9.9.9, 192.0.2.1, 10.0.0.2"], ["192.0.2.1", "10.0.0.2", "10.0.0.1"]),
        ("two lines", "10.0.0.1", [b"6.6.6.6", b"192.0.2.1"], ["192.0.2.1", "10.0.0.1"]),
        ("only proxies", "10.0.0.1", [b"10.0.0.3, 10.0.0.2"], ["10.0.0.3", "10.0.0.2", "10.0.0.1"]),
        ("a trusted peer that says nothing", "10.0.0.1", [], ["10.0.0.1"]),
        ("with a port", "10.0.0.1", [b"192.0.2.1:5555"], ["192.0.2.1", "10.0.0.1"]),
        ("IPv6", "fd00::1", [b"2001:db8::1"], ["2001:db8::1", "fd00::1"]),
        ("IPv6 with a port", "10.0.0.1", [b"[2001:db8::1]:443"], ["2001:db8::1", "10.0.0.1"]),
        ("IPv6 in another spelling is one client", "10.0.0.1", [b"2001:0DB8:0::1"], ["2001:db8::1", "10.0.0.1"]),
        ("a mapped IPv4 peer", "::ffff:10.0.0.1", [b"192.0.2.1"], ["192.0.2.1", "::ffff:10.0.0.1"]),
        ("a Unix socket has no address", "", [b"6.6.6.6"], [""]),
    ],
)
def test_hd_04_the_caller_is_the_right_most_hop_that_is_not_trusted(
    why: str, peer: str, fields: list[bytes], expected: list[str]
) -> None:
    """Nothing that comes from outside moves the caller's address; the upstream is told who is in between."""
    caller = TRUSTED.caller(peer, fields)

    assert expected == [caller.address, *caller.hops], why
    assert ", ".join(expected).encode() == caller.forwarded_for


@pytest.mark.parametrize(
    "field", [b"", b"unknown", b"_hidden", b"192.0.2.1, <script>", b"192.0.02.1", b"192.0.2.1 10.0.0.1", b"\xff", b"1.2.3"]
)  # fmt: skip
def test_hd_04_a_trusted_proxy_that_writes_no_address_is_refused(field: bytes) -> None:
    """Its neighbour can't be told: to guess would let somebody choose whom limits and logs name."""
    with pytest.raises(BadRequest):
        TRUSTED.caller("10.0.0.1", [field])


def test_hd_04_too_many_hops_are_refused() -> None:
    """Reading them costs time."""
    assert "192.0.2.1" == TRUSTED.caller("10.0.0.1", [b"6.6.6.6, " * (MAX_HOPS - 1) + b"192.0.2.1"]).address
    with pytest.raises(BadRequest):
        TRUSTED.caller("10.0.0.1", [b"6.6.6.6, " * MAX_HOPS + b"192.0.2.1"])


@given(
    st.lists(
        st.ip_addresses().map(str) | st.text(st.characters(codec="latin-1", exclude_characters=","), max_size=12),
        max_size=15,
    )
)
def test_hd_04_what_a_client_writes_never_counts(forged: list[str]) -> None:
    """However odd the forged part is, the address that the proxy saw is named; and nothing from an untrusted peer."""
    field = ",".join([*forged, "192.0.2.1"]).encode("latin-1")

    assert "192.0.2.1" == TRUSTED.caller("10.0.0.1", [field]).address
    assert "192.0.2.9" == TRUSTED.caller("192.0.2.9", [field]).address


@pytest.mark.parametrize("network", ["10.0.0.1/8", "ten", "", "10.0.0.0/33"])
def test_a_wrong_network_is_refused(network: str) -> None:
    """A typing error doesn't trust more or less than was meant."""
    with pytest.raises(ValueError, match=r"appear to be|has host bits"):
        TrustedProxies([network])


def test_many_peers_need_no_more_memory() -> None:
    """What is remembered of them is bounded."""
    trusted = TrustedProxies(["10.0.0.0/8"])
    for number in range(10_000):
        trusted.caller(f"192.0.{number // 256}.{number % 256}", [])
        trusted.caller(f"192.0.{number // 256}.{number % 256}", [b"6.6.6.6"])

    assert len(trusted._remembered) <= 4096
    assert len(trusted._callers) <= 4096

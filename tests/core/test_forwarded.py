import pytest

from broker.core.forwarded import MAX_HOPS, Caller, TrustedProxies
from broker.errors import BadRequest

TRUSTED = TrustedProxies(["10.0.0.0/8", "fd00::/8"])


def test_hd_04_nobody_is_believed_by_default() -> None:
    """Without a configuration the peer is the caller, whatever it says."""
    assert Caller("6.6.6.6") == TrustedProxies().caller("6.6.6.6", [b"1.2.3.4"])


@pytest.mark.parametrize(
    ("peer", "claims", "address", "told"),
    [
        ("6.6.6.6", [b"1.2.3.4"], "6.6.6.6", b"6.6.6.6"),
        ("10.0.0.1", [], "10.0.0.1", b"10.0.0.1"),
        ("10.0.0.1", [b"1.2.3.4"], "1.2.3.4", b"1.2.3.4, 10.0.0.1"),
        ("10.0.0.1", [b"6.6.6.6, 1.2.3.4"], "1.2.3.4", b"1.2.3.4, 10.0.0.1"),
        ("10.0.0.1", [b"6.6.6.6", b"1.2.3.4, 10.9.9.9"], "1.2.3.4", b"1.2.3.4, 10.9.9.9, 10.0.0.1"),
        ("10.0.0.1", [b"nonsense, 1.2.3.4"], "1.2.3.4", b"1.2.3.4, 10.0.0.1"),
        ("10.0.0.1", [b"10.2.2.2, 10.3.3.3"], "10.2.2.2", b"10.2.2.2, 10.3.3.3, 10.0.0.1"),
        ("10.0.0.1", [b"1.2.3.4:4711"], "1.2.3.4", b"1.2.3.4, 10.0.0.1"),
        ("10.0.0.1", [b"[2001:db8::1]:4711"], "2001:db8::1", b"2001:db8::1, 10.0.0.1"),
        ("fd00::1", [b"2001:DB8::1"], "2001:db8::1", b"2001:db8::1, fd00::1"),
        ("::ffff:10.0.0.1", [b"1.2.3.4"], "1.2.3.4", b"1.2.3.4, ::ffff:10.0.0.1"),
        ("", [b"1.2.3.4"], "", b""),
    ],
)
def test_hd_04_the_rightmost_untrusted_hop_is_the_caller(
    peer: str, claims: list[bytes], address: str, told: bytes
) -> None:
    """What stands to the left of it is its own claim, and isn't passed on."""
    caller = TRUSTED.caller(peer, claims)

    assert (address, told) == (caller.address, caller.forwarded_for)


@pytest.mark.parametrize(
    "claim", [b"", b"nonsense", b"1.2.3.4, ", b"1.2.3.4\x00", b"unknown", b"_hidden", b"1.2.3.400"]
)
def test_hd_04_a_trusted_proxy_that_passes_on_nonsense_is_refused(claim: bytes) -> None:
    """Nobody guesses who the caller is."""
    with pytest.raises(BadRequest):
        TRUSTED.caller("10.0.0.1", [claim])


def test_hd_04_a_long_chain_is_refused() -> None:
    """More hops than anybody has."""
    with pytest.raises(BadRequest):
        TRUSTED.caller("10.0.0.1", [b", ".join([b"10.0.0.2"] * (MAX_HOPS + 1))])


def test_what_is_remembered_is_bounded() -> None:
    """As many peers as there are addresses take no more memory than some thousands."""
    trusted = TrustedProxies(["10.0.0.0/8"])
    for number in range(10_000):
        trusted.caller(f"fe80::{number:x}", [b"1.2.3.4"])

    assert 4096 >= len(trusted._remembered)
    assert 4096 >= len(trusted._callers)

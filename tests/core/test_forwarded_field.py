"""``Forwarded``, read strictly and written."""

from ipaddress import ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.core.forwarded import MAX_HOPS, ForwardingField, TrustedProxies
from broker.core.forwarded_field import MAX_BYTES, address_of, read_elements, write_elements
from broker.errors import BadRequest

TRUSTED = TrustedProxies(["10.0.0.0/8", "fd00::/8"], ForwardingField.FORWARDED)
ADDRESSES = st.ip_addresses().map(str)


@pytest.mark.parametrize(
    ("value", "elements"),
    [
        # RFC 7239 section 4
        (b'for="_gazonk"', [{b"for": b"_gazonk"}]),
        (b'For="[2001:db8:cafe::17]:4711"', [{b"for": b"[2001:db8:cafe::17]:4711"}]),
        (
            b"for=192.0.2.60;proto=http;by=203.0.113.43",
            [{b"for": b"192.0.2.60", b"proto": b"http", b"by": b"203.0.113.43"}],
        ),
        (b"for=192.0.2.43, for=198.51.100.17", [{b"for": b"192.0.2.43"}, {b"for": b"198.51.100.17"}]),
        (b"for=192.0.2.43 \t,for=a", [{b"for": b"192.0.2.43"}, {b"for": b"a"}]),
        (b'x="a\\"b, for=c";y=""', [{b"x": b'a"b, for=c', b"y": b""}]),
        (b'for="\\1\\2"', [{b"for": b"12"}]),
    ],
)
def test_fields_by_the_grammar_are_read(value: bytes, elements: list[dict[bytes, bytes]]) -> None:
    """Names in any case, tokens and quoted strings, white space around commas alone."""
    assert elements == read_elements(value)


@pytest.mark.parametrize(
    "value",
    [
        b"", b",", b"for", b"for=", b"=a", b"for=a,", b",for=a", b"for=a,,for=b", b"for=a;", b";for=a", b"for=a;;by=b",
        b"for = a", b"for= a", b"for=a ;by=b", b"for=a; by=b", b" for=a", b"for=a ", b"for=192.0.2.1:80",
        b"for=[::1]", b'for="a', b'for=a"', b'for="a"b', b'for="a"";by=c', b"for='a b'", b'for="a\\"', b'for="a\nb"',
        b"for=a\x00", b'for="\x7f"', b"for=a;for=b", b"for=a;FOR=a", b"x" * 5000, b"for=" + b"a" * MAX_BYTES,
    ],
)  # fmt: skip
def test_hd_04_whatever_else_is_refused(value: bytes) -> None:
    """Nothing is forgiven: what one reader forgives, another reads in another way."""
    with pytest.raises(BadRequest):
        read_elements(value)


@given(st.binary(max_size=80))
def test_hd_04_any_bytes_are_read_or_refused(value: bytes) -> None:
    """No other end is possible, and what is read is made of what was sent."""
    try:
        elements = read_elements(value)
    except BadRequest:
        return
    assert all(elements)
    assert sum(len(name) + len(said) for element in elements for name, said in element.items()) < len(value)


@given(st.text(alphabet='for=by;,"\\ [:]_1.a\t', max_size=40).map(str.encode), ADDRESSES, st.booleans())
@example(b'for="', "2001:db8::1", True)
@example(b'x="\\', "2001:db8::1", True)
@example(b'for=1.2.3.4;x="', "192.0.2.1", True)
def test_hd_04_no_beginning_hides_what_a_proxy_appends(claim: bytes, address: str, is_quoted: bool) -> None:
    """Whatever a caller begins with, the last element is the proxy's, or all is refused."""
    node = address if ":" not in address else f"[{address}]"
    own = f'for="{node}"' if is_quoted or ":" in node else f"for={node}"
    value = claim + b", " + own.encode()
    try:
        caller = TRUSTED.caller("10.0.0.1", [value])
    except BadRequest:
        return
    assert str(ip_address(address)) == caller.address or TRUSTED.trusts(address)
    assert address == address_of(read_elements(value)[-1])


@given(st.lists(ADDRESSES, min_size=1, max_size=5), st.sampled_from([b"app.example.com", b"[::1]:8443", b'a"b\\c']))
def test_what_is_written_is_read_again(addresses: list[str], host: bytes) -> None:
    """The chain of addresses survives, and the last element says which host was asked for, and how."""
    elements = read_elements(write_elements([each.encode() for each in addresses], host=host, proto=b"https"))

    assert addresses == [address_of(element) for element in elements]
    assert (host, b"https") == (elements[-1][b"host"], elements[-1][b"proto"])


def test_a_unix_socket_has_no_address() -> None:
    """It is unknown, in the RFC's word."""
    assert b"for=unknown;host=a;proto=http" == write_elements([b""], host=b"a", proto=b"http")


@pytest.mark.parametrize(
    ("peer", "claims", "address", "told"),
    [
        ("6.6.6.6", [b"for=1.2.3.4"], "6.6.6.6", b"6.6.6.6"),
        ("6.6.6.6", [b"nonsense"], "6.6.6.6", b"6.6.6.6"),
        ("10.0.0.1", [b"for=1.2.3.4"], "1.2.3.4", b"1.2.3.4, 10.0.0.1"),
        ("10.0.0.1", [b"for=6.6.6.6, for=1.2.3.4;proto=https"], "1.2.3.4", b"1.2.3.4, 10.0.0.1"),
        ("10.0.0.1", [b"for=6.6.6.6", b"for=1.2.3.4, for=10.9.9.9"], "1.2.3.4", b"1.2.3.4, 10.9.9.9, 10.0.0.1"),
        ("10.0.0.1", [b"for=_hidden, for=1.2.3.4"], "1.2.3.4", b"1.2.3.4, 10.0.0.1"),
        ("10.0.0.1", [b'for="1.2.3.4:4711"'], "1.2.3.4", b"1.2.3.4, 10.0.0.1"),
        ("fd00::1", [b'for="[2001:DB8::1]:_x"'], "2001:db8::1", b"2001:db8::1, fd00::1"),
    ],
)
def test_hd_04_the_rightmost_untrusted_hop_is_the_caller(
    peer: str, claims: list[bytes], address: str, told: bytes
) -> None:
    """As in ``X-Forwarded-For``."""
    caller = TRUSTED.caller(peer, claims)

    assert (address, told) == (caller.address, caller.forwarded_for)


@pytest.mark.parametrize(
    "claim",
    [
        b"", b"for=unknown", b"for=_hidden", b"by=1.2.3.4", b"for=1.2.3.400", b'for="::1"', b'for="[1.2.3.4]"',
        b'for="[::1"', b'for="1.2.3.4:"', b'for="1.2.3.4:123456"', b"for=1.2.3.4, for=unknown",
        b", ".join([b"for=10.0.0.2"] * (MAX_HOPS + 1)),
    ],
)  # fmt: skip
def test_hd_04_a_trusted_proxy_that_names_nobody_is_refused(claim: bytes) -> None:
    """Nobody guesses who the caller is."""
    with pytest.raises(BadRequest):
        TRUSTED.caller("10.0.0.1", [claim])

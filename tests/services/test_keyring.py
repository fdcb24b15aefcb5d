import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.secret import Secret
from broker.errors import ConfigError, KeyringError
from broker.services.clock import SystemRandomness
from broker.services.keyring import Keyring, XAes256Gcm, _Hmac, decode_key, new_key

OLD = new_key(SystemRandomness())
NEW = new_key(SystemRandomness())


@pytest.mark.parametrize(
    ("key", "aad", "expected"),
    [
        (b"\x01" * 32, b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
        (b"\x03" * 32, b"c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
    ],
)
def test_xaes_agrees_with_the_published_vectors(key: bytes, aad: bytes, expected: str) -> None:
    """The two examples of c2sp.org/XAES-256-GCM, one for each value of the subkey's carry."""
    sealed = XAes256Gcm(key).encrypt(b"ABCDEFGHIJKLMNOPQRSTUVWX", b"XAES-256-GCM", aad)

    assert expected == sealed.hex()
    assert b"XAES-256-GCM" == XAes256Gcm(key).decrypt(b"ABCDEFGHIJKLMNOPQRSTUVWX", sealed, aad)


def test_a_sealed_record_opens_in_its_own_place() -> None:
    """What was sealed for a kind and a name opens for them."""
    ring = Keyring([NEW])

    assert b"token" == ring.open("grant", "g1", ring.seal("grant", "g1", b"token"))


def test_cr_01_a_record_moved_to_another_place_is_refused() -> None:
    """Neither another name nor another kind opens a record."""
    ring = Keyring([NEW])
    sealed = ring.seal("grant", "g1", b"token")

    for kind, name in [("grant", "g2"), ("session", "g1"), ("gran", "tg1"), ("grant", "")]:
        with pytest.raises(KeyringError):
            ring.open(kind, name, sealed)


def test_cr_01_every_flipped_bit_and_every_cut_is_refused_alike() -> None:
    """No alteration opens, and none can be told from another by its error."""
    ring = Keyring([NEW])
    sealed = ring.seal("grant", "g1", b"token")
    altered = [
        bytes([*sealed[:at], sealed[at] ^ 1 << bit, *sealed[at + 1 :]]) for at in range(len(sealed)) for bit in range(8)
    ]
    altered += [sealed[:length] for length in range(len(sealed))]

    messages = set()
    for record in altered:
        with pytest.raises(KeyringError) as refusal:
            ring.open("grant", "g1", record)
        messages.add(str(refusal.value))

    assert 1 == len(messages)


def test_cr_02_no_nonce_repeats() -> None:
    """Ten thousand seals of one record are ten thousand nonces of 192 bits."""
    ring = Keyring([NEW])

    nonces = {ring.seal("grant", "g1", b"")[5:29] for _ in range(10_000)}

    assert 10_000 == len(nonces)


def test_cr_03_sealed_records_and_names_show_nothing() -> None:
    """Neither the record nor its store key holds what it is made from."""
    ring = Keyring([NEW])

    assert b"canary" not in ring.seal("grant", "canary", b"canary")
    assert "canary" not in "".join(ring.lookup_keys("grant", "canary"))


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=200))
def test_the_names_of_records_are_hmacs(key: bytes, message: bytes) -> None:
    """As RFC 2104 has them: every release must find what another has stored."""
    assert hmac.digest(key, message, "sha256").hex() == _Hmac(key).hexdigest(message)


def test_cr_04_rotation_keeps_old_records_until_the_old_key_is_removed() -> None:
    """The old key opens and finds while it is in the ring, whatever its place; then it doesn't."""
    sealed, (name,) = Keyring([OLD]).seal("grant", "g1", b"token"), Keyring([OLD]).lookup_keys("grant", "g1")
    rotating = Keyring([NEW, OLD])

    assert b"token" == rotating.open("grant", "g1", sealed)
    assert name == rotating.lookup_keys("grant", "g1")[1]
    with pytest.raises(KeyringError):
        Keyring([OLD]).open("grant", "g1", rotating.seal("grant", "g1", b"token"))
    with pytest.raises(KeyringError):
        Keyring([NEW]).open("grant", "g1", sealed)


def test_cr_04_a_record_needs_the_key_of_its_name_and_the_key_of_its_seal() -> None:
    """Each by its place in the configuration; a name that no key made needs only the other."""
    other = new_key(SystemRandomness())
    ring = Keyring([NEW, other, OLD])
    names = ring.lookup_keys("grant", "g1")

    by_old, by_new = (Keyring([key]).seal("grant", names[2], b"token") for key in (OLD, NEW))
    assert (3,) == ring.needed_for(names, names[2], by_old)
    assert (1, 3) == ring.needed_for(names, names[2], by_new)
    assert (1,) == ring.needed_for(names, "grant:of-a-key-that-is-gone", by_new)


@pytest.mark.parametrize("key", ["", "short", "A" * 43, "!" * 43, "AAAA" * 11, "x" * 44, "é" * 43])
def test_cr_04_a_weak_key_is_refused(key: str) -> None:
    """Short, long, repeated or undecodable keys stop the start."""
    with pytest.raises(ConfigError):
        decode_key(Secret(key))


def test_cr_04_no_key_and_a_key_named_twice_are_refused() -> None:
    """A ring has at least one key, and each once."""
    with pytest.raises(ConfigError):
        Keyring([])
    with pytest.raises(ConfigError):
        Keyring([NEW, NEW])

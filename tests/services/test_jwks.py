"""Key sets: which keys are used for what. Storms and rotations are in test_id_tokens.py."""

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc.jwk import RSAKey

from broker.errors import ProviderProtocolError
from broker.services.jwks import MAX_KEYS, read_keys
from tests.support.forge import base64url, ec_key, ed_key, public_jwk, rsa_key


def key_set(*keys: Any) -> bytes:
    return json.dumps({"keys": keys}).encode()


def test_keys_fit_their_own_algorithms() -> None:
    """An RSA key checks RS and PS, an EC key ES, an Ed25519 key EdDSA; one with alg only that."""
    keys = read_keys(
        key_set(
            public_jwk(rsa_key(), "r"),
            public_jwk(ec_key(), "e"),
            public_jwk(ed_key(), "o"),
            public_jwk(rsa_key(), "p", alg="PS256"),
        )
    )
    fits = {key.kid: {alg for alg in ("RS256", "PS256", "ES256", "EdDSA", "Ed25519") if key.fits(alg)} for key in keys}

    assert {"r": {"RS256", "PS256"}, "e": {"ES256"}, "o": {"EdDSA", "Ed25519"}, "p": {"PS256"}} == fits


@pytest.mark.parametrize(
    "member",
    [
        {"kty": "oct", "k": base64url(b"x" * 32)},
        {"kty": "RSA", "n": base64url(b"\x80" + bytes(127)), "e": "AQAB"},  # 1024 bits
        {"kty": "RSA", "n": base64url(b"\x80" + bytes(2047)), "e": "AQAB"},  # 16384 bits
        {"kty": "RSA", "n": 7, "e": "AQAB"},
        {"kty": "RSA", "n": "!", "e": "AQAB"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-0", "x": "AA", "y": "AA"},
        {"kty": "OKP"},
        {"kty": ["RSA"]},
        {"kty": "AKP"},
        {},
        7,
        None,
    ],
)
def test_keys_that_cannot_be_used_are_left_out(member: object) -> None:
    """A shared secret, a short, huge, broken or unknown key harms none of the others."""
    assert ["good"] == [key.kid for key in read_keys(key_set(member, public_jwk(ec_key(), "good")))]


@pytest.mark.parametrize("members", [{"use": "enc"}, {"use": ["sig"]}, {"key_ops": ["encrypt"]}])
def test_keys_for_other_uses_are_left_out(members: dict[str, Any]) -> None:
    """A key for encryption checks no signature."""
    with pytest.raises(ProviderProtocolError):
        read_keys(key_set(public_jwk(ec_key(), "a") | members))


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"keys":{}}', b'{"keys":[]}', b"<html>"])
def test_an_empty_set_is_no_set(content: bytes) -> None:
    """Without a single usable key the set is refused, so that the last good one stays."""
    with pytest.raises(ProviderProtocolError):
        read_keys(content)


def test_a_set_is_bounded() -> None:
    """Of thousands of keys only the first few are read."""
    assert MAX_KEYS == len(read_keys(key_set(*(public_jwk(ec_key(), str(n)) for n in range(MAX_KEYS * 10)))))


def test_a_private_key_is_taken_as_its_public_half() -> None:
    """A server that publishes its private key by mistake hands it to nobody here."""
    private = RSAKey.import_key(rsa.generate_private_key(public_exponent=65537, key_size=2048))

    (key,) = read_keys(key_set({**private.as_dict(private=True), "kid": "oops"}))

    assert not key.key.is_private

"""Proofs of possession."""

import base64
import hashlib
import json
from typing import Any

import pytest
from joserfc.jwk import ECKey

from broker.core.compact_jws import read_compact
from broker.core.secret import AccessToken, RefreshToken
from broker.services.clock import SystemRandomness
from broker.services.dpop import MAX_KEYS, MAX_NONCES, Proofs, new_dpop_key, read_dpop_key
from broker.services.id_tokens import verify
from tests.support.clock import ManualClock

NOW = 1_800_000_000
URL = "https://as.example/token"


@pytest.fixture
def proofs() -> Proofs:
    return Proofs(ManualClock(NOW), SystemRandomness())


def test_a_proof_is_for_one_request(proofs: Proofs) -> None:
    """RFC 9449 section 4.2: typ, jwk and a signature by it; jti, htm, htu without query, iat."""
    key = new_dpop_key()

    jws = read_compact(proofs.proof(key, method="POST", url=f"{URL}?a=b#c"))
    other = read_compact(proofs.proof(key, method="POST", url=URL))

    jwk: Any = jws.header["jwk"]
    assert ("dpop+jwt", "ES256", {"kty", "crv", "x", "y"}) == (jws.header["typ"], jws.header["alg"], set(jwk))
    assert verify(jws, "ES256", ECKey.import_key(jwk))
    claims = jws.claims()
    jti = claims.pop("jti")
    assert {"htm": "POST", "htu": URL, "iat": NOW} == claims
    assert jti != other.claims()["jti"]


def test_a_proof_for_an_upstream_is_for_one_token(proofs: Proofs) -> None:
    """RFC 9449 section 7: ath is the hash of the access token that is sent along."""
    key = new_dpop_key()

    claims = read_compact(
        proofs.proof(key, method="GET", url="https://api.example/a", access_token=AccessToken("at"))
    ).claims()

    assert base64.urlsafe_b64encode(hashlib.sha256(b"at").digest()).rstrip(b"=").decode() == claims["ath"]


def test_a_nonce_is_sent_to_the_server_that_gave_it(proofs: Proofs) -> None:
    """A nonce counts for its origin, until a newer one comes."""
    key = new_dpop_key()

    assert proofs.learn(URL, "n-1")
    assert proofs.learn("https://as.example/other", "n-1")
    assert "n-1" == read_compact(proofs.proof(key, method="POST", url=URL)).claims()["nonce"]
    assert "nonce" not in read_compact(proofs.proof(key, method="POST", url="https://b.example/")).claims()
    assert proofs.learn(URL, "n-2")
    assert "n-2" == read_compact(proofs.proof(key, method="POST", url=URL)).claims()["nonce"]


@pytest.mark.parametrize("nonce", [None, "", "a\x00", "ä", 'a"b', "a b", "x" * 5000])
def test_a_senseless_nonce_is_none(proofs: Proofs, nonce: str | None) -> None:
    """A missing, empty or huge nonce, or one of other characters than NQCHAR, is no reason to try again."""
    assert not proofs.learn(URL, nonce)


def test_nonces_are_bounded(proofs: Proofs) -> None:
    """Of many servers' nonces the oldest are forgotten."""
    for number in range(MAX_NONCES * 2):
        proofs.learn(f"https://{number}.example/", "n")

    assert MAX_NONCES == len(proofs._nonces)


def test_keys_are_kept_ready_within_bounds(proofs: Proofs) -> None:
    """A key that comes again isn't read again, and of many keys the oldest are forgotten."""
    text = new_dpop_key().reveal()
    for number in range(MAX_KEYS + 10):
        proofs.proof(RefreshToken(text + " " * number), method="GET", url=URL)

    assert MAX_KEYS == len(proofs._keys)


@pytest.mark.parametrize("text", ["", "{}", "garbage", '{"kty": "oct", "k": "c2VjcmV0"}'])
def test_what_is_no_key_is_not_taken(text: str) -> None:
    """Neither garbage nor a shared secret, nor the public half, nor another curve."""
    with pytest.raises(ValueError, match="P-256"):
        read_dpop_key(text)


def test_only_a_private_key_of_the_right_curve_is_taken() -> None:
    """A key of ours is, and neither its public half nor one that ES256 doesn't fit."""
    key = new_dpop_key()
    assert key == read_dpop_key(key.reveal())
    public = {name: value for name, value in json.loads(key.reveal()).items() if name != "d"}
    for other in (public, ECKey.generate_key("P-384").as_dict(private=True)):
        with pytest.raises(ValueError, match="P-256"):
            read_dpop_key(json.dumps(other))


def test_each_grant_has_a_key_of_its_own() -> None:
    """Two keys differ, and neither shows itself."""
    first, second = new_dpop_key(), new_dpop_key()

    assert first != second
    assert "RefreshToken(…)" == repr(first)

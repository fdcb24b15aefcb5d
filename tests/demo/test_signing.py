"""Signed tokens can be checked with the published keys, and nothing private is published."""

import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from broker.demo.signing import ALGORITHMS, SigningKey


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_signature_is_checked_with_the_published_key(algorithm: str) -> None:
    """The JWKS names the key by ``kid`` and holds only its public part."""
    key = SigningKey(algorithm)
    published = key.jwks()
    decoded = jwt.decode(
        key.sign({"sub": "ada"}, typ="at+jwt"),
        KeySet.import_key_set(published),  # type: ignore[arg-type]  # any mapping
        algorithms=[algorithm],
    )
    assert ({"sub": "ada"}, "at+jwt", algorithm) == (decoded.claims, decoded.header["typ"], decoded.header["alg"])
    assert "'d':" not in str(published)

"""
Proofs of possession (RFC 9449): tokens that are worth nothing without the grant's own key.

A key is made at login and sealed with its grant; a proof is made for each request, with a ``jti`` of its own and the
last nonce that the server asked for.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from urllib.parse import urlsplit

from joserfc.jwk import ECKey

from broker.core.client_auth import AssertionOptions
from broker.core.secret import AccessToken, RefreshToken
from broker.services.clock import Clock, Randomness
from broker.services.signing import SigningKey, load_signing_key

MAX_NONCES = 1024
"""Servers whose nonces are remembered; the oldest is forgotten."""

MAX_NONCE_CHARACTERS = 512


def new_dpop_key() -> RefreshToken:
    """Return a new P-256 key as a JWK in JSON: a secret like the refresh token that it is kept with."""
    return RefreshToken(json.dumps(ECKey.generate_key("P-256").as_dict(private=True)))


def load_dpop_key(key: RefreshToken) -> SigningKey:
    """Return the key that :func:`new_dpop_key` made, ready to sign."""
    return load_signing_key(AssertionOptions(private_key=key, alg="ES256"))


class Proofs:
    """Makes proofs, and remembers the nonces that servers ask for."""

    def __init__(self, clock: Clock, randomness: Randomness) -> None:
        self._clock = clock
        self._randomness = randomness
        self._nonces: dict[str, str] = {}

    def proof(self, key: SigningKey, *, method: str, url: str, access_token: AccessToken | None = None) -> str:
        """
        Return the value of the ``DPoP`` header for one request.

        Args:
            key: The grant's key.
            method: The request's method.
            url: The request's URL; its query and fragment don't count.
            access_token: The token that is sent along to an upstream; None at the token endpoint.

        Source: RFC 9449 sections 4.2 and 7.
        """
        claims: dict[str, object] = {
            "jti": self._randomness.token_bytes(16).hex(),
            "htm": method,
            "htu": url.partition("#")[0].partition("?")[0],
            "iat": int(self._clock.now()),
        }
        if (nonce := self._nonces.get(_origin(url))) is not None:
            claims["nonce"] = nonce
        if access_token is not None:
            digest = hashlib.sha256(access_token.reveal().encode("ascii")).digest()
            claims["ath"] = base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")
        return key.sign(claims, header={"typ": "dpop+jwt", "jwk": key.public_jwk()})

    def learn(self, url: str, headers: Mapping[str, str]) -> bool:
        """
        Remember the nonce that an answer brings.

        Returns:
            Whether there was a new one, so that a request that was refused for want of it may be sent again.

        Source: RFC 9449 section 8.
        """
        nonce = headers.get("DPoP-Nonce")
        if nonce is None or not nonce.isprintable() or not 0 < len(nonce) <= MAX_NONCE_CHARACTERS:
            return False
        origin = _origin(url)
        known = self._nonces.pop(origin, None)
        self._nonces[origin] = nonce
        if len(self._nonces) > MAX_NONCES:
            del self._nonces[next(iter(self._nonces))]
        return nonce != known


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"

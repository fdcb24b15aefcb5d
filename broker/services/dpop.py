"""
Proofs of possession (RFC 9449): tokens that are worth nothing without the grant's own key.

A key is made with a grant and sealed with it; a proof is made for each request, with a ``jti`` of its own and the last
nonce that the server asked for.
"""

import base64
import hashlib
import json
import re
from collections import OrderedDict
from urllib.parse import urlsplit

from joserfc.jwk import ECKey

from broker.core.client_auth import AssertionOptions
from broker.core.secret import AccessToken, RefreshToken
from broker.errors import ConfigError
from broker.services.clock import Clock, Randomness
from broker.services.signing import SigningKey, load_signing_key

MAX_NONCES = 1024
"""Servers whose nonces are remembered; the oldest is forgotten."""

MAX_NONCE_CHARACTERS = 512

MAX_KEYS = 4096
"""Keys that are kept ready to sign, since to read one costs as much as a signature."""


_NONCE = re.compile(rf"[\x21\x23-\x5b\x5d-\x7e]{{1,{MAX_NONCE_CHARACTERS}}}")
"""NQCHAR (RFC 9449 section 8.1)."""


def new_dpop_key() -> RefreshToken:
    """Return a new P-256 key as a JWK in JSON: a secret like the refresh token that it is kept with."""
    return RefreshToken(json.dumps(ECKey.generate_key("P-256").as_dict(private=True)))


def read_dpop_key(text: str) -> RefreshToken:
    """
    Return a key that somebody else made.

    Raises:
        ValueError: If *text* isn't a private P-256 key as a JWK in JSON.
    """
    key = RefreshToken(text)
    try:
        _load(key)
    except ConfigError:
        raise ValueError("no private P-256 key as a JWK") from None
    return key


def _load(key: RefreshToken) -> SigningKey:
    return load_signing_key(AssertionOptions(private_key=key, alg="ES256"))


class Proofs:
    """Makes proofs, and remembers the nonces that servers ask for."""

    def __init__(self, clock: Clock, randomness: Randomness) -> None:
        self._clock = clock
        self._randomness = randomness
        self._nonces: dict[str, str] = {}
        self._keys: OrderedDict[RefreshToken, SigningKey] = OrderedDict()

    def proof(self, key: RefreshToken, *, method: str, url: str, access_token: AccessToken | None = None) -> str:
        """
        Return the value of the ``DPoP`` header for one request.

        Args:
            key: The grant's key, as :func:`new_dpop_key` made it.
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
        signing_key = self._ready(key)
        return signing_key.sign(claims, header={"typ": "dpop+jwt", "jwk": signing_key.public_jwk()})

    def _ready(self, key: RefreshToken) -> SigningKey:
        signing_key = self._keys.get(key)
        if signing_key is None:
            signing_key = self._keys[key] = _load(key)
            if len(self._keys) > MAX_KEYS:
                self._keys.popitem(last=False)
        return signing_key

    def learn(self, url: str, nonce: str | None) -> bool:
        """
        Remember the nonce that an answer brings.

        Args:
            url: The URL of the request.
            nonce: The value of the answer's ``DPoP-Nonce``; None if there is none.

        Returns:
            Whether there was a nonce, so that a request that was refused for want of one may be sent again, once. It
            may be known already: an answer to another request has brought it since.

        Source: RFC 9449 sections 8 and 9.
        """
        if nonce is None or _NONCE.fullmatch(nonce) is None:
            return False
        origin = _origin(url)
        self._nonces.pop(origin, None)
        self._nonces[origin] = nonce
        if len(self._nonces) > MAX_NONCES:
            del self._nonces[next(iter(self._nonces))]
        return True


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"

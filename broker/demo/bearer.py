"""How an API checks a bearer token by itself: the JWT profile for access tokens (RFC 9068 section 4)."""

from collections.abc import Mapping
from typing import Any

import aiohttp
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from broker.demo.signing import ALGORITHMS
from broker.services.clock import Clock


class InvalidToken(Exception):
    """The bearer token is refused (RFC 6750 section 3.1, ``invalid_token``)."""


class BearerCheck:
    """Checks access tokens of one issuer for one audience."""

    def __init__(self, *, issuer: str, audience: str, clock: Clock, http: aiohttp.ClientSession) -> None:
        """
        Args:
            issuer: ``iss`` of the tokens, and where the keys are found.
            audience: What ``aud`` must hold.
            clock: The time.
            http: Fetches the keys.
        """
        self._issuer = issuer
        self._audience = audience
        self._clock = clock
        self._http = http
        self._keys: KeySet | None = None

    async def claims(self, authorization: str | None) -> Mapping[str, Any]:
        """
        Return the claims of the token in an Authorization header.

        Raises:
            InvalidToken: If there is none, or it isn't good here and now.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise InvalidToken("no bearer token")
        try:
            decoded = jwt.decode(token, await self._key_set(), algorithms=list(ALGORITHMS))
        except (JoseError, ValueError) as error:
            raise InvalidToken(type(error).__name__) from None
        claims = decoded.claims
        if decoded.header.get("typ") != "at+jwt":
            raise InvalidToken("not an access token")
        if claims.get("iss") != self._issuer or self._audience not in claims.get("aud", ()):
            raise InvalidToken("for somebody else")
        if not self._clock.now() < claims["exp"]:
            raise InvalidToken("expired")
        return claims

    async def _key_set(self) -> KeySet:
        """The issuer's keys, fetched once: the demo's server never changes them."""
        if self._keys is None:
            async with self._http.get(f"{self._issuer}/jwks") as response:
                self._keys = KeySet.import_key_set(await response.json())
        return self._keys

"""The demo authorization server's signing key (RFC 7517) and the tokens that it signs (RFC 7519)."""

from collections.abc import Mapping
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey

ALGORITHMS = ("RS256", "ES256")


class SigningKey:
    """A private key that is made at start and never leaves the process."""

    def __init__(self, algorithm: str = "RS256", *, key_id: str = "demo-1") -> None:
        """
        Args:
            algorithm: ``RS256``, which every client knows, or ``ES256``, which signs twenty times faster.
            key_id: ``kid`` of the key.
        """
        parameters: Any = {"kid": key_id, "use": "sig", "alg": algorithm}
        self.algorithm = algorithm
        self._header = {"alg": algorithm, "kid": key_id}
        self._key: RSAKey | ECKey = (
            RSAKey.generate_key(2048, parameters) if algorithm == "RS256" else ECKey.generate_key("P-256", parameters)
        )

    def sign(self, claims: Mapping[str, object], *, typ: str = "JWT") -> str:
        """Return *claims* as a JWT with header *typ*."""
        return jwt.encode({**self._header, "typ": typ}, dict(claims), self._key, algorithms=[self.algorithm])

    def jwks(self) -> dict[str, object]:
        """Return the JWK Set with the public key."""
        return {**KeySet([self._key]).as_dict(private=False)}

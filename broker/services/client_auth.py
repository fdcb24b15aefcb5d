"""
How the broker proves that it is the client: one choice, used alike at the token, revocation, introspection and pushed
authorization request endpoints.

Whatever the method, a proof is a set of header fields and of body parameters. A secret never goes into a URL.
"""

import base64
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, assert_never
from urllib.parse import quote_plus

from broker.core.client_auth import AssertionOptions, BasicEncoding, ClientAuthMethod
from broker.core.oauth import TokenFailure
from broker.core.provider import ProviderOptions
from broker.core.secret import AccessToken
from broker.errors import ConfigError
from broker.services.clock import Clock, Randomness
from broker.services.signing import SigningKey, load_signing_key, sign_by_secret

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@dataclass(frozen=True, slots=True)
class Credentials:
    """
    What is added to one request.

    Attributes:
        headers: Header fields.
        parameters: Body parameters.
        client_token: The access token among the headers, if that is the proof.
    """

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    parameters: Mapping[str, str] = field(default_factory=dict, repr=False)
    client_token: AccessToken | None = None


class TokenSource(Protocol):
    """Where the client's own access token comes from (``services.client_token``)."""

    async def get(self) -> AccessToken | TokenFailure: ...

    def reject(self, token: AccessToken) -> None: ...


class ClientAuthentication:
    """One way to authenticate the client of one provider."""

    def __init__(
        self,
        method: ClientAuthMethod,
        options: ProviderOptions,
        *,
        audience: Callable[[], Awaitable[str]],
        clock: Clock,
        randomness: Randomness,
        client_token: TokenSource | None = None,
    ) -> None:
        """
        Args:
            method: Which way.
            options: Of the provider.
            audience: Returns what an assertion is meant for, where the options don't say it.
            clock: For ``iat`` and ``exp``.
            randomness: For ``jti``.
            client_token: Has the client's access token; for ``client_access_token`` only.

        Raises:
            ConfigError: If the key can't be used.
        """
        self._method = method
        self._options = options
        self._audience = audience
        self._clock = clock
        self._randomness = randomness
        self._client_token = client_token
        self._assertion = options.client_assertion or AssertionOptions()
        self._key: SigningKey | None = None
        if method is ClientAuthMethod.PRIVATE_KEY_JWT:
            self._key = load_signing_key(self._assertion)
        if method is ClientAuthMethod.CLIENT_ACCESS_TOKEN and client_token is None:
            raise ConfigError("client_token: client_access_token needs a token to send")

    async def credentials(self) -> Credentials | TokenFailure:
        """
        Return the proof for one request; each request needs its own, since an assertion's ``jti`` is used once.

        Raises:
            ProviderError: If the audience of an assertion can't be had.
        """
        client_id = {"client_id": self._options.client_id}
        match self._method:
            case ClientAuthMethod.NONE | ClientAuthMethod.TLS_CLIENT_AUTH:
                return Credentials(parameters=client_id)
            case ClientAuthMethod.CLIENT_SECRET_BASIC:
                return Credentials(headers={"Authorization": self._basic()})
            case ClientAuthMethod.CLIENT_SECRET_POST:
                return Credentials(parameters={**client_id, "client_secret": self._secret()})
            case ClientAuthMethod.CLIENT_SECRET_JWT | ClientAuthMethod.PRIVATE_KEY_JWT:
                parameters = {"client_assertion_type": ASSERTION_TYPE, "client_assertion": await self._asserted()}
                return Credentials(parameters=parameters | client_id if self._assertion.send_client_id else parameters)
            case ClientAuthMethod.CLIENT_ACCESS_TOKEN:
                return await self._bearer()
            case _:
                assert_never(self._method)

    def renew(self, refused: Credentials) -> bool:
        """Return whether credentials that were just answered with a 401 can be had anew."""
        if self._client_token is None or refused.client_token is None:
            return False
        self._client_token.reject(refused.client_token)
        return True

    async def _bearer(self) -> Credentials | TokenFailure:
        assert self._client_token is not None
        token = await self._client_token.get()
        if isinstance(token, TokenFailure):
            return token
        return Credentials(headers={"Authorization": f"Bearer {token.reveal()}"}, client_token=token)

    def _secret(self) -> str:
        secret = self._options.client_secret
        if secret is None:
            raise ConfigError(f"client_secret: {self._method} needs one")
        return secret.reveal()

    def _basic(self) -> str:
        """Return the header of RFC 6749 section 2.3.1, which encodes both parts first; some servers don't decode."""
        parts = (self._options.client_id, self._secret())
        if self._options.basic_encoding is BasicEncoding.FORM:
            parts = (quote_plus(parts[0]), quote_plus(parts[1]))
        return "Basic " + base64.b64encode(":".join(parts).encode()).decode("ascii")

    async def _asserted(self) -> str:
        """Return a client assertion (RFC 7523 sections 2.2 and 3) with a ``jti`` of its own."""
        assertion = self._assertion
        now = self._clock.now()
        claims: dict[str, object] = {
            "iss": assertion.issuer or self._options.client_id,
            "sub": self._options.client_id,
            "aud": assertion.audience or await self._audience(),
            "iat": int(now),
            "exp": int(now + assertion.lifetime_seconds),
            "jti": self._randomness.token_bytes(16).hex(),
            **assertion.claims,
        }
        if self._key is not None:
            return self._key.sign(claims)
        assert self._options.client_secret is not None  # ProviderOptions demands it for client_secret_jwt
        return sign_by_secret(self._options.client_secret, assertion.alg or "HS256", claims)

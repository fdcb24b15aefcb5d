"""Signed tokens of one issuer that say who somebody is: the signature here, the claims by ``core.id_token``."""

import hmac
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from joserfc.errors import JoseError
from joserfc.jwk import Key
from joserfc.jws import JWSRegistry

from broker.core.compact_jws import CompactJws, MalformedToken, read_compact
from broker.core.id_token import (
    CALLER_TOKEN_TYPES,
    ID_TOKEN_TYPES,
    LOGOUT_TOKEN_TYPES,
    ClaimsRefused,
    Expected,
    LogoutClaims,
    check_access_token_hash,
    check_authentication,
    check_authorization_response,
    check_caller_token,
    check_id_token,
    check_logout_token,
    check_nonce,
    check_type,
)
from broker.core.provider import SYMMETRIC_ALGORITHMS, ProviderOptions
from broker.core.secret import AccessToken, IdToken
from broker.core.troubleshooting import key_of_claim
from broker.errors import LoginFailed, ProviderError
from broker.services.clock import Clock
from broker.services.jwks import Jwks
from broker.services.metadata import Metadata
from broker.services.signing import mac

AUTHORIZATION_RESPONSE_TYPES = frozenset({"jwt", "oauth-authz-resp+jwt"})

MAX_CANDIDATE_KEYS = 8
"""A signature without ``kid`` is tried with so many keys."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """
    What an id token from a login must fit.

    Attributes:
        nonce: Of the login.
        access_token: What came with it.
        parameters: What the login's caller chose among what the configuration allows.
    """

    nonce: str
    access_token: AccessToken
    parameters: Mapping[str, str]


class IdTokens:
    """Checks tokens that say who somebody is. It follows no URL that a token names."""

    def __init__(self, options: ProviderOptions, *, metadata: Metadata, jwks: Jwks, clock: Clock) -> None:
        self._options = options
        self._metadata = metadata
        self._jwks = jwks
        self._clock = clock

    async def check_login(self, id_token: IdToken, login: Login) -> dict[str, object]:
        """
        Return the claims of an id token that came with an authorization code.

        Raises:
            LoginFailed: If it must not be believed.
            ProviderError: If the keys can't be had.

        Source: OpenID Connect Core section 3.1.3.7.
        """
        try:
            jws, claims, expected = await self._verified(id_token.reveal(), ID_TOKEN_TYPES)
            check_id_token(claims, expected)
            check_nonce(claims, login.nonce)
            check_access_token_hash(claims, str(jws.header["alg"]), login.access_token.reveal())
            check_authentication(claims, self._options.asked_at_login(login.parameters), expected)
        except ClaimsRefused as refusal:
            key = key_of_claim(refusal.claim, chosen=login.parameters)
            raise LoginFailed(f"id token refused: {refusal}", look_at=key) from None
        return claims

    async def check_refreshed(self, id_token: IdToken) -> dict[str, object]:
        """
        Return the claims of an id token that came with a refresh. Its nonce may be missing, and its subject is judged
        by the caller.

        Raises:
            ClaimsRefused: If it must be ignored.
            ProviderError: If the keys can't be had.

        Source: OpenID Connect Core section 12.2.
        """
        _jws, claims, expected = await self._verified(id_token.reveal(), ID_TOKEN_TYPES)
        check_id_token(claims, expected)
        return claims

    async def check_logout(self, logout_token: str) -> LogoutClaims:
        """
        Return what a logout token tells.

        One that is the issuer's, and still can't be believed, is logged: its user goes on here.

        Raises:
            ClaimsRefused: If it must not be believed.
            ProviderError: If the keys can't be had.
        """
        _jws, claims, expected = await self._verified(logout_token, LOGOUT_TOKEN_TYPES)
        try:
            return check_logout_token(claims, expected)
        except ClaimsRefused as refusal:
            provider = self._metadata.at.removeprefix("providers.")
            log.warning("logout_token_refused", extra={"provider": provider, "reason": str(refusal)})
            raise

    async def check_caller(self, token: str, *, subject_claim: str) -> tuple[str, float]:
        """
        Return whom an API client's token names, and the Unix seconds from which it is refused.

        Raises:
            ClaimsRefused: If it must not be believed.
            ProviderError: If the keys can't be had.
        """
        _jws, claims, expected = await self._verified(token, CALLER_TOKEN_TYPES)
        return check_caller_token(claims, expected, subject_claim=subject_claim)

    async def check_authorization_response(self, response: str) -> dict[str, str]:
        """
        Return the parameters of a JWT-secured authorization response.

        Raises:
            ClaimsRefused: If it must not be believed.
            ProviderError: If the keys can't be had.
        """
        _jws, claims, expected = await self._verified(response, AUTHORIZATION_RESPONSE_TYPES)
        return check_authorization_response(claims, expected)

    async def _verified(self, token: str, types: frozenset[str]) -> tuple[CompactJws, dict[str, object], Expected]:
        try:
            jws = read_compact(token)
            check_type(jws.header, types)
            await self._check_signature(jws)
            claims = jws.claims()
        except MalformedToken as fault:
            raise ClaimsRefused(str(fault)) from None
        issuer = self._options.issuer or (await self._metadata.server()).issuer
        if issuer is None:
            raise ProviderError("issuer: none is configured, and the metadata names none")
        expected = Expected(
            issuer=issuer,
            client_id=self._options.client_id,
            now=self._clock.now(),
            skew_seconds=self._options.clock_skew_seconds,
        )
        return jws, claims, expected

    async def _check_signature(self, jws: CompactJws) -> None:
        alg, kid = jws.header.get("alg"), jws.header.get("kid")
        # The list is the configuration's: the token chooses from it, and never what isn't there (RFC 8725 section 3.1).
        if not isinstance(alg, str) or alg not in self._options.id_token_algorithms:
            raise ClaimsRefused("alg: the signature's algorithm is not allowed")
        if not isinstance(kid, str | None):
            raise ClaimsRefused("kid: no text")
        if alg in SYMMETRIC_ALGORITHMS:
            verified = self._verify_by_secret(jws, alg)
        else:
            verified = await self._verify_by_jwks(jws, alg, kid)
        if not verified:
            raise ClaimsRefused("the signature is not the issuer's")

    def _verify_by_secret(self, jws: CompactJws, alg: str) -> bool:
        secret = self._options.client_secret
        return secret is not None and hmac.compare_digest(mac(secret, alg, jws.signing_input), jws.signature)

    async def _verify_by_jwks(self, jws: CompactJws, alg: str, kid: str | None) -> bool:
        for missed in (False, True):
            keys = await self._jwks.candidates(kid=kid, alg=alg, missed=missed)
            if any(verify(jws, alg, key.key) for key in keys[:MAX_CANDIDATE_KEYS]):
                return True
        return False


def verify(jws: CompactJws, alg: str, key: Key) -> bool:
    """Return whether *key* made the signature of *jws* by *alg*. Whether *alg* is allowed was judged before."""
    algorithm = JWSRegistry.algorithms[alg]
    try:
        algorithm.check_key(key)
        return algorithm.verify(jws.signing_input, jws.signature, key)
    except (JoseError, ValueError, TypeError):
        return False

"""An authorization server as the broker sees it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from broker.core.audience import Audience
from broker.core.grant import Grant
from broker.core.id_token import ClaimsRefused, LogoutClaims
from broker.core.identity import email_refusal
from broker.core.oauth import TokenOutcome
from broker.core.provider import Dialect, ProviderOptions, ResponseMode
from broker.core.secret import AccessToken, IdToken, RefreshToken, Secret
from broker.core.standing import StandingGrantOptions
from broker.core.troubleshooting import key_of_claim, yaml_path
from broker.errors import BadRequest, LoginFailed, ProviderError
from broker.services.authorization import Authorization, AuthorizationRequest, with_query
from broker.services.clock import Clock, Randomness
from broker.services.device_flow import DeviceFlow
from broker.services.dpop import Proofs, new_dpop_key
from broker.services.first_tokens import FirstTokens
from broker.services.id_tokens import IdTokens, Login
from broker.services.jwks import Jwks
from broker.services.learning import Learning
from broker.services.metadata import Metadata
from broker.services.outbound import Outbound
from broker.services.token_requests import TokenRequests
from broker.services.userinfo import Userinfo

__all__ = ["AuthorizationRequest", "AuthorizationServer", "Identity"]

log = logging.getLogger(__name__)

PROTOCOL_CLAIMS = frozenset(
    {"iss", "sub", "aud", "exp", "iat", "nbf", "nonce", "at_hash", "c_hash", "s_hash", "azp", "jti", "sid", "typ"}
)
"""Claims that are about the token, and say nothing of the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """
    Who logged in, after every check of OpenID Connect Core section 3.1.3.7.

    Where there is no id token, userinfo says it.

    Attributes:
        issuer: ``iss``, or the configured name for plain OAuth 2.0 servers.
        subject: ``sub``.
        provider_session: ``sid``, if there is one.
        claims: The remaining claims.
    """

    issuer: str
    subject: str
    provider_session: str | None
    claims: Mapping[str, object]


class AuthorizationServer:
    """
    One configured provider: its metadata, its keys, and the calls to its endpoints.

    Token requests return a ``TokenOutcome`` and never raise for what the server does. The other calls raise
    ``ProviderError`` when it is down and ``LoginFailed`` when what it sent must be refused.
    """

    def __init__(
        self, name: str, options: ProviderOptions, *, outbound: Outbound, clock: Clock, randomness: Randomness
    ) -> None:
        """
        Args:
            name: The configured name.
            options: How it is spoken to.
            outbound: Requests to it, with its TLS. It is closed with this server.
            clock: The time.
            randomness: For assertions.

        Raises:
            ConfigError: If the client's key can't be used.
        """
        self.name = name
        self.options = options
        self._outbound = outbound
        self._metadata = Metadata(options, outbound=outbound, clock=clock, at=f"providers.{name}")
        self._jwks = Jwks(self._metadata, outbound=outbound, clock=clock)
        self._id_tokens = IdTokens(options, metadata=self._metadata, jwks=self._jwks, clock=clock)
        proofs = Proofs(clock, randomness)
        self._userinfo = Userinfo(options, metadata=self._metadata, outbound=outbound, proofs=proofs)
        self._tokens = TokenRequests(
            name, options, metadata=self._metadata, outbound=outbound, clock=clock, randomness=randomness, proofs=proofs
        )
        self._learning = Learning(name, options, clock=clock)
        self._authorization = Authorization(
            name, options, metadata=self._metadata, requests=self._tokens, clock=clock, randomness=randomness
        )
        self._first_tokens = FirstTokens(self._tokens, clock=clock, randomness=randomness)
        self.device_flow = DeviceFlow(self._tokens, metadata=self._metadata, clock=clock)

    async def authorization_url(self, request: AuthorizationRequest) -> str:
        """Return where the browser is sent to. Raises ``ProviderError`` if the metadata can't be had."""
        return await self._authorization.url(request)

    async def read_response(self, parameters: Mapping[str, str]) -> Mapping[str, str]:
        """
        Return the parameters of an authorization response: as they came, or from the JWT in them (JARM).

        Raises:
            LoginFailed: If the configuration wants a JWT, and there is none that can be believed.
            ProviderError: If the keys can't be had.
        """
        if self.options.response_mode is ResponseMode.QUERY:
            return parameters
        try:
            return await self._id_tokens.check_authorization_response(parameters.get("response", ""))
        except ClaimsRefused as refusal:
            raise LoginFailed(f"authorization response refused: {refusal}") from None

    async def check_issuer(self, iss: str | None) -> None:
        """
        Check the ``iss`` of an authorization response, before any code in it is sent anywhere.

        Raises:
            LoginFailed: If it names another server or one that nobody knows to be the right one, or is missing although
                the server promises it.
            ProviderError: If the metadata can't be had.

        Source: RFC 9207 section 2.4.
        """
        server = await self._metadata.server()
        issuer = self.options.issuer or server.issuer
        if iss is None:
            if server.issuer_in_response:
                raise LoginFailed("iss is missing from the authorization response, although the server promises it")
        elif issuer is None:
            raise LoginFailed("iss: there is no issuer to compare the authorization response's with", look_at="issuer")
        elif iss != issuer:
            raise LoginFailed("iss: the authorization response is from another server")

    def new_dpop_key(self) -> RefreshToken | None:
        """Return a new key to bind a grant's tokens to (RFC 9449), where the configuration wants that; else None."""
        return new_dpop_key() if self.options.dpop else None

    async def exchange_code(
        self, *, code: Secret, code_verifier: Secret, redirect_uri: str, dpop_key: RefreshToken | None = None
    ) -> TokenOutcome:
        """
        Exchange an authorization code (RFC 6749 section 4.1.3).

        Args:
            code: From the authorization response.
            code_verifier: Of the login (RFC 7636 section 4.5).
            redirect_uri: Of the login.
            dpop_key: What :meth:`new_dpop_key` made; it must be kept with the grant.
        """
        return await self._tokens.exchange_code(
            code=code, code_verifier=code_verifier, redirect_uri=redirect_uri, dpop_key=dpop_key
        )

    async def refresh(self, grant: Grant, audience: Audience) -> TokenOutcome:
        """Present the grant's refresh token once (RFC 6749 section 6). Never retries by itself."""
        outcome = await self._tokens.refresh(grant, audience)
        self._learning.watch(grant, outcome)
        return outcome

    async def exchange_token(
        self, subject_token: AccessToken, audience: Audience, *, dpop_key: RefreshToken | None = None
    ) -> TokenOutcome:
        """Exchange an access token for one of another audience (RFC 8693)."""
        return await self._tokens.exchange_token(subject_token, audience, dpop_key=dpop_key)

    async def first_tokens(
        self, grant: StandingGrantOptions, audience: Audience, *, dpop_key: RefreshToken | None = None
    ) -> TokenOutcome:
        """Ask for the tokens of a standing grant (RFC 6749 sections 4.3 and 4.4, RFC 7523 section 2.1)."""
        return await self._first_tokens.standing(grant, audience, dpop_key)

    async def authenticate_session(self, session_id: str, audience: Audience) -> TokenOutcome:
        """Exchange the provider's own session for tokens (Mosaic), when the refresh chain has ended."""
        return await self._first_tokens.by_session(session_id, audience)

    async def identify(
        self,
        *,
        id_token: IdToken | None,
        access_token: AccessToken,
        nonce: str,
        parameters: Mapping[str, str],
        dpop_key: RefreshToken | None = None,
    ) -> Identity:
        """
        Check who logged in.

        Args:
            id_token: From the token response.
            access_token: For userinfo, and for the id token's ``at_hash``.
            nonce: The login's nonce.
            parameters: What the login's caller chose. ``max_age`` and ``acr_values`` are checked against the answer, as
                are the configured ones.
            dpop_key: What the access token is bound to, if it is.

        Raises:
            LoginFailed: If any check fails.
            ProviderError: If keys or userinfo can't be had.
        """
        claims: dict[str, object] = {}
        if id_token is not None:
            login = Login(nonce=nonce, access_token=access_token, parameters=parameters)
            claims = await self._id_tokens.check_login(id_token, login)
        elif "openid" in self.options.scope.split():
            raise LoginFailed("the id token is missing, although the scope asks for openid")
        if id_token is None or self.options.userinfo:
            said = await self._ask_userinfo(str(claims["sub"]) if claims else None, access_token, dpop_key)
            claims = {**said, **claims}
        refusal = self.email_refusal(claims)
        if refusal is not None:
            raise LoginFailed(refusal)
        return self._identity(claims)

    def email_refusal(self, claims: Mapping[str, object]) -> str | None:
        """Return why nobody may log in with *claims*, by the email address among them; None if it isn't refused."""
        return email_refusal(claims, domains=self.options.email_domains, verified=self.options.require_verified_email)

    async def userinfo(
        self, subject: str, access_token: AccessToken, dpop_key: RefreshToken | None
    ) -> Mapping[str, object]:
        """
        Return what userinfo says of *subject*, as :meth:`identify` takes it.

        Raises:
            LoginFailed: If it refuses the token, or speaks of somebody else.
            ProviderError: If it can't be had.
        """
        return self._identity(await self._ask_userinfo(subject, access_token, dpop_key)).claims

    async def _ask_userinfo(
        self, subject: str | None, access_token: AccessToken, dpop_key: RefreshToken | None
    ) -> dict[str, object]:
        said = await self._userinfo.fetch(access_token, dpop_key)
        if subject is not None and said.get("sub") != subject:
            raise LoginFailed("userinfo speaks of another subject")  # OpenID Connect Core section 5.3.2
        return said

    async def check_refreshed(self, id_token: IdToken) -> Identity | None:
        """
        Check an id token that came with a refresh (OpenID Connect Core section 12.2), but for its subject.

        Returns:
            Who it names; None if it must be ignored (a bad signature, issuer or audience, or no keys to check it by).
            Whether the subject is still the same is for the caller to judge.
        """
        try:
            claims = await self._id_tokens.check_refreshed(id_token)
        except (ClaimsRefused, ProviderError) as refusal:
            key = key_of_claim(refusal.claim) if isinstance(refusal, ClaimsRefused) else None
            log.warning(
                "refreshed_id_token_ignored",
                extra={"provider": self.name, "reason": str(refusal), "look_at": yaml_path(self.name, key)},
            )
            return None
        return self._identity(claims)

    async def check_logout_token(self, logout_token: str) -> LogoutClaims:
        """
        Check a logout token (OpenID Connect Back-Channel Logout section 2.6), but for its ``jti`` being new.

        Raises:
            BadRequest: If it must not be believed.
            ProviderError: If the keys can't be had.
        """
        try:
            return await self._id_tokens.check_logout(logout_token)
        except ClaimsRefused as refusal:
            raise BadRequest(f"logout token refused: {refusal}") from None

    async def revoke(self, token: RefreshToken) -> bool:
        """
        Revoke a refresh token (RFC 7009 section 2.1).

        Returns:
            False if the server has no endpoint for it.

        Raises:
            ProviderError: If it has one, and doesn't do it. The caller goes on regardless.
        """
        endpoint = await self._metadata.find("revocation_endpoint")
        if endpoint is None:
            return False
        answer = await self._tokens.post(endpoint, {"token": token.reveal(), "token_type_hint": "refresh_token"})
        if not 200 <= answer.status <= 299:
            raise ProviderError(f"not revoked: status {answer.status}")
        return True

    async def end_provider_session(self, session_id: str) -> bool:
        """
        End the provider's own session (Mosaic's session logout).

        Returns:
            False if the server has no endpoint for it.

        Raises:
            ProviderError: If it has one, and doesn't do it. The caller goes on regardless.
        """
        url = self.options.session_logout_endpoint
        if url is None:
            return False
        answer = await self._tokens.post(url, {"session_id": session_id}, dialect=Dialect.JSON)
        if not 200 <= answer.status <= 299:
            raise ProviderError(f"the provider's session was not ended: status {answer.status}")
        return True

    async def end_session_url(
        self, *, id_token: IdToken | None, post_logout_redirect_uri: str | None, state: str | None
    ) -> str | None:
        """
        Return where the browser is sent to end the provider's session, or None.

        The id token goes along only where the configuration says so: it would be seen in the URL.

        Raises:
            ProviderError: If the metadata can't be had.

        Source: OpenID Connect RP-Initiated Logout section 2.
        """
        endpoint = await self._metadata.find("end_session_endpoint")
        if endpoint is None:
            return None
        parameters = {"client_id": self.options.client_id}
        if id_token is not None and self.options.end_session_id_token_hint:
            parameters["id_token_hint"] = id_token.reveal()
        if post_logout_redirect_uri is not None:
            parameters[self.options.post_logout_parameter] = post_logout_redirect_uri
            if state is not None:
                parameters["state"] = state
        return with_query(endpoint, parameters)

    async def close(self) -> None:
        """Release every resource."""
        await self._tokens.close()
        await self._jwks.close()
        await self._metadata.close()
        await self._outbound.close()

    def _identity(self, claims: Mapping[str, object]) -> Identity:
        issuer, sid = claims.get("iss"), claims.get("sid")
        return Identity(
            # Without an id token nobody vouches for an issuer but the configuration, so its name is the user's realm.
            issuer=issuer if isinstance(issuer, str) else self.options.issuer or self.name,
            subject=str(claims["sub"]),
            provider_session=sid if isinstance(sid, str) else None,
            claims={name: value for name, value in claims.items() if name not in PROTOCOL_CLAIMS},
        )

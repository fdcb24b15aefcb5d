"""An authorization server as the broker sees it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.core.audience import Audience
from broker.core.grant import Grant
from broker.core.oauth import TokenOutcome
from broker.core.provider import ProviderOptions
from broker.core.secret import AccessToken, IdToken, RefreshToken, Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationRequest:
    """
    What a login asks for (RFC 6749 section 4.1.1).

    Attributes:
        redirect_uri: Where the answer comes.
        state: Ties the answer to the browser.
        nonce: Ties the id token to the login.
        code_challenge: S256 of the verifier (RFC 7636).
        parameters: Further parameters that the configuration allows (``prompt``, ``acr_values`` …).
    """

    redirect_uri: str
    state: str
    nonce: str
    code_challenge: str
    parameters: Mapping[str, str] = field(default_factory=dict)


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

    name: str
    options: ProviderOptions

    async def authorization_url(self, request: AuthorizationRequest) -> str:
        """Return where the browser is sent to. Raises ``ProviderError`` if the metadata can't be had."""
        raise NotImplementedError

    async def check_issuer(self, iss: str | None) -> None:
        """Check the ``iss`` of an authorization response (RFC 9207 section 2.4). Raises ``LoginFailed``."""
        raise NotImplementedError

    async def exchange_code(self, *, code: Secret, code_verifier: Secret, redirect_uri: str) -> TokenOutcome:
        """Exchange an authorization code (RFC 6749 section 4.1.3)."""
        raise NotImplementedError

    async def refresh(self, grant: Grant, audience: Audience) -> TokenOutcome:
        """Present the grant's refresh token once (RFC 6749 section 6). Never retries by itself."""
        raise NotImplementedError

    async def exchange_token(self, subject_token: AccessToken, audience: Audience) -> TokenOutcome:
        """Exchange an access token for one of another audience (RFC 8693)."""
        raise NotImplementedError

    async def identify(
        self,
        *,
        id_token: IdToken | None,
        access_token: AccessToken,
        nonce: str,
        parameters: Mapping[str, str],
    ) -> Identity:
        """
        Check who logged in.

        Args:
            id_token: From the token response.
            access_token: For userinfo, where there is no id token.
            nonce: The login's nonce.
            parameters: What was asked for; ``max_age`` and ``acr_values`` are checked against the answer.

        Raises:
            LoginFailed: If any check fails.
            ProviderError: If keys or userinfo can't be had.
        """
        raise NotImplementedError

    async def check_refreshed(self, id_token: IdToken) -> Identity | None:
        """
        Check an id token that came with a refresh (OpenID Connect Core section 12.2), but for its subject.

        Returns:
            Who it names; None if it must be ignored (a bad signature, issuer or audience). Whether the subject is
            still the same is for the caller to judge.
        """
        raise NotImplementedError

    async def revoke(self, token: RefreshToken) -> None:
        """Revoke (RFC 7009) where the server can. Raises ``ProviderError``; the caller goes on regardless."""
        raise NotImplementedError

    async def end_session_url(
        self, *, id_token: IdToken | None, post_logout_redirect_uri: str | None, state: str | None
    ) -> str | None:
        """Return where the browser is sent to end the provider's session (RP-initiated logout), or None."""
        raise NotImplementedError

    async def close(self) -> None:
        """Release every resource."""

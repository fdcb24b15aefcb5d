"""The token requests of one provider: one method per grant (RFC 6749 section 4, 6; RFC 7523; RFC 8693)."""

import logging
from collections.abc import Mapping
from dataclasses import replace

from broker.core.audience import Audience
from broker.core.client_auth import ClientAuthMethod, ClientTokenOptions
from broker.core.grant import Grant
from broker.core.oauth import FailureKind, TokenFailure, TokenOutcome, TokenSet
from broker.core.provider import Dialect, EmptyAnswer, ProviderOptions
from broker.core.secret import AccessToken, RefreshToken, Secret
from broker.core.token_response import ResponseRules
from broker.core.troubleshooting import key_to_look_at, yaml_path
from broker.errors import ProviderError
from broker.services.client_auth import ClientAuthentication
from broker.services.client_proof import ClientProof
from broker.services.client_token import ClientToken
from broker.services.clock import Clock, Randomness
from broker.services.deadline import Stopwatch
from broker.services.dpop import Proofs
from broker.services.metadata import Metadata
from broker.services.outbound import Answer, Outbound
from broker.services.token_endpoint import TokenEndpoint, not_sent, spared

log = logging.getLogger(__name__)

TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
WAITING = frozenset({"authorization_pending", "slow_down"})
"""Answers that tell no failure: the user of a device flow hasn't decided yet (RFC 8628 section 3.5)."""

ACCESS_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:access_token"


class TokenRequests:
    """Asks one provider for tokens. What comes of it is a value; nothing is raised for what the server does."""

    def __init__(
        self,
        name: str,
        options: ProviderOptions,
        *,
        metadata: Metadata,
        outbound: Outbound,
        clock: Clock,
        randomness: Randomness,
        proofs: Proofs,
    ) -> None:
        """
        Raises:
            ConfigError: If the client's key can't be used.
        """
        self._name = name
        self._options = options
        self._metadata = metadata
        self._clock = clock
        self._randomness = randomness
        self._endpoint = TokenEndpoint(
            outbound=outbound,
            clock=clock,
            rules=ResponseRules.of(options),
            proofs=proofs,
            timeout_seconds=options.token_endpoint_timeout_seconds,
        )
        self._client_token: ClientToken | None = None
        if options.auth_method is ClientAuthMethod.CLIENT_ACCESS_TOKEN:
            self._client_token = self._make_client_token(options.client_token or ClientTokenOptions())
        self._client = self._authentication(options.auth_method, self._client_token)
        self._proof = ClientProof(self.post, metadata=metadata, randomness=randomness)

    @property
    def options(self) -> ProviderOptions:
        """How the provider is spoken to."""
        return self._options

    async def exchange_code(
        self, *, code: Secret, code_verifier: Secret, redirect_uri: str, dpop_key: RefreshToken | None = None
    ) -> TokenOutcome:
        """Exchange an authorization code (RFC 6749 section 4.1.3, RFC 7636 section 4.5)."""
        outcome = await self.ask(
            "authorization_code",
            {"code": code.reveal(), "code_verifier": code_verifier.reveal(), "redirect_uri": redirect_uri},
            dpop_key=dpop_key,
        )
        return self._told(bound(outcome) if dpop_key is not None else outcome, "authorization_code")

    async def refresh(self, grant: Grant, audience: Audience) -> TokenOutcome:
        """Present the grant's refresh token once (RFC 6749 section 6)."""
        # Whatever is asked for before it is sent may take until others believe that this process is gone.
        since = Stopwatch(self._clock)
        if grant.refresh_token is None:
            raise ValueError(f"grant {grant.id} has no refresh token")
        parameters = {"refresh_token": grant.refresh_token.reveal(), **targets(audience)}
        if audience.scope is None and self._options.refresh_scope:
            parameters["scope"] = grant.scope or self._options.scope
        if (doubt := await self.client_doubt()) is not None:
            return self._explained(doubt)
        grant_type = "refresh_token" if self._options.refresh_grant_type else None
        outcome = await self.ask(
            grant_type, parameters, url=self._options.refresh_endpoint, dpop_key=grant.dpop_key, since=since
        )
        if isinstance(outcome, TokenFailure) and outcome.kind is FailureKind.PERMANENT:
            # The credentials may have become wrong in between.
            doubt = await self.client_doubt()
        return outcome if doubt is None else self._explained(doubt)

    async def client_doubt(self) -> TokenFailure | None:
        """Return why the server may not believe the client, where a refusal of the grant wouldn't tell; else None."""
        return await self._proof.doubt() if self._options.empty_400 is EmptyAnswer.INVALID_GRANT else None

    async def exchange_token(
        self, subject_token: AccessToken, audience: Audience, *, dpop_key: RefreshToken | None = None
    ) -> TokenOutcome:
        """
        Exchange an access token for one of another audience (RFC 8693 section 2.1).

        A failure is never about the grant's refresh token: ``invalid_grant`` speaks of the access token.
        """
        outcome = await self.ask(
            TOKEN_EXCHANGE,
            {
                "subject_token": subject_token.reveal(),
                "subject_token_type": ACCESS_TOKEN_TYPE,
                "requested_token_type": ACCESS_TOKEN_TYPE,
                **targets(audience),
            },
            dpop_key=dpop_key,
        )
        return spared(outcome, "token exchange") if isinstance(outcome, TokenFailure) else outcome

    async def ask(
        self,
        grant_type: str | None,
        parameters: Mapping[str, str],
        *,
        url: str | None = None,
        dialect: Dialect | None = None,
        rules: ResponseRules | None = None,
        dpop_key: RefreshToken | None = None,
        since: Stopwatch | None = None,
    ) -> TokenOutcome:
        """
        Ask for tokens, once.

        Args:
            grant_type: The grant; None where the server wants none named.
            parameters: What belongs to the grant.
            url: Where to ask; the token endpoint if left out.
            dialect: How it is written; as configured if left out.
            rules: How the answer is read; as configured if left out.
            dpop_key: The key to bind the tokens to, or to which they are bound.
            since: Counts the time in which the answer had to come; from each sending on, if left out.
        """
        try:
            url = url or await self._metadata.need("token_endpoint")
        except ProviderError as fault:
            return self._explained(not_sent(fault))
        named = {} if grant_type is None else {"grant_type": grant_type}
        outcome = await self._endpoint.request(
            url,
            {**named, **parameters, **self._options.token_parameters},
            client=self._client,
            dialect=dialect or self._options.dialect,
            rules=rules,
            dpop_key=dpop_key,
            since=since,
        )
        return self._explained(outcome)

    async def post(self, url: str, parameters: Mapping[str, str], *, dialect: Dialect = Dialect.FORM) -> Answer:
        """
        Send an authenticated request to another endpoint: revocation, introspection, pushed authorization.

        Raises:
            ProviderError: If the client can't authenticate itself, or no answer comes.
        """
        for last in (False, True):
            credentials = await self._client.credentials()
            if isinstance(credentials, TokenFailure):
                raise ProviderError(credentials.detail, retry_after_seconds=credentials.retry_after_seconds)
            exchange = await self._endpoint.post(url, parameters, credentials=credentials, dialect=dialect)
            if not isinstance(exchange, Answer):
                raise ProviderError(exchange.reason)
            if last or exchange.status != 401 or not self._client.renew(credentials):
                return exchange
        raise AssertionError("unreachable")

    async def assertion_audience(self) -> str:
        """Return the issuer: the token endpoint as an audience lets one server's assertion serve at another."""
        issuer = self._options.issuer or (await self._metadata.server()).issuer
        return issuer or await self._metadata.need("token_endpoint")

    async def close(self) -> None:
        """Stop what is under way."""
        if self._client_token is not None:
            await self._client_token.close()

    def _explained(self, outcome: TokenOutcome) -> TokenOutcome:
        if not isinstance(outcome, TokenFailure) or outcome.error in WAITING:
            return outcome
        return replace(outcome, look_at=yaml_path(self._name, key_to_look_at(outcome, self._options)))

    def _told(self, outcome: TokenOutcome, grant_type: str) -> TokenOutcome:
        """Log a failure of which no grant can be told; ``health.Provider`` logs the others, each with its grant."""
        if isinstance(outcome, TokenFailure):
            named = {"provider": self._name, "grant_type": grant_type}
            log.warning("token_request_failed", extra={**named, **outcome.logged()})
        return outcome

    def _authentication(self, method: ClientAuthMethod, client_token: ClientToken | None) -> ClientAuthentication:
        return ClientAuthentication(
            method,
            self._options,
            audience=self.assertion_audience,
            clock=self._clock,
            randomness=self._randomness,
            client_token=client_token,
        )

    def _make_client_token(self, options: ClientTokenOptions) -> ClientToken:
        client = self._authentication(options.auth_method, None)
        wanted = {"scope": options.scope, "resource": options.resource}
        parameters = {name: value for name, value in wanted.items() if value is not None}

        async def fetch() -> TokenOutcome:
            try:
                url = options.token_endpoint or await self._metadata.need("token_endpoint")
            except ProviderError as fault:
                return not_sent(fault)
            # What is particular to the API that the token opens isn't so of the endpoint that it comes from.
            outcome = await self._endpoint.request(
                url, {"grant_type": "client_credentials", **parameters}, client=client, rules=ResponseRules()
            )
            return self._told(self._explained(outcome), "client_credentials")

        return ClientToken(fetch, clock=self._clock, renew_before_expiry_seconds=options.renew_before_expiry_seconds)


def bound(outcome: TokenOutcome) -> TokenOutcome:
    """Return *outcome*, if its token is bound to a key: whoever asked for that must not take a bearer token for it."""
    if isinstance(outcome, TokenSet) and outcome.token_type != "DPoP":  # RFC 9449 section 5
        return TokenFailure(kind=FailureKind.OPERATOR, detail="dpop: the server gave a bearer token")
    return outcome


def targets(audience: Audience) -> dict[str, str]:
    """Return the parameters that say for whom a token is meant (RFC 8707 section 2, RFC 8693 section 2.1)."""
    wanted = {"resource": audience.resource, "audience": audience.audience, "scope": audience.scope}
    return {name: value for name, value in wanted.items() if value is not None}

"""The first tokens of grants that no browser brings: standing grants, and sessions that live at the server."""

from collections.abc import Mapping
from dataclasses import replace
from typing import assert_never

from broker.core.audience import Audience
from broker.core.client_auth import AssertionOptions
from broker.core.oauth import FailureKind, TokenFailure, TokenOutcome
from broker.core.provider import Dialect
from broker.core.secret import RefreshToken
from broker.core.standing import GrantType, StandingGrantOptions
from broker.core.token_response import ResponseRules
from broker.errors import ProviderError
from broker.services.clock import Clock, Randomness
from broker.services.signing import SigningKey, load_signing_key
from broker.services.token_endpoint import not_sent, spared
from broker.services.token_requests import TokenRequests, bound, targets

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"

SESSION_REFUSALS = frozenset({400, 403, 404, 410})
"""Mosaic's session endpoint says by these, with a JSON object, that the session is gone."""


class FirstTokens:
    """Gets tokens where there is no refresh token yet, or none any more."""

    def __init__(self, requests: TokenRequests, *, clock: Clock, randomness: Randomness) -> None:
        """
        Raises:
            ConfigError: If the key for user assertions can't be used.
        """
        self._requests = requests
        self._options = requests.options
        self._clock = clock
        self._randomness = randomness
        self._assertion = self._options.user_assertion or self._options.client_assertion or AssertionOptions()
        within = "client_assertion" if self._options.user_assertion is None else "user_assertion"
        self._key: SigningKey | None = None
        if self._assertion.has_key:
            self._key = load_signing_key(self._assertion, within=within)

    async def standing(
        self, grant: StandingGrantOptions, audience: Audience, dpop_key: RefreshToken | None = None
    ) -> TokenOutcome:
        """
        Ask for the tokens of a standing grant, for *audience* where it says more than the grant.

        With *dpop_key* only tokens that are bound to that key are taken (RFC 9449).

        A failure is never about a refresh token: none was presented, and whatever it is, only the operator can mend it.
        """
        match grant.type:
            case GrantType.CLIENT_CREDENTIALS:
                outcome = await self._ask("client_credentials", grant, audience, {}, dpop_key)
            case GrantType.PASSWORD:
                assert grant.username is not None
                assert grant.password is not None  # StandingGrantOptions demands both
                own = {"username": grant.username, "password": grant.password.reveal()}
                outcome = await self._ask("password", grant, audience, own, dpop_key)
            case GrantType.JWT_BEARER:
                outcome = await self._by_assertion(grant, audience, dpop_key)
            case GrantType.IMPORTED:
                return TokenFailure(kind=FailureKind.OPERATOR, detail="an imported grant must be handed over anew")
            case _:
                assert_never(grant.type)
        return spared(outcome, grant.type.value) if isinstance(outcome, TokenFailure) else outcome

    async def by_session(self, session_id: str, audience: Audience) -> TokenOutcome:
        """
        Exchange the provider's own session for tokens (Mosaic session authentication): the silent way back when the
        refresh chain has ended and the session lives.

        Source: Transmit's reference of ``POST /v1/auth/session/authenticate``.
        """
        url = self._options.session_endpoint
        if url is None:
            return TokenFailure(kind=FailureKind.OPERATOR, detail="there is no session_endpoint")
        parameters = {"session_id": session_id}
        if audience.resource is not None:
            parameters["resource"] = audience.resource
        rules = replace(ResponseRules.of(self._options), refusals=SESSION_REFUSALS)
        return await self._requests.ask(None, parameters, url=url, dialect=Dialect.JSON, rules=rules)

    async def _ask(
        self,
        grant_type: str,
        grant: StandingGrantOptions,
        audience: Audience,
        own: Mapping[str, str],
        dpop_key: RefreshToken | None,
    ) -> TokenOutcome:
        wanted = {"scope": grant.scope, "resource": grant.resource, "audience": grant.audience}
        asked = {name: value for name, value in wanted.items() if value is not None}
        parameters = {**grant.parameters, **asked, **targets(audience), **own}
        outcome = await self._requests.ask(grant_type, parameters, dpop_key=dpop_key)
        return bound(outcome) if dpop_key is not None else outcome

    async def _by_assertion(
        self, grant: StandingGrantOptions, audience: Audience, dpop_key: RefreshToken | None
    ) -> TokenOutcome:
        """Ask by an assertion about the user, signed here (RFC 7523 sections 2.1 and 3), with a ``jti`` of its own."""
        if self._key is None:
            return TokenFailure(kind=FailureKind.OPERATOR, detail="user_assertion: there is no key to sign with")
        assertion = self._assertion
        try:
            meant_for = assertion.audience or await self._requests.assertion_audience()
        except ProviderError as fault:
            return not_sent(fault)
        now = self._clock.now()
        claims: dict[str, object] = {
            "iss": assertion.issuer or self._options.client_id,
            "sub": grant.subject,
            "aud": meant_for,
            "iat": int(now),
            "exp": int(now + assertion.lifetime_seconds),
            "jti": self._randomness.token_bytes(16).hex(),
            **assertion.claims,
        }
        return await self._ask(JWT_BEARER, grant, audience, {"assertion": self._key.sign(claims)}, dpop_key)

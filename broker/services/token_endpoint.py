"""One token request: written in the server's dialect, sent once, and its answer read."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import assert_never
from urllib.parse import urlencode

from broker.core.clocks import ahead_seconds
from broker.core.oauth import FailureKind, TokenFailure, TokenOutcome
from broker.core.provider import Dialect
from broker.core.retry_after import retry_after_seconds
from broker.core.secret import RefreshToken
from broker.core.token_response import ResponseRules, read_token_response
from broker.errors import ProviderError, ProviderProtocolError
from broker.services.client_auth import ClientAuthentication, Credentials
from broker.services.clock import Clock
from broker.services.deadline import Stopwatch
from broker.services.dpop import Proofs
from broker.services.outbound import Answer, Exchange, NoAnswer, NotSent, Outbound

log = logging.getLogger(__name__)

CONTENT_TYPES = {Dialect.FORM: "application/x-www-form-urlencoded", Dialect.JSON: "application/json"}


class TokenEndpoint:
    """The token endpoint of one provider, and those that are spoken to alike."""

    def __init__(
        self, *, outbound: Outbound, clock: Clock, rules: ResponseRules, proofs: Proofs, timeout_seconds: float
    ) -> None:
        self._outbound = outbound
        self._clock = clock
        self._rules = rules
        self._proofs = proofs
        self._timeout_seconds = timeout_seconds

    async def request(
        self,
        url: str,
        parameters: Mapping[str, str],
        *,
        client: ClientAuthentication,
        dialect: Dialect = Dialect.FORM,
        rules: ResponseRules | None = None,
        dpop_key: RefreshToken | None = None,
        since: Stopwatch | None = None,
    ) -> TokenOutcome:
        """
        Ask for tokens, once.

        Only a request that was refused unlooked-at is sent again: where the client's own access token was refused
        (401), with a new one; where a proof lacks the server's nonce (RFC 9449 section 8), with that. Each once.

        Args:
            url: Where to ask.
            parameters: What is asked.
            client: Who asks.
            dialect: How it is written.
            rules: How the answer is read; as the endpoint's if left out.
            dpop_key: The key that the tokens are bound to, or are to be.
            since: Counts the time in which the answer had to come; from each sending on, if left out.
        """
        rules = replace(rules or self._rules, dpop=dpop_key is not None)
        renewed = nonced = False
        while True:
            try:
                credentials = await client.credentials()
            except ProviderError as fault:
                return not_sent(fault)
            if isinstance(credentials, TokenFailure):
                return credentials
            if dpop_key is not None:
                proof = {"DPoP": self._proofs.proof(dpop_key, method="POST", url=url)}
                credentials = replace(credentials, headers={**credentials.headers, **proof})
            requested_at = self._clock.now()
            exchange = await self.post(url, parameters, credentials=credentials, dialect=dialect, since=since)
            outcome = self._read(exchange, requested_at, rules)
            given = exchange.headers.get("DPoP-Nonce") if isinstance(exchange, Answer) else None
            learned = dpop_key is not None and self._proofs.learn(url, given)
            if learned and not nonced and isinstance(outcome, TokenFailure) and outcome.error == "use_dpop_nonce":
                nonced = True
            elif not renewed and _client_refused(outcome) and client.renew(credentials):
                renewed = True
            else:
                return outcome

    async def post(
        self,
        url: str,
        parameters: Mapping[str, str],
        *,
        credentials: Credentials,
        dialect: Dialect = Dialect.FORM,
        since: Stopwatch | None = None,
    ) -> Exchange:
        """Send *parameters* with *credentials*, in *dialect*; not after the time in which the answer had to come."""
        since = since or Stopwatch(self._clock)
        return await self._outbound.post(
            url,
            content=encode({**parameters, **credentials.parameters}, dialect),
            headers={"Content-Type": CONTENT_TYPES[dialect], **credentials.headers},
            timeout_seconds=self._timeout_seconds,
            is_late=lambda: since.seconds() >= self._timeout_seconds,
        )

    def _read(self, exchange: Exchange, requested_at: float, rules: ResponseRules) -> TokenOutcome:
        match exchange:
            case Answer():
                now = self._clock.now()
                outcome = read_token_response(
                    status=exchange.status,
                    body=exchange.content,
                    requested_at=requested_at,
                    rules=rules,
                    retry_after_seconds=retry_after_seconds(exchange.headers.get("Retry-After"), now),
                )
                if isinstance(outcome, TokenFailure):
                    ahead = ahead_seconds(exchange.headers.get("Date"), sent_at=requested_at, received_at=now)
                    return replace(outcome, ahead_seconds=ahead or 0.0)
                return outcome
            case NotSent():
                return TokenFailure(kind=FailureKind.TRANSIENT, detail=f"nothing was sent: {exchange.reason}")
            case NoAnswer():
                return TokenFailure(kind=FailureKind.IN_DOUBT, detail=f"no answer: {exchange.reason}")
            case _:
                assert_never(exchange)


def _client_refused(outcome: TokenOutcome) -> bool:
    return isinstance(outcome, TokenFailure) and outcome.status == 401 and outcome.kind is not FailureKind.PERMANENT


def encode(parameters: Mapping[str, str], dialect: Dialect) -> bytes:
    """Return the body of a request (RFC 6749 appendix B for forms)."""
    match dialect:
        case Dialect.FORM:
            return urlencode(parameters).encode("ascii")
        case Dialect.JSON:
            return json.dumps(dict(parameters), separators=(",", ":")).encode()
        case _:
            assert_never(dialect)


def not_sent(fault: ProviderError) -> TokenFailure:
    """Return what it means that a request could not even be written: nothing is lost."""
    kind = FailureKind.OPERATOR if isinstance(fault, ProviderProtocolError) else FailureKind.TRANSIENT
    return TokenFailure(kind=kind, detail=str(fault), retry_after_seconds=fault.retry_after_seconds)


def spared(failure: TokenFailure, what: str) -> TokenFailure:
    """
    Return *failure* as it counts for a grant whose refresh token was not presented by the request that failed.

    Neither ``invalid_grant`` nor silence can be about a refresh token that was never sent.
    """
    match failure.kind:
        case FailureKind.PERMANENT:
            kind = FailureKind.OPERATOR
        case FailureKind.IN_DOUBT:
            kind = FailureKind.TRANSIENT
        case FailureKind.OPERATOR | FailureKind.TRANSIENT:
            kind = failure.kind
        case _:
            assert_never(failure.kind)
    return replace(failure, kind=kind, detail=f"{what}: {failure.detail}")

"""
Finds out by experiment what a server does with refresh tokens, at the cost of a grant that nobody needs.

    rt-0 ─▶ rt-1            does it rotate, and what comes along?
    rt-1 ─▶ rt-2 …          for each audience of the routes
    rt-0 again              is a former token taken?
    the newest              if not: has the whole grant ended with it (RFC 9700 section 4.14.2)?
"""

from collections.abc import AsyncIterator, Iterable

from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.behaviour import Reuse, judge_reuse
from broker.core.diagnosis import Finding, Verdict
from broker.core.grant import Grant
from broker.core.oauth import FailureKind, TokenFailure, TokenOutcome, TokenSet
from broker.core.secret import RefreshToken
from broker.core.troubleshooting import key_to_look_at
from broker.errors import ProviderError
from broker.services.clock import Clock
from broker.services.provider import AuthorizationServer


class RotationProbe:
    """Spends one grant of one provider. It must belong to nobody: the probe may end it, and revokes it at last."""

    def __init__(self, server: AuthorizationServer, refresh_token: RefreshToken, *, clock: Clock) -> None:
        """
        Args:
            server: The provider.
            refresh_token: Of the grant.
            clock: Time.
        """
        self._server = server
        self._first = self._newest = refresh_token
        self._clock = clock

    async def examine(self, audiences: Iterable[Audience]) -> AsyncIterator[Finding]:
        """Yield what the experiment shows, for *audiences* too."""
        try:
            answer = await self._present(self._first)
            if isinstance(answer, TokenFailure):
                yield self._refused(answer, "the test grant can't be refreshed")
                return
            yield Finding(verdict=Verdict.NOTE, text=f"a refresh brings {_described(answer)}")
            for audience in audiences:
                yield await self._examine_audience(audience, answer)
            reuse = await self._reuse()
            if isinstance(reuse, Reuse):
                yield judge_reuse(reuse, self._server.options)
            else:
                yield self._refused(reuse, "what becomes of a former refresh token can't be told")
        finally:
            await self._revoke()

    async def _examine_audience(self, audience: Audience, answer: TokenSet) -> Finding:
        named = " ".join(part for part in (audience.resource, audience.audience, audience.scope) if part)
        if audience.exchange:
            outcome = await self._server.exchange_token(answer.access_token, audience)
        else:
            outcome = await self._present(self._newest, audience)
        if isinstance(outcome, TokenFailure):
            return self._refused(outcome, f"there is no token for {named}")
        return Finding(verdict=Verdict.GOOD, text=f"the server gives tokens for {named}")

    async def _reuse(self) -> Reuse | TokenFailure:
        if self._newest == self._first:
            return Reuse.NOT_ROTATED
        newest = self._newest
        again = await self._present(self._first)
        if isinstance(again, TokenSet):
            return Reuse.TAKEN
        if again.kind is not FailureKind.PERMANENT:
            return again
        after = await self._present(newest)
        if isinstance(after, TokenSet):
            return Reuse.REFUSED
        return Reuse.ENDS_THE_GRANT if after.kind is FailureKind.PERMANENT else after

    async def _present(self, token: RefreshToken, audience: Audience = DEFAULT_AUDIENCE) -> TokenOutcome:
        now = self._clock.now()
        grant = Grant(
            id="doctor",
            provider=self._server.name,
            subject="doctor",
            generation=1,
            refresh_token=token,
            refreshed_at=now,
            chain_started_at=now,
        )
        outcome = await self._server.refresh(grant, audience)
        if isinstance(outcome, TokenSet) and outcome.refresh_token is not None:
            self._newest = outcome.refresh_token
        return outcome

    def _refused(self, failure: TokenFailure, what: str) -> Finding:
        key = key_to_look_at(failure, self._server.options)
        text = f"{what}: {failure.error or failure.detail or failure.status}"
        return Finding(verdict=Verdict.ERROR, key=key, text=text)

    async def _revoke(self) -> None:
        try:
            await self._server.revoke(self._newest)
        except ProviderError:
            return  # it ends by itself


def _described(answer: TokenSet) -> str:
    found = {
        "a new refresh token": answer.refresh_token is not None,
        "an id token": answer.id_token is not None,
        "the end of the refresh token": answer.refresh_expires_at is not None,
    }
    seconds = answer.expires_at - answer.requested_at
    parts = [f"an access token for {seconds:.0f} s", *(what for what, is_there in found.items() if is_there)]
    return ", ".join(parts)

"""
One exchange of a grant's own access token for one of another audience (RFC 8693).

    request ─▶ write ─▶ tell

No refresh token is spent, so nothing can be lost: no intent is written before, the answer needs no place on the disk,
and whoever is overtaken asks again. What fails is the audience's failure, and ends no grant. When it is made, and what
if there is nothing to exchange or the server doesn't take it, is services.refresher.
"""

from dataclasses import dataclass

from broker.core.audience import Audience
from broker.core.grant import Grant, HeldToken
from broker.core.oauth import TokenFailure, TokenOutcome, TokenSet
from broker.core.outcome import TokenResult, after_failure, token_for
from broker.core.refresh import fail, succeed
from broker.services.clock import Clock, Randomness
from broker.services.health import Provider
from broker.services.known import KnownGrants
from broker.services.register import Register
from broker.services.rejections import Rejections
from broker.services.vault import StoredGrant

SUBJECT_REFUSALS = frozenset({"invalid_request", "invalid_grant", "invalid_token"})
"""
What servers say of a subject token that they don't take: the first by RFC 8693 section 2.2.2, which says it of many
other things too; the others, as some do, by RFC 6749 section 5.2 and RFC 6750 section 3.1.
"""


@dataclass(frozen=True, slots=True)
class SubjectRefused:
    """
    The server doesn't take the grant's own token, which may have died before its end. Nothing was written down.

    Attributes:
        failure: What it said.
    """

    failure: TokenFailure


class TokenExchange:
    """Carries exchanges out, under the lease of their grant."""

    def __init__(self, *, register: Register, known: KnownGrants, clock: Clock, randomness: Randomness) -> None:
        """
        Args:
            register: Writes down and tells what became of grants.
            known: What this process serves from memory.
            clock: Time.
            randomness: Jitter.
        """
        self._register = register
        self._known = known
        self._clock = clock
        self._randomness = randomness
        self._rejections = Rejections()

    async def exchange(
        self,
        provider: Provider,
        stored: StoredGrant,
        subject: HeldToken,
        audience: Audience,
        *,
        rejected_generation: int | None,
    ) -> TokenResult | SubjectRefused | None:
        """
        Exchange *subject* for a token of *audience*.

        Args:
            provider: Whose grant it is.
            stored: The grant, as it was read under its lease.
            subject: Its own access token, which lives (:func:`broker.core.refresh.subject_token`).
            audience: For whom.
            rejected_generation: The generation of a token that an upstream has just refused.

        Returns:
            What it brings its caller; :class:`SubjectRefused` if another own token may be taken; None if the breaker
            has opened or the grant was written meanwhile, and it must be decided again.

        Raises:
            StoreError: If it isn't known whether what came was written down.
        """
        outcome = await self._request(provider, stored.grant, subject, audience)
        if outcome is None:
            return None
        if isinstance(outcome, TokenFailure) and self._may_have_died(stored.grant, subject, audience, outcome):
            return SubjectRefused(outcome)
        return await self.note(provider, stored, audience, outcome, rejected_generation=rejected_generation)

    def _may_have_died(self, grant: Grant, subject: HeldToken, audience: Audience, failure: TokenFailure) -> bool:
        """
        Return whether the refusal may be for the age of *subject*.

        If the same was said since it was issued, it was said of a new token, too: another won't do better.
        """
        if failure.error not in SUBJECT_REFUSALS:
            return False
        former = grant.failures.get(audience.key)
        if former is not None and former.error in SUBJECT_REFUSALS and former.at >= subject.issued_at:
            return False
        age = self._clock.now() - subject.issued_at
        return self._rejections.worth_a_refresh(f"{grant.id} {audience.key}", age_seconds=age)

    async def note(
        self,
        provider: Provider,
        stored: StoredGrant,
        audience: Audience,
        outcome: TokenOutcome,
        *,
        rejected_generation: int | None,
    ) -> TokenResult | None:
        """
        Write down what came of an exchange.

        Returns:
            What it brings its caller; None if the grant was written meanwhile, and it must be decided again.

        Raises:
            StoreError: If it isn't known whether that was written down.
        """
        options, now = provider.server.options, self._clock.now()
        if isinstance(outcome, TokenSet):
            after = succeed(stored.grant, audience, outcome)
        else:
            jitter = self._randomness.uniform(0, 1)
            after = fail(stored.grant, audience, options, outcome, now=now, jitter=jitter)
        if await self._register.write(stored, after, options=options) is None:
            return None
        if isinstance(outcome, TokenSet):
            await self._register.tell(after)
            return token_for(after, audience)
        self._known.learn(after)
        return after_failure(after, audience, now=now, rejected_generation=rejected_generation)

    async def _request(
        self, provider: Provider, grant: Grant, subject: HeldToken, audience: Audience
    ) -> TokenOutcome | None:
        """Return what came; None if the breaker has opened meanwhile."""
        async with provider.health.permit() as permitted:
            if not permitted:
                return None
            started = self._clock.monotonic()
            outcome = await provider.server.exchange_token(subject.access_token, audience, dpop_key=grant.dpop_key)
            await provider.observe(grant, outcome, seconds=self._clock.monotonic() - started)
            return outcome

"""
One refresh, from the lease to the answer.

    lease ─▶ read ─▶ decide ─▶ intent ─▶ token request ─▶ answer (services.answers)
                                  │            │
    what a crash here leaves:   nothing     in doubt
                                spent

The rules are core.refresh; this module carries them out in the order that loses nothing, and knows no others.
For an audience whose tokens come by exchange, services.token_exchange takes the place of what follows "decide".
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import assert_never

from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.grant import Grant, HeldToken
from broker.core.oauth import FailureKind, TokenFailure, TokenOutcome, TokenSet
from broker.core.outcome import Cause, LoginNeeded, Token, TokenResult, Unavailable, after_failure, token_for
from broker.core.refresh import (
    LogIn,
    Refresh,
    Use,
    UseAndRefresh,
    Wait,
    answer_seconds,
    begin,
    decide,
    doubt,
    fail,
    subject_token,
    takes_again,
    withdraw,
)
from broker.errors import StoreError
from broker.services import metrics
from broker.services.answers import Answers
from broker.services.clock import Clock, Randomness
from broker.services.deadline import Stopwatch, deadline
from broker.services.health import Provider
from broker.services.known import KnownGrants
from broker.services.leases import LEASE_SECONDS, renewed
from broker.services.news import News
from broker.services.register import Register
from broker.services.spool import Entry
from broker.services.tasks import Tasks
from broker.services.token_exchange import SubjectRefused, TokenExchange
from broker.services.turns import Turns
from broker.services.unwritten import Unwritten
from broker.services.vault import StoredGrant, Vault
from broker.stores.base import Busy, StoreDown

STORE_RETRY_SECONDS = 1.0
"""What a caller is told to wait while the store is down."""
BUSY_POLL_SECONDS = (0.3, 0.6, 1.2, 2.0)
"""
When a lease that is held elsewhere is asked for again, if no event says that it's worth it. Events are seldom lost, and
where a thousand grants are refreshed at once, asking often is what the store would have no time for.
"""
PATIENCE_SECONDS = 30.0
"""How long a caller's refresh may take, all waiting included."""
QUICK_RETRY_SECONDS = (0.1, 0.4)
"""A request that failed in passing is sent again after these, before anybody is told."""

log = logging.getLogger(__name__)


Acquire = Callable[[Grant, Audience], Awaitable[TokenOutcome]]
"""Gets tokens for a grant that has no refresh token: a standing grant, or one with a session at its server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """
    What a caller asks for.

    Attributes:
        grant_id: Whose token.
        audience: For whom.
        rejected_generation: The generation of a token that an upstream has just refused; it must be newer.
        urgent: Whether somebody needs it.
    """

    grant_id: str
    audience: Audience = DEFAULT_AUDIENCE
    rejected_generation: int | None = None
    urgent: bool = True


@dataclass(frozen=True, slots=True)
class Refusal:
    """
    What came of a presentation that brought no tokens.

    Attributes:
        failure: The last answer.
        doubted: Whether an earlier answer to the same presentation was lost.
    """

    failure: TokenFailure
    doubted: bool


class Refresher:
    """Carries refreshes out. At most one runs for a grant in this process, and one under the grant's lease anywhere."""

    def __init__(
        self,
        *,
        vault: Vault,
        answers: Answers,
        token_exchange: TokenExchange,
        register: Register,
        known: KnownGrants,
        providers: Mapping[str, Provider],
        clock: Clock,
        randomness: Randomness,
        news: News,
        tasks: Tasks,
        owner: str,
        acquire: Acquire,
    ) -> None:
        """
        Args:
            vault: Where grants are kept.
            answers: Brings what comes into the vault.
            token_exchange: Gets the tokens of audiences that are had by exchange.
            register: Writes down and tells what became of grants.
            known: What this process serves from memory.
            providers: By configured name.
            clock: Time.
            randomness: Jitter, and the names of attempts.
            news: Wakes waiters.
            tasks: Owns what runs on behind a caller's back.
            owner: Names this process in intents.
            acquire: Gets tokens for a grant that has no refresh token.
        """
        self._vault = vault
        self._answers = answers
        self._token_exchange = token_exchange
        self._register = register
        self._known = known
        self.providers = providers
        self._clock = clock
        self._randomness = randomness
        self._news = news
        self._tasks = tasks
        self._owner = owner
        self._acquire = acquire
        self._turns = Turns()
        self._unwritten = Unwritten()

    def start(self, want: Want) -> "asyncio.Task[TokenResult]":
        """Begin :meth:`refresh` as a task of its own: whoever waits for it must shield it from its own end."""
        return self._tasks.spawn(self.refresh(want), name=f"refresh:{want.grant_id}")

    async def refresh(self, want: Want) -> TokenResult:
        """Return a token as *want* says, refreshing if it must be."""
        # Several audiences share one refresh token.
        async with self._turns.turn(want.grant_id):
            try:
                return await self._patiently(want)
            except StoreError as fault:
                log.warning("refresh_without_store", extra={"grant": want.grant_id, "error": str(fault)})
                return Unavailable(Cause.STORE, STORE_RETRY_SECONDS)

    # --- under the lease, or waiting for it

    async def _patiently(self, want: Want) -> TokenResult:
        started = self._clock.monotonic()
        polls = iter(BUSY_POLL_SECONDS)
        while self._clock.monotonic() < started + PATIENCE_SECONDS:
            acquired = await self._vault.lease(want.grant_id, LEASE_SECONDS)
            if isinstance(acquired, StoreDown):
                raise StoreError(acquired.detail)
            if isinstance(acquired, Busy):
                await self._news.wait(
                    want.grant_id, next(polls, BUSY_POLL_SECONDS[-1]) * self._randomness.uniform(0.7, 1.3)
                )
                result = await self._look(want)
            else:
                metrics.REFRESH_LOCK_WAIT_SECONDS.observe(self._clock.monotonic() - started)
                async with renewed(acquired, self._tasks):
                    result = await self._under_lease(want)
            if result is not None:
                return result
        log.warning("refresh_gave_up_waiting", extra={"grant": want.grant_id})
        return Unavailable(Cause.PROVIDER, STORE_RETRY_SECONDS)

    async def _look(self, want: Want) -> TokenResult | None:
        """Return what the lease's holder has brought by now, or None to go on waiting."""
        stored = await self._vault.read(want.grant_id)
        return await self._decide(stored, want, under_lease=False)

    async def _under_lease(self, want: Want) -> TokenResult | None:
        """Return a result, or None if the grant was written meanwhile and must be read again."""
        # Read again: the lease's last holder has probably rotated the refresh token, and replaying the old one makes
        # the server revoke the newest too (RFC 9700 section 4.14.2).
        stored = await self._vault.read(want.grant_id)
        if stored is not None:
            stored = await self._answers.save_again(stored)
        if stored is not None and stored.grant.intent is not None:
            stored = await self._settle(stored, stored.grant.intent.attempt)
        return await self._decide(stored, want, under_lease=True)

    async def _settle(self, stored: StoredGrant, attempt: str) -> StoredGrant | None:
        """An intent is open: write down whatever is known here of what came of it."""
        result = self._unwritten.take(attempt)
        if result is not None and (provider := self.providers.get(stored.grant.provider)) is not None:
            _ = await self._write(provider, stored, result)
            return await self._vault.read(stored.grant.id)
        return await self._answers.recover_grant(stored)

    async def _decide(self, stored: StoredGrant | None, want: Want, *, under_lease: bool) -> TokenResult | None:
        if stored is None:
            await self._vault.confirm_gone(want.grant_id)
            return LoginNeeded("unknown_grant")
        grant, now = stored.grant, self._clock.now()
        self._known.learn(grant)
        provider = self.providers.get(grant.provider)
        if provider is None:
            return LoginNeeded("unknown_provider")
        decision = decide(
            grant,
            want.audience,
            provider.server.options,
            now=now,
            breaker=provider.health.breaker,
            under_lease=under_lease,
            rejected_generation=want.rejected_generation,
            urgent=want.urgent,
        )
        match decision:
            case Use():
                return token_for(grant, want.audience)
            case UseAndRefresh() if not under_lease:
                return token_for(grant, want.audience)
            case UseAndRefresh() | Refresh():
                return await self._ask(provider, stored, want) if under_lease else None
            case Wait(retry_at):
                return Unavailable(Cause.PROVIDER, retry_at - now)
            case LogIn(reason):
                return LoginNeeded(reason)
            case _ as never:
                assert_never(never)

    async def _ask(self, provider: Provider, stored: StoredGrant, want: Want) -> TokenResult | None:
        """Ask the token endpoint, under the lease."""
        if want.audience.exchange:
            return await self._exchange_own(provider, stored, want)
        async with provider.health.permit() as permitted:
            # If the breaker has opened meanwhile: decide again.
            return await self._present(provider, stored, want) if permitted else None

    async def _exchange_own(self, provider: Provider, stored: StoredGrant, want: Want) -> TokenResult | None:
        """Exchange the grant's own access token; if it's dead, first refresh it as for a caller who wants just that."""
        subject = subject_token(stored.grant, now=self._clock.now())
        if subject is None:
            own = await self._decide(stored, Want(grant_id=want.grant_id), under_lease=True)
            return None if isinstance(own, Token) else own
        outcome = await self._token_exchange.exchange(
            provider, stored, subject, want.audience, rejected_generation=want.rejected_generation
        )
        if not isinstance(outcome, SubjectRefused):
            return outcome
        return await self._exchange_another(provider, stored, want, subject, outcome.failure)

    async def _exchange_another(
        self, provider: Provider, stored: StoredGrant, want: Want, refused: HeldToken, failure: TokenFailure
    ) -> TokenResult | None:
        """The server doesn't take the own token before its end: refresh it, and decide again."""
        own: TokenResult | None = LoginNeeded("in_doubt")
        if stored.grant.intent is None:  # else the refresh token may be spent, and isn't presented while a token lives
            wanted = Want(grant_id=want.grant_id, rejected_generation=refused.generation)
            own = await self._decide(stored, wanted, under_lease=True)
        if own is None or isinstance(own, Token):
            return None
        if isinstance(own, Unavailable):
            # The exchange rests as long as the refresh does, and is judged anew then.
            failure = TokenFailure(
                kind=FailureKind.TRANSIENT,
                detail="the own token is refused and can't be refreshed now",
                retry_after_seconds=own.retry_after_seconds,
            )
        return await self._token_exchange.note(
            provider, stored, want.audience, failure, rejected_generation=want.rejected_generation
        )

    # --- presenting the refresh token

    async def _present(self, provider: Provider, stored: StoredGrant, want: Want) -> TokenResult | None:
        """Present the refresh token: write the intent, send, keep what comes."""
        since = Stopwatch(self._clock)
        written = await self._intend(provider, stored)
        if written is None:
            return None
        if self._is_late(provider, since):
            # This process stood still. Another may take its intent for a dead one's by now.
            _ = await self._write(provider, written, withdraw)
            return None
        sent = await self._send(provider, written.grant, want.audience, since)
        match sent:
            case Entry():
                return await self._answers.keep(provider, written, sent)
            case Refusal():
                return await self._note(provider, written, want, sent)
            case _ as never:
                assert_never(never)

    async def _intend(self, provider: Provider, stored: StoredGrant) -> StoredGrant | None:
        attempt, now = self._randomness.token_bytes(8).hex(), self._clock.now()
        intended = begin(stored.grant, attempt=attempt, owner=self._owner, now=now)
        try:
            return await self._register.write(stored, intended, options=provider.server.options)
        except StoreError:
            # It may have been written all the same, and only this process knows that nothing was sent under it.
            self._unwritten.note(attempt, withdraw)
            raise

    async def _send(self, provider: Provider, grant: Grant, audience: Audience, since: Stopwatch) -> Entry | Refusal:
        """Send the token request, again where that can only help."""
        doubted = False
        delays = iter(QUICK_RETRY_SECONDS)
        while True:
            started = self._clock.monotonic()
            outcome = await self._request(provider, grant, audience, since)
            if isinstance(outcome, TokenSet):
                # Before anything else is awaited: from here on a crash loses nothing.
                entry = self._answers.receive(grant, audience, outcome)
                await provider.observe(grant, outcome, seconds=self._clock.monotonic() - started)
                return entry
            await provider.observe(grant, outcome, seconds=self._clock.monotonic() - started)
            delay = next(delays, None)
            if delay is None or not self._worth_repeating(provider, grant, outcome):
                return Refusal(outcome, doubted)
            await asyncio.sleep(delay * self._randomness.uniform(0.5, 1.5))
            if self._is_late(provider, since):
                return Refusal(outcome, doubted)
            doubted = doubted or outcome.kind is FailureKind.IN_DOUBT

    async def _request(self, provider: Provider, grant: Grant, audience: Audience, since: Stopwatch) -> TokenOutcome:
        """Send it once, and wait no longer than others believe."""
        left = answer_seconds(provider.server.options) - since.seconds()
        try:
            async with deadline(left):
                if grant.refresh_token is not None:
                    return await provider.server.refresh(grant, audience)
                return await self._acquire(grant, audience)
        except TimeoutError:
            return TokenFailure(kind=FailureKind.IN_DOUBT, detail="no answer in time, discovery included")

    def _worth_repeating(self, provider: Provider, grant: Grant, failure: TokenFailure) -> bool:
        if failure.retry_after_seconds is not None or provider.health.breaker.is_open(self._clock.now()):
            return False
        if failure.kind is FailureKind.TRANSIENT:
            return True
        again = takes_again(grant, provider.server.options, now=self._clock.now())
        return failure.kind is FailureKind.IN_DOUBT and again

    def _is_late(self, provider: Provider, since: Stopwatch) -> bool:
        """
        Return whether others may have gone on without this process, if it presented the refresh token now.

        It may have lost the lease, or the answer may come when it isn't expected any more.
        """
        options = provider.server.options
        slack = answer_seconds(options) - options.token_endpoint_timeout_seconds
        return since.seconds() > min(slack, LEASE_SECONDS)

    async def _note(self, provider: Provider, stored: StoredGrant, want: Want, refusal: Refusal) -> TokenResult | None:
        """Write down what came of a presentation, and say what it means for its caller."""
        now, jitter = self._clock.now(), self._randomness.uniform(0, 1)

        def result(grant: Grant) -> Grant:
            intended = doubt(grant) if refusal.doubted else grant
            options = provider.server.options
            return fail(intended, want.audience, options, refusal.failure, now=now, jitter=jitter)

        written = await self._write(provider, stored, result)
        if written is None:
            return None
        if stored.grant.refresh_token is not None and written.grant.refresh_token is None and not written.grant.ended:
            return None  # the refresh token has ended, the grant hasn't: decide again
        return after_failure(written.grant, want.audience, now=now, rejected_generation=want.rejected_generation)

    async def _write(
        self, provider: Provider, stored: StoredGrant, result: Callable[[Grant], Grant]
    ) -> StoredGrant | None:
        """
        Write down what came of the open intent of *stored*, as long as it is the one that is open.

        Returns:
            What is stored now; None if somebody else has settled the intent or begun another. So ``invalid_grant``
            counts only for the refresh token that was presented.

        Raises:
            StoreError: If that isn't known. It is written when the grant is next looked at here.
        """
        assert stored.grant.intent is not None
        attempt = stored.grant.intent.attempt
        try:
            written = await self._write_under(attempt, provider, stored, result)
        except StoreError:
            self._unwritten.note(attempt, result)
            raise
        if written is None:
            return None
        if written.grant.ended is not None:
            await self._register.tell_end(written.grant)
        else:
            self._known.learn(written.grant)
        return written

    async def _write_under(
        self, attempt: str, provider: Provider, stored: StoredGrant, result: Callable[[Grant], Grant]
    ) -> StoredGrant | None:
        current: StoredGrant | None = stored
        while current is not None and current.grant.intent is not None and current.grant.intent.attempt == attempt:
            after = result(current.grant)
            written = await self._register.write(current, after, options=provider.server.options)
            if written is not None:
                return written
            current = await self._vault.read(stored.grant.id)
        return None

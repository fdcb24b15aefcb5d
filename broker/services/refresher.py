"""
One refresh, from the lease to the last acknowledgement.

    lease ─▶ read ─▶ decide ─▶ intent ─▶ token request ─▶ spool ─▶ save ─▶ check ─▶ announce ─▶ done
                                  │            │             │       │
    what a crash here leaves:   nothing     in doubt      on disk   saved
    spent

The rules are core.refresh; this module carries them out in the order that loses nothing, and knows no others.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import assert_never

from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.grant import EndReason, Grant, HeldToken
from broker.core.oauth import FailureKind, TokenFailure, TokenOutcome, TokenSet
from broker.core.outcome import Cause, LoginNeeded, Token, TokenResult, Unavailable
from broker.core.refresh import (
    LogIn,
    Refresh,
    Use,
    UseAndRefresh,
    Wait,
    begin,
    decide,
    end,
    fail,
    held_token,
    keep_alive_at,
    succeed,
    takes_again,
)
from broker.errors import ProviderError, StoreError
from broker.services import metrics
from broker.services.clock import Clock, Randomness
from broker.services.health import ProviderHealth
from broker.services.leases import LEASE_SECONDS, renewed
from broker.services.news import News
from broker.services.provider import AuthorizationServer, Identity
from broker.services.spool import Entry, Spool
from broker.services.tasks import Tasks
from broker.services.turns import Turns
from broker.services.vault import StoredGrant, Vault
from broker.stores.base import Busy, StoreDown

STORE_RETRY_SECONDS = 1.0
"""What a caller is told to wait while the store is down."""
BUSY_POLL_SECONDS = 0.3
"""How often a lease that is held elsewhere is asked for, if no event says that it's worth it."""
PATIENCE_SECONDS = 30.0
"""How long a caller's refresh may take, all waiting included."""
QUICK_RETRY_SECONDS = (0.1, 0.4)
"""A request that failed in passing is sent again after these, before anybody is told."""
SAVE_RETRY_SECONDS = (0.05, 0.2, 0.5)
IDENTITY_CHECK_SECONDS = 5.0
"""The id token of a refresh is checked within this, or its claims are left out."""

log = logging.getLogger(__name__)


Acquire = Callable[[Grant, Audience], Awaitable[TokenOutcome]]
"""Gets tokens for a grant that has no refresh token: a standing grant, or one with a session at its server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """An authorization server and what is known of its health."""

    server: AuthorizationServer
    health: ProviderHealth


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """
    What a caller asks for.

    Attributes:
        grant_id: Whose token.
        audience: For whom.
        rejected_generation: The generation of a token that an upstream has just refused; it must be newer.
    """

    grant_id: str
    audience: Audience = DEFAULT_AUDIENCE
    rejected_generation: int | None = None


class Refresher:
    """Carries refreshes out. At most one runs for a grant in this process, and one under the grant's lease anywhere."""

    def __init__(
        self,
        *,
        vault: Vault,
        spool: Spool,
        providers: Mapping[str, Provider],
        clock: Clock,
        randomness: Randomness,
        news: News,
        tasks: Tasks,
        owner: str,
        learned: Callable[[Grant], None],
        unsaved: Callable[[Grant], None],
        identified: Callable[[Grant, Identity], None],
        acquire: Acquire,
    ) -> None:
        """
        Args:
            vault: Where grants are kept.
            spool: Where answers are kept until the vault has them. It is open.
            providers: By configured name.
            clock: Time.
            randomness: Jitter, and the names of attempts.
            news: Wakes waiters.
            tasks: Owns what runs on behind a caller's back.
            owner: Names this process in intents.
            learned: Is told what a grant is now, each time that is known better.
            unsaved: Is told what a grant is now, which the store doesn't have yet.
            identified: Is told who a refreshed id token names, once that is checked.
            acquire: Gets tokens for a grant that has no refresh token.
        """
        self._vault = vault
        self._spool = spool
        self.providers = providers
        self._clock = clock
        self._randomness = randomness
        self._news = news
        self._tasks = tasks
        self._owner = owner
        self._learned = learned
        self._unsaved = unsaved
        self._identified = identified
        self._acquire = acquire
        self._turns = Turns()

    async def refresh(self, want: Want) -> TokenResult:
        """Return a token as *want* says, refreshing if it must be."""
        # Several audiences share one refresh token.
        async with self._turns.turn(want.grant_id):
            try:
                return await self._patiently(want)
            except StoreError as fault:
                log.warning("refresh_without_store", extra={"grant": want.grant_id, "error": str(fault)})
                return Unavailable(Cause.STORE, STORE_RETRY_SECONDS)

    async def _patiently(self, want: Want) -> TokenResult:
        started = self._clock.monotonic()
        while self._clock.monotonic() < started + PATIENCE_SECONDS:
            acquired = await self._vault.lease(want.grant_id, LEASE_SECONDS)
            if isinstance(acquired, StoreDown):
                raise StoreError(acquired.detail)
            if isinstance(acquired, Busy):
                await self._news.wait(want.grant_id, BUSY_POLL_SECONDS * self._randomness.uniform(0.7, 1.3))
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
        if stored is not None and stored.grant.intent is not None:
            stored = await self._recover(stored)
        return await self._decide(stored, want, under_lease=True)

    async def _decide(self, stored: StoredGrant | None, want: Want, *, under_lease: bool) -> TokenResult | None:
        if stored is None:
            return LoginNeeded("unknown_grant")
        grant, now = stored.grant, self._clock.now()
        self._learned(grant)
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
        )
        match decision:
            case Use(token):
                return as_token(token)
            case UseAndRefresh(token) if not under_lease:
                return as_token(token)
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
        async with provider.health.permit() as permitted:
            if not permitted:
                return None  # the breaker opened meanwhile: decide again
            if not want.audience.exchange:
                return await self._present(provider, stored, want)
            subject = held_token(stored.grant, DEFAULT_AUDIENCE, now=self._clock.now(), rejected_generation=None)
            if subject is not None:
                return await self._exchange(provider, stored, subject, want)
            result = await self._present(provider, stored, Want(grant_id=want.grant_id))
        return None if isinstance(result, Token) else result

    async def _present(self, provider: Provider, stored: StoredGrant, want: Want) -> TokenResult | None:
        """Present the refresh token: write the intent, send, keep what comes."""
        now = self._clock.now()
        attempt = self._randomness.token_bytes(8).hex()
        intended = begin(stored.grant, attempt=attempt, owner=self._owner, now=now)
        # If this process dies now, the keep-alive of another finds the open intent soon after the lease has ended.
        written = await self._vault.replace(stored, intended, due_at=now + LEASE_SECONDS + 1)
        if written is None:
            return None
        outcome = await self._send(provider, written.grant, want.audience, attempt)
        match outcome:
            case TokenSet():
                entry = _entry(written.grant, want.audience, outcome, attempt)
                return await self._keep(provider, written, entry)
            case TokenFailure():
                return await self._note(provider, written, want, outcome)
            case _ as never:
                assert_never(never)

    async def _send(self, provider: Provider, grant: Grant, audience: Audience, attempt: str) -> TokenOutcome:
        """Send the token request, again where that can only help."""
        delays = iter(QUICK_RETRY_SECONDS)
        while True:
            started = self._clock.monotonic()
            outcome = await self._request(provider, grant, audience)
            if isinstance(outcome, TokenSet):
                # Before anything is awaited: from here on a crash loses nothing.
                self._spool.append(_entry(grant, audience, outcome, attempt))
            await self._observe(provider, grant, outcome, self._clock.monotonic() - started)
            if isinstance(outcome, TokenSet) or not self._worth_repeating(provider, grant, outcome):
                return outcome
            delay = next(delays, None)
            if delay is None:
                return outcome
            await asyncio.sleep(delay * self._randomness.uniform(0.5, 1.5))

    async def _request(self, provider: Provider, grant: Grant, audience: Audience) -> TokenOutcome:
        if grant.refresh_token is not None:
            return await provider.server.refresh(grant, audience)
        return await self._acquire(grant, audience)

    def _worth_repeating(self, provider: Provider, grant: Grant, failure: TokenFailure) -> bool:
        if failure.retry_after_seconds is not None or provider.health.breaker.is_open(self._clock.now()):
            return False
        if failure.kind is FailureKind.TRANSIENT:
            return True
        again = takes_again(grant, provider.server.options, now=self._clock.now())
        return failure.kind is FailureKind.IN_DOUBT and again

    async def _observe(self, provider: Provider, grant: Grant, outcome: TokenOutcome, seconds: float) -> None:
        result = "success" if isinstance(outcome, TokenSet) else outcome.kind.value
        metrics.TOKEN_REFRESH.labels(grant.provider, result).inc()
        metrics.TOKEN_REFRESH_SECONDS.labels(grant.provider).observe(seconds)
        if isinstance(outcome, TokenFailure):
            log.warning(
                "token_request_failed",
                extra={
                    "grant": grant.id,
                    "generation": grant.generation,
                    "provider": grant.provider,
                    "kind": outcome.kind,
                    "error": outcome.error,
                    "status": outcome.status,
                    "detail": outcome.detail,
                },
            )
        await provider.health.observe(outcome)

    async def _keep(self, provider: Provider, stored: StoredGrant, entry: Entry) -> TokenResult:
        """Save an answer, and go on with it even if the store can't take it."""
        metrics.SPOOL_RECORDS.set(len(self._spool))
        for delay in (*SAVE_RETRY_SECONDS, None):
            try:
                return await self._finish(provider, await self._save(provider, stored, entry), entry)
            except StoreError as fault:
                log.warning("save_failed", extra={"grant": entry.grant_id, "error": str(fault)})
            if delay is not None:
                await asyncio.sleep(delay)
        await self._spool.sync()
        after = succeed(stored.grant, entry.audience, entry.answer)
        self._unsaved(after)
        self._tasks.launch(self._save_later(provider, stored, entry), name=f"save:{entry.grant_id}")
        return as_token(after.tokens[entry.audience.key])

    async def _save(self, provider: Provider, stored: StoredGrant, entry: Entry) -> Grant | None:
        """
        Write an answer into its grant.

        Returns:
            The grant as it is now: with this answer, or with a newer one; None if it's gone or has ended.

        Raises:
            StoreError: If that isn't known.
        """
        current: StoredGrant | None = stored
        while current is not None and current.grant.ended is None:
            if current.grant.generation > entry.base_generation:
                if current.grant.refresh_token != entry.answer.refresh_token:
                    log.warning("answer_superseded", extra=_about(current.grant))
                return current.grant
            after = succeed(current.grant, entry.audience, entry.answer)
            written = await self._vault.replace(current, after, due_at=self._due_at(provider, after))
            if written is not None:
                return written.grant
            current = await self._vault.read(entry.grant_id)
        return None

    async def _finish(self, provider: Provider, grant: Grant | None, entry: Entry) -> TokenResult:
        """Check, announce and hand out what was saved."""
        self._spool.done(entry.attempt)
        metrics.SPOOL_RECORDS.set(len(self._spool))
        if grant is None:
            await self._discard(provider, entry)
            return LoginNeeded(EndReason.LOGOUT)
        grant = await self._check(provider, grant, entry)
        self._learned(grant)
        await self._vault.announce(grant)
        self._news.heard(grant.id)
        log.info("token_refreshed", extra=_about(grant))
        held = grant.tokens.get(entry.audience.key)
        return as_token(held) if held is not None else LoginNeeded(grant.ended.reason if grant.ended else "no_token")

    async def _discard(self, provider: Provider, entry: Entry) -> None:
        """The user logged out while the server answered: what came must not live on there."""
        log.info("answer_after_the_end", extra={"grant": entry.grant_id})
        if entry.answer.refresh_token is not None:
            try:
                await provider.server.revoke(entry.answer.refresh_token)
            except ProviderError as fault:
                log.warning("revocation_failed", extra={"grant": entry.grant_id, "error": str(fault)})

    async def _check(self, provider: Provider, grant: Grant, entry: Entry) -> Grant:
        """Check the id token of a refresh (OpenID Connect Core section 12.2). Only another subject ends the grant."""
        if entry.answer.id_token is None:
            return grant
        try:
            async with asyncio.timeout(IDENTITY_CHECK_SECONDS):
                identity = await provider.server.check_refreshed(entry.answer.id_token)
        except (ProviderError, TimeoutError) as fault:
            log.warning("refreshed_id_token_unchecked", extra={"grant": grant.id, "error": type(fault).__name__})
            return grant
        if identity is None:
            return grant
        if identity.subject != grant.subject:
            log.error("subject_changed", extra=_about(grant))
            return await self.end(grant.id, EndReason.SUBJECT_CHANGED) or grant
        self._identified(grant, identity)
        return grant

    async def _note(
        self, provider: Provider, stored: StoredGrant, want: Want, failure: TokenFailure
    ) -> TokenResult | None:
        """Write a failure down, and say what it means for this caller."""
        now = self._clock.now()
        after = fail(
            stored.grant,
            want.audience,
            provider.server.options,
            failure,
            now=now,
            jitter=self._randomness.uniform(0, 1),
        )
        # invalid_grant counts only over the generation that was presented: if another has written, decide again.
        if await self._vault.replace(stored, after, due_at=self._due_at(provider, after)) is None:
            return None
        self._learned(after)
        if after.ended is not None:
            await self._announce_end(after)
            return LoginNeeded(after.ended.reason)
        token = held_token(after, want.audience, now=now, rejected_generation=want.rejected_generation)
        if token is not None:
            return as_token(token)
        if after.refresh_token is None and stored.grant.refresh_token is not None:
            return None  # the refresh token has ended, the grant hasn't: decide again
        return Unavailable(Cause.PROVIDER, max(after.failures[want.audience.key].retry_at - now, 0.5))

    async def _exchange(
        self, provider: Provider, stored: StoredGrant, subject: HeldToken, want: Want
    ) -> TokenResult | None:
        """Exchange the grant's own access token (RFC 8693). No refresh token is spent, so nothing can be lost."""
        outcome = await provider.server.exchange_token(subject.access_token, want.audience)
        await self._observe(provider, stored.grant, outcome, 0.0)
        match outcome:
            case TokenFailure():
                return await self._note(provider, stored, want, outcome)
            case TokenSet():
                after = succeed(stored.grant, want.audience, outcome)
                if await self._vault.replace(stored, after, due_at=self._due_at(provider, after)) is None:
                    return None
                self._learned(after)
                await self._vault.announce(after)
                return as_token(after.tokens[want.audience.key])
            case _ as never:
                assert_never(never)

    async def end(self, grant_id: str, reason: EndReason) -> Grant | None:
        """
        End a grant on every replica, and keep what remembers it.

        Returns:
            The grant as it was just before, with its tokens, for revocation; None if there was none.

        Raises:
            StoreError: If that couldn't be written.
        """
        while (stored := await self._vault.read(grant_id)) is not None and stored.grant.ended is None:
            after = end(stored.grant, reason, now=self._clock.now())
            if await self._vault.replace(stored, after, due_at=None) is not None:
                await self._announce_end(after)
                return stored.grant
        return None

    async def _announce_end(self, grant: Grant) -> None:
        assert grant.ended is not None
        metrics.GRANTS.labels(grant.provider, "ended").inc()
        log.warning("grant_ended", extra={**_about(grant), "reason": grant.ended.reason})
        self._learned(grant)
        await self._vault.announce(grant)
        self._news.heard(grant.id)

    def _due_at(self, provider: Provider, grant: Grant) -> float | None:
        """When the keep-alive should look at the grant: when it ages, or when it must be settled."""
        if grant.intent is not None and grant.failures:
            return max(failure.retry_at for failure in grant.failures.values())
        due = keep_alive_at(grant, provider.server.options, jitter=self._randomness.uniform(0, 1))
        if due is None or not grant.failures:
            return due
        return max(due, *(failure.retry_at for failure in grant.failures.values()))

    async def _recover(self, stored: StoredGrant) -> StoredGrant | None:
        """An intent is open: if a dead process of this host left its answer behind, take it."""
        self._spool.orphans()
        for entry in self._spool.pending():
            if entry.grant_id == stored.grant.id and entry.base_generation == stored.grant.generation:
                await self._recover_entry(entry, stored)
                return await self._vault.read(stored.grant.id)
        return stored

    async def recover(self) -> None:
        """Save what dead processes of this host left in the spool. Whatever can't be saved now is tried again."""
        self._spool.orphans()
        for entry in self._spool.pending():
            try:
                stored = await self._vault.read(entry.grant_id)
                if stored is not None:
                    await self._recover_entry(entry, stored)
                else:
                    self._spool.done(entry.attempt)
            except StoreError as fault:
                log.warning("recovery_waits_for_the_store", extra={"error": str(fault)})
                return
        metrics.SPOOL_RECORDS.set(len(self._spool))

    async def _recover_entry(self, entry: Entry, stored: StoredGrant) -> None:
        provider = self.providers.get(stored.grant.provider)
        if provider is not None:
            await self._finish(provider, await self._save(provider, stored, entry), entry)
            log.warning("answer_recovered", extra={"grant": entry.grant_id})

    async def _save_later(self, provider: Provider, stored: StoredGrant, entry: Entry) -> None:
        """Go on trying until the store has the answer. The process serves it from memory meanwhile."""
        while True:
            await asyncio.sleep(self._randomness.uniform(0.3, 1.0))
            try:
                grant = await self._save(provider, stored, entry)
            except StoreError:
                continue
            await self._finish(provider, grant, entry)
            return


def _entry(grant: Grant, audience: Audience, answer: TokenSet, attempt: str) -> Entry:
    return Entry(attempt=attempt, grant_id=grant.id, base_generation=grant.generation, audience=audience, answer=answer)


def _about(grant: Grant) -> dict[str, object]:
    return {"grant": grant.id, "generation": grant.generation, "provider": grant.provider}


def as_token(held: HeldToken) -> Token:
    """Return what a caller gets of a held token."""
    return Token(held.access_token, held.token_type, held.generation, held.expires_at)

"""
A token response on its way home.

    receive ─▶ save ─▶ check ─▶ tell ─▶ done
       │        │
    on disk   in the store

A rotated refresh token exists once, in the response that brought it. So it is on the disk before anything is awaited,
and saved before anything is checked; whatever goes wrong then is tried again, by this process or by the next one.
What comes in vain is ended by services.unkept.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.compact_jws import share_a_session, unverified_claim
from broker.core.grant import EndReason, Grant, Origin
from broker.core.oauth import TokenSet
from broker.core.outcome import LoginNeeded, TokenResult, token_for
from broker.core.refresh import end, succeed
from broker.errors import ProviderError, StoreError
from broker.services import metrics
from broker.services.clock import Clock, Randomness
from broker.services.health import Provider
from broker.services.known import KnownGrants
from broker.services.provider import Identity
from broker.services.register import Register, about
from broker.services.revocations import Revocations
from broker.services.saved import SavedAnswers
from broker.services.spool import Entry, Spool
from broker.services.tasks import Tasks
from broker.services.unkept import UnkeptAnswers
from broker.services.vault import ForeignRecord, StoredGrant, Vault

SAVE_RETRY_SECONDS = (0.05, 0.2, 0.5)
"""A write that failed is tried again after these, before the caller is served from memory."""
LATER_SECONDS = (0.3, 1.0)
"""And then in the background, at random intervals between these."""
IDENTITY_CHECK_SECONDS = 5.0
"""The id token of a refresh is checked within this, or its claims are left out."""

HasSession = Callable[[str], Awaitable[bool]]
"""Says whether a browser's session hangs on the grant of an id. Raises ``StoreError`` if that isn't known."""

log = logging.getLogger(__name__)


class Answers:
    """Brings token responses home."""

    def __init__(
        self,
        *,
        vault: Vault,
        spool: Spool,
        register: Register,
        revocations: Revocations,
        known: KnownGrants,
        providers: Mapping[str, Provider],
        clock: Clock,
        randomness: Randomness,
        tasks: Tasks,
        identified: Callable[[Grant, Identity], None],
        has_session: HasSession,
    ) -> None:
        """
        Args:
            vault: Where grants are kept.
            spool: Where answers are kept until the vault has them. It is open.
            register: Writes down and tells what became of grants.
            revocations: Revokes what came after the end.
            known: What this process serves from memory.
            providers: By configured name.
            clock: Time.
            randomness: Jitter.
            tasks: Owns what runs on behind a caller's back.
            identified: Is told who a refreshed id token names, once that is checked.
            has_session: Says whether a login was carried to its end.
        """
        self._vault = vault
        self._spool = spool
        self._register = register
        self._revocations = revocations
        self._known = known
        self._providers = providers
        self._clock = clock
        self._randomness = randomness
        self._tasks = tasks
        self._identified = identified
        self._has_session = has_session
        self._saved = SavedAnswers(clock)
        self._unkept = UnkeptAnswers(
            vault=vault,
            register=register,
            revocations=revocations,
            clock=clock,
            randomness=randomness,
            tasks=tasks,
            cross_out=self._cross_out,
        )

    def receive(self, grant: Grant, audience: Audience, answer: TokenSet) -> Entry:
        """Take the answer to the open intent of *grant*. Once this returns, a crash loses nothing."""
        assert grant.intent is not None
        entry = Entry(
            attempt=grant.intent.attempt,
            grant_id=grant.id,
            provider=grant.provider,
            subject=grant.subject,
            chain_length=grant.chain_length,
            chain_started_at=grant.chain_started_at,
            audience=audience,
            answer=answer,
        )
        self._write_down(entry)
        return entry

    def receive_login(self, provider: str, answer: TokenSet) -> Entry:
        """
        Take the first answer of a login. Once this returns, a crash leaves no family that nobody finds.

        What is in the spool when a process starts, and has no session, belongs to a login whose browser was never
        answered, so nobody can use what came of it. Hence :meth:`finish_login` before the browser is answered, or
        :meth:`abandon_login`.
        """
        subject = None if answer.id_token is None else unverified_claim(answer.id_token.reveal(), "sub")
        entry = Entry(
            attempt=self._randomness.token_bytes(8).hex(),
            grant_id=self._randomness.token_bytes(16).hex(),
            provider=provider,
            subject=subject if isinstance(subject, str) else None,
            chain_length=0,
            audience=DEFAULT_AUDIENCE,
            answer=answer,
        )
        self._write_down(entry)
        return entry

    def _write_down(self, entry: Entry) -> None:
        self._spool.append(entry)
        metrics.SPOOL_RECORDS.set(len(self._spool))

    def finish_login(self, entry: Entry) -> None:
        """Cross out what a login brought: its grant is stored, and a session by which to find it."""
        self._cross_out(entry)

    def abandon_login(self, entry: Entry) -> None:
        """End in the background what a login brought that came to nothing, here and at its server."""
        self._unkept.abandon_login(entry)

    async def keep(self, provider: Provider, stored: StoredGrant, entry: Entry) -> TokenResult | None:
        """
        Save an answer, and go on with it even if the store can't take it.

        Returns:
            What it brings its caller; None if it came too late, and its caller should look what is there now.
        """
        for delay in (*SAVE_RETRY_SECONDS, None):
            try:
                grant = await self._save(provider, stored, entry)
            except StoreError as fault:
                log.warning("save_failed", extra={"grant": entry.grant_id, "error": str(fault)})
            else:
                return await self._finish(provider, stored.grant, grant, entry)
            if delay is not None:
                await asyncio.sleep(delay)
        await self._spool.sync()
        after = succeed(stored.grant, entry.audience, entry.answer)
        self._known.learn_unsaved(after)
        self._tasks.launch(self._keep_later(provider, stored, entry), name=f"save:{entry.grant_id}")
        return token_for(after, entry.audience)

    async def recover(self) -> None:
        """Save what dead processes of this host left in the spool. Whatever can't be saved now is tried again."""
        await self._bring_home(self._spool.orphans())

    async def recover_grant(self, stored: StoredGrant) -> StoredGrant | None:
        """
        Save what this process, or any other of this host, has of the answer to the open intent of a grant.

        The lease of the grant is held.

        Returns:
            The grant as it stands now; None if it's gone.

        Raises:
            StoreError: If that isn't known.
        """
        mine = stored.grant.id
        # Other processes can't see any more what was taken over, so all of it is brought home.
        others = [entry for entry in self._spool.orphans() if entry.grant_id != mine or entry.is_login]
        if others:
            self._tasks.launch(self._bring_home(others), name="recovery")
        entries = [entry for entry in self._spool.find(mine) if not entry.is_login]
        for entry in entries:
            await self._recover(entry)
        return await self._vault.read(mine) if entries else stored

    async def save_again(self, stored: StoredGrant) -> StoredGrant | None:
        """
        Save what this process has saved before and the store has lost since: its record went back.

        The lease of the grant is held.

        Returns:
            The grant as it stands now; None if it's gone.

        Raises:
            StoreError: If that isn't known.
        """
        entries = self._saved.lost(stored.grant)
        provider = self._providers.get(stored.grant.provider)
        if not entries or provider is None:
            return stored
        for entry in entries:
            _ = await self._save(provider, stored, entry)
        log.warning("answer_saved_again", extra={"grant": stored.grant.id, "entries": len(entries)})
        return await self._vault.read(stored.grant.id)

    async def _bring_home(self, entries: Sequence[Entry]) -> None:
        for number, entry in enumerate(entries):
            try:
                await self._recover(entry)
            except ForeignRecord as fault:
                # It stays in the spool, where it is found by whoever opens the record, here or at a next start.
                log.error("answer_of_an_unreadable_grant", extra={"grant": entry.grant_id, "error": str(fault)})  # noqa: TRY400
            except StoreError as fault:
                log.warning("recovery_waits_for_the_store", extra={"entries": len(entries), "error": str(fault)})
                self._tasks.launch(self._bring_home_later(entries[number:]), name="recovery")
                return

    async def _bring_home_later(self, entries: Sequence[Entry]) -> None:
        await asyncio.sleep(self._randomness.uniform(*LATER_SECONDS))
        await self._bring_home(entries)

    async def _recover(self, entry: Entry) -> None:
        if entry.is_login:
            if await self._has_session(entry.grant_id):
                # Perhaps the browser was answered, and the disk too full to say so.
                log.info("login_kept", extra={"grant": entry.grant_id, "provider": entry.provider})
                self._cross_out(entry)
                return
            log.warning("login_cut_off", extra={"grant": entry.grant_id, "provider": entry.provider})
            self.abandon_login(entry)
            return
        stored = await self._vault.read(entry.grant_id)
        if stored is None:
            await self._vault.confirm_gone(entry.grant_id)
            log.warning("answer_without_a_grant", extra={"grant": entry.grant_id, "provider": entry.provider})
            # A provider that is down must not hold up the start.
            self._unkept.revoke(entry)
            return
        provider = self._providers.get(stored.grant.provider)
        if provider is None:
            log.error("answer_without_a_provider", extra=about(stored.grant))
            return
        grant = await self._save(provider, stored, entry)
        log.warning("answer_recovered", extra={"grant": entry.grant_id})
        self._tasks.launch(self._finish(provider, stored.grant, grant, entry), name=f"finish:{entry.grant_id}")

    async def _keep_later(self, provider: Provider, stored: StoredGrant, entry: Entry) -> None:
        """Go on trying until the store has the answer."""
        while True:
            await asyncio.sleep(self._randomness.uniform(*LATER_SECONDS))
            try:
                grant = await self._save(provider, stored, entry)
            except StoreError:
                continue
            _ = await self._finish(provider, stored.grant, grant, entry)
            return

    async def _save(self, provider: Provider, stored: StoredGrant, entry: Entry) -> Grant | None:
        """
        Write an answer into its grant, and cross it out in the spool.

        Returns:
            The grant as it is now: with this answer, with a newer one, or ended; None if it's gone. Then the answer is
            still in the spool, to be revoked.

        Raises:
            StoreError: If that isn't known.
        """
        grant = await self._write(provider, stored, entry)
        if grant is not None and _is_given_up(grant, entry):
            self._unkept.revoke(entry)
        elif grant is not None:
            self._cross_out(entry)
            if grant.chain_length == entry.chain_length + 1:
                self._saved.note(entry)
        return grant

    def _cross_out(self, entry: Entry) -> None:
        self._spool.done(entry.attempt)
        metrics.SPOOL_RECORDS.set(len(self._spool))

    async def _write(self, provider: Provider, stored: StoredGrant, entry: Entry) -> Grant | None:
        current: StoredGrant | None = stored
        while current is not None:
            if current.grant.chain_length > entry.chain_length or _is_of_another_chain(current.grant, entry):
                if entry.answer.refresh_token not in {None, current.grant.refresh_token}:
                    log.warning("answer_superseded", extra=about(current.grant))
                return current.grant
            after = succeed(current.grant, entry.audience, entry.answer)
            written = await self._register.write(current, after, options=provider.server.options)
            if written is not None:
                return written.grant
            current = await self._vault.read(entry.grant_id)
        await self._vault.confirm_gone(entry.grant_id)
        return None

    async def _finish(self, provider: Provider, former: Grant, grant: Grant | None, entry: Entry) -> TokenResult | None:
        """Check, tell and hand out what was saved over *former*."""
        if grant is None or grant.ended is not None:
            return await self._refuse_late(grant, entry)
        if await self._names_another(provider, former, grant, entry):
            return await self._refuse_subject(grant)
        await self._register.tell(grant)
        log.info("token_refreshed", extra=about(grant))
        return token_for(grant, entry.audience)

    async def _refuse_late(self, grant: Grant | None, entry: Entry) -> TokenResult:
        """The grant ended while the server answered: what came must not live on here or there."""
        log.info("answer_after_the_end", extra={"grant": entry.grant_id})
        reason = EndReason.LOGOUT if grant is None or grant.ended is None else grant.ended.reason
        self._known.end(entry.grant_id, reason)
        if grant is not None:
            _ = await self._revocations.revoke(entry.grant_id)
        else:
            self._unkept.revoke(entry)
        return LoginNeeded(reason)

    async def _names_another(self, provider: Provider, former: Grant, grant: Grant, entry: Entry) -> bool:
        """Check the id token of a refresh (OpenID Connect Core section 12.2), and return whether it is another's."""
        subject = _subject_of(former)
        if entry.answer.id_token is None or subject is None:
            return False
        try:
            async with asyncio.timeout(IDENTITY_CHECK_SECONDS):
                identity = await provider.server.check_refreshed(entry.answer.id_token)
        except (ProviderError, TimeoutError) as fault:
            log.warning("refreshed_id_token_unchecked", extra={"grant": grant.id, "error": type(fault).__name__})
            return False
        if identity is None:
            return False
        if identity.subject == subject:
            self._identified(grant, identity)
            return False
        return True

    async def _refuse_subject(self, grant: Grant) -> TokenResult:
        """End a grant that has become another's."""
        log.error("subject_changed", extra=about(grant))
        self._known.learn(end(grant, EndReason.SUBJECT_CHANGED, now=self._clock.now()))
        try:
            await self._end_and_revoke(grant)
        except StoreError as fault:
            log.error("end_not_written", extra={"grant": grant.id, "error": str(fault)})  # noqa: TRY400
            self._tasks.launch(self._end_later(grant), name=f"end:{grant.id}")
        return LoginNeeded(EndReason.SUBJECT_CHANGED)

    async def _end_and_revoke(self, grant: Grant) -> None:
        _ = await self._register.end(grant.id, EndReason.SUBJECT_CHANGED, revoke=True)
        _ = await self._revocations.revoke(grant.id)

    async def _end_later(self, grant: Grant) -> None:
        while True:
            await asyncio.sleep(self._randomness.uniform(*LATER_SECONDS))
            self._known.learn(end(grant, EndReason.SUBJECT_CHANGED, now=self._clock.now()))
            try:
                await self._end_and_revoke(grant)
            except StoreError:
                continue
            return


def _subject_of(grant: Grant) -> str | None:
    """
    Return the ``sub`` that the id tokens of a grant must name; None if none was named yet.

    Only a login asked the server who that is. What an operator calls the subject of an import, or of a grant of the
    configuration, may be any word; of an import the last id token says it.
    """
    match grant.origin:
        case Origin.BROWSER:
            return grant.subject
        case Origin.IMPORTED:
            named = None if grant.id_token is None else unverified_claim(grant.id_token.reveal(), "sub")
            return named if isinstance(named, str) else None
        case Origin.STANDING:
            return None


def _is_of_another_chain(grant: Grant, entry: Entry) -> bool:
    """
    Return whether an answer belongs to a chain that isn't the one of *grant* any more, or never was.

    A store that came back empty lost the record of the one, and another began under the same name. One that has
    brought nothing yet goes on with the answer.
    """
    has_moved = entry.chain_started_at not in {None, grant.chain_started_at} and grant.generation > 0
    return entry.chain_length < grant.first_link or has_moved


def _is_given_up(grant: Grant, entry: Entry) -> bool:
    """
    Return whether an answer belongs to a chain in whose place *grant* has begun another, which can do without it.

    Of its own chain a token that is late was rotated already, and some servers end the chain with each that is revoked.
    """
    can_be_spared = entry.answer.refresh_token not in {None, grant.refresh_token} and not share_a_session(
        entry.answer.id_token, grant.id_token
    )
    return _is_of_another_chain(grant, entry) and can_be_spared

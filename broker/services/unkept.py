"""
Answers that nobody may use: of a login that came to nothing, or for a grant that is gone.

    beside a living grant of the same session? ─▶ revoke, or remember to ─▶ cross out

Dropped alone, their tokens would stay good at the server for whoever may have a copy. So they are ended there, in the
background, and until the server or the store has taken that over they stay in the spool.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from broker.core.compact_jws import session_of
from broker.core.grant import Ended, EndReason, Grant
from broker.errors import StoreError
from broker.services.clock import Clock, Randomness
from broker.services.register import Register
from broker.services.revocations import Revocations
from broker.services.spool import Entry
from broker.services.tasks import Tasks
from broker.services.vault import ForeignRecord, Vault

RETRY_SECONDS = (0.3, 1.0)
"""What the store can't take is tried again at random intervals between these."""

log = logging.getLogger(__name__)


class UnkeptAnswers:
    """Ends what came in vain."""

    def __init__(
        self,
        *,
        vault: Vault,
        register: Register,
        revocations: Revocations,
        clock: Clock,
        randomness: Randomness,
        tasks: Tasks,
        cross_out: Callable[[Entry], None],
    ) -> None:
        """
        Args:
            vault: Where grants are kept.
            register: Ends grants.
            revocations: Revokes what they had.
            clock: Time.
            randomness: Ids and jitter.
            tasks: Owns what runs on behind a caller's back.
            cross_out: Forgets an answer once it is ended, or remembered elsewhere.
        """
        self._vault = vault
        self._register = register
        self._revocations = revocations
        self._clock = clock
        self._randomness = randomness
        self._tasks = tasks
        self._cross_out = cross_out

    def revoke(self, entry: Entry) -> None:
        """Revoke what came for a grant that is gone: nobody would find it there, and a copy of it would stay good."""
        self._tasks.launch(self._insistently(self._revoke, entry), name=f"revoke:{entry.grant_id}")

    def abandon_login(self, entry: Entry) -> None:
        """End what a login brought that came to nothing, here and at its server. Its grant may have been stored."""
        self._tasks.launch(self._insistently(self._end_login, entry), name=f"abandon:{entry.grant_id}")

    async def _insistently(self, settle: Callable[[Entry], Awaitable[None]], entry: Entry) -> None:
        """Settle *entry* as soon as the store lets it; until then the spool has it, or until its grant can be read."""
        has_waited = False
        while True:
            try:
                await settle(entry)
            except ForeignRecord as fault:
                log.error("answer_of_an_unreadable_grant", extra={"grant": entry.grant_id, "error": str(fault)})  # noqa: TRY400
                return
            except StoreError as fault:
                if not has_waited:
                    log.warning("revocation_waits_for_the_store", extra={"grant": entry.grant_id, "error": str(fault)})
                has_waited = True
                await asyncio.sleep(self._randomness.uniform(*RETRY_SECONDS))
            else:
                return

    async def _revoke(self, entry: Entry) -> None:
        """Revoke what no record has. Raises ``StoreError`` if it isn't known whether that may be."""
        if await self._vault.read(entry.grant_id) is None:
            await self._vault.confirm_gone(entry.grant_id)
        ended = _ended(entry, grant_id=self._randomness.token_bytes(16).hex(), now=self._clock.now())
        may_be = ended is not None and not await self._is_shared(entry, subject=entry.subject)
        if ended is not None and may_be and not await self._revocations.revoke_unkept(ended):
            await self._remember(ended)
        self._cross_out(entry)

    async def _end_login(self, entry: Entry) -> None:
        stored = await self._vault.read(entry.grant_id)
        if stored is None:
            await self._revoke(entry)
            return
        is_shared = await self._is_shared(entry, subject=stored.grant.subject)
        _ = await self._register.end(entry.grant_id, EndReason.REVOKED, revoke=not is_shared)
        self._cross_out(entry)
        _ = await self._revocations.revoke(entry.grant_id)

    async def _is_shared(self, entry: Entry, *, subject: str | None) -> bool:
        """
        Return whether a living grant of the same user may hang on the session that the answer belongs to.

        Some servers end everything that hangs on the session with each of its refresh tokens that is revoked, and the
        user who has come back meanwhile would be logged out. Raises ``StoreError``.
        """
        if entry.provider is None or subject is None:
            return False
        mine = session_of(entry.answer.id_token)
        for sibling in await self._vault.find(entry.provider, subject):
            grant = sibling.grant
            theirs = session_of(grant.id_token)
            if grant.id != entry.grant_id and grant.ended is None and (None in (mine, theirs) or mine == theirs):
                log.info("answer_not_revoked", extra={"grant": entry.grant_id, "beside": grant.id})
                return True
        return False

    async def _remember(self, ended: Grant) -> None:
        while True:
            try:
                await self._revocations.remember(ended)
            except StoreError:
                await asyncio.sleep(self._randomness.uniform(*RETRY_SECONDS))
            else:
                return


def _ended(entry: Entry, *, grant_id: str, now: float) -> Grant | None:
    """
    Return what an answer brought as a grant that has ended; None if it brought nothing that can be revoked.

    The id is a new one: a standing grant whose record is gone begins anew under its own.
    """
    answer = entry.answer
    if entry.provider is None or answer.refresh_token is None:
        return None
    return Grant(
        id=grant_id,
        provider=entry.provider,
        subject=entry.subject or "",
        generation=0,
        refresh_token=answer.refresh_token,
        refreshed_at=answer.requested_at,
        session_id=answer.session_id,
        chain_started_at=answer.requested_at,
        chain_length=entry.chain_length,
        ended=Ended(reason=EndReason.REVOKED, at=now),
    )

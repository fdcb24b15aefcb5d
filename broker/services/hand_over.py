"""
Tokens that somebody else got take the place of those that a grant has.

    lease ─▶ read ─▶ remember what is to be revoked ─▶ write ─▶ tell ─▶ wait until all have heard ─▶ revoke

What is remembered is revoked only where the write was done (services.revocations): neither a crash nor a store that
fails between them costs the tokens that are there, or leaves those that went good at their server.

Whoever isn't sure whether it was done does it once more. What was done may have rotated since, and then the tokens that
come are spent: the grant goes on with what became of them.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from hmac import compare_digest

from broker.core.audience import DEFAULT_AUDIENCE
from broker.core.compact_jws import share_a_session
from broker.core.grant import EndReason, Grant, HeldToken, Origin
from broker.core.oauth import TokenSet
from broker.core.refresh import end
from broker.core.secret import RefreshToken
from broker.core.upkeep import awaits_revocation, keep_alive_at
from broker.errors import ProviderError, StoreError
from broker.services.clock import Clock, Randomness
from broker.services.handles import FOREVER_SECONDS
from broker.services.leases import LEASE_SECONDS, renewed
from broker.services.provider import AuthorizationServer
from broker.services.revocations import Revocations
from broker.services.tasks import Tasks
from broker.services.vault import StoredGrant, Vault
from broker.stores.base import Busy, StoreDown

BUSY_POLL_SECONDS = 0.2
PATIENCE_SECONDS = 20.0
"""How long a refresh that is under way is waited for."""


class HandOver:
    """Writes tokens into grants that stay."""

    def __init__(
        self,
        vault: Vault,
        revocations: Revocations,
        servers: Mapping[str, AuthorizationServer],
        clock: Clock,
        randomness: Randomness,
        *,
        told_within_seconds: float,
    ) -> None:
        self._vault = vault
        self._revocations = revocations
        self._servers = servers
        self._clock = clock
        self._randomness = randomness
        self._told_within_seconds = told_within_seconds
        self._tasks = Tasks()

    async def fill(self, empty: Grant, tokens: TokenSet, *, dpop_key: RefreshToken | None) -> Grant:
        """
        Put *tokens* in place of whatever a grant has, and let every replica know.

        What it had is revoked at its server, unless it is the very refresh token that is handed over, or both hang on
        one session there.

        Args:
            empty: The grant as it begins where the store has lost its record.
            tokens: What it goes on with.
            dpop_key: The key that they are bound to, if they are.

        Returns:
            The grant as it is stored.

        Raises:
            ProviderError: If a refresh is under way, and its server takes its time.
            StoreError: If it isn't known whether that was written. It may be done again, at any time; no token is lost
                by it.
        """
        async with self._leased(empty.id):
            grant, replaced = await self._write(empty, tokens, dpop_key)
        await self._vault.announce(grant)
        if replaced is not None:
            # Calls that the others are sending still carry the former token.
            await asyncio.sleep(self._told_within_seconds)
            _ = await self._revocations.revoke(replaced.id)
        return grant

    @asynccontextmanager
    async def _leased(self, grant_id: str) -> AsyncIterator[None]:
        """Hold the grant's lease as soon as whoever refreshes it is done: what that brings is to be replaced, too."""
        until = self._clock.monotonic() + PATIENCE_SECONDS
        while isinstance(lease := await self._vault.lease(grant_id, LEASE_SECONDS), Busy):
            if self._clock.monotonic() >= until:
                raise ProviderError("the grant is being refreshed, and its server takes its time")
            await asyncio.sleep(BUSY_POLL_SECONDS * self._randomness.uniform(0.5, 1.5))
        if isinstance(lease, StoreDown):
            raise StoreError(lease.detail)
        async with renewed(lease, self._tasks):
            yield

    async def _write(self, empty: Grant, tokens: TokenSet, dpop_key: RefreshToken | None) -> tuple[Grant, Grant | None]:
        """Return the grant as it is written, and what remembers those tokens that are to be revoked."""
        while True:
            stored = await self._read(empty)
            former = stored.grant
            if _goes_on_with(former, tokens):
                return former, None
            if tokens.refresh_token is not None:
                await self._revocations.spare(former, tokens.refresh_token)
            replaced = self._replaced(former, tokens)
            if replaced is not None:
                await self._revocations.remember(replaced)
            filled = _filled(former, tokens, dpop_key)
            options = self._servers[former.provider].options
            due_at = keep_alive_at(filled, options, jitter=self._randomness.uniform(0, 1))
            if await self._vault.replace(stored, filled, due_at=due_at) is not None:
                return filled, replaced

    async def _read(self, empty: Grant) -> StoredGrant:
        stored = await self._vault.read(empty.id)
        if stored is None:
            _ = await self._vault.begin(empty, ttl_seconds=FOREVER_SECONDS)
            stored = await self._vault.read(empty.id)
        if stored is None:
            raise StoreError("the grant's record can't be opened")
        return stored

    def _replaced(self, former: Grant, tokens: TokenSet) -> Grant | None:
        """Return what *former* has and is to be revoked, as a grant of its own that has ended; None if it's nothing."""
        now = self._clock.now()
        ended = former if former.ended is not None else end(former, EndReason.REVOKED, now=now, revoke=True)
        if former.refresh_token == tokens.refresh_token or not awaits_revocation(ended, now=now):
            return None
        if share_a_session(former.id_token, tokens.id_token):
            return None  # some servers end all that hangs on a session with each of its refresh tokens
        return replace(
            ended,
            id=self._randomness.token_bytes(16).hex(),
            origin=Origin.BROWSER,  # operators look for grants that are used, not for this
            session_id=None if _is_same(former.session_id, tokens.session_id) else former.session_id,
            stands_for=former.id,
        )


def _is_same(one: str | None, other: str | None) -> bool:
    return one is not None and other is not None and compare_digest(one.encode(), other.encode())


def _filled(former: Grant, tokens: TokenSet, dpop_key: RefreshToken | None) -> Grant:
    """Return *former* with a chain that begins with *tokens*. An answer to the chain before it comes too late."""
    generation, link = former.generation + 1, former.chain_length + 1
    return replace(
        former,
        generation=generation,
        refresh_token=tokens.refresh_token,
        refresh_expires_at=tokens.refresh_expires_at,
        refreshed_at=tokens.requested_at,
        tokens={DEFAULT_AUDIENCE.key: HeldToken.of(tokens, generation=generation)},
        id_token=tokens.id_token,
        scope=tokens.scope,
        session_id=tokens.session_id,
        chain_started_at=tokens.requested_at,
        chain_length=link,
        first_link=link,
        intent=None,
        failures={},
        ended=None,
        dpop_key=dpop_key,
        handed_over=None if tokens.refresh_token is None else _name(tokens.refresh_token),
    )


def _goes_on_with(former: Grant, tokens: TokenSet) -> bool:
    """Return whether *former* began with *tokens* and has presented them since, or is about to: they are spent."""
    handed = tokens.refresh_token
    if handed is None or former.refresh_token is None or former.ended is not None:
        return False
    if former.refresh_token == handed:
        return former.intent is not None
    return began_with(former, handed)


def began_with(grant: Grant, token: RefreshToken) -> bool:
    """Return whether the present chain of *grant* began with *token*, which somebody handed over."""
    return grant.handed_over is not None and compare_digest(grant.handed_over, _name(token))


def _name(token: RefreshToken) -> str:
    """Return what names a refresh token in a record of its grant without holding it: SHA-256, in hexadecimal."""
    return sha256(token.reveal().encode()).hexdigest()

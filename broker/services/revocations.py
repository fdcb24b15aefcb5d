"""
Telling authorization servers to forget the refresh tokens of grants that have ended (RFC 7009).

A grant that ends keeps its refresh token until this is done, so that neither a crash nor a server that is down leaves
it good for whoever may have copied it: the keep-alive of any replica finds what is still to be done.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace

from broker.core.grant import Grant
from broker.core.secret import RefreshToken
from broker.core.upkeep import REVOKE_FOR_SECONDS, awaits_revocation, revocation_at
from broker.errors import ProviderError, StoreError
from broker.services.clock import Clock
from broker.services.provider import AuthorizationServer
from broker.services.vault import StoredGrant, Vault

log = logging.getLogger(__name__)


class Revocations:
    """Revokes what ended. Nothing here raises for what a server or the store does: it is tried again."""

    def __init__(self, vault: Vault, servers: Mapping[str, AuthorizationServer], clock: Clock) -> None:
        self._vault = vault
        self._servers = servers
        self._clock = clock

    async def revoke(self, grant_id: str) -> bool:
        """Revoke what a grant that has ended still has. Returns whether its server confirmed that."""
        try:
            stored = await self._vault.read(grant_id)
            return stored is not None and await self.settle(stored)
        except StoreError as fault:
            log.warning("revocation_waits_for_the_store", extra={"grant": grant_id, "error": str(fault)})
            return False

    async def settle(self, stored: StoredGrant) -> bool:
        """
        As :meth:`revoke`, for a grant as it was read.

        Raises:
            StoreError: If that isn't known or can't be written down. It is done again then, which servers take as done.
        """
        grant = stored.grant
        if grant.ended is None or grant.refresh_token is None or await self._goes_on(grant):
            return False
        confirmed = await self.revoke_token(grant.provider, grant.refresh_token)
        if confirmed is None and awaits_revocation(grant, now=self._clock.now()):
            return False
        await self._forget(stored, grant.refresh_token)
        session_ended = await self._end_provider_session(grant)
        return session_ended is not None and (confirmed is True or session_ended)

    async def revoke_unkept(self, grant: Grant) -> bool:
        """
        Revoke what a grant that has ended has, where no record remembers it.

        Returns:
            Whether nothing is left to be done; else :meth:`remember` it.
        """
        assert grant.refresh_token is not None
        confirmed = await self.revoke_token(grant.provider, grant.refresh_token)
        if confirmed is not None:
            _ = await self._end_provider_session(grant)
        return confirmed is not None

    async def remember(self, grant: Grant) -> None:
        """
        Store a grant that has ended, so that what it has is revoked later, by whichever replica.

        Raises:
            StoreError: If it can't be stored.
        """
        due_at = revocation_at(grant, now=self._clock.now(), jitter=0.5)
        _ = await self._vault.create(grant, ttl_seconds=REVOKE_FOR_SECONDS, due_at=due_at)

    async def spare(self, grant: Grant, token: RefreshToken) -> None:
        """Don't revoke *token*, although others took its place in *grant*: it comes back. Raises ``StoreError``."""
        for stored in await self._vault.find(grant.provider, grant.subject):
            if stored.grant.stands_for == grant.id:
                await self._forget(stored, token)

    async def _goes_on(self, grant: Grant) -> bool:
        """Return whether what *grant* remembers is still in use: other tokens were to take its place, and haven't."""
        if grant.stands_for is None:
            return False
        stored = await self._vault.read(grant.stands_for)
        if stored is None:
            await self._vault.confirm_gone(grant.stands_for)
        return stored is not None and stored.grant.first_link == grant.first_link

    async def revoke_token(self, provider: str, token: RefreshToken) -> bool | None:
        """
        Revoke a refresh token, with or without a grant.

        Returns:
            True if the server confirmed it, False if it has no endpoint for that, None if it is to be tried again.
        """
        server = self._servers.get(provider)
        try:
            if server is not None:
                return await server.revoke(token)
            log.warning("grant_not_revoked", extra={"provider": provider, "error": "no such provider is configured"})
        except ProviderError as fault:
            log.warning("grant_not_revoked", extra={"provider": provider, "error": str(fault)})
        return None

    async def _forget(self, stored: StoredGrant, token: RefreshToken) -> None:
        """Drop *token* from its grant's record, unless a younger one has come that is to be revoked too."""
        current: StoredGrant | None = stored
        while current is not None and current.grant.refresh_token == token:
            if await self._vault.replace(current, replace(current.grant, refresh_token=None), due_at=None) is not None:
                return
            current = await self._vault.read(stored.grant.id)

    async def _end_provider_session(self, grant: Grant) -> bool | None:
        """Return whether the server ended the session that it keeps of its own; None if it should have."""
        server = self._servers.get(grant.provider)
        if server is None or grant.session_id is None:
            return False
        try:
            return await server.end_provider_session(grant.session_id)
        except ProviderError as fault:
            log.warning("provider_session_not_ended", extra={"grant": grant.id, "error": str(fault)})
            return None

"""
Standing grants: those that the configuration brings, without any browser.

Each has a record in the store like any other grant, so that the engine renews it under its lease; it begins empty, and
the first caller gets its first tokens.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from broker.core.audience import Audience
from broker.core.grant import Grant, Origin
from broker.core.oauth import FailureKind, TokenFailure, TokenOutcome
from broker.core.standing import StandingGrantOptions
from broker.errors import StoreError
from broker.services.clock import Clock
from broker.services.handles import FOREVER_SECONDS
from broker.services.keyring import Keyring
from broker.services.provider import AuthorizationServer
from broker.services.vault import Vault

ENSURE_SECONDS = 10.0
"""How often it is made sure that their records exist: a store that came back empty has lost them."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Standing:
    name: str
    options: StandingGrantOptions


class StandingGrants:
    """
    The configured grants.

    Attributes:
        ids: The grants' ids by their configured names. Replicas with one configuration and key have the same.
    """

    def __init__(
        self,
        grants: Mapping[str, StandingGrantOptions],
        *,
        servers: Mapping[str, AuthorizationServer],
        vault: Vault,
        keyring: Keyring,
        clock: Clock,
    ) -> None:
        """
        Args:
            grants: By their configured names.
            servers: The providers by their configured names.
            vault: Where their records are.
            keyring: Makes their ids.
            clock: Time.
        """
        self.ids = {
            name: _grant_id(keyring, name, options, bound=servers[options.provider].options.dpop)
            for name, options in grants.items()
        }
        self._grants = {self.ids[name]: _Standing(name, options) for name, options in grants.items()}
        self._servers = servers
        self._vault = vault
        self._clock = clock

    async def ensure(self) -> None:
        """Make sure that each has a record. Raises ``StoreError``."""
        for grant_id, standing in self._grants.items():
            if await self._vault.read(grant_id) is None and await self._vault.begin(
                self._empty(grant_id, standing), ttl_seconds=FOREVER_SECONDS
            ):
                log.info("standing_grant_begun", extra={"grant": grant_id, "grant_name": standing.name})

    async def run(self) -> None:
        """Ensure now and then, until cancelled."""
        while self._grants:
            await asyncio.sleep(ENSURE_SECONDS)
            try:
                await self.ensure()
            except StoreError as fault:
                log.warning("standing_grants_without_store", extra={"error": str(fault)})

    def _empty(self, grant_id: str, standing: _Standing) -> Grant:
        now = self._clock.now()
        return Grant(
            id=grant_id,
            provider=standing.options.provider,
            subject=standing.options.subject or standing.name,
            origin=Origin.STANDING,
            generation=0,
            refresh_token=None,
            refreshed_at=now,
            chain_started_at=now,
            dpop_key=self._servers[standing.options.provider].new_dpop_key(),
        )

    async def acquire(self, grant: Grant, audience: Audience) -> TokenOutcome:
        """Get tokens for a grant that has no refresh token: a standing one, or one with a session at its server."""
        server = self._servers[grant.provider]
        standing = self._grants.get(grant.id)
        if standing is not None:
            return await server.first_tokens(standing.options, audience, dpop_key=grant.dpop_key)
        if grant.session_id is not None:
            return await server.authenticate_session(grant.session_id, audience)
        return TokenFailure(kind=FailureKind.OPERATOR, detail="the grant isn't configured any more")


def _grant_id(keyring: Keyring, name: str, options: StandingGrantOptions, *, bound: bool) -> str:
    """A grant of another provider, user or scope is another grant, and so is one that is bound to a key."""
    described = [name, options.provider, options.type, options.subject, options.scope, options.username]
    described += ["dpop"] if bound else []
    return keyring.lookup_keys("standing-grant", json.dumps(described))[-1].rpartition(":")[2][:32]

"""
Standing grants: those that the configuration brings, without any browser.

Each has a record in the store like any other grant, so that the engine renews it under its lease; it begins empty, and
the first caller gets its first tokens.

One that has ended begins anew, as the configuration still names it: an operator who ends one wants its tokens to end.
Only one whose tokens somebody else must hand over (type ``imported``) stays as it is, until somebody does.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256

from broker.core.audience import Audience
from broker.core.grant import Grant, Origin
from broker.core.oauth import FailureKind, TokenFailure, TokenOutcome, TokenSet
from broker.core.secret import RefreshToken
from broker.core.standing import GrantType, StandingGrantOptions
from broker.core.upkeep import awaits_revocation
from broker.errors import BadRequest, StoreError
from broker.services.clock import Clock, Randomness
from broker.services.hand_over import HandOver
from broker.services.handles import FOREVER_SECONDS
from broker.services.leases import LEASE_SECONDS, renewed
from broker.services.provider import AuthorizationServer
from broker.services.revocations import Revocations
from broker.services.tasks import Tasks
from broker.services.token_endpoint import spared
from broker.services.vault import Vault
from broker.stores.base import Busy, Event, Store, StoreDown, Topic

ENSURE_SECONDS = 10.0
"""How often it is made sure that their records exist: a store that came back empty has lost them."""
BEGIN_ANEW_SECONDS = 1.0
"""One that has ended begins anew after this: whoever ended it revokes what it had first."""
TOLD_WITHIN_SECONDS = 1.0
"""Other replicas have heard of new tokens by then."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Standing:
    name: str
    options: StandingGrantOptions


class StandingGrants:
    """
    The configured grants.

    Attributes:
        ids: The grants' ids by their configured names. Replicas with one configuration have the same.
    """

    def __init__(
        self,
        grants: Mapping[str, StandingGrantOptions],
        *,
        servers: Mapping[str, AuthorizationServer],
        vault: Vault,
        store: Store,
        clock: Clock,
        randomness: Randomness,
        told_within_seconds: float = TOLD_WITHIN_SECONDS,
    ) -> None:
        """
        Args:
            grants: By their configured names.
            servers: The providers by their configured names.
            vault: Where their records are.
            store: Tells of their ends.
            clock: Time.
            randomness: Names what is to be revoked.
            told_within_seconds: How long other replicas may take to hear of new tokens; the former are good until then.
        """
        self.ids = {
            name: _grant_id(name, options, bound=servers[options.provider].options.dpop)
            for name, options in grants.items()
        }
        self._grants = {self.ids[name]: _Standing(name, options) for name, options in grants.items()}
        self._servers = servers
        self._vault = vault
        self._revocations = Revocations(vault, servers, clock)
        self._hand_over = HandOver(
            vault, self._revocations, servers, clock, randomness, told_within_seconds=told_within_seconds
        )
        self._clock = clock
        self._randomness = randomness
        self._tasks = Tasks()
        self._has_ended = asyncio.Event()
        self._unsubscribe = store.subscribe(self._heard)

    def _heard(self, event: Event) -> None:
        if event.topic is Topic.GRANT_ENDED and event.key in self._grants:
            self._has_ended.set()

    def name_of(self, grant_id: str) -> str | None:
        """Return the configured name of a grant; None for one that the configuration doesn't name."""
        standing = self._grants.get(grant_id)
        return None if standing is None else standing.name

    async def ensure(self) -> None:
        """
        Make sure that each has a record, and one that lives where the broker can begin it.

        Raises:
            StoreError: If that isn't so of one. The others were looked at, too.
        """
        failure: StoreError | None = None
        for grant_id, standing in self._grants.items():
            try:
                await self._ensure(standing, grant_id)
            except StoreError as fault:
                failure = fault
        if failure is not None:
            raise failure

    async def _ensure(self, standing: _Standing, grant_id: str) -> None:
        stored = await self._vault.read(grant_id)
        if stored is None:
            if await self._vault.begin(self._empty(grant_id, standing), ttl_seconds=FOREVER_SECONDS):
                log.info("standing_grant_begun", extra={"grant": grant_id, "grant_name": standing.name})
        elif stored.grant.ended is not None and standing.options.type is not GrantType.IMPORTED:
            await self._begin_anew(standing, grant_id)

    async def _begin_anew(self, standing: _Standing, grant_id: str) -> None:
        """Under the lease: what a refresh under way brings belongs to what has ended, and is revoked with it."""
        lease = await self._vault.lease(grant_id, LEASE_SECONDS)
        if isinstance(lease, StoreDown):
            raise StoreError(lease.detail)
        if isinstance(lease, Busy):
            return
        async with renewed(lease, self._tasks):
            stored = await self._vault.read(grant_id)
            if stored is None or stored.grant.ended is None:
                return
            former = stored.grant
            if awaits_revocation(former, now=self._clock.now()):
                # The record is needed; another one remembers that.
                await self._revocations.remember(replace(former, id=self._randomness.token_bytes(16).hex()))
            anew = replace(
                self._empty(grant_id, standing),
                generation=former.generation + 1,
                chain_length=former.chain_length + 1,  # an answer to the former chain comes too late
                first_link=former.chain_length + 1,
            )
            if await self._vault.replace(stored, anew, due_at=None) is not None:
                log.warning(
                    "standing_grant_begun_anew",
                    extra={"grant": grant_id, "grant_name": standing.name, "reason": stored.grant.ended.reason},
                )
                await self._vault.announce(anew)

    async def hand_over(self, name: str, tokens: TokenSet, *, dpop_key: RefreshToken | None = None) -> Grant:
        """
        Put tokens that somebody else got into a configured grant, in place of whatever it has (services.hand_over).

        Args:
            name: The grant's configured name.
            tokens: What it goes on with.
            dpop_key: The key that they are bound to, if they are.

        Returns:
            The grant as it is stored.

        Raises:
            BadRequest: If the configuration has no grant of type ``imported`` by this name.
            ProviderError: If a refresh is under way, and its server takes its time.
            StoreError: If it isn't known whether that was written. It may be done again; no token is lost by it.
        """
        grant_id = self.ids.get(name)
        if grant_id is None:
            raise BadRequest("grant: no such standing grant is configured")
        standing = self._grants[grant_id]
        if standing.options.type is not GrantType.IMPORTED:
            raise BadRequest(f"grant: tokens are handed over to type imported, and its type is {standing.options.type}")
        grant = await self._hand_over.fill(self._empty(grant_id, standing), tokens, dpop_key=dpop_key)
        log.info(
            "standing_grant_handed_over",
            extra={"grant": grant_id, "grant_name": name, "generation": grant.generation},
        )
        return grant

    async def run(self) -> None:
        """Ensure now and then, and soon after one has ended, until cancelled."""
        while self._grants:
            with suppress(TimeoutError):
                async with asyncio.timeout(ENSURE_SECONDS):
                    await self._has_ended.wait()
                    self._has_ended.clear()
                    await asyncio.sleep(BEGIN_ANEW_SECONDS)
            try:
                await self.ensure()
            except StoreError as fault:
                log.warning("standing_grants_without_store", extra={"error": str(fault)})
            except Exception:  # a fault of ours must not end it: what ends later would never begin anew
                log.exception("standing_grants_failed")

    def close(self) -> None:
        """Hear nothing any more."""
        self._unsubscribe()

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
            outcome = await _first_tokens(server, standing.options, grant, audience)
            return _explained(outcome, standing.name) if isinstance(outcome, TokenFailure) else outcome
        if grant.session_id is not None:
            return await server.authenticate_session(grant.session_id, audience)
        return TokenFailure(kind=FailureKind.OPERATOR, detail="the grant isn't configured any more")


async def _first_tokens(
    server: AuthorizationServer, options: StandingGrantOptions, grant: Grant, audience: Audience
) -> TokenOutcome:
    if options.type is not GrantType.IMPORTED or grant.session_id is None:
        return await server.first_tokens(options, audience, dpop_key=grant.dpop_key)
    outcome = await server.authenticate_session(grant.session_id, audience)
    return spared(outcome, "session") if isinstance(outcome, TokenFailure) else outcome


def _explained(failure: TokenFailure, name: str) -> TokenFailure:
    """Return *failure* with the key to look at, where only the operator can mend it and no key of the provider does."""
    is_elsewhere = failure.kind is FailureKind.OPERATOR and failure.look_at is None
    return replace(failure, look_at=f"grants.{name}") if is_elsewhere else failure


def _grant_id(name: str, options: StandingGrantOptions, *, bound: bool) -> str:
    """
    Return the id of a configured grant: SHA-256 of what makes it another grant, in hexadecimal.

    A grant of another provider, user or scope is another grant, and so is one that is bound to a key. The keys of the
    installation are no part of it, so it stays the same grant while they rotate. Whoever sees the id can try guesses
    at what it is made of, and there is no secret in that.
    """
    described = [name, options.provider, options.type, options.subject, options.scope, options.username]
    described += ["dpop"] if bound else []
    return sha256(json.dumps(described).encode()).hexdigest()[:32]

"""
Tokens that somebody else got become grants of their own.

    named by the refresh token ─▶ taken before? ─▶ go on with that grant
                                       └ no ─────▶ a new one, under that name

Whoever isn't sure whether it was done does it once more: the store failed, or nobody was left to read the answer. Two
grants of one refresh token would both present it, and a server with rotation takes the second for theft. So the id of
such a grant is made from its refresh token, by the keyring, and a repetition finds it, whatever has become of it since.
"""

import json
import logging
from collections.abc import Mapping

from broker.core.grant import Grant, Origin
from broker.core.oauth import TokenSet
from broker.core.secret import RefreshToken
from broker.errors import BadRequest
from broker.services.clock import Clock, Randomness
from broker.services.hand_over import HandOver, began_with
from broker.services.handles import FOREVER_SECONDS
from broker.services.keyring import Keyring
from broker.services.provider import AuthorizationServer
from broker.services.standing import TOLD_WITHIN_SECONDS
from broker.services.tokens import TokenBroker
from broker.services.vault import GrantExists, Vault

KIND = "imported-grant"

log = logging.getLogger(__name__)


class Imports:
    """Takes tokens over, each refresh token into one grant."""

    def __init__(
        self,
        *,
        tokens: TokenBroker,
        servers: Mapping[str, AuthorizationServer],
        vault: Vault,
        keyring: Keyring,
        clock: Clock,
        randomness: Randomness,
        told_within_seconds: float = TOLD_WITHIN_SECONDS,
    ) -> None:
        """
        Args:
            tokens: Begins grants.
            servers: The providers by their configured names.
            vault: Where grants are kept.
            keyring: Makes their ids.
            clock: Time.
            randomness: Names what is to be revoked.
            told_within_seconds: How long other replicas may take to hear of new tokens.
        """
        self._tokens = tokens
        self._vault = vault
        self._keyring = keyring
        self._hand_over = HandOver(
            vault, tokens.revocations, servers, clock, randomness, told_within_seconds=told_within_seconds
        )

    async def take(self, provider: str, tokens: TokenSet, *, subject: str, dpop_key: RefreshToken | None) -> Grant:
        """
        Return the grant that goes on with *tokens*: the one that began with them, or a new one.

        One that began with them and has ended begins anew: what refused them may have been a mistake of the
        configuration, and if they are spent the server says so again.

        Args:
            provider: Whose tokens they are.
            tokens: What somebody else got.
            subject: Whose they are.
            dpop_key: The key that they are bound to, if they are.

        Raises:
            BadRequest: If a grant of somebody else, or a standing one, has them.
            ProviderError: If a refresh of a grant that is to begin anew is under way, and its server takes its time.
            StoreError: If it isn't known whether that was written. It may be done again; no token is lost by it.
        """
        before = await self._begun_with(tokens)
        if before is None or before.ended is not None:
            await self._refuse_if_held(tokens)
        if before is None:
            try:
                return await self._tokens.adopt(
                    provider,
                    tokens,
                    subject=subject,
                    origin=Origin.IMPORTED,
                    keep_until=None,
                    ttl_seconds=FOREVER_SECONDS,
                    dpop_key=dpop_key,
                    grant_id=self._ids(tokens)[0],
                )
            except GrantExists:  # somebody was faster
                before = await self._begun_with(tokens)
                if before is None:
                    raise
        if (before.provider, before.subject) != (provider, subject):
            raise BadRequest(f"refresh_token: grant {before.id} began with it, of another provider or subject")
        if before.ended is not None:
            return await self._hand_over.fill(before, tokens, dpop_key=dpop_key)
        log.info("import_repeated", extra={"grant": before.id, "provider": provider})
        return before

    async def refuse_if_taken(self, tokens: TokenSet, *, but_for: str | None = None) -> None:
        """
        Refuse *tokens* if a living grant has them that no browser brought, or an import lives that began with them.

        Args:
            tokens: What is to be taken over.
            but_for: The id of a grant that may have them.

        Raises:
            BadRequest: If it is so.
            StoreError: If that isn't known.
        """
        before = await self._begun_with(tokens)
        if before is not None and before.ended is None:
            raise BadRequest(f"refresh_token: grant {before.id} began with it")
        await self._refuse_if_held(tokens, but_for=but_for)

    async def _refuse_if_held(self, tokens: TokenSet, *, but_for: str | None = None) -> None:
        handed = tokens.refresh_token
        if handed is None:
            return
        for stored in await self._vault.find_unattended():
            grant = stored.grant
            has_it = grant.refresh_token == handed or began_with(grant, handed)
            if grant.id != but_for and grant.ended is None and has_it:
                raise BadRequest(f"refresh_token: grant {grant.id} has it")

    async def _begun_with(self, tokens: TokenSet) -> Grant | None:
        """Return the grant that an import of *tokens* began, one that lives before one that has ended."""
        found = [await self._vault.read(grant_id) for grant_id in self._ids(tokens)]
        grants = [stored.grant for stored in found if stored is not None]
        return min(grants, key=lambda grant: grant.ended is not None, default=None)

    def _ids(self, tokens: TokenSet) -> tuple[str, ...]:
        """Return the ids that an import of *tokens* may have: one by each key, of which a new one takes the first."""
        lives_by = tokens.session_id if tokens.refresh_token is None else tokens.refresh_token.reveal()
        described = json.dumps([tokens.refresh_token is None, lives_by])
        return tuple([key.rpartition(":")[2][:32] for key in self._keyring.lookup_keys(KIND, described)])

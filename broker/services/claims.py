"""
What a refresh says of a session's user: its id token, and userinfo where a login asks that, too.

    refreshed id token ─▶ userinfo? ─▶ would a login be refused with it? ─ no ─▶ the session's claims
                                                                       └ yes ▶ the grant ends

It runs behind the backs of those who wait for the token.
"""

import logging
from collections.abc import Mapping

from broker.core.grant import EndReason, Grant
from broker.core.outcome import Token
from broker.errors import LoginFailed, ProviderError, StoreError
from broker.services.provider import AuthorizationServer, Identity
from broker.services.sessions import Sessions
from broker.services.tokens import TokenBroker

log = logging.getLogger(__name__)


class ClaimsRenewal:
    """Brings the claims of sessions up to date after refreshes."""

    def __init__(self, servers: Mapping[str, AuthorizationServer], tokens: TokenBroker, sessions: Sessions) -> None:
        """
        Args:
            servers: The providers by their configured names.
            tokens: Ends grants, and gives the token that userinfo is asked with.
            sessions: Whose claims they are.
        """
        self._servers = servers
        self._tokens = tokens
        self._sessions = sessions

    async def renew(self, grant: Grant, identity: Identity) -> None:
        """
        Take what a refreshed id token says (SECURITY RT-10, RT-11). Never raises.

        Args:
            grant: The grant.
            identity: Whom its id token names: the grant's own user.
        """
        server = self._servers[grant.provider]
        try:
            said = await self._userinfo(server, grant, identity)
            claims = {**(said or {}), **identity.claims}
            refusal = server.email_refusal(claims) if claims.get("email") is not None else None
            if refusal is not None:
                await self._end(grant, refusal)
            else:
                # What userinfo said before stands if it can't be asked now: a fault takes no rights away.
                keeps = said is None and server.options.userinfo
                await self._sessions.renew_claims(grant.id, claims, keeps_others=keeps)
        except StoreError as fault:
            log.warning("claims_not_renewed", extra={"grant": grant.id, "error": str(fault)})

    async def _userinfo(
        self, server: AuthorizationServer, grant: Grant, identity: Identity
    ) -> Mapping[str, object] | None:
        if not server.options.userinfo:
            return None
        token = await self._tokens.token(grant.id)
        if not isinstance(token, Token):
            return None
        try:
            return await server.userinfo(identity.subject, token.access_token, token.dpop_key)
        except (ProviderError, LoginFailed) as fault:
            log.warning("claims_not_renewed", extra={"grant": grant.id, "error": str(fault)})
            return None

    async def _end(self, grant: Grant, refusal: str) -> None:
        """End the grant of somebody who couldn't log in any more."""
        log.warning("identity_refused", extra={"grant": grant.id, "provider": grant.provider, "reason": refusal})
        _ = await self._tokens.end(grant.id, EndReason.IDENTITY_REFUSED)
        _ = await self._tokens.revocations.revoke(grant.id)

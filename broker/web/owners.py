"""
With whose leave an answer is given, and whether it is still good: a session's, a credential's, or else its grant's.

Whoever it is, the leave is over when the grant is whose token went along.
"""

import math
from functools import partial

from broker.core.audience import Audience
from broker.core.outcome import LoginNeeded
from broker.core.routing import TokenKind
from broker.errors import CallerError
from broker.services.callers import Shown
from broker.web.gate import Call, CallerSource, SessionSource, TokenSource, shown_by
from broker.web.streams import Look, Owner


class Owners:
    """Tells whose an answer is."""

    def __init__(self, *, sessions: SessionSource, tokens: TokenSource, callers: CallerSource | None) -> None:
        """
        Args:
            sessions: Finds sessions.
            tokens: Knows whether grants have ended.
            callers: Finds the grants of callers without a browser; None if there are none.
        """
        self._sessions = sessions
        self._tokens = tokens
        self._callers = callers

    def of(self, call: Call) -> Owner | None:
        """Return with whose leave *call* is answered; None for nobody's."""
        session, session_id = call.session, call.head.block.session_id
        if session is not None and session_id is not None:
            ends_at = session.session.ends_at
            look = partial(self._session, session_id, ends_at)
            return self._owner(session.key, session.grant_id, ends_at, call, look)
        if call.grant_id is None:
            return None
        if self._callers is not None and call.lane.kind is not TokenKind.GRANT:
            shown = shown_by(call)
            bounds = self._callers.bounds_of(shown)
            if bounds is not None:
                look = partial(self._credential, self._callers, shown)
                return self._owner(bounds.key, call.grant_id, bounds.ends_at, call, look)
        return self._owner(f"grant:{call.grant_id}", call.grant_id, math.inf, call, _endless)

    def _owner(self, key: str, grant_id: str, ends_at: float, call: Call, look: Look) -> Owner:
        return Owner(key, grant_id, ends_at, partial(self._look, look, grant_id, call.lane.audience))

    async def _look(self, look: Look, grant_id: str, audience: Audience) -> float | None:
        ends_at = await look()
        if ends_at is None:
            return None
        return None if isinstance(await self._tokens.token(grant_id, audience), LoginNeeded) else ends_at

    async def _session(self, session_id: bytes, ends_at: float) -> float | None:
        return None if await self._sessions.load(session_id, used=False) is None else ends_at

    async def _credential(self, callers: CallerSource, shown: Shown) -> float | None:
        try:
            _ = await callers.grant_of(shown)
        except CallerError:
            return None
        bounds = callers.bounds_of(shown)
        return None if bounds is None else bounds.ends_at


async def _endless() -> float:
    return math.inf

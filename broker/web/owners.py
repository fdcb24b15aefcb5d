"""With whose leave an answer is given, and whether it is still good: a session's, a handle's, or else its grant's."""

import math
from functools import partial

from broker.core.audience import Audience
from broker.core.outcome import LoginNeeded
from broker.core.routing import TokenKind
from broker.errors import CallerError
from broker.services.callers import Shown
from broker.web.gate import Call, CallerSource, SessionSource, TokenSource, shown_by
from broker.web.streams import Owner


class Owners:
    """Tells whose an answer is."""

    def __init__(self, *, sessions: SessionSource, tokens: TokenSource, callers: CallerSource | None) -> None:
        """
        Args:
            sessions: Finds sessions.
            tokens: Knows whether grants have ended.
            callers: Finds the handles of callers without a browser; None if there are none.
        """
        self._sessions = sessions
        self._tokens = tokens
        self._callers = callers

    def of(self, call: Call) -> Owner | None:
        """Return with whose leave *call* is answered; None for nobody's."""
        session, session_id = call.session, call.head.block.session_id
        if session is not None and session_id is not None:
            ends_at = session.session.ends_at
            return Owner(session.key, session.grant_id, ends_at, partial(self._look_at_session, session_id, ends_at))
        if call.grant_id is None:
            return None
        if self._callers is not None and call.lane.kind is not TokenKind.GRANT:
            shown = shown_by(call)
            handle = self._callers.handle_of(shown)
            if handle is not None:
                return Owner(handle.key, call.grant_id, handle.ends_at, partial(self._look_at_handle, shown))
        look = partial(self._look_at_grant, call.grant_id, call.lane.audience)
        return Owner(f"grant:{call.grant_id}", call.grant_id, math.inf, look)

    async def _look_at_session(self, session_id: bytes, ends_at: float) -> float | None:
        return None if await self._sessions.load(session_id, used=False) is None else ends_at

    async def _look_at_handle(self, shown: Shown) -> float | None:
        assert self._callers is not None
        try:
            _ = await self._callers.grant_of(shown)
        except CallerError:
            return None
        handle = self._callers.handle_of(shown)
        return math.inf if handle is None else handle.ends_at

    async def _look_at_grant(self, grant_id: str, audience: Audience) -> float | None:
        return None if isinstance(await self._tokens.token(grant_id, audience), LoginNeeded) else math.inf

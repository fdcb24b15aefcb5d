"""
The browser session in a request: aiohttp_session over our own sealed records. Nothing else imports aiohttp_session.

Three things are ours and not aiohttp_session's (SECURITY M4, M8):

- The cookie is read from the bytes that came, not by ``request.cookies``, which takes other names for ours.
- The session is written where a fault can still be answered, before there is a response; what aiohttp_session does
  after the handler is set or delete the cookie. So nothing is lost when a response streams, and a login whose session
  can't be stored leaves no grant.
- A login draws a new id, and the record of the old one is destroyed as soon as the browser has shown that it has the
  new one (services.sessions).
"""

import warnings
from dataclasses import replace

import aiohttp_session
from aiohttp import web

from broker.core.cookies import CookieNames, expire_cookie, read_cookie, set_cookie
from broker.core.secret import SessionId
from broker.core.session import SameSite, Session
from broker.errors import BadRequest
from broker.services.sessions import LiveSession, Sessions

# aiohttp_session keeps its things in the request under names of type str, of which aiohttp disapproves once.
warnings.filterwarnings("ignore", category=web.NotAppKeyWarning, module="aiohttp_session")

LIVE = "live"
NOT_A_USE = web.RequestKey("not_a_use", bool)
"""Set on a request that must not keep its session alive."""


def cookie_lines(request: web.BaseRequest) -> list[bytes]:
    """Return every ``Cookie`` line of a request, as the bytes that came."""
    return [value for name, value in request.raw_headers if name.lower() == b"cookie"]


class SessionStorage(aiohttp_session.AbstractStorage):
    """
    What aiohttp_session asks for sessions.

    A session that lives holds its :class:`LiveSession` as the item ``live``. A new one has as its identity the id that
    the cookie must carry. An invalidated one is empty.
    """

    def __init__(self, sessions: Sessions, cookies: CookieNames, same_site: SameSite) -> None:
        super().__init__(
            cookie_name=cookies.session, secure=cookies.secure, httponly=True, samesite=same_site.capitalize()
        )
        self._sessions = sessions
        self._name = cookies.session.encode()
        self._secure = cookies.secure
        self._same_site = same_site

    async def load_session(self, request: web.Request) -> aiohttp_session.Session:
        """
        Return the session of a request, empty if it has none.

        Raises:
            BadRequest: If the cookie came twice.
            StoreError: If the store is down.
        """
        session_id = read_cookie(cookie_lines(request), self._name)
        live = None
        if session_id is not None:
            live = await self._sessions.load(session_id, used=not request.get(NOT_A_USE, False))
        if live is None:
            return aiohttp_session.Session(None, data=None, new=True)
        began_at = int(live.session.authenticated_at)
        return aiohttp_session.Session(live.key, data={"created": began_at, "session": {LIVE: live}}, new=False)

    async def save_session(
        self, _request: web.Request, response: web.StreamResponse, session: aiohttp_session.Session
    ) -> None:
        """Set the cookie of a session that began, or delete the cookie of one that ended."""
        if isinstance(session.identity, SessionId):
            line = set_cookie(
                self.cookie_name, session.identity.reveal(), secure=self._secure, same_site=self._same_site
            )
        else:
            line = expire_cookie(self.cookie_name, secure=self._secure, same_site=self._same_site)
        response.headers.add("Set-Cookie", line)


class BrowserSessions:
    """What the handlers of the broker's own endpoints do with the browser's session."""

    def __init__(self, sessions: Sessions, cookies: CookieNames, same_site: SameSite) -> None:
        self._sessions = sessions
        self._name = cookies.session.encode()
        self.middleware = aiohttp_session.session_middleware(SessionStorage(sessions, cookies, same_site))

    def is_shown(self, request: web.Request) -> bool:
        """Return whether the session cookie came, once or more often, whatever it is worth."""
        try:
            return read_cookie(cookie_lines(request), self._name) is not None
        except BadRequest:
            return True

    async def current(self, request: web.Request) -> LiveSession | None:
        """
        Return the session of a request.

        Raises:
            BadRequest: If the cookie came twice.
            StoreError: If the store is down.
        """
        live = (await aiohttp_session.get_session(request)).get(LIVE)
        return live if isinstance(live, LiveSession) else None

    async def current_or_none(self, request: web.Request) -> LiveSession | None:
        """As :meth:`current`, for who is about to replace the cookie: two of them are as none."""
        try:
            return await self.current(request)
        except BadRequest:
            return None

    async def log_in(self, request: web.Request, session: Session, *, replaces: str | None) -> str:
        """
        Begin *session* under a new id, in place of whatever session the browser had.

        That one lives until the browser has shown the new one's cookie: nobody knows whether the answer reaches it.

        Args:
            request: The authorization server's answer.
            session: The session that begins.
            replaces: The store key of the session that the browser had when it began to log in.

        Returns:
            The new session's store key.

        Raises:
            StoreError: If it can't be stored. The browser still has the session that it had.
        """
        live = await self.current_or_none(request)
        before = replaces if live is None else live.key
        session_id = await self._sessions.start(replace(session, replaces=before))
        browser = await aiohttp_session.new_session(request)
        browser.set_new_identity(session_id)
        browser.changed()
        return self._sessions.key_of(session_id)

    async def log_out(self, request: web.Request) -> Session | None:
        """
        End the session of a request, whose grant has ended, and delete its cookie in any case.

        Returns:
            The session that ended.

        Raises:
            StoreError: If the store is down. The session lives on.
        """
        live = await self.current_or_none(request)
        ended = None
        if live is not None:
            await self._sessions.end_replaced(live.key)  # whoever logs out leaves nothing behind
            ended = await self._sessions.end(live.key)
        browser = await aiohttp_session.new_session(request)
        browser.invalidate()
        return ended

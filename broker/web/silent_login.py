"""
A login that asks the user nothing, in a frame of our own page (``prompt=none``):

    GET silent-login         → 303 to the authorization server, with a transaction cookie
    GET callback/{provider}  → 200, a page that asks for the same once more
    GET callback/{provider}  → 200, a page that tells the page that frames it how it ended

In a frame browsers send Lax cookies no more than Strict ones where another site has led to the request, if they count
redirects. So the answer is first given to a page of ours, whose own navigation then brings every cookie; by them the
attempt is found, and the session that the browser has by now.

Who is logged in is never exchanged for another user: a silent login begins a session where there is none, or one of the
same user in place of one whose grant has ended.
"""

import logging
from typing import assert_never

from aiohttp import web

from broker.core.login import LoginTransaction, attempt_of
from broker.core.session import Session, same_user
from broker.errors import BadRequest, BrokerError, Forbidden, StoreError
from broker.services import metrics
from broker.services.logins import AuthorizationResponse, Declined, LoggedIn, Unanswered
from broker.services.sessions import LiveSession
from broker.web.attempts import Attempts
from broker.web.auth_context import AuthContext
from broker.web.guards import check_framed, comes_from_here, single_values
from broker.web.middleware import SET_COOKIES, SILENT
from broker.web.pages import continue_page, silent_login_page
from broker.web.problems import framed_response, see_other

ONCE_MORE = "once_more"
"""This parameter marks the answer as our own page asks for it."""

log = logging.getLogger(__name__)


class SilentLogin:
    """Handlers of ``silent-login``, and of ``callback`` in a frame."""

    def __init__(self, context: AuthContext, attempts: Attempts) -> None:
        self._context = context
        self._attempts = attempts
        self._logins = context.logins
        self._browser_sessions = context.browser_sessions

    async def begin(self, request: web.Request) -> web.StreamResponse:
        """Send the frame to the authorization server, unless somebody is logged in."""
        check_framed(request)
        if not comes_from_here(request):
            raise Forbidden("only our own page may begin a silent login")
        request[SILENT] = True
        live = await self._browser_sessions.current_or_none(request)
        provider = self._provider(request, live)
        if live is not None and (live.provider != provider or await self._lasts(live)):
            return _told(is_logged_in=live.provider == provider)
        self._attempts.count_begun(request)
        transaction, url = await self._logins.begin(
            provider,
            return_url=self._context.options.return_url,
            parameters={},
            replaces=None if live is None else live.key,
            silent=True,
        )
        request[SET_COOKIES] = self._attempts.begin(request, transaction)
        return see_other(url)

    def _provider(self, request: web.Request, live: LiveSession | None) -> str:
        """Return who is asked: whom the URL names, or else whom the session is from, or else as for any login."""
        servers = self._context.servers
        name = single_values(request.query).get("provider")
        if name is None and live is not None and live.provider in servers:
            name = live.provider
        name = name or self._context.options.default_provider
        if name is None and len(servers) == 1:
            name = next(iter(servers))
        if name is None or name not in servers:
            raise BadRequest("provider: the one to ask must be named, and configured")
        return name

    async def _lasts(self, live: LiveSession) -> bool:
        """Return whether the session's grant lives, as far as that can be seen just now."""
        try:
            grant = await self._context.tokens.grant(live.grant_id)
        except StoreError:
            return True
        return grant is not None and grant.ended is None

    async def callback(self, request: web.Request) -> web.StreamResponse:
        """Take the authorization server's answer."""
        check_framed(request)
        if not comes_from_here(request):
            if ONCE_MORE in request.query:
                raise Forbidden("our own page doesn't count as such")
            path, _, query = request.raw_path.partition("?")
            return framed_response(continue_page(f"{path}?{query}&{ONCE_MORE}=true"))
        request[SILENT] = True
        self._attempts.count_answered(request)
        try:
            transaction, response = await self._attempts.answered(request, silent=True)
            return _told(is_logged_in=await self._complete(request, transaction, response))
        except BrokerError as error:
            self._attempts.note_failure(request, error)
            raise

    async def _complete(
        self, request: web.Request, transaction: LoginTransaction, response: AuthorizationResponse
    ) -> bool:
        """Return whether the user of the page is logged in."""

        async def begin_session(session: Session) -> bool:
            return await self._begin_session(request, transaction, session)

        await self._logins.consume(transaction)
        request[SET_COOKIES] = [self._attempts.end(attempt_of(transaction.state))]
        result = await self._logins.complete(transaction, response, begin_session)
        match result:
            case LoggedIn():
                return True
            case Declined():
                return False
            case Unanswered():
                metrics.LOGINS.labels(transaction.provider, "unanswered").inc()
                return False
            case _:
                assert_never(result)

    async def _begin_session(self, request: web.Request, transaction: LoginTransaction, session: Session) -> bool:
        live = await self._browser_sessions.current_or_none(request)
        if live is not None and not same_user(live.session, session):
            log.warning("silent_login_of_another_user", extra={"provider": session.provider, "grant": session.grant_id})
            return False
        _ = await self._attempts.begin_session(request, transaction, session)
        return True


def _told(*, is_logged_in: bool) -> web.Response:
    return framed_response(silent_login_page(is_logged_in=is_logged_in))

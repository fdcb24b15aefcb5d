"""
The endpoints of a login:

    GET login                → 303 to the authorization server, with a transaction cookie
    GET callback/{provider}  → 303 to ``return``, with a session cookie
    GET return               → 200, a page that goes on by itself

The last step ends the chain of redirects that the authorization server's site began. With SameSite=Strict, browsers
send the session cookie with none of them, and the first page would find no session and log in again, for ever.
"""

import logging
import re
from collections.abc import Mapping
from typing import assert_never
from urllib.parse import urlencode

from aiohttp import web

from broker.core.login import LoginTransaction, attempt_of
from broker.core.return_url import is_safe_return_url, with_return_url
from broker.core.session import SameSite, Session
from broker.errors import BadRequest, BrokerError, NoRoute, StoreError
from broker.services import metrics
from broker.services.login_cookies import WayBack
from broker.services.logins import AuthorizationResponse, Declined, LoggedIn, Unanswered
from broker.web.attempts import Attempts
from broker.web.auth_context import AuthContext
from broker.web.guards import check_top_level, is_led_by_another_site, single_values
from broker.web.middleware import SET_COOKIES
from broker.web.pages import choice_page, continue_page
from broker.web.problems import page_response, see_other

RETURN_PARAMETERS = ("returnUrl", "rd")
RESUME = "resume"
"""With this parameter, a browser that turns out to have a session goes on with it and logs in no more."""
MAX_PARAMETER = 512
"""Characters of a parameter that goes on to the authorization server."""

_ATTEMPT = re.compile(r"[0-9a-f]{8}")

log = logging.getLogger(__name__)


class LoginEndpoints:
    """Handlers of ``login``, ``callback`` and ``return``."""

    def __init__(self, context: AuthContext, attempts: Attempts) -> None:
        self._attempts = attempts
        self._logins = context.logins
        self._sessions = context.sessions
        self._browser_sessions = context.browser_sessions
        self._servers = context.servers
        self._options = context.options
        self._login_url = f"{context.options.base_path}/login"
        self._same_site = context.same_site

    # --- login

    async def login(self, request: web.Request) -> web.StreamResponse:
        """Send the browser to the authorization server."""
        check_top_level(request)
        self._attempts.count_begun(request)
        query = single_values(request.query)
        return_url = self._return_url(query)
        provider = self._provider(query)
        if self._hides_session(request):
            return page_response(continue_page(f"{self._login_url}?{urlencode({**query, RESUME: 'true'})}"))
        live = await self._browser_sessions.current_or_none(request)
        if live is not None and RESUME in query and provider in (None, live.provider):
            return see_other(return_url)
        if provider is None:
            return self._ask_for_provider(return_url)
        parameters = self._allowed_parameters(provider, query)
        transaction, url = await self._logins.begin(
            provider, return_url=return_url, parameters=parameters, replaces=None if live is None else live.key
        )
        request[SET_COOKIES] = self._attempts.begin(request, transaction)
        return see_other(url)

    def _hides_session(self, request: web.Request) -> bool:
        """
        Return whether the browser may have a session that it doesn't show, since another site led here.

        Whoever comes by a link on another site would log in again each time. So they come once more, led by our own
        page, and go on with the session that they have.
        """
        return self._same_site is SameSite.STRICT and is_led_by_another_site(request)

    def _return_url(self, query: Mapping[str, str]) -> str:
        given = [query[name] for name in RETURN_PARAMETERS if name in query]
        if len(given) > 1:
            raise BadRequest("returnUrl came twice")
        if given and not is_safe_return_url(given[0], base_path=self._options.base_path):
            raise BadRequest("returnUrl is no path of this site")
        return given[0] if given else self._options.return_url

    def _provider(self, query: Mapping[str, str]) -> str | None:
        """Return who is asked; None if the user must choose."""
        name = query.get("provider", self._options.default_provider)
        if name is None and len(self._servers) == 1:
            return next(iter(self._servers))
        if name is not None and name not in self._servers:
            raise BadRequest("the provider is not configured")
        return name

    def _ask_for_provider(self, return_url: str) -> web.StreamResponse:
        if not self._servers:
            raise NoRoute("no provider is configured")
        return page_response(
            choice_page(
                {with_return_url(f"{self._login_url}?provider={name}", return_url): name for name in self._servers}
            )
        )

    def _allowed_parameters(self, provider: str, query: Mapping[str, str]) -> Mapping[str, str]:
        """Return what the caller may choose (SECURITY LG-06). The rest is ignored."""
        allowed = self._servers[provider].options.allowed_parameters
        chosen = {name: query[name] for name in allowed if name in query}
        if any(len(value) > MAX_PARAMETER or not value.isprintable() for value in chosen.values()):
            raise BadRequest("a parameter is too long, or can't be printed")
        return chosen

    # --- callback

    async def callback(self, request: web.Request) -> web.StreamResponse:
        """Take the authorization server's answer."""
        check_top_level(request)
        self._attempts.count_answered(request)
        try:
            transaction, response = await self._attempts.answered(request, silent=False)
            way_back = await self._complete(request, transaction, response)
        except BrokerError as error:
            self._attempts.note_failure(request, error)
            raise
        attempt = attempt_of(transaction.state)
        request[SET_COOKIES] = [self._attempts.go_on(attempt, way_back)]
        return see_other(f"{self._options.base_path}/return?attempt={attempt}")

    async def _complete(
        self, request: web.Request, transaction: LoginTransaction, response: AuthorizationResponse
    ) -> WayBack:
        session_key: str | None = None

        async def begin_session(session: Session) -> bool:
            nonlocal session_key
            session_key = await self._attempts.begin_session(request, transaction, session)
            return True

        try:
            await self._logins.consume(transaction)
            request[SET_COOKIES] = [self._attempts.end(attempt_of(transaction.state))]
            result = await self._logins.complete(transaction, response, begin_session)
            match result:
                case LoggedIn() | Declined():
                    pass
                case Unanswered():
                    metrics.LOGINS.labels(transaction.provider, "unanswered").inc()
                case _:
                    assert_never(result)
        except BrokerError as error:
            # Whoever starts again wants to get to where they wanted to go.
            error.login_parameters = {"provider": transaction.provider, "returnUrl": transaction.return_url}
            raise
        return WayBack(transaction.return_url, session_key)

    # --- return

    async def go_on(self, request: web.Request) -> web.StreamResponse:
        """
        Show the page that goes on to where the user wanted to go.

        Where that is comes from the attempt's cookie, never from the URL: this page makes a navigation from our own
        site of whatever led here, and a link on another site must not choose where to (SameSite=Strict).
        """
        check_top_level(request)
        attempt = single_values(request.query).get("attempt", "")
        way_back = self._attempts.way_back(request, attempt) if _ATTEMPT.fullmatch(attempt) else None
        return_url = self._options.return_url
        if way_back is not None:
            request[SET_COOKIES] = [self._attempts.end(attempt)]
            if is_safe_return_url(way_back.return_url, base_path=self._options.base_path):
                return_url = way_back.return_url
            await self._end_replaced(way_back)
        return page_response(continue_page(return_url))

    async def _end_replaced(self, way_back: WayBack) -> None:
        """End the session that the browser had before: it has the new one's cookie, since it shows this one."""
        if way_back.session_key is None:
            return
        try:
            await self._sessions.end_replaced(way_back.session_key)
        except StoreError as fault:
            # The first use of the new session tries again.
            log.warning("session_left_behind", extra={"session": way_back.session_key, "error": str(fault)})

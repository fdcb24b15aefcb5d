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

from broker.core.cookies import MAX_COOKIE_BYTES, CookieNames, expire_cookie, read_cookie, read_cookies, set_cookie
from broker.core.forwarded import TrustedProxies
from broker.core.login import STATE, LoginOptions, LoginTransaction, OpenAttempt, attempt_of, given_up
from broker.core.return_url import is_safe_return_url, with_return_url
from broker.core.secret import Secret
from broker.core.session import SameSite, Session
from broker.errors import BadRequest, BrokerError, LoginFailed, NoRoute
from broker.services import metrics
from broker.services.clock import Clock
from broker.services.logins import RETURN_SECONDS, AuthorizationResponse, Identified, Logins, Unanswered
from broker.services.provider import AuthorizationServer
from broker.web.guards import check_top_level, single_values
from broker.web.login_rate import LoginRate
from broker.web.middleware import SET_COOKIES, client_address
from broker.web.pages import choice_page, continue_page
from broker.web.problems import page_response, see_other
from broker.web.sessions import BrowserSessions, cookie_lines

RETURN_PARAMETERS = ("returnUrl", "rd")
RESUME = "resume"
"""With this parameter, a browser that turns out to have a session goes on with it and logs in no more."""
MAX_PARAMETER = 512
"""Characters of a parameter that goes on to the authorization server."""

_TOKENS_IN_URL = frozenset({"access_token", "id_token", "refresh_token", "token"})
_ATTEMPT = re.compile(r"[0-9a-f]{8}")

log = logging.getLogger(__name__)


class LoginEndpoints:
    """Handlers of ``login``, ``callback`` and ``return``."""

    def __init__(
        self,
        *,
        logins: Logins,
        browser_sessions: BrowserSessions,
        servers: Mapping[str, AuthorizationServer],
        options: LoginOptions,
        same_site: SameSite,
        cookies: CookieNames,
        trusted_proxies: TrustedProxies,
        clock: Clock,
    ) -> None:
        self._logins = logins
        self._browser_sessions = browser_sessions
        self._servers = servers
        self._options = options
        self._login_url = f"{options.base_path}/login"
        self._same_site = same_site
        self._cookies = cookies
        self._trusted_proxies = trusted_proxies
        self._clock = clock
        self._begun = LoginRate(options, clock.monotonic)
        self._answered = LoginRate(options, clock.monotonic)
        self._login_cookie = re.compile(re.escape(cookies.prefix).encode() + rb"login-([0-9a-f]{8})")

    # --- login

    async def login(self, request: web.Request) -> web.StreamResponse:
        """Send the browser to the authorization server."""
        check_top_level(request)
        self._begun.count(client_address(request, self._trusted_proxies))
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
        request[SET_COOKIES] = self._begin_cookies(request, transaction)
        return see_other(url)

    def _hides_session(self, request: web.Request) -> bool:
        """
        Return whether the browser may have a session that it doesn't show, since another site led here.

        Whoever comes by a link on another site would log in again each time. So they come once more, led by our own
        page, and go on with the session that they have.
        """
        site = request.headers.get("Sec-Fetch-Site", "none")
        return self._same_site is SameSite.STRICT and site not in ("none", "same-origin")

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

    def _begin_cookies(self, request: web.Request, transaction: LoginTransaction) -> list[str]:
        """Return the attempt's cookie, and the ends of those that it crowds out (SECURITY LG-03)."""
        name, value = self._cookies.login(attempt_of(transaction.state)), self._logins.seal(transaction)
        size = len(name) + len(value)
        if size > MAX_COOKIE_BYTES:
            raise BadRequest("the login's parameters fit into no cookie")
        gone = given_up(self._open_attempts(request), size=size, now=self._clock.now(), options=self._options)
        return [
            *(self._expire(name) for name in gone),
            self._set(name, value, self._options.timeout_seconds),
        ]

    def _open_attempts(self, request: web.Request) -> list[OpenAttempt]:
        attempts = {}
        for name, value in read_cookies(cookie_lines(request), self._login_cookie):
            attempt = name.decode("ascii")
            transaction = self._logins.open(attempt[-8:], value)
            started_at = None if transaction is None else transaction.started_at
            attempts[attempt] = OpenAttempt(attempt, len(name) + len(value), started_at)
        return list(attempts.values())

    def _set(self, name: str, value: str, seconds: float) -> str:
        # Lax: the answer comes by a navigation from another site.
        return set_cookie(
            name, value, secure=self._cookies.secure, same_site=SameSite.LAX, max_age_seconds=int(seconds)
        )

    def _expire(self, name: str) -> str:
        return expire_cookie(name, secure=self._cookies.secure, same_site=SameSite.LAX)

    # --- callback

    async def callback(self, request: web.Request) -> web.StreamResponse:
        """Take the authorization server's answer."""
        check_top_level(request)
        # Apart from those that are begun: nobody shall lose a login that they have made because of others.
        self._answered.count(client_address(request, self._trusted_proxies))
        provider = request.match_info["provider"]
        try:
            return await self._complete(request, provider)
        except BrokerError as error:
            if provider in self._servers:
                metrics.LOGINS.labels(provider, "refused" if error.status < 500 else "unavailable").inc()
            raise

    async def _complete(self, request: web.Request, provider: str) -> web.StreamResponse:
        query: Mapping[str, str] = single_values(request.query)
        if (server := self._servers.get(provider)) is not None:
            query = await server.read_response(query)
        if _TOKENS_IN_URL & query.keys():
            raise LoginFailed("a token came in the URL")  # only codes are taken (RFC 9700 section 2.1.2)
        transaction = self._transaction(request, provider, query.get("state", ""))
        response = AuthorizationResponse(
            code=Secret(query["code"]) if "code" in query else None, error=query.get("error"), iss=query.get("iss")
        )
        try:
            await self._take(request, transaction, response)
        except BrokerError as error:
            # Whoever starts again wants to get to where they wanted to go.
            error.login_parameters = {"provider": provider, "returnUrl": transaction.return_url}
            raise
        attempt = attempt_of(transaction.state)
        ticket = self._logins.seal_return(attempt, transaction.return_url)
        request[SET_COOKIES] = [self._set(self._cookies.login(attempt), ticket, RETURN_SECONDS)]
        return see_other(f"{self._options.base_path}/return?attempt={attempt}")

    async def _take(self, request: web.Request, transaction: LoginTransaction, response: AuthorizationResponse) -> None:
        await self._logins.consume(transaction)
        request[SET_COOKIES] = [self._expire(self._cookies.login(attempt_of(transaction.state)))]
        result = await self._logins.complete(transaction, response)
        match result:
            case Identified(session):
                await self._begin_session(request, transaction, session)
            case Unanswered():
                metrics.LOGINS.labels(transaction.provider, "unanswered").inc()
            case _:
                assert_never(result)

    def _transaction(self, request: web.Request, provider: str, state: str) -> LoginTransaction:
        """
        Return the attempt of this browser that the answer belongs to.

        Raises:
            LoginFailed: If this browser began none, its time is over, or it asked another provider.
        """
        if STATE.fullmatch(state) is None:
            raise LoginFailed("the state is missing or none of ours")
        attempt = attempt_of(state)
        value = read_cookie(cookie_lines(request), self._cookies.login(attempt).encode())
        transaction = None if value is None else self._logins.open(attempt, value)
        if transaction is None:
            raise LoginFailed("this browser has no such attempt, or its time is over")
        if Secret(transaction.state) != Secret(state):  # compared in constant time
            raise LoginFailed("the state is another attempt's")
        if transaction.provider != provider or provider not in self._servers:
            raise LoginFailed("the answer came to another provider's callback")
        return transaction

    async def _begin_session(self, request: web.Request, transaction: LoginTransaction, session: Session) -> None:
        async def release(replaced: Session) -> None:
            # To revoke the same user's old grant could end the new one too: both hang on one session at the provider.
            same_user = (replaced.issuer, replaced.subject) == (session.issuer, session.subject)
            await self._logins.end_grant(replaced.grant_id, revoke=not same_user)

        try:
            await self._browser_sessions.log_in(request, session, replaces=transaction.replaces, release=release)
        except BrokerError:
            await self._logins.abandon_grant(session.grant_id)
            raise
        metrics.LOGINS.labels(session.provider, "success").inc()
        log.info(
            "login",
            extra={
                "provider": session.provider,
                "subject": session.subject,
                "grant": session.grant_id,
                "client": client_address(request, self._trusted_proxies),
            },
        )

    # --- return

    async def go_on(self, request: web.Request) -> web.StreamResponse:
        """
        Show the page that goes on to where the user wanted to go.

        Where that is comes from the attempt's cookie, never from the URL: this page makes a navigation from our own
        site of whatever led here, and a link on another site must not choose where to (SameSite=Strict).
        """
        check_top_level(request)
        attempt = single_values(request.query).get("attempt", "")
        return_url = None
        if _ATTEMPT.fullmatch(attempt):
            name = self._cookies.login(attempt)
            value = read_cookie(cookie_lines(request), name.encode())
            return_url = None if value is None else self._logins.open_return(attempt, value)
            if return_url is not None:
                request[SET_COOKIES] = [self._expire(name)]
        if return_url is None or not is_safe_return_url(return_url, base_path=self._options.base_path):
            return_url = self._options.return_url
        return page_response(continue_page(return_url))

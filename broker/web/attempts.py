"""
Login attempts in a browser, from the cookie that begins one to the session that ends it.

Logins in a window and in a frame (``login``, ``silent_login``) have this in common.
"""

import logging
import re

from aiohttp import web

from broker.core.cookies import MAX_COOKIE_BYTES, expire_cookie, read_cookie, read_cookies, set_cookie
from broker.core.login import STATE, LoginTransaction, OpenAttempt, attempt_of, given_up
from broker.core.secret import Secret
from broker.core.session import SameSite, Session
from broker.errors import BadRequest, BrokerError, LoginFailed
from broker.services import metrics
from broker.services.login_cookies import RETURN_SECONDS, LoginCookies, WayBack
from broker.services.logins import AuthorizationResponse
from broker.web.auth_context import AuthContext
from broker.web.guards import single_values
from broker.web.login_rate import LoginRate
from broker.web.middleware import client_address
from broker.web.sessions import cookie_lines

_TOKENS_IN_URL = frozenset({"access_token", "id_token", "refresh_token", "token"})

log = logging.getLogger(__name__)


class Attempts:
    """The login attempts of browsers."""

    def __init__(self, context: AuthContext) -> None:
        self._context = context
        self._cookies = context.cookies
        self._sealed = LoginCookies(context.keyring, context.clock, timeout_seconds=context.options.timeout_seconds)
        self._begun = LoginRate("login", context.options, context.rates)
        # Apart from those that are begun: nobody shall lose a login that they have made because of others.
        self._answered = LoginRate("callback", context.options, context.rates)
        self._cookie = re.compile(re.escape(context.cookies.prefix).encode() + rb"login-([0-9a-f]{8})")

    def count_begun(self, request: web.Request) -> None:
        """Count a login that begins. Raises ``TooManyRequests``."""
        self._begun.count(self._client(request))

    def count_answered(self, request: web.Request) -> None:
        """Count an answer that comes. Raises ``TooManyRequests``."""
        self._answered.count(self._client(request))

    # --- cookies

    def begin(self, request: web.Request, transaction: LoginTransaction) -> list[str]:
        """
        Return the attempt's cookie, and the ends of those that it crowds out (SECURITY LG-03).

        Raises:
            BadRequest: If it is too large.
        """
        name, value = self._cookies.login(attempt_of(transaction.state)), self._sealed.seal(transaction)
        size = len(name) + len(value)
        if size > MAX_COOKIE_BYTES:
            raise BadRequest("the login's parameters fit into no cookie")
        options = self._context.options
        gone = given_up(self._open(request), size=size, now=self._context.clock.now(), options=options)
        return [*(self._expire(name) for name in gone), self._set(name, value, options.timeout_seconds)]

    def end(self, attempt: str) -> str:
        """Return the end of an attempt's cookie."""
        return self._expire(self._cookies.login(attempt))

    def go_on(self, attempt: str, way_back: WayBack) -> str:
        """Return what replaces the cookie of an attempt that succeeded: where its browser goes."""
        return self._set(self._cookies.login(attempt), self._sealed.seal_return(attempt, way_back), RETURN_SECONDS)

    def way_back(self, request: web.Request, attempt: str) -> WayBack | None:
        """Return where the browser of an attempt that has just succeeded goes."""
        value = read_cookie(cookie_lines(request), self._cookies.login(attempt).encode())
        return None if value is None else self._sealed.open_return(attempt, value)

    def _open(self, request: web.Request) -> list[OpenAttempt]:
        attempts = {}
        for name, value in read_cookies(cookie_lines(request), self._cookie):
            attempt = name.decode("ascii")
            transaction = self._sealed.open(attempt[-8:], value)
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

    # --- answers

    async def answered(self, request: web.Request, *, silent: bool) -> tuple[LoginTransaction, AuthorizationResponse]:
        """
        Return the attempt of this browser to which a request brings the answer, and the answer. Nothing is used up.

        Args:
            request: What came to the callback.
            silent: Whether it came in a frame, where only a silent attempt is answered.

        Raises:
            BadRequest: If a parameter came twice.
            LoginFailed: If this browser began none, its time is over, or it asked another provider.
            ProviderError: If the server's keys are needed and can't be had.
        """
        provider = request.match_info["provider"]
        query = single_values(request.query)
        if (server := self._context.servers.get(provider)) is not None:
            query = await server.read_response(query)
        if _TOKENS_IN_URL & query.keys():
            raise LoginFailed("a token came in the URL")  # only codes are taken (RFC 9700 section 2.1.2)
        transaction = self._transaction(request, provider, query.get("state", ""))
        if transaction.silent is not silent:
            raise LoginFailed("the attempt was begun in a frame, and answered outside, or the other way round")
        code = Secret(query["code"]) if "code" in query else None
        return transaction, AuthorizationResponse(code=code, error=query.get("error"), iss=query.get("iss"))

    def _transaction(self, request: web.Request, provider: str, state: str) -> LoginTransaction:
        if STATE.fullmatch(state) is None:
            raise LoginFailed("the state is missing or none of ours")
        attempt = attempt_of(state)
        value = read_cookie(cookie_lines(request), self._cookies.login(attempt).encode())
        transaction = None if value is None else self._sealed.open(attempt, value)
        if transaction is None:
            raise LoginFailed("this browser has no such attempt, or its time is over")
        if Secret(transaction.state) != Secret(state):  # compared in constant time
            raise LoginFailed("the state is another attempt's")
        if transaction.provider != provider or provider not in self._context.servers:
            raise LoginFailed("the answer came to another provider's callback")
        return transaction

    def note_failure(self, request: web.Request, error: BrokerError) -> None:
        """Count an answer that brought no session."""
        provider = request.match_info["provider"]
        if provider in self._context.servers:
            metrics.LOGINS.labels(provider, "refused" if error.status < 500 else "unavailable").inc()

    async def begin_session(self, request: web.Request, transaction: LoginTransaction, session: Session) -> str:
        """
        Begin the session of a login that succeeded, in place of whatever the browser had.

        Returns:
            Its store key.

        Raises:
            StoreError: If it can't be stored.
        """
        key = await self._context.browser_sessions.log_in(request, session, replaces=transaction.replaces)
        metrics.LOGINS.labels(session.provider, "success").inc()
        log.info(
            "login",
            extra={
                "provider": session.provider,
                "subject": session.subject,
                "grant": session.grant_id,
                "client": self._client(request),
            },
        )
        return key

    def _client(self, request: web.Request) -> str:
        return client_address(request, self._context.trusted_proxies)

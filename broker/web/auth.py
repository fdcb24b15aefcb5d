"""
The broker's own endpoints, under ``/bff`` by default: login, silent-login, callback, return, logout, user,
backchannel-logout.

Whatever goes wrong in them is raised, and answered by :class:`broker.web.middleware.Outermost`.
"""

import logging
from collections.abc import Mapping

from aiohttp import web

from broker.core import csrf
from broker.core.cookies import CookieNames
from broker.core.forwarded import TrustedProxies
from broker.core.hosts import KnownHosts
from broker.core.login import LoginOptions
from broker.core.session import SameSite, Session
from broker.core.upkeep import login_needed_at
from broker.errors import NoSession, SessionExpired, StoreError
from broker.services.clock import Clock, Randomness
from broker.services.keyring import Keyring
from broker.services.limits import Rates, own_rates
from broker.services.logins import Logins
from broker.services.provider import AuthorizationServer
from broker.services.sessions import LiveSession, Sessions
from broker.services.tokens import TokenBroker
from broker.stores.base import Store
from broker.web.attempts import Attempts
from broker.web.auth_context import AuthContext
from broker.web.guards import is_framed, own_endpoint_guard, single_values
from broker.web.login import LoginEndpoints
from broker.web.logout import LogoutEndpoints
from broker.web.problems import json_response
from broker.web.sessions import NOT_A_USE, BrowserSessions
from broker.web.silent_login import SilentLogin

log = logging.getLogger(__name__)


def auth_app(
    *,
    public_url: str,
    options: LoginOptions,
    same_site: SameSite,
    servers: Mapping[str, AuthorizationServer],
    tokens: TokenBroker,
    sessions: Sessions,
    store: Store,
    keyring: Keyring,
    trusted_proxies: TrustedProxies,
    clock: Clock,
    randomness: Randomness,
    rates: Rates | None = None,
) -> web.Application:
    """
    Return the application of the broker's own endpoints, to be mounted at ``options.base_path``.

    Args:
        public_url: The origin under which browsers reach the broker. Redirects are made from it, and never from Host.
        options: How users log in and out.
        same_site: SameSite of the session cookie.
        servers: The authorization servers by configured name.
        tokens: Keeps the grants.
        sessions: Keeps the sessions.
        store: Remembers used states and logout tokens.
        keyring: Seals cookies, and makes the proofs in logout URLs.
        trusted_proxies: Who may say who the client is, for the audit trail.
        clock: Time.
        randomness: For state, nonce and verifier.
        rates: Makes the buckets of rate limits; by default this process keeps them alone.
    """
    cookies = CookieNames.for_public_url(public_url)
    browser_sessions = BrowserSessions(sessions, cookies, same_site)
    logins = Logins(
        servers=servers,
        tokens=tokens,
        sessions=sessions,
        store=store,
        options=options,
        public_url=public_url,
        clock=clock,
        randomness=randomness,
    )
    context = AuthContext(
        public_url=public_url,
        options=options,
        same_site=same_site,
        cookies=cookies,
        servers=servers,
        tokens=tokens,
        sessions=sessions,
        browser_sessions=browser_sessions,
        logins=logins,
        store=store,
        keyring=keyring,
        trusted_proxies=trusted_proxies,
        clock=clock,
        rates=rates or own_rates(clock.monotonic),
    )
    attempts = Attempts(context)
    login = LoginEndpoints(context, attempts)
    silent = SilentLogin(context, attempts)
    logout = LogoutEndpoints(context)
    user = UserEndpoint(context, logout)

    async def callback(request: web.Request) -> web.StreamResponse:
        """One path for both: authorization servers know one ``redirect_uri``."""
        return await (silent if is_framed(request) else login).callback(request)

    async def close(_app: web.Application) -> None:
        await logins.close()

    app = web.Application(middlewares=[own_endpoint_guard(KnownHosts(public_url)), browser_sessions.middleware])
    app.on_cleanup.append(close)
    # Without HEAD: it would begin logins, or use them up, for an answer that nobody sees (SECURITY LG-09).
    app.add_routes([
        web.get("/login", login.login, allow_head=False),
        web.get("/callback/{provider}", callback, allow_head=False),
        web.get("/silent-login", silent.begin, allow_head=False),
        web.get("/return", login.go_on, allow_head=False),
        web.get("/logout", logout.logout, allow_head=False),
        web.post("/logout", logout.logout),
        web.post("/backchannel-logout/{provider}", logout.backchannel),
        web.get("/user", user.user, allow_head=False),
    ])  # fmt: skip
    return app


class UserEndpoint:
    """Handler of ``user``: who is logged in, and until when. It holds no token, and never will."""

    def __init__(self, context: AuthContext, logout: LogoutEndpoints) -> None:
        self._browser_sessions = context.browser_sessions
        self._tokens = context.tokens
        self._logout = logout
        self._options = context.options
        self._public_url = context.public_url
        self._clock = context.clock

    async def user(self, request: web.Request) -> web.StreamResponse:
        """
        Say who is logged in.

        Raises:
            CsrfFailed: If it isn't our own frontend that asks.
            NoSession: If nobody is logged in.
            SessionExpired: If the session's grant has ended.
            StoreError: If the session isn't known and the store is down.
        """
        csrf.judge(
            method=request.method,
            headers=request.headers,
            own_origin=self._public_url,
            navigation_allowed=False,
            websocket=False,
        )
        # A page that polls would keep its session alive for ever.
        request[NOT_A_USE] = single_values(request.query).get("slide") == "false"
        live = await self._browser_sessions.current(request)
        if live is None:
            raise NoSession("no session")
        needed_at = await self._login_needed_at(live)
        return json_response(self._document(live, live.session, needed_at))

    async def _login_needed_at(self, live: LiveSession) -> float | None:
        """Return when the user must log in again because the provider will have it so, as far as that is known."""
        try:
            grant = await self._tokens.grant(live.grant_id)
        except StoreError:
            return None
        if grant is None or grant.ended is not None:
            known = live.provider in self._tokens.providers
            raise SessionExpired("the grant has ended", provider=live.provider if known else None)
        provider = self._tokens.providers.get(grant.provider)
        return None if provider is None else login_needed_at(grant, provider.server.options)

    def _document(self, live: LiveSession, session: Session, needed_at: float | None) -> dict[str, object]:
        now = self._clock.now()
        return {
            "claims": {**session.claims, "iss": session.issuer, "sub": session.subject},
            "provider": session.provider,
            "authenticated_at": int(session.authenticated_at),
            "session": {
                "expires_at": int(live.lives_until),
                "expires_in": max(0, int(live.lives_until - now)),
                "ends_at": int(session.ends_at),
            },
            "login_needed_at": None if needed_at is None else int(needed_at),
            "login_url": f"{self._options.base_path}/login",
            "logout_url": self._logout.logout_url(live),
        }

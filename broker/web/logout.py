"""
The endpoints of a logout:

    POST logout                         by a script, with ``X-CSRF: 1``: 200 and where to go on
    GET, POST logout?token=…            by a link or a form of our own page: 303
    GET logout                          by any other link: a page that asks
    POST backchannel-logout/{provider}  by the provider (OpenID Connect Back-Channel Logout)
"""

import hmac
import json
import logging
from urllib.parse import parse_qsl

from aiohttp import web

from broker.core import csrf
from broker.core.id_token import LogoutClaims
from broker.core.secret import IdToken
from broker.core.session import Index, Session
from broker.errors import BadRequest, CsrfFailed, NoRoute, PayloadTooLarge, ProviderError
from broker.services.keyring import Keyring
from broker.services.sessions import LiveSession
from broker.web.auth_context import AuthContext
from broker.web.guards import check_top_level, is_led_by_another_site, single_values
from broker.web.middleware import client_address
from broker.web.pages import continue_page, log_out_page
from broker.web.problems import is_navigation, json_response, page_response, see_other

MAX_LOGOUT_TOKEN_BYTES = 64 * 1024
MAX_REMEMBERED_SECONDS = 86400.0
"""A logout token that claims to be good for longer is remembered for this long all the same."""

USED = b"\x01"

log = logging.getLogger(__name__)


class LogoutProof:
    """
    What a logout URL carries, so that it works for the one session whose user was shown it.

    It can do nothing but end that session, and nobody else can make it (SECURITY BR-01).
    """

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def of(self, session_key: str) -> str:
        """Return the proof for a session."""
        return self._all(session_key)[0]

    def fits(self, proof: str, session_key: str) -> bool:
        """Return whether *proof* is the session's, also if an older key made it."""
        return any(hmac.compare_digest(proof.encode(), each.encode()) for each in self._all(session_key))

    def _all(self, session_key: str) -> list[str]:
        return [key.partition(":")[2] for key in self._keyring.lookup_keys("logout", session_key)]


class LogoutEndpoints:
    """Handlers of ``logout`` and ``backchannel-logout``."""

    def __init__(self, context: AuthContext) -> None:
        self._logins = context.logins
        self._sessions = context.sessions
        self._browser_sessions = context.browser_sessions
        self._servers = context.servers
        self._store = context.store
        self._keyring = context.keyring
        self._options = context.options
        self._public_url = context.public_url
        self._trusted_proxies = context.trusted_proxies
        self._clock = context.clock
        self.proof = LogoutProof(context.keyring)

    # --- by the user

    async def logout(self, request: web.Request) -> web.StreamResponse:
        """End the browser's session, here and at the provider."""
        token = single_values(request.query).get("token")
        live = await self._browser_sessions.current(request)
        if not self._browser_sessions.is_shown(request):
            return self._without_cookie(request)
        if live is not None and not self._is_wanted(request, live, token):
            return page_response(log_out_page(self.logout_url(live)))
        id_token = None if live is None else await self._logins.end_grant(live.grant_id)
        ended = await self._browser_sessions.log_out(request)
        location = self._options.logout_url
        if ended is not None:
            self._note(request, ended)
            location = await self._location(ended, id_token)
        return _go_on(request, location)

    def _without_cookie(self, request: web.Request) -> web.Response:
        """
        Answer who shows no cookie, and never expire it: a browser that another site led here may have one.

        Raises:
            CsrfFailed: If another site asks for more than a page.
        """
        if not is_led_by_another_site(request):
            return _go_on(request, self._options.logout_url)
        if request.method != "GET":
            raise CsrfFailed("another site asks for a logout")
        check_top_level(request)
        # Once more, led by our own page: then the cookie comes along, and the user is asked.
        return page_response(continue_page(request.raw_path))

    def logout_url(self, live: LiveSession) -> str:
        """Return the URL that ends a session by a link or a form."""
        return f"{self._options.base_path}/logout?token={self.proof.of(live.key)}"

    def _is_wanted(self, request: web.Request, live: LiveSession, token: str | None) -> bool:
        """
        Return whether it is our own frontend that logs out; False if the user must be asked.

        Raises:
            CsrfFailed: If it was something else.
        """
        proven = token is not None and self.proof.fits(token, live.key)
        if request.method == "GET":
            check_top_level(request)
            return proven
        if proven:
            return True
        if token is not None:
            raise CsrfFailed("the logout's token is another session's")
        csrf.judge(
            method=request.method,
            headers=request.headers,
            own_origin=self._public_url,
            navigation_allowed=False,
            websocket=False,
        )
        return True

    def _note(self, request: web.Request, ended: Session) -> None:
        log.info(
            "logout",
            extra={
                "provider": ended.provider,
                "subject": ended.subject,
                "grant": ended.grant_id,
                "client": client_address(request, self._trusted_proxies),
            },
        )

    async def _location(self, ended: Session, id_token: IdToken | None) -> str:
        """
        Return where the browser goes on: to the end of the provider's session.

        Nothing that the provider does or fails to do keeps the user logged in (SECURITY TK-07).
        """
        server = self._servers.get(ended.provider)
        if server is None:
            return self._options.logout_url
        try:
            url = await server.end_session_url(
                id_token=id_token,
                post_logout_redirect_uri=f"{self._public_url}{self._options.logout_url}",
                state=None,
            )
        except ProviderError as fault:
            log.warning("no_logout_at_provider", extra={"provider": ended.provider, "error": str(fault)})
            url = None
        return url or self._options.logout_url

    # --- by the provider

    async def backchannel(self, request: web.Request) -> web.StreamResponse:
        """
        End the sessions that a provider's logout token names.

        Source: OpenID Connect Back-Channel Logout sections 2.5 to 2.8.
        """
        server = self._servers.get(request.match_info["provider"])
        if server is None:
            raise NoRoute("no such provider is configured")
        claims = await server.check_logout_token(await _read_logout_token(request))
        used_names = self._keyring.lookup_keys("logout-token", json.dumps([claims.issuer, claims.jti]))
        for name in used_names:
            if await self._store.get(name) is not None:
                raise BadRequest("the logout token was used before")
        ended = await self._end_sessions(claims)
        # Only now: if the store failed before, the provider tries again, and must not be told that it did already.
        await self._remember(used_names, claims)
        log.info("backchannel_logout", extra={"provider": server.name, "sessions": len(ended)})
        return json_response({})

    async def _end_sessions(self, claims: LogoutClaims) -> list[Session]:
        """``sid`` names one session; without it, every session of ``sub`` is meant."""
        if claims.sid is None:
            assert claims.subject is not None, "one of the two is there"
            return await self._sessions.end_by(Index.SUBJECT, claims.issuer, claims.subject, first=self._release)
        found = await self._sessions.find_by(Index.PROVIDER_SESSION, claims.issuer, claims.sid)
        keys = [stored.key for stored in found if claims.subject in (None, stored.session.subject)]
        return [session for key in keys if (session := await self._sessions.end(key, first=self._release)) is not None]

    async def _release(self, session: Session) -> None:
        """The provider knows what it ended, and needs not be told."""
        await self._logins.end_grant(session.grant_id, revoke=False)

    async def _remember(self, names: tuple[str, ...], claims: LogoutClaims) -> None:
        # Twice the clock skew that providers are granted, at least.
        seconds = min(max(claims.exp - self._clock.now(), 0.0) + 1200.0, MAX_REMEMBERED_SECONDS)
        for name in names:
            await self._store.create(name, USED, ttl_seconds=seconds)


def _go_on(request: web.Request, location: str) -> web.Response:
    return see_other(location) if is_navigation(request) else json_response({"redirect": location})


async def _read_logout_token(request: web.Request) -> str:
    """
    Return the ``logout_token`` of a form.

    Raises:
        BadRequest: If it isn't there exactly once.
        PayloadTooLarge: If the form is larger than any such token.
    """
    if request.content_type != "application/x-www-form-urlencoded":
        raise BadRequest("a logout token comes in a form")
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MAX_LOGOUT_TOKEN_BYTES:
            raise PayloadTooLarge("the logout token is too large")
    try:
        form = parse_qsl(body.decode("ascii"), keep_blank_values=True, strict_parsing=True, max_num_fields=16)
    except ValueError:
        raise BadRequest("the form can't be read") from None
    tokens = [value for name, value in form if name == "logout_token"]
    if len(tokens) != 1:
        raise BadRequest("there is not exactly one logout token")
    return tokens[0]

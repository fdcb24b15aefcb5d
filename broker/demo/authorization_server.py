"""
A small authorization server for the demo. NOT FOR PRODUCTION: whoever types a name is logged in under it.

It speaks what the broker needs: discovery, JWKS, the authorization code with PKCE, id tokens with nonce, sid and
auth_time, ``iss`` in the authorization response, rotating refresh tokens whose reuse revokes the family, revocation,
userinfo and RP-initiated logout. It refuses what a real server refuses, and keeps everything in memory.

Source: RFC 6749, RFC 7009, RFC 7636, RFC 8414, RFC 8707, RFC 9068, RFC 9207, RFC 9700; OpenID Connect Core,
Discovery and RP-Initiated Logout.
"""

import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from aiohttp import web
from aiohttp.typedefs import Middleware
from multidict import MultiMapping

from broker.demo import login_pages
from broker.demo.clients import Client, OAuthError, authenticate, is_registered
from broker.demo.families import GRANTED, Families, Family
from broker.demo.issuer import AccessTokenRecord, Issuer, user_claims
from broker.demo.logins import AuthorizationQuery, BrowserLogin, Logins, RedirectedError
from broker.services.clock import Clock, Randomness

COOKIE = "demo_authorization_server"
NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}

log = logging.getLogger(__name__)

GrantHandler = Callable[[Client, MultiMapping[str]], Awaitable[dict[str, object]]]


class AuthorizationServer:
    """The server: parts that hold its state, and one handler per endpoint."""

    def __init__(
        self,
        *,
        clients: Iterable[Client],
        families: Families,
        issuer: Issuer,
        clock: Clock,
        randomness: Randomness,
    ) -> None:
        self.clients = {client.client_id: client for client in clients}
        self.families = families
        self.issuer = issuer
        self.logins = Logins(clients=self.clients, clock=clock, randomness=randomness)
        self.clock = clock
        self.grant_types: dict[str, GrantHandler] = {
            "authorization_code": self.redeem_code,
            "refresh_token": self.refresh,
        }
        self._runner: web.AppRunner | None = None
        self._address = ("127.0.0.1", 0)

    @property
    def url(self) -> str:
        """The issuer identifier."""
        return self.issuer.url

    async def start(self, *, host: str = "127.0.0.1", port: int = 0, listening: socket.socket | None = None) -> None:
        """Listen on *port* of *host*, where 0 picks a free one, or on the socket *listening*."""
        app = web.Application(client_max_size=64 * 1024, middlewares=self.middlewares())
        app.add_routes(self.routes())
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        if listening is not None:
            await web.SockSite(self._runner, listening).start()
        else:
            await web.TCPSite(self._runner, host, port, backlog=2048).start()
        self._address = self._runner.addresses[0][:2]
        self.issuer.url = f"http://{self._address[0]}:{self._address[1]}"
        log.warning("demo_authorization_server_started_not_for_production", extra={"url": self.url})

    async def stop(self) -> None:
        """Stop listening and close every connection. What was issued is still known."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def restart(self) -> None:
        """Listen again where :meth:`start` did."""
        await self.start(host=self._address[0], port=self._address[1])

    def routes(self) -> list[web.RouteDef]:
        """Return the endpoints."""
        return [
            web.get("/.well-known/openid-configuration", self.discovery),
            web.get("/jwks", self.jwks),
            web.get("/authorize", self.authorize),
            web.post("/login", self.log_in),
            web.post("/token", self.token),
            web.post("/revoke", self.revoke),
            web.get("/userinfo", self.userinfo),
            web.post("/userinfo", self.userinfo),
            web.get("/logout", self.log_out),
            web.get("/style.css", self.style),
        ]

    def middlewares(self) -> Iterable[Middleware]:
        """Return what every request passes through."""
        return ()

    def metadata(self) -> dict[str, object]:
        """Return the server's metadata (OpenID Connect Discovery section 3)."""
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "revocation_endpoint": f"{self.url}/revoke",
            "userinfo_endpoint": f"{self.url}/userinfo",
            "end_session_endpoint": f"{self.url}/logout",
            "jwks_uri": f"{self.url}/jwks",
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": list(self.grant_types),
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [self.issuer.signing_key.algorithm],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "none"],
            "code_challenge_methods_supported": ["S256"],
            "scopes_supported": ["openid", "profile", "offline_access"],
            "claims_supported": ["sub", "name", "preferred_username", "auth_time", "sid", "nonce"],
            "prompt_values_supported": ["none", "login"],
            "authorization_response_iss_parameter_supported": True,
        }

    async def discovery(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response(self.metadata())

    async def jwks(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response(self.issuer.signing_key.jwks())

    async def style(self, _request: web.Request) -> web.StreamResponse:
        return web.Response(text=login_pages.STYLE, content_type="text/css")

    # The browser: authorization, login, logout.

    async def authorize(self, request: web.Request) -> web.StreamResponse:
        """Answer an authorization request: a redirect with a code, or the login form."""
        try:
            query = self.logins.read(request.query, tuple(request.query.getall("resource", [])))
        except RedirectedError as refused:
            return self.redirect_back(refused.query, {"error": refused.error, "error_description": str(refused)})
        except OAuthError as refused:
            return login_pages.refusal(refused.error, str(refused))
        login = self.logins.known(request.cookies.get(COOKIE, ""), query)
        if login is not None:
            return self.redirect_back(query, {"code": self.logins.issue_code(query, login)})
        if "none" in query.prompt:
            return self.answer_unasked(query)
        return self.ask_for_login(query)

    def answer_unasked(self, query: AuthorizationQuery) -> web.StreamResponse:
        """Answer about a browser that nobody is known to use, and whose user must not be asked (``prompt=none``)."""
        return self.redirect_back(query, {"error": "login_required"})

    def ask_for_login(self, query: AuthorizationQuery) -> web.StreamResponse:
        """Answer with the login form."""
        return login_pages.login_form(
            self.logins.wait(query),
            client_id=query.client_id,
            redirect_uri=query.redirect_uri,
            login_hint=query.login_hint,
        )

    async def log_in(self, request: web.Request) -> web.StreamResponse:
        """Take the login form."""
        form = await request.post()
        query = self.logins.resume(str(form.get("ticket", "")))
        subject = str(form.get("username", "")).strip()
        if query is None:
            return login_pages.refusal("invalid_request", "this form was sent before, or is too old")
        if not subject.isprintable() or not 0 < len(subject) <= 64:
            return login_pages.refusal("invalid_request", "a name has 1 to 64 printable characters")
        return self.finish_login(query, subject)

    def finish_login(self, query: AuthorizationQuery, subject: str) -> web.StreamResponse:
        """Log *subject* in and send the browser back with a code."""
        cookie, login = self.logins.log_in(subject)
        response = self.redirect_back(query, {"code": self.logins.issue_code(query, login)})
        response.set_cookie(COOKIE, cookie, httponly=True, samesite="Lax", path="/")
        return response

    def redirect_back(self, query: AuthorizationQuery, parameters: Mapping[str, str]) -> web.Response:
        """Return the authorization response (RFC 6749 section 4.1.2, RFC 9207)."""
        answer = {**parameters, "iss": self.url}
        if query.state is not None:
            answer["state"] = query.state
        separator = "&" if "?" in query.redirect_uri else "?"
        location = query.redirect_uri + separator + urlencode(answer)
        return web.Response(status=303, headers={"Location": location, "Referrer-Policy": "no-referrer", **NO_STORE})

    async def log_out(self, request: web.Request) -> web.StreamResponse:
        """End the browser's login and everything that grew from it (RP-Initiated Logout section 2)."""
        login = self.logins.log_out(request.cookies.get(COOKIE, ""))
        if login is not None:
            self.end_session(login)
        response: web.Response
        target = request.query.get("post_logout_redirect_uri")
        client = self.clients.get(request.query.get("client_id", ""))
        registered = client.post_logout_redirect_uris if client else self._all_post_logout_uris()
        if target is not None and is_registered(target, registered):
            state = request.query.get("state")
            location = target if state is None else f"{target}?{urlencode({'state': state})}"
            response = web.Response(status=303, headers={"Location": location, **NO_STORE})
        else:
            response = login_pages.page("Logged out", "<p>You are logged out of the demo authorization server.</p>")
        response.del_cookie(COOKIE, path="/", httponly=True, samesite="Lax")
        return response

    def end_session(self, login: BrowserLogin) -> None:
        """End what grew from *login*."""
        self.families.revoke_session(login.sid)
        for family in self.families.by_id.values():
            if family.sid == login.sid:
                self.issuer.revoke_family(family.id)

    def _all_post_logout_uris(self) -> list[str]:
        return [uri for client in self.clients.values() for uri in client.post_logout_redirect_uris]

    # The client: tokens.

    async def token(self, request: web.Request) -> web.StreamResponse:
        """Answer a token request (RFC 6749 section 3.2)."""
        try:
            form = await read_form(request)
            client = self.authenticate_client(request, form)
            handler = self.grant_types.get(form.get("grant_type", ""), unsupported_grant_type)
            return web.json_response(await handler(client, form), headers=NO_STORE)
        except OAuthError as refused:
            return oauth_error(refused)

    def authenticate_client(self, request: web.Request, form: MultiMapping[str]) -> Client:
        """Return the client that makes a request. Raises ``OAuthError``."""
        return authenticate(self.clients, authorization=request.headers.get("Authorization"), form=form)

    async def redeem_code(self, client: Client, form: MultiMapping[str]) -> dict[str, object]:
        """The authorization code grant (RFC 6749 section 4.1.3)."""
        code = self.logins.find_code(form.get("code", ""))
        if code is None:
            raise OAuthError("invalid_grant", "unknown code")
        if code.family is not None:
            # A code that comes twice was stolen: end what the first presentation brought (RFC 6749 section 4.1.2).
            self.families.revoke(code.family, "code reuse")
            self.issuer.revoke_family(code.family.id)
        self.logins.check_code(code, client=client, form=form)
        query, login = code.query, code.login
        family, refresh_token = self.families.start(
            client_id=client.client_id,
            subject=login.subject,
            scope=query.scope,
            sid=login.sid,
            auth_time=login.auth_time,
            resources=query.resources,
        )
        code.family = family
        audience = requested_audience(form) or query.resources
        return self.issuer.token_response(
            family, refresh_token, scope=query.scope, audience=audience, nonce=query.nonce
        )

    async def refresh(self, client: Client, form: MultiMapping[str]) -> dict[str, object]:
        """The refresh token grant (RFC 6749 section 6)."""
        token = form.get("refresh_token")
        if not token:
            raise OAuthError("invalid_request", "refresh_token is missing")
        known = self.families.find(token)
        scope = form.get("scope") or (known.scope if known else "")
        audience = requested_audience(form)
        if known is not None:
            # What is asked for is checked first: a refused request must not cost the refresh token.
            check_narrower(known, scope=scope, audience=audience)
        presentation = self.families.present(token, client.client_id)
        if presentation.family is None or presentation.replacement is None or presentation.answer not in GRANTED:
            if presentation.family is not None and presentation.family.revoked:
                self.issuer.revoke_family(presentation.family.id)
            raise OAuthError("invalid_grant", f"the refresh token is {presentation.answer}")
        return self.issuer.token_response(presentation.family, presentation.replacement, scope=scope, audience=audience)

    async def revoke(self, request: web.Request) -> web.StreamResponse:
        """Revoke a refresh token with its family (RFC 7009)."""
        try:
            form = await read_form(request)
            client = self.authenticate_client(request, form)
        except OAuthError as refused:
            return oauth_error(refused)
        family = self.families.find(form.get("token", ""))
        if family is not None and family.client_id == client.client_id:
            self.families.revoke(family, "revoked")
            self.issuer.revoke_family(family.id)
        return web.Response(status=200)  # for an unknown token, too (section 2.2)

    async def userinfo(self, request: web.Request) -> web.StreamResponse:
        """Say who the access token's user is (OpenID Connect Core section 5.3)."""
        record = self.bearer(request)
        if record is None or "openid" not in record.scope.split():
            return web.Response(status=401, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})
        return web.json_response({"sub": record.subject, **user_claims(record.subject)}, headers=NO_STORE)

    def bearer(self, request: web.Request) -> AccessTokenRecord | None:
        """Return the live access token that *request* carries."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return self.issuer.find(token) if scheme.lower() == "bearer" else None


async def unsupported_grant_type(_client: Client, _form: MultiMapping[str]) -> dict[str, object]:
    """Refuse a ``grant_type`` that this server doesn't know."""
    raise OAuthError("unsupported_grant_type")


async def read_form(request: web.Request) -> MultiMapping[str]:
    """
    Return the parameters of a request of the token endpoint.

    Raises:
        OAuthError: If it isn't a form, or repeats a parameter (RFC 6749 section 3.2); only ``resource`` may repeat.
    """
    if request.content_type != "application/x-www-form-urlencoded":
        raise OAuthError("invalid_request", "expected application/x-www-form-urlencoded")
    form: MultiMapping[Any] = await request.post()
    if any(len(form.getall(name)) > 1 for name in set(form) - {"resource", "audience"}):
        raise OAuthError("invalid_request", "a parameter is repeated")
    return form


def requested_audience(form: MultiMapping[str]) -> tuple[str, ...]:
    """Return whom the access token is asked for (RFC 8707 ``resource``, or ``audience``)."""
    return (*form.getall("resource", []), *form.getall("audience", []))


def check_narrower(family: Family, *, scope: str, audience: Iterable[str]) -> None:
    """
    Check that no more is asked for than was granted (RFC 6749 section 6, RFC 8707 section 2.2).

    Raises:
        OAuthError: ``invalid_scope`` or ``invalid_target``.
    """
    if not set(scope.split()) <= set(family.scope.split()):
        raise OAuthError("invalid_scope", "more than was granted")
    if family.resources and not set(audience) <= set(family.resources):
        raise OAuthError("invalid_target", "a resource that was not granted")


def oauth_error(refused: OAuthError) -> web.Response:
    """Return an error response (RFC 6749 section 5.2)."""
    headers = dict(NO_STORE)
    if refused.status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="demo"'
    members = {"error": refused.error, "error_description": str(refused)}
    return web.json_response(members, status=refused.status, headers=headers)

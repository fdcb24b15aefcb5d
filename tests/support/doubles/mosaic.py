"""Transmit Security Mosaic: the backend API (seeds 000 and 002) and OIDC (seed 001)."""

import base64
import hashlib
import secrets
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from tests.support.doubles.base import DAY, Double, Family, Refused, form, json_body

CLIENT_ID = "60cbd0b4-example"
CLIENT_SECRET = "mosaic secret/+"


class MosaicBackend(Double):
    """Refreshes by JSON and the client's access token; rotates; lives a year; has sessions of its own."""

    issuer = "https://userid.security"
    chain_seconds = 365 * DAY

    def __init__(self, clock: Any = None) -> None:
        super().__init__(clock)
        self.sessions: dict[str, str] = {}
        self.client_tokens: set[str] = set()

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_post("/oidc/token", self.client_token)
        router.add_post("/cis/v1/auth/token/refresh", self.refresh)
        router.add_post("/cis/v1/auth/session/authenticate", self.authenticate)
        router.add_post("/cis/v1/auth/session/logout", self.log_out)
        router.add_get("/cis/oidc/jwks", self.jwks)

    def log_in(self, subject: str) -> dict[str, Any]:
        """What the application gets from a backend login (magic link, OTP …): seed 000, step 1."""
        session = f"session-{secrets.token_hex(8)}"
        self.sessions[session] = subject
        return {**self._tokens(self.start_family(subject)), "session_id": session}

    async def client_token(self, request: web.Request) -> web.Response:
        sent = await form(request, "grant_type", "client_id", "client_secret", optional=("resource",))
        if (sent["client_id"], sent["client_secret"]) != (CLIENT_ID, CLIENT_SECRET):
            raise Refused(401, "invalid_client")
        if sent["grant_type"] != "client_credentials":
            raise Refused(400, "unsupported_grant_type")
        token = self.issue_access_token(CLIENT_ID, 3600)
        self.client_tokens.add(token)
        return web.json_response({"access_token": token, "expires_in": 3600, "token_type": "Bearer"})

    async def refresh(self, request: web.Request) -> web.Response:
        self._check_client(request)
        sent = await json_body(request, "refresh_token")
        # Step 2: the session isn't touched, and its id isn't returned.
        return web.json_response(self._tokens(self.present(sent["refresh_token"])))

    async def authenticate(self, request: web.Request) -> web.Response:
        self._check_client(request)
        sent = await json_body(request, "session_id", optional=("resource",))
        subject = self.sessions.get(sent["session_id"])
        if subject is None:
            return web.json_response({"error_code": 404, "message": "Session not found"}, status=404)
        return web.json_response({**self._tokens(self.start_family(subject)), "session_id": sent["session_id"]})

    async def log_out(self, request: web.Request) -> web.Response:
        self._check_client(request)
        sent = await json_body(request, "session_id")
        self.sessions.pop(sent["session_id"], None)
        return web.Response(status=204)

    def _check_client(self, request: web.Request) -> None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.client_tokens or not self.is_live(token):
            raise Refused(401, "unauthorized")

    def _tokens(self, family: Family) -> dict[str, Any]:
        return {
            "access_token": self.issue_access_token(family.subject),
            "id_token": self.id_token(family.subject, CLIENT_ID),
            "refresh_token": family.current,
            "token_type": "Bearer",
            "expires_in": 3600,
        }


class MosaicOidc(Double):
    """Authorization code with consent, the secret in the form, no token_type, rotation on each use, 14 days in all."""

    issuer = "https://userid.security"

    def __init__(self, clock: Any = None) -> None:
        super().__init__(clock)
        self.redirect_uri = "https://app.example/bff/callback/mosaic"
        self._codes: dict[str, dict[str, str]] = {}

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/cis/oidc/auth", self.authorize)
        router.add_post("/oidc/token", self.token)
        router.add_get("/cis/oidc/jwks", self.jwks)

    async def authorize(self, request: web.Request) -> web.Response:
        """Log the only user in at once, and send the browser back with a code."""
        asked = dict(request.query)
        wanted = {
            "client_id": CLIENT_ID,
            "response_type": "code",
            "redirect_uri": self.redirect_uri,
            "code_challenge_method": "S256",
        }
        if any(asked.get(name) != value for name, value in wanted.items()) or "openid" not in asked["scope"].split():
            raise Refused(400, "invalid_request")
        code = secrets.token_urlsafe(16)
        self._codes[code] = asked
        answer = {"code": code, "state": asked["state"]}
        return web.Response(status=302, headers={"Location": f"{self.redirect_uri}?{urlencode(answer)}"})

    async def token(self, request: web.Request) -> web.Response:
        if "Authorization" in request.headers:
            raise Refused(401, "invalid_client")
        sent = await form(
            request,
            "grant_type",
            "client_id",
            "client_secret",
            optional=("refresh_token", "code", "redirect_uri", "code_verifier", "resource"),
        )
        if (sent["client_id"], sent["client_secret"]) != (CLIENT_ID, CLIENT_SECRET):
            raise Refused(401, "invalid_client")
        match sent["grant_type"]:
            case "authorization_code":
                return web.json_response(self._redeem(sent))
            case "refresh_token" if set(sent) == {"grant_type", "client_id", "client_secret", "refresh_token"}:
                return web.json_response(self._answer(self.present(sent["refresh_token"])))
            case _:
                raise Refused(400, "unsupported_grant_type")

    def _redeem(self, sent: dict[str, str]) -> dict[str, Any]:
        asked = self._codes.pop(sent.get("code", ""), None)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(sent.get("code_verifier", "").encode()).digest())
        if (
            asked is None
            or sent.get("redirect_uri") != asked["redirect_uri"]
            or challenge.rstrip(b"=").decode() != asked["code_challenge"]
        ):
            raise Refused(400, "invalid_grant")
        answer = self._answer(self.start_family("alice"), nonce=asked["nonce"])
        # Step 1: no refresh token without offline_access and consent.
        if "offline_access" not in asked["scope"].split() or asked.get("prompt") != "consent":
            del answer["refresh_token"]
        return answer

    def _answer(self, family: Family, **claims: Any) -> dict[str, Any]:
        return {
            "access_token": self.issue_access_token(family.subject),
            "id_token": self.id_token(family.subject, CLIENT_ID, **claims),
            "refresh_token": family.current,
            "expires_in": 3600,
        }

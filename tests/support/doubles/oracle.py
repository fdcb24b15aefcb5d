"""Oracle Identity Cloud Service (seed 004)."""

import base64
import hashlib
import re
import secrets
from typing import Any
from urllib.parse import urlencode

from aiohttp import web
from joserfc.jwk import Key

from broker.core.compact_jws import MalformedToken, read_compact
from broker.services.id_tokens import verify
from tests.support.doubles.base import DAY, Double, Family, Refused, basic, form

CLIENT_ID = "3c1f-example"
CLIENT_SECRET = "idcs:secret/+ä"
AUDIENCE = "https://identity.oraclecloud.com/"
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
MYSCOPES = "urn:opc:idm:__myscopes__"
YEAR = 31_556_952


class OracleIdcs(Double):
    """
    Basic or a client assertion; user assertions, codes and passwords; refresh tokens for offline_access only.

    Attributes:
        rotates: Whether a refresh brings a new refresh token.
        certificate: The alias and the thumbprint (x5t) by which an assertion's header may name the certificate.
        key: Its public key.
    """

    issuer = AUDIENCE
    refresh_token_seconds = 7 * DAY
    chain_seconds = 3650 * DAY

    def __init__(self, clock: Any = None, *, key: Key, alias: str = "broker-cert", x5t: str = "") -> None:
        super().__init__(clock)
        self.rotates = True
        self.key = key
        self.alias, self.x5t = alias, x5t
        self.redirect_uri = "https://app.example/bff/callback/idcs"
        self._jtis: set[str] = set()
        self._codes: dict[str, dict[str, str]] = {}

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/oauth2/v1/authorize", self.authorize)
        router.add_post("/oauth2/v1/token", self.token)
        router.add_post("/oauth2/v1/revoke", self.revocation)
        router.add_get("/admin/v1/SigningCert/jwk", self.jwks)

    async def authorize(self, request: web.Request) -> web.Response:
        asked = dict(request.query)
        if (asked.get("client_id"), asked.get("redirect_uri")) != (CLIENT_ID, self.redirect_uri):
            raise Refused(400, "invalid_request")
        code = secrets.token_urlsafe(16)
        self._codes[code] = asked
        answer = {"code": code, "state": asked["state"]}
        return web.Response(status=302, headers={"Location": f"{self.redirect_uri}?{urlencode(answer)}"})

    async def token(self, request: web.Request) -> web.Response:
        grants = (
            "refresh_token",
            "assertion",
            "scope",
            "code",
            "code_verifier",
            "redirect_uri",
            "username",
            "password",
        )
        sent = await self._authenticated(request, "grant_type", optional=grants)
        match sent["grant_type"]:
            case "refresh_token" if set(sent) == {"grant_type", "refresh_token"}:
                family = self.present(sent["refresh_token"], rotate=self.rotates)
                return web.json_response(self._answer(family, with_refresh_token=self.rotates))
            case grant if grant == JWT_BEARER:
                subject = self._asserted(sent["assertion"])
                if subject == CLIENT_ID:
                    raise Refused(400, "invalid_grant")
                return web.json_response(self._first(subject, sent["scope"]))
            case "password" if (sent.get("username"), sent.get("password")) == ("alice", "wonderland"):
                return web.json_response(self._first("alice", sent["scope"]))
            case "authorization_code":
                asked = self._codes.pop(sent["code"], None)
                verifier = hashlib.sha256(sent["code_verifier"].encode()).digest()
                if asked is None or base64.urlsafe_b64encode(verifier).rstrip(b"=").decode() != asked["code_challenge"]:
                    raise Refused(400, "invalid_grant")
                return web.json_response(self._first("alice", asked["scope"], nonce=asked["nonce"]))
            case "password":
                raise Refused(400, "invalid_grant")
            case _:
                raise Refused(400, "unsupported_grant_type")

    async def revocation(self, request: web.Request) -> web.Response:
        sent = await self._authenticated(request, "token", optional=("token_type_hint",))
        self.revoke(sent["token"])
        return web.Response(status=200)

    async def _authenticated(self, request: web.Request, *names: str, optional: tuple[str, ...]) -> dict[str, str]:
        """Check the client, and return the form without its credentials. One way at a time (RFC 6749 section 2.3)."""
        if "Authorization" in request.headers:
            if basic(request) != (CLIENT_ID, CLIENT_SECRET):
                raise Refused(401, "invalid_client")
            return await form(request, *names, optional=optional)
        own = ("client_id", "client_assertion_type", "client_assertion")
        sent = await form(request, *names, *own, optional=optional)
        if (
            sent["client_id"] != CLIENT_ID
            or sent["client_assertion_type"] != ASSERTION_TYPE
            or self._asserted(sent["client_assertion"]) != CLIENT_ID
        ):
            raise Refused(401, "invalid_client")
        return {name: value for name, value in sent.items() if name not in own}

    def _asserted(self, assertion: str) -> str:
        """Return the subject of an assertion: RS256, its certificate named, for the fixed audience, used once."""
        try:
            jws = read_compact(assertion)
            claims = jws.claims()
        except MalformedToken:
            raise Refused(400, "invalid_grant") from None
        named = jws.header.get("kid") == self.alias or (self.x5t and jws.header.get("x5t") == self.x5t)
        if (
            jws.header["alg"] != "RS256"
            or not named
            or not verify(jws, "RS256", self.key)
            or claims.get("aud") != AUDIENCE
            or claims.get("iss") != CLIENT_ID
            or not isinstance(exp := claims.get("exp"), int)
            or not self.clock.now() < exp <= self.clock.now() + 3600
            or not isinstance(claims.get("iat"), int)
            or (jti := str(claims["jti"])) in self._jtis
        ):
            raise Refused(401, "invalid_client")
        self._jtis.add(jti)
        return str(claims["sub"])

    def _first(self, subject: str, scope: str, **claims: Any) -> dict[str, Any]:
        words = scope.split()
        if MYSCOPES not in words:
            raise Refused(400, "invalid_scope")
        family = self.start_family(subject, scope)
        answer = self._answer(family, with_refresh_token="offline_access" in words)
        if "openid" in words:
            answer["id_token"] = self.id_token(subject, CLIENT_ID, **claims)
        return answer

    def _answer(self, family: Family, *, with_refresh_token: bool) -> dict[str, Any]:
        seconds = _expiry(family.scope)
        answer: dict[str, Any] = {
            "access_token": self.issue_access_token(family.subject, seconds),
            "token_type": "Bearer",
            "expires_in": seconds,
        }
        if with_refresh_token:
            answer["refresh_token"] = family.current
        return answer


def _expiry(scope: str) -> int:
    """The life that a scope gives: an hour, or what urn:opc:resource:expiry says, a year without a number."""
    match = re.search(r"urn:opc:resource:expiry(?:=(\d+))?", scope)
    if match is None:
        return 3600
    return int(match[1]) if match[1] else YEAR

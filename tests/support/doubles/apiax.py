"""Apiax (seed 003): a Keycloak with one public client, passwords, and Java timestamps."""

from enum import StrEnum
from typing import Any

from aiohttp import web
from joserfc.jwk import Key

from broker.core.compact_jws import read_compact
from broker.services.id_tokens import verify
from tests.support.doubles.base import DAY, Double, Family, Refused, form

CLIENT_ID = "integration-api"
USERNAME, PASSWORD = "integration@example.com", "a password: +&="
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
BASE = "/auth/realms/apiax/protocol/openid-connect"


class Expiry(StrEnum):
    """How an answer says when the access token ends."""

    JAVA_TIMESTAMP = "expires_in as a Java timestamp"
    SECONDS = "expires_in in seconds"
    EXPIRES_AT = "expires_at as a Java timestamp"


class Apiax(Double):
    """
    One factor by client_id and password; two with an assertion, signed RS256, in place of the client_id.

    Attributes:
        expiry: How answers say when the access token ends.
        rotates: Whether a refresh brings a new refresh token.
        offline: Whether refresh tokens are offline tokens, whose refresh_expires_in is 0.
        assertion_key: The public key of the second factor.
    """

    access_token_seconds = 1800.0
    refresh_token_seconds = 14 * DAY
    chain_seconds = 3650 * DAY

    def __init__(self, clock: Any = None, *, assertion_key: Key | None = None) -> None:
        super().__init__(clock)
        self.expiry = Expiry.JAVA_TIMESTAMP
        self.rotates = True
        self.offline = False
        self.assertion_key = assertion_key
        self._assertions: set[str] = set()

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_post(f"{BASE}/token", self.token)
        router.add_post(f"{BASE}/revoke", self.revocation)
        router.add_get(f"{BASE}/certs", self.jwks)

    async def token(self, request: web.Request) -> web.Response:
        sent = await self._authenticated(
            request, "grant_type", optional=("username", "password", "refresh_token", "scope")
        )
        match sent.get("grant_type"):
            case "password":
                if (sent.get("username"), sent.get("password")) != (USERNAME, PASSWORD):
                    raise Refused(401, "invalid_grant")  # Keycloak says it with 401
                return web.json_response(self._answer(self.start_family(USERNAME, "email profile"), first=True))
            case "refresh_token" if "username" not in sent and "scope" not in sent:
                return web.json_response(self._answer(self.present(sent.get("refresh_token", ""), rotate=self.rotates)))
            case _:
                raise Refused(400, "unsupported_grant_type")

    async def revocation(self, request: web.Request) -> web.Response:
        sent = await self._authenticated(request, "token", optional=("token_type_hint",))
        self.revoke(sent["token"])
        return web.Response(status=200)

    async def _authenticated(self, request: web.Request, *names: str, optional: tuple[str, ...]) -> dict[str, str]:
        if "Authorization" in request.headers:
            raise Refused(401, "invalid_client")
        if self.assertion_key is None:
            sent = await form(request, *names, "client_id", optional=optional)
            if sent["client_id"] != CLIENT_ID:
                raise Refused(401, "invalid_client")
            return sent
        sent = await form(request, *names, "client_assertion_type", "client_assertion", optional=optional)
        jws = read_compact(sent["client_assertion"])
        claims = jws.claims()
        if (
            sent["client_assertion_type"] != ASSERTION_TYPE
            or jws.header["alg"] != "RS256"
            or not verify(jws, "RS256", self.assertion_key)
            or (claims["iss"], claims["sub"]) != (CLIENT_ID, CLIENT_ID)
            or str(claims["jti"]) in self._assertions
        ):
            raise Refused(401, "invalid_client")
        self._assertions.add(str(claims["jti"]))
        return sent

    def _answer(self, family: Family, *, first: bool = False) -> dict[str, Any]:
        now = self.clock.now()
        end = now + self.access_token_seconds
        expiry = {
            Expiry.JAVA_TIMESTAMP: {"expires_in": int(end * 1000)},
            Expiry.SECONDS: {"expires_in": int(self.access_token_seconds)},
            Expiry.EXPIRES_AT: {"expires_at": int(end * 1000)},
        }[self.expiry]
        answer: dict[str, Any] = {
            "access_token": self.issue_access_token(family.subject),
            **expiry,
            "refresh_expires_in": 0 if self.offline else int(family.issued_at + self.refresh_token_seconds - now),
            "token_type": "bearer",
            "not-before-policy": int(family.started_at * 1000),
            "session_state": family.session,
            "scope": family.scope,
        }
        if first or self.rotates:
            answer["refresh_token"] = family.current
        return answer

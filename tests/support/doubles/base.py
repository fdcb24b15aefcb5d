"""What the doubles share: a real server, families of rotating refresh tokens, and forms read strictly."""

import base64
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qsl, unquote_plus

from aiohttp import web

from broker.services.clock import Clock, SystemClock
from tests.support.forge import ec_key, public_jwk, sign

DAY = 86400.0


class Refused(Exception):
    """The request isn't one that this server takes."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status
        self.error = error


@dataclass
class Family:
    """What came of one login: one chain of refresh tokens."""

    subject: str
    scope: str
    started_at: float
    session: str = field(default_factory=lambda: secrets.token_hex(8))
    current: str = ""
    issued_at: float = 0.0
    revoked: bool = False
    rotations: int = 0


class Double:
    """
    A server with access tokens, refresh tokens and a log of what came.

    Attributes:
        url: Where it listens.
        log: Method, path and status of each request.
        presented: Every refresh token that was presented, in order.
        revoked_families: How often a reuse killed a family.
    """

    issuer = ""
    access_token_seconds = 3600.0
    refresh_token_seconds = 14 * DAY
    chain_seconds = 14 * DAY

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.url = ""
        self.log: list[tuple[str, str, int]] = []
        self.presented: list[str] = []
        self.revoked_families = 0
        self._families: dict[str, Family] = {}
        self._access_tokens: dict[str, tuple[str, float]] = {}
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._logged])
        self.add_routes(app.router)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def add_routes(self, router: web.UrlDispatcher) -> None:
        raise NotImplementedError

    # What an upstream would ask.

    def is_live(self, access_token: str) -> bool:
        """Whether an upstream would take this token."""
        return self._access_tokens.get(access_token, ("", 0.0))[1] > self.clock.now()

    def subject_of(self, access_token: str) -> str:
        """Whose token it is."""
        return self._access_tokens[access_token][0]

    def calls(self, path: str) -> int:
        """How often *path* was asked for."""
        return sum(logged == path for _, logged, _ in self.log)

    # Issuing.

    def issue_access_token(self, subject: str, seconds: float | None = None, **claims: Any) -> str:
        """An access token as a JWT."""
        end = self.clock.now() + (self.access_token_seconds if seconds is None else seconds)
        token = self.jwt({"sub": subject, "exp": int(end), "jti": secrets.token_hex(8), **claims}, typ="at+jwt")
        self._access_tokens[token] = (subject, end)
        return token

    def start_family(self, subject: str, scope: str = "") -> Family:
        family = Family(subject, scope, self.clock.now())
        self.issue_refresh_token(family)
        return family

    def issue_refresh_token(self, family: Family) -> str:
        family.current = f"rt_{secrets.token_hex(16)}"
        family.issued_at = self.clock.now()
        self._families[family.current] = family
        return family.current

    def present(self, refresh_token: str, *, rotate: bool = True) -> Family:
        """Spend a refresh token. Reuse of a rotated one kills its family (RFC 9700 section 4.14.2)."""
        self.presented.append(refresh_token)
        family = self._families.get(refresh_token)
        if family is None or family.revoked:
            raise Refused(400, "invalid_grant")
        if family.current != refresh_token:
            family.revoked = True
            self.revoked_families += 1
            raise Refused(400, "invalid_grant")
        now = self.clock.now()
        if now >= family.issued_at + self.refresh_token_seconds or now >= family.started_at + self.chain_seconds:
            raise Refused(400, "invalid_grant")
        if rotate:
            family.rotations += 1
            self.issue_refresh_token(family)
        return family

    def revoke(self, refresh_token: str) -> None:
        if (family := self._families.get(refresh_token)) is not None:
            family.revoked = True

    def jwt(self, claims: Mapping[str, Any], typ: str = "JWT") -> str:
        now = int(self.clock.now())
        return sign(
            {"alg": "ES256", "kid": "double-1", "typ": typ}, {"iss": self.issuer, "iat": now, **claims}, ec_key()
        )

    def id_token(self, subject: str, client_id: str, **claims: Any) -> str:
        end = int(self.clock.now() + 3600)
        return self.jwt({"sub": subject, "aud": client_id, "exp": end, **claims})

    async def jwks(self, _request: web.Request) -> web.Response:
        return web.json_response({"keys": [public_jwk(ec_key(), "double-1", alg="ES256", use="sig")]})

    # Reading.

    @web.middleware
    async def _logged(self, request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            response: web.StreamResponse = await handler(request)
        except Refused as refused:
            response = web.json_response({"error": refused.error}, status=refused.status)
        except web.HTTPException as fault:
            self.log.append((request.method, request.path, fault.status))
            raise
        self.log.append((request.method, request.path, response.status))
        return response


async def form(request: web.Request, *names: str, optional: tuple[str, ...] = ()) -> dict[str, str]:
    """Read a form that holds exactly *names*, and perhaps *optional* ones, each once."""
    if request.content_type != "application/x-www-form-urlencoded" or request.query_string:
        raise Refused(400, "invalid_request")
    pairs = parse_qsl(await request.text(), keep_blank_values=True, strict_parsing=True)
    members = dict(pairs)
    if len(pairs) != len(members) or not set(names) <= set(members) <= {*names, *optional}:
        raise Refused(400, "invalid_request")
    return members


async def json_body(request: web.Request, *names: str, optional: tuple[str, ...] = ()) -> dict[str, str]:
    """Read a JSON object that holds exactly *names*, and perhaps *optional* ones."""
    if request.content_type != "application/json" or request.query_string:
        raise Refused(415, "invalid_request")
    members = json.loads(await request.text())
    if not isinstance(members, dict) or not set(names) <= set(members) <= {*names, *optional}:
        raise Refused(400, "invalid_request")
    return members


def basic(request: web.Request) -> tuple[str, str]:
    """Read HTTP Basic as RFC 6749 section 2.3.1 says."""
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    if scheme != "Basic":
        raise Refused(401, "invalid_client")
    name, _, password = base64.b64decode(encoded).decode().partition(":")
    return unquote_plus(name), unquote_plus(password)

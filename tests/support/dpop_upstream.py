"""
An upstream API that takes only tokens that are bound to a key, and checks each proof as RFC 9449 section 4.3 says.

It is written against the RFC, and shares no code with the broker.
"""

import base64
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from broker.services.clock import Clock

IAT_WINDOW_SECONDS = 60


TokenCheck = Callable[[str], Awaitable[Mapping[str, Any]]]
"""Returns the introspection response (RFC 7662 section 2.2, RFC 9449 section 6.2) for an access token."""


class ProofRefused(Exception):
    """The proof is refused; the first argument is the ``error``, the second says why."""


def thumbprint(jwk: Mapping[str, Any]) -> str:
    """Return the JWK SHA-256 thumbprint (RFC 7638), as ``cnf.jkt`` holds it."""
    return ECKey.import_key(dict(jwk)).thumbprint()


def _b64(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


class DpopUpstream:
    """
    A real server on 127.0.0.1. ``/socket`` echoes WebSocket messages; any other path answers JSON about the request.

    Attributes:
        url: Where it listens.
        base: What it takes for the beginning of its own URL; by default where it listens.
        keys: The ``jkt`` of each token that it knows: what introspection or the token's ``cnf`` would say.
        nonce: What proofs must hold; None for no nonce.
        next_nonce: What the next answer that isn't a refusal changes the nonce to; None to leave it.
        refusal_padding: How long a refusal is, in bytes.
        clock: What ``iat`` is compared with.
        claims: Of the proofs that were taken.
        refusals: Why requests were refused.
        requests: The field lines of all requests.
    """

    def __init__(self, clock: Clock, *, check: TokenCheck | None = None) -> None:
        """
        Args:
            clock: What ``iat`` is compared with.
            check: Tells the key of a token that isn't in :attr:`keys`.
        """
        self.url = ""
        self.base: str | None = None
        self.keys: dict[str, str] = {}
        self.nonce: str | None = None
        self.next_nonce: str | None = None
        self.refusal_padding = 0
        self.clock = clock
        self._check = check
        self.claims: list[dict[str, Any]] = []
        self.refusals: list[str] = []
        self.requests: list[Mapping[str, str]] = []
        self._jtis: set[str] = set()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/socket", self._socket)
        app.router.add_route("*", "/{rest:.*}", self._describe)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.requests.append(request.headers)
        try:
            self.claims.append(await self._judge(request))
        except ProofRefused as refusal:
            error, detail = refusal.args
            self.refusals.append(f"{error}: {detail}")
            await request.read()
            challenge = f'DPoP realm="orders", error="{error}", algs="ES256 PS256"'
            headers = {"WWW-Authenticate": challenge} | ({"DPoP-Nonce": self.nonce} if self.nonce else {})
            return web.Response(status=401, headers=headers, text="no" + " " * self.refusal_padding)
        nonce, self.next_nonce = self.next_nonce, None
        if nonce is not None:
            self.nonce = nonce
            request[NEW_NONCE] = nonce
        return await handler(request)

    async def _judge(self, request: web.Request) -> dict[str, Any]:
        lines = request.headers.getall("Authorization", [])
        scheme, _, token = lines[0].partition(" ") if len(lines) == 1 else ("", "", "")
        key = self.keys.get(token) or await self._key_of(token)
        if scheme.lower() != "dpop" or key is None:
            raise ProofRefused("invalid_token", f"scheme {scheme!r}")  # section 7.2: never as a bearer token
        proofs = request.headers.getall("DPoP", [])
        if len(proofs) != 1:
            raise ProofRefused("invalid_dpop_proof", f"{len(proofs)} proofs")
        claims, jwk = _verified(proofs[0])
        if claims["htm"] != request.method:
            raise ProofRefused("invalid_dpop_proof", f"htm {claims['htm']}")
        expected = (self.base or self.url) + request.raw_path.partition("?")[0]
        if claims["htu"] != expected:
            raise ProofRefused("invalid_dpop_proof", f"htu {claims['htu']}, not {expected}")
        if abs(claims["iat"] - self.clock.now()) > IAT_WINDOW_SECONDS:
            raise ProofRefused("invalid_dpop_proof", f"iat {claims['iat']}")
        if claims.get("ath") != _b64(hashlib.sha256(token.encode()).digest()):
            raise ProofRefused("invalid_dpop_proof", "ath")
        if thumbprint(jwk) != key:
            raise ProofRefused("invalid_token", "cnf.jkt")
        if self.nonce is not None and claims.get("nonce") != self.nonce:
            raise ProofRefused("use_dpop_nonce", f"nonce {claims.get('nonce')}")
        if claims["jti"] in self._jtis:
            raise ProofRefused("invalid_dpop_proof", "jti came before")
        self._jtis.add(claims["jti"])
        return claims

    async def _key_of(self, token: str) -> str | None:
        told = {} if self._check is None else await self._check(token)
        confirmation = told.get("cnf", {}) if told.get("active") else {}
        return confirmation.get("jkt")

    async def _describe(self, request: web.Request) -> web.Response:
        body = await request.read()
        told = {"method": request.method, "path": urlsplit(str(request.rel_url)).path, "bytes": len(body)}
        headers = {"DPoP-Nonce": request[NEW_NONCE]} if NEW_NONCE in request else {}
        return web.json_response(told, headers=headers)

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket


NEW_NONCE = web.RequestKey("new_nonce", str)


def _verified(proof: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the claims of a proof and its key, after the checks that need no request."""
    parts = proof.split(".")
    try:
        header = json.loads(base64.urlsafe_b64decode(parts[0] + "=="))
        jwk = header["jwk"]
        if len(parts) != 3 or header["typ"] != "dpop+jwt" or header["alg"] != "ES256" or "d" in jwk:
            raise ProofRefused("invalid_dpop_proof", f"header {sorted(header)}")
        claims = json.loads(jws.deserialize_compact(proof, ECKey.import_key(jwk), ["ES256"]).payload)
    except (ValueError, KeyError, TypeError, JoseError) as fault:
        raise ProofRefused("invalid_dpop_proof", type(fault).__name__) from None
    if not {"jti", "htm", "htu", "iat"} <= claims.keys():
        raise ProofRefused("invalid_dpop_proof", f"claims {sorted(claims)}")
    return claims, jwk

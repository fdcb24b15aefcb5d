"""A token endpoint that takes exactly one way of writing a request, and answers in exactly one way."""

import base64
import json
import ssl
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import parse_qsl, unquote_plus

from aiohttp import web

from broker.core.client_auth import BasicEncoding, ClientAuthMethod
from broker.core.compact_jws import read_compact
from broker.core.provider import Dialect
from broker.core.secret import Secret
from broker.services.id_tokens import verify
from broker.services.signing import mac
from tests.support.forge import ec_key

CLIENT_ID = "client:ä 1"
CLIENT_SECRET = "secret:+/ % äß of more than 32 bytes"
ISSUER = "https://as.example"
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class StrictServer:
    """
    Refuses whatever isn't written as it was told.

    Attributes:
        refusals: Why a request was refused; empty where all went well.
        accepted: Path and grant parameters of each request that was taken, without the client's credentials.
    """

    def __init__(
        self,
        *,
        method: ClientAuthMethod,
        dialect: Dialect,
        answer: Mapping[str, Any],
        basic_encoding: BasicEncoding = BasicEncoding.FORM,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.refusals: list[str] = []
        self.accepted: list[tuple[str, dict[str, str]]] = []
        self.url = ""
        self._method = method
        self._dialect = dialect
        self._answer = answer
        self._basic_encoding = basic_encoding
        self._tls = tls
        self._jtis: set[str] = set()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/client-token", self._client_token)
        app.router.add_post("/{path:token|refresh|session}", self._token)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _client_token(self, request: web.Request) -> web.Response:
        expected = {"grant_type": "client_credentials", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
        if expected != dict(parse_qsl(await request.text(), strict_parsing=True)):
            return self._refuse("the client token is asked for otherwise")
        return web.json_response({"access_token": "client-token", "expires_in": 3600})

    async def _token(self, request: web.Request) -> web.Response:
        if request.query_string:
            return self._refuse("a query in the URL")
        try:
            parameters = await self._parameters(request)
            own = self._check_client(request, parameters)
        except (AssertionError, KeyError, ValueError) as fault:
            return self._refuse(f"{type(fault).__name__}: {fault}")
        self.accepted.append((request.path, {name: value for name, value in parameters.items() if name not in own}))
        return web.json_response(self._answer)

    def _refuse(self, why: str) -> web.Response:
        self.refusals.append(why)
        return web.json_response({"error": "invalid_client"}, status=401)

    async def _parameters(self, request: web.Request) -> dict[str, str]:
        text = await request.text()
        if self._dialect is Dialect.JSON or request.path == "/session":  # Mosaic's, which isn't OAuth
            assert "application/json" == request.content_type
            members: dict[str, str] = json.loads(text)
            return members
        assert "application/x-www-form-urlencoded" == request.content_type
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True)
        assert len(pairs) == len(dict(pairs))
        return dict(pairs)

    def _check_client(self, request: web.Request, parameters: dict[str, str]) -> set[str]:
        """Return the names of the parameters that are the client's proof."""
        header = request.headers.get("Authorization")
        match self._method:
            case ClientAuthMethod.CLIENT_SECRET_BASIC:
                assert header is not None
                assert (CLIENT_ID, CLIENT_SECRET) == self._basic(header)
                return set()
            case ClientAuthMethod.CLIENT_ACCESS_TOKEN:
                assert "Bearer client-token" == header
                return set()
            case _:
                assert header is None
                assert CLIENT_ID == parameters["client_id"]
        match self._method:
            case ClientAuthMethod.NONE:
                return {"client_id"}
            case ClientAuthMethod.TLS_CLIENT_AUTH:
                assert request.transport is not None
                subject = request.transport.get_extra_info("peercert")["subject"]
                assert ((("commonName", "client"),),) == subject
                return {"client_id"}
            case ClientAuthMethod.CLIENT_SECRET_POST:
                assert CLIENT_SECRET == parameters["client_secret"]
                return {"client_id", "client_secret"}
            case _:
                self._check_assertion(parameters)
                return {"client_id", "client_assertion", "client_assertion_type"}

    def _basic(self, header: str) -> tuple[str, str]:
        scheme, _, encoded = header.partition(" ")
        assert "Basic" == scheme
        text = base64.b64decode(encoded, validate=True).decode()
        if self._basic_encoding is BasicEncoding.RAW:
            assert text.startswith(f"{CLIENT_ID}:")
            return CLIENT_ID, text.removeprefix(f"{CLIENT_ID}:")
        name, _, password = text.partition(":")
        return unquote_plus(name), unquote_plus(password)

    def _check_assertion(self, parameters: dict[str, str]) -> None:
        assert ASSERTION_TYPE == parameters["client_assertion_type"]
        jws = read_compact(parameters["client_assertion"])
        claims = jws.claims()
        if self._method is ClientAuthMethod.CLIENT_SECRET_JWT:
            assert mac(Secret(CLIENT_SECRET), "HS256", jws.signing_input) == jws.signature
        else:
            assert verify(jws, "ES256", ec_key())
        assert (CLIENT_ID, CLIENT_ID, ISSUER) == (claims["iss"], claims["sub"], claims["aud"])
        jti = str(claims["jti"])
        assert jti not in self._jtis
        self._jtis.add(jti)

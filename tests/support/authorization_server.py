"""
An authorization server that writes down everything and fails where it is told to: the oracle of the engine's tests.

It is the demo's server with other settings, so what the tests trust is what a user can look at. In the tests' process:

    async with LedgerServer(access_token_seconds=60) as provider:
        tokens = provider.issue("alice")
        provider.fail_next("close", when="after")
        ...
        assert {} == provider.ledger.presented_twice()

Where brokers are killed, it runs as a process of its own: see remote_authorization_server.py.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from email.utils import formatdate
from typing import Any, Self

from aiohttp import web
from aiohttp.typedefs import Handler
from joserfc import jwk, jwt
from joserfc.errors import JoseError
from multidict import MultiMapping

from broker.core.oauth import TokenSet
from broker.core.provider import Rotation
from broker.core.secret import AccessToken, IdToken, RefreshToken, Secret
from broker.demo.authorization_server import (
    AuthorizationServer,
    check_narrower,
    oauth_error,
    read_form,
    requested_audience,
)
from broker.demo.clients import Client, OAuthError
from broker.demo.families import Families
from broker.demo.issuer import AccessTokenRecord, Issuer, TokenFormat
from broker.demo.logins import AuthorizationQuery
from broker.demo.signing import SigningKey
from broker.services.clock import Clock, Randomness, SystemClock, SystemRandomness
from tests.support.faults import Fault, Faults, How
from tests.support.ledger import Ledger, TokenCall

CLIENT_ID = "broker"
CLIENT_SECRET = "a client secret: äß+/%"  # with characters that must be form-encoded in Basic (RFC 6749 section 2.3.1)
ORIGINS = ("http://127.0.0.1", "http://localhost", "https://app.example.com")
"""Where the broker may be; a loopback origin may have any port (RFC 8252 section 7.3)."""
CALLBACKS = tuple(f"{origin}/bff/callback/{name}" for origin in ORIGINS for name in ("corp", "idp"))
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:access_token"
BY_KEY = ["client_secret_basic", "client_secret_post", "none", "private_key_jwt"]
_BACKCHANNEL_EVENT = "http://schemas.openid.net/event/backchannel-logout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """
    How the server behaves. It can be changed while it runs: :meth:`LedgerServer.configure`.

    Attributes:
        rotation: What is done with a refresh token that is presented again.
        rotation_grace_seconds: For ``grace``.
        access_token_seconds: Lifetime of access tokens.
        refresh_token_seconds: Lifetime of refresh tokens.
        reports_refresh_expiry: Whether answers carry ``refresh_expires_in`` (Keycloak).
        latency_seconds: Least and greatest latency of a token request, drawn evenly. The server acts at an equally
            random moment of it.
        seed: Of the latencies.
        kills_access_tokens_at_rotation: Whether a refresh revokes the access tokens before it (django-oauth-toolkit).
        omit_at_login: Members that the answer to a code lacks.
        omit_at_refresh: Members that the answer to a refresh lacks; without ``refresh_token`` nothing is rotated.
        asks_for_login: Whether browsers see the login form; else each is logged in as its ``login_hint``, or
            :attr:`log_in_as`.
        log_in_as: The user.
        knows_browsers: Whether that user is known without any cookie, as by a client certificate or Kerberos.
        default_audience: ``aud`` where no resource is named.
        token_format: ``opaque`` costs nothing; ``jwt`` costs a signature.
        client_secret: What it takes for the broker's client secret.
        client_key: The public key, as a JWK, that it takes client assertions by (RFC 7523); None takes none.
        redirect_uris: Where authorization responses of the broker's client may go, in place of :data:`CALLBACKS`.
        scopes: Those that it knows; None: any.
        audiences: The resources and audiences that it knows; None: any.
        clock_ahead_seconds: How far its clock is ahead of the true time.
    """

    rotation: Rotation = Rotation.STRICT
    rotation_grace_seconds: float = 30.0
    access_token_seconds: float = 300.0
    refresh_token_seconds: float = 14 * 86400.0
    reports_refresh_expiry: bool = False
    latency_seconds: tuple[float, float] = (0.0, 0.0)
    seed: int = 0
    kills_access_tokens_at_rotation: bool = False
    omit_at_login: frozenset[str] = frozenset()
    omit_at_refresh: frozenset[str] = frozenset()
    asks_for_login: bool = False
    log_in_as: str = "alice"
    knows_browsers: bool = False
    default_audience: str = "api"
    token_format: TokenFormat = TokenFormat.OPAQUE
    client_secret: str = CLIENT_SECRET
    client_key: Mapping[str, Any] | None = None
    redirect_uris: tuple[str, ...] | None = None
    scopes: frozenset[str] | None = None
    audiences: frozenset[str] | None = None
    clock_ahead_seconds: float = 0.0

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Behaviour":
        """Read what :func:`dataclasses.asdict` and JSON made of it."""
        known = {each.name for each in fields(cls)}
        if unknown := set(document) - known:
            raise ValueError(f"unknown settings: {sorted(unknown)}")
        read: dict[str, Any] = {
            "rotation": Rotation,
            "latency_seconds": tuple,
            "omit_at_login": frozenset,
            "omit_at_refresh": frozenset,
            "token_format": TokenFormat,
            "redirect_uris": _unless_none(tuple),
            "scopes": _unless_none(frozenset),
            "audiences": _unless_none(frozenset),
        }
        return cls(**{name: read.get(name, lambda value: value)(value) for name, value in document.items()})

    def to_document(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            **asdict(self),
            "omit_at_login": sorted(self.omit_at_login),
            "omit_at_refresh": sorted(self.omit_at_refresh),
            "scopes": _unless_none(sorted)(self.scopes),
            "audiences": _unless_none(sorted)(self.audiences),
        }


def _unless_none(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


class ClockThatMayBeOff(Clock):
    """A clock that tells another clock's time, and is ahead of it."""

    def __init__(self, clock: Clock) -> None:
        self.ahead_seconds = 0.0
        self._clock = clock

    def now(self) -> float:
        return self._clock.now() + self.ahead_seconds

    def monotonic(self) -> float:
        return self._clock.monotonic()


class LedgerServer(AuthorizationServer):
    """The demo's authorization server with a ledger, faults and a choice of behaviours."""

    def __init__(
        self,
        *,
        clients: Iterable[Client] = (),
        clock: Clock | None = None,
        randomness: Randomness | None = None,
        signing_algorithm: str = "ES256",
        **behaviour: Any,
    ) -> None:
        """
        Args:
            clients: Beside the confidential client :data:`CLIENT_ID` with the secret :data:`CLIENT_SECRET`.
            clock: The time; a test's own clock makes tokens expire at will.
            randomness: Makes tokens.
            signing_algorithm: ``ES256`` or ``RS256``.
            behaviour: Members of :class:`Behaviour`.
        """
        self.behaviour = Behaviour()
        self.ledger = Ledger()
        self.faults = Faults()
        clock, randomness = ClockThatMayBeOff(clock or SystemClock()), randomness or SystemRandomness()
        self._own_clock = clock
        self._assertions: set[str] = set()
        broker = Client(
            client_id=CLIENT_ID,
            client_secret=Secret(CLIENT_SECRET),
            redirect_uris=CALLBACKS,
            post_logout_redirect_uris=tuple(f"{origin}/" for origin in ORIGINS),
        )
        super().__init__(
            clients=[broker, *clients],
            families=Families(clock=clock, randomness=randomness, observer=self.ledger.record),
            issuer=Issuer(signing_key=_signing_key(signing_algorithm), clock=clock, randomness=randomness),
            clock=clock,
            randomness=randomness,
        )
        self.ledger.families = self.families.by_id
        self.grant_types["client_credentials"] = self.client_credentials
        self.grant_types[TOKEN_EXCHANGE] = self.exchange
        self._latencies = random.Random(0)
        self._under_way: list[tuple[TokenCall, web.Request]] = []
        self.configure(**behaviour)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        self.faults.release()
        await super().stop()

    # What tests tell it.

    def configure(self, **changes: Any) -> None:
        """Change the behaviour from now on."""
        self.behaviour = behaviour = replace(self.behaviour, **changes)
        self.families.rotation = Rotation(behaviour.rotation)
        self.families.rotation_grace_seconds = behaviour.rotation_grace_seconds
        self.families.refresh_token_seconds = behaviour.refresh_token_seconds
        self.issuer.access_token_seconds = behaviour.access_token_seconds
        self.issuer.default_audience = behaviour.default_audience
        self.issuer.token_format = TokenFormat(behaviour.token_format)
        self._own_clock.ahead_seconds = behaviour.clock_ahead_seconds
        if {"client_secret", "redirect_uris"} & changes.keys():
            self.clients[CLIENT_ID] = replace(
                self.clients[CLIENT_ID],
                client_secret=Secret(behaviour.client_secret),
                redirect_uris=CALLBACKS if behaviour.redirect_uris is None else behaviour.redirect_uris,
            )
        if "seed" in changes:
            self._latencies = random.Random(behaviour.seed)

    def fail_next(self, how: str = "status", **fault: Any) -> None:
        """Commit a fault at the next matching call, or the next *count*: see :class:`~tests.support.faults.Fault`."""
        self.faults.add(Fault(how=how, **fault))  # type: ignore[arg-type]  # __post_init__ reads the word

    def issue(
        self,
        subject: str = "alice",
        *,
        scope: str = "openid offline_access",
        client_id: str = CLIENT_ID,
        resources: tuple[str, ...] = (),
    ) -> dict[str, object]:
        """Return the token response of a login of *subject* that needed no browser."""
        _, login = self.logins.log_in(subject)
        family, refresh_token = self.families.start(
            client_id=client_id,
            subject=subject,
            scope=scope,
            sid=login.sid,
            auth_time=login.auth_time,
            resources=resources,
        )
        return self._shaped(
            self.issuer.token_response(family, refresh_token, scope=scope), self.behaviour.omit_at_login
        )

    def revoke_subject(self, subject: str) -> None:
        """End every grant of *subject*, as an administrator would."""
        for family in self.ledger.families_of(subject):
            self.families.revoke(family, "administrator")
            self.issuer.revoke_family(family.id)

    def revoke_access_tokens(self, subject: str) -> None:
        """Revoke the access tokens of *subject* and leave the grants: upstreams answer 401 from now on."""
        for family in self.ledger.families_of(subject):
            self.issuer.revoke_family(family.id)

    def access_token(self, token: str) -> AccessTokenRecord | None:
        """Return what is known of an access token while it lives."""
        return self.issuer.find(token)

    def logout_token(self, *, sid: str | None = None, subject: str | None = None, client_id: str = CLIENT_ID) -> str:
        """Return a logout token (OpenID Connect Back-Channel Logout section 2.4)."""
        now = int(self.clock.now())
        claims: dict[str, object] = {
            "iss": self.url,
            "aud": client_id,
            "iat": now,
            "exp": now + 120,
            "jti": SystemRandomness().token_bytes(8).hex(),
            "events": {_BACKCHANNEL_EVENT: {}},
        }
        if sid is not None:
            claims["sid"] = sid
        if subject is not None:
            claims["sub"] = subject
        return self.issuer.signing_key.sign(claims, typ="logout+jwt")

    # What it does otherwise than the demo's server.

    def routes(self) -> list[web.RouteDef]:
        return [
            *super().routes(),
            web.post("/introspect", self.introspect),
            web.get("/_ledger", self._control_ledger),
            web.post("/_faults", self._control_faults),
            web.delete("/_faults", self._control_clear_faults),
            web.post("/_issue", self._control_issue),
            web.post("/_behaviour", self._control_behaviour),
            web.post("/_revoke", self._control_revoke),
            web.get("/_logout_token", self._control_logout_token),
        ]

    def middlewares(self) -> list[Any]:
        return [self._observe]

    def metadata(self) -> dict[str, object]:
        return {
            **super().metadata(),
            "introspection_endpoint": f"{self.url}/introspect",
            "backchannel_logout_supported": True,
            "backchannel_logout_session_supported": True,
            **({} if self.behaviour.client_key is None else {"token_endpoint_auth_methods_supported": BY_KEY}),
        }

    def authenticate_client(self, request: web.Request, form: MultiMapping[str]) -> Client:
        if self.behaviour.client_key is None or "client_assertion" not in form:
            return super().authenticate_client(request, form)
        self._check_assertion(form["client_assertion"], self.behaviour.client_key)
        return self.clients[CLIENT_ID]

    def _check_assertion(self, assertion: str, key: Mapping[str, Any]) -> None:
        """Refuse an assertion that isn't signed by *key*, isn't meant for this server, or has had its time (RFC 7523)."""
        now = self.clock.now()
        try:
            claims = jwt.decode(assertion, jwk.import_key(dict(key)), algorithms=["ES256"]).claims
        except JoseError:
            raise OAuthError("invalid_client", "the assertion isn't signed by the client's key", status=401) from None
        jti = str(claims.get("jti"))
        if (
            {CLIENT_ID} != {claims.get("iss"), claims.get("sub")}
            or self.url != claims.get("aud")
            or not claims.get("iat", now) - 10 <= now < claims.get("exp", 0)
            or jti in self._assertions
        ):
            raise OAuthError("invalid_client", "the assertion isn't good", status=401)
        self._assertions.add(jti)

    async def authorize(self, request: web.Request) -> web.StreamResponse:
        audience = requested_audience(request.query)
        if (error := self._unknown(request.query.get("scope", ""), audience)) is not None:
            with suppress(OAuthError):  # of a client or a redirect URI that isn't known: nobody is sent back
                return self.redirect_back(self.logins.read(request.query), {"error": error})
        return await super().authorize(request)

    def _unknown(self, scope: str, audience: Iterable[str]) -> str | None:
        """Return the error for a scope (RFC 6749 section 5.2) or an audience (RFC 8707 section 2) that isn't known."""
        scopes, audiences = self.behaviour.scopes, self.behaviour.audiences
        if scopes is not None and not set(scope.split()) <= scopes:
            return "invalid_scope"
        return "invalid_target" if audiences is not None and not set(audience) <= audiences else None

    def answer_unasked(self, query: AuthorizationQuery) -> web.StreamResponse:
        if self.behaviour.knows_browsers:
            return self.finish_login(query, self.behaviour.log_in_as)
        return super().answer_unasked(query)

    def ask_for_login(self, query: AuthorizationQuery) -> web.StreamResponse:
        if self.behaviour.asks_for_login:
            return super().ask_for_login(query)
        return self.finish_login(query, query.login_hint or self.behaviour.log_in_as)

    async def redeem_code(self, client: Client, form: MultiMapping[str]) -> dict[str, object]:
        return self._shaped(await super().redeem_code(client, form), self.behaviour.omit_at_login)

    async def refresh(self, client: Client, form: MultiMapping[str]) -> dict[str, object]:
        omitted = self.behaviour.omit_at_refresh
        self.families.rotation = Rotation.NONE if "refresh_token" in omitted else self.behaviour.rotation
        known = self.families.find(form.get("refresh_token", ""))
        # What is asked for is checked first: a refused request must not cost the refresh token.
        scope = form.get("scope") or (known.scope if known is not None else "")
        if (error := self._unknown(scope, requested_audience(form))) is not None:
            raise OAuthError(error)
        response = await super().refresh(client, form)
        family = self.families.find(form["refresh_token"])
        if family is not None and self.behaviour.kills_access_tokens_at_rotation:
            self.issuer.revoke_family(family.id, below_generation=family.generation)
        return self._shaped(response, omitted)

    async def client_credentials(self, client: Client, form: MultiMapping[str]) -> dict[str, object]:
        """The client credentials grant (RFC 6749 section 4.4): no refresh token."""
        if client.client_secret is None:
            raise OAuthError("unauthorized_client")
        scope = form.get("scope", "")
        token = self.issuer.access_token(
            client_id=client.client_id, subject=client.client_id, scope=scope, audience=requested_audience(form)
        )
        return {"access_token": token, "token_type": "Bearer", "expires_in": self._expires_in(), "scope": scope}

    async def exchange(self, client: Client, form: MultiMapping[str]) -> dict[str, object]:
        """Token exchange (RFC 8693 section 2): an access token for one of another audience."""
        audience = requested_audience(form)
        subject_token = self.issuer.find(form.get("subject_token", ""))
        if form.get("subject_token_type") != ACCESS_TOKEN_TYPE:
            raise OAuthError("invalid_request", "subject_token_type is not supported")
        if subject_token is None or subject_token.client_id != client.client_id:
            raise OAuthError("invalid_request", "subject_token is not good")  # section 2.2.2
        if not audience:
            raise OAuthError("invalid_target", "no audience and no resource")
        scope = form.get("scope") or subject_token.scope
        family = self.families.by_id.get(subject_token.family)
        if family is not None:
            check_narrower(family, scope=scope, audience=audience)
        token = self.issuer.access_token(
            client_id=client.client_id,
            subject=subject_token.subject,
            scope=scope,
            audience=audience,
            generation=subject_token.generation,
            family=family,
        )
        return {
            "access_token": token,
            "issued_token_type": ACCESS_TOKEN_TYPE,
            "token_type": "Bearer",
            "expires_in": self._expires_in(),
            "scope": scope,
        }

    async def introspect(self, request: web.Request) -> web.StreamResponse:
        """Say whether an access token lives (RFC 7662)."""
        try:
            form = await read_form(request)
            self.authenticate_client(request, form)
        except OAuthError as refused:
            return oauth_error(refused)
        return web.json_response(introspection(self.issuer.find(form.get("token", ""))))

    def _expires_in(self) -> int:
        return int(self.behaviour.access_token_seconds)

    def _shaped(self, response: dict[str, object], omitted: frozenset[str]) -> dict[str, object]:
        if self.behaviour.reports_refresh_expiry:
            response["refresh_expires_in"] = int(self.behaviour.refresh_token_seconds)
        return {name: value for name, value in response.items() if name not in omitted}

    # What it writes down, and how it fails.

    @web.middleware
    async def _observe(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        endpoint = request.path.rsplit("/", 1)[-1]
        if endpoint.startswith("_"):
            return await handler(request)
        if endpoint == "token":
            return await self._observe_token(request, handler)
        fault = self.faults.take(endpoint)
        if fault is None:
            return self._dated(await handler(request))
        if fault.when == "after":
            await handler(request)
        return await self.faults.commit(fault, request)

    async def _observe_token(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        form = await request.post()
        self._end_abandoned_calls()
        call = self._open_call(form)
        self._under_way.append((call, request))
        try:
            before, after = self._latency()
            if before:
                await asyncio.sleep(before)
            family = self.ledger.families.get(call.family or "")
            fault = self.faults.take("token", grant_type=call.grant_type, subject=family.subject if family else None)
            if fault is not None and fault.how is How.WAIT:
                await self.faults.released()
                fault = None
            if fault is not None and fault.when == "before":
                return await self._fail(call, fault, request)
            call.processed = True
            response = await handler(request)
            self._note_answer(call, response)
            if after:
                await asyncio.sleep(after)
            if fault is not None:
                return await self._fail(call, fault, request)
            await self._deliver(call, request, self._dated(response))
            return response
        finally:
            self._under_way.remove((call, request))
            call.finished_at = call.finished_at or time.monotonic()

    def _end_abandoned_calls(self) -> None:
        """Note that calls whose callers closed their connections aren't being asked any more, whatever is done for them."""
        for call, request in self._under_way:
            if request.transport is None and call.finished_at is None:
                call.finished_at = time.monotonic()

    def _dated(self, response: web.StreamResponse) -> web.StreamResponse:
        """Return *response* with the date that this server believes in."""
        response.headers["Date"] = formatdate(self.clock.now(), usegmt=True)
        return response

    def _open_call(self, form: MultiMapping[Any]) -> TokenCall:
        refresh_token = form.get("refresh_token")
        family = self.families.find(refresh_token) if refresh_token else None
        call = TokenCall(
            number=len(self.ledger.calls) + 1,
            grant_type=form.get("grant_type", ""),
            client_id=form.get("client_id"),
            refresh_token=refresh_token,
            family=family.id if family else None,
            parameters={name: form.getall(name) for name in ("scope", "resource", "audience") if name in form},
            received_at=time.monotonic(),
        )
        self.ledger.calls.append(call)
        return call

    def _latency(self) -> tuple[float, float]:
        """The seconds before and after the server acts."""
        total = self._latencies.uniform(*self.behaviour.latency_seconds)
        before = total * self._latencies.random()
        return before, total - before

    async def _fail(self, call: TokenCall, fault: Fault, request: web.Request) -> web.StreamResponse:
        call.fault = f"{fault.how} {fault.when}"
        response = await self.faults.commit(fault, request)
        call.status = response.status if request.transport and not request.transport.is_closing() else None
        return response

    def _note_answer(self, call: TokenCall, response: web.StreamResponse) -> None:
        call.status = response.status
        assert isinstance(response, web.Response)
        members = json.loads(response.text or "{}")
        call.error = members.get("error")
        issued = self.families.find(members.get("refresh_token", ""))
        call.family = issued.id if issued else call.family

    async def _deliver(self, call: TokenCall, request: web.Request, response: web.StreamResponse) -> None:
        """Send the answer here and now: a connection that is gone shows before the call is written down as answered."""
        if request.transport is None or request.transport.is_closing():
            return
        try:
            await response.prepare(request)
            await response.write_eof()
        except ConnectionError:
            return
        call.delivered = True

    # The control interface, for tests in other processes.

    async def _control_ledger(self, _request: web.Request) -> web.Response:
        return web.json_response(self.ledger.to_document())

    async def _control_faults(self, request: web.Request) -> web.Response:
        self.faults.add(Fault(**await request.json()))
        return web.json_response({"faults": len(self.faults)})

    async def _control_clear_faults(self, _request: web.Request) -> web.Response:
        self.faults.clear()
        return web.json_response({})

    async def _control_issue(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        subjects = wanted.pop("subjects", None)
        if subjects is None:
            return web.json_response(self.issue(**wanted))
        return web.json_response([self.issue(subject, **wanted) for subject in subjects])

    async def _control_behaviour(self, request: web.Request) -> web.Response:
        changes = await request.json()
        read = Behaviour.from_document({**self.behaviour.to_document(), **changes})
        self.configure(**{name: getattr(read, name) for name in changes})
        return web.json_response(self.behaviour.to_document())

    async def _control_logout_token(self, request: web.Request) -> web.Response:
        return web.json_response(self.logout_token(subject=request.query["subject"]))

    async def _control_revoke(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        (self.revoke_access_tokens if wanted.get("access_tokens_only") else self.revoke_subject)(wanted["subject"])
        return web.json_response({})


_KEYS: dict[str, SigningKey] = {}


def _signing_key(algorithm: str) -> SigningKey:
    """One key for all servers of a test run: making an RSA key takes half a second."""
    if algorithm not in _KEYS:
        _KEYS[algorithm] = SigningKey(algorithm)
    return _KEYS[algorithm]


def introspection(record: AccessTokenRecord | None) -> dict[str, object]:
    """Return an introspection response (RFC 7662 section 2.2)."""
    if record is None:
        return {"active": False}
    return {
        "active": True,
        "sub": record.subject,
        "client_id": record.client_id,
        "aud": list(record.audience),
        "scope": record.scope,
        "jti": record.jti,
        "iat": int(record.issued_at),
        "exp": record.expires_at,
        "generation": record.generation,
        "family": record.family,
    }


def token_set(response: Mapping[str, object], *, requested_at: float) -> TokenSet:
    """Return a token response as the broker's engine takes it."""
    refresh_token, id_token = response.get("refresh_token"), response.get("id_token")
    return TokenSet(
        access_token=AccessToken(str(response["access_token"])),
        expires_at=requested_at + float(str(response.get("expires_in", 300))),
        requested_at=requested_at,
        refresh_token=None if refresh_token is None else RefreshToken(str(refresh_token)),
        id_token=None if id_token is None else IdToken(str(id_token)),
        scope=None if response.get("scope") is None else str(response["scope"]),
    )


async def _serve(port: int, behaviour: Behaviour, redirect_uris: list[str]) -> None:
    server = LedgerServer(**{each.name: getattr(behaviour, each.name) for each in fields(behaviour)})
    if redirect_uris:
        client = server.clients[CLIENT_ID]
        server.clients[CLIENT_ID] = replace(client, redirect_uris=(*client.redirect_uris, *redirect_uris))
    await server.start(port=port)
    print(json.dumps({"url": server.url}), flush=True)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()  # ends with the process that started this one
    await server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--behaviour", type=json.loads, default={}, help="members of Behaviour, as JSON")
    parser.add_argument("--redirect-uri", action="append", default=[])
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.port, Behaviour.from_document(arguments.behaviour), arguments.redirect_uri))


if __name__ == "__main__":
    main()

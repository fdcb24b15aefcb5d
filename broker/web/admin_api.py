"""
The operators' API: grants that no browser brought, the handles by which callers name them, and what providers do.

It is on the admin listener, behind a bearer token of its own. It takes tokens in and never gives one out; a handle is
shown once, in the answer that issues it.
"""

import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from aiohttp import web

from broker.core.audience import DEFAULT_AUDIENCE
from broker.core.behaviour import Seen, judge_behaviour
from broker.core.grant import EndReason, Grant, is_empty
from broker.core.handle import Handle, is_handle
from broker.core.oauth import TokenSet
from broker.core.refresh import State, assess
from broker.core.routing import Route
from broker.core.secret import RefreshToken, Secret
from broker.core.upkeep import login_needed_at
from broker.errors import BadRequest, BrokerError, NoRoute, NoSession
from broker.services import metrics
from broker.services.clock import Clock
from broker.services.handles import Handles
from broker.services.imports import Imports
from broker.services.provider import AuthorizationServer
from broker.services.standing import StandingGrants
from broker.services.tokens import TokenBroker
from broker.web.admin_content import Content, dpop_key_of, handle_attributes, read_content, tokens_of

MAX_CONTENT_BYTES = 256 << 10
EMPTY = "empty"
"""Shown in place of a grant's state, which would be ``expired``, as long as it has never had tokens to expire."""

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AdminApi:
    """The endpoints below ``/api``."""

    def __init__(
        self,
        *,
        token: Secret,
        tokens: TokenBroker,
        imports: Imports,
        standing: StandingGrants,
        handles: Handles,
        servers: Mapping[str, AuthorizationServer],
        routes: Sequence[Route],
        clock: Clock,
    ) -> None:
        """
        Args:
            token: The bearer token that callers must show.
            tokens: Where grants are.
            imports: Takes tokens for new ones.
            standing: Takes tokens for configured ones.
            handles: Where handles are.
            servers: The providers by their configured names.
            routes: The configured ones, where handles may be used.
            clock: Time.
        """
        self._token = token
        self._tokens = tokens
        self._imports = imports
        self._standing = standing
        self._handles = handles
        self._servers = servers
        self._routes = routes
        self._clock = clock

    def app(self) -> web.Application:
        """Return the endpoints, each behind the bearer token."""
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_CONTENT_BYTES)
        app.router.add_get("/grants", self.list_grants)
        app.router.add_post("/grants", self.import_grant)
        app.router.add_get("/grants/{grant}", self.show_grant)
        app.router.add_delete("/grants/{grant}", self.revoke_grant)
        app.router.add_post("/grants/{grant}/handles", self.issue_handle)
        app.router.add_get("/providers", self.list_providers)
        app.router.add_get("/handles", self.list_handles)
        app.router.add_post("/handles/{handle}/rotate", self.rotate_handle)
        app.router.add_delete("/handles/{handle}", self.revoke_handle)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._authenticate(request)
            return await handler(request)
        except BrokerError as error:
            log.warning("admin_refused", extra={"code": error.code, "error": str(error), "method": request.method})
            headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
            problem = {"type": f"urn:token-broker:problem:{error.code}", "status": error.status, "title": str(error)}
            return web.json_response(
                problem, status=error.status, headers=headers, content_type="application/problem+json"
            )

    def _authenticate(self, request: web.Request) -> None:
        shown = request.headers.getall("Authorization", [])
        expected = f"Bearer {self._token.reveal()}"
        # Bytes that are no UTF-8 come as surrogates, and are as wrong as any other.
        given = [value.encode("utf-8", "surrogateescape") for value in shown]
        if len(given) != 1 or not hmac.compare_digest(given[0], expected.encode()):
            raise NoSession("the admin API wants its bearer token")
        if "Origin" in request.headers:  # no page of a browser has any business here
            raise BadRequest("the admin API isn't for browsers")

    # --- grants

    async def list_grants(self, request: web.Request) -> web.Response:
        """The imported and standing grants, or those of ``?provider=&subject=``, browsers' too."""
        provider, subject = request.query.get("provider"), request.query.get("subject")
        if (provider is None) != (subject is None):
            raise BadRequest("provider and subject go together")
        grants = await self._tokens.stored_grants(provider, subject)
        return web.json_response({"grants": [{**self._describe(each.grant), "keys": each.keys} for each in grants]})

    async def show_grant(self, request: web.Request) -> web.Response:
        """One grant."""
        return web.json_response(self._describe(await self._grant(request)))

    async def import_grant(self, request: web.Request) -> web.Response:
        """Take over tokens that somebody else got: for a configured grant, or for a new one with a first handle."""
        content = await read_content(request)
        if (name := content.optional_text("grant")) is not None:
            return await self._hand_over(name, content)
        provider, subject = content.text("provider"), content.text("subject")
        if provider not in self._servers:
            raise BadRequest("provider: no such provider is configured")
        tokens, dpop_key = self._tokens_of(content)
        handle = self._attributes_of(content, provider)
        content.refuse_others()
        grant = await self._imports.take(provider, tokens, subject=subject, dpop_key=dpop_key)
        return await self._issue(grant.id, handle)

    async def _hand_over(self, name: str, content: Content) -> web.Response:
        tokens, dpop_key = self._tokens_of(content)
        content.refuse_others()
        await self._imports.refuse_if_taken(tokens, but_for=self._standing.ids.get(name))
        grant = await self._standing.hand_over(name, tokens, dpop_key=dpop_key)
        return web.json_response(self._describe(grant))

    def _tokens_of(self, content: Content) -> tuple[TokenSet, RefreshToken | None]:
        """Return the tokens, and the key that they are bound to."""
        tokens, dpop_key = tokens_of(content, now=self._clock.now()), dpop_key_of(content)
        return (tokens if dpop_key is None else replace(tokens, token_type="DPoP")), dpop_key

    def _attributes_of(self, content: Content, provider: str) -> dict[str, object]:
        """Return what a new handle of a provider's grant is for and bound to."""
        return handle_attributes(content, now=self._clock.now(), provider=provider, routes=self._routes)

    async def revoke_grant(self, request: web.Request) -> web.Response:
        """End a grant here and at its server, with its handles."""
        grant = await self._grant(request)
        before = await self._tokens.end(grant.id, EndReason.REVOKED)
        await self._handles.revoke_all(grant.id)
        revoked = await self._tokens.revocations.revoke(grant.id)
        return web.json_response({"grant": grant.id, "had_ended": before is None, "revoked_at_provider": revoked})

    async def _grant(self, request: web.Request) -> Grant:
        grant = await self._tokens.grant(self._grant_id(request.match_info["grant"]))
        if grant is None:
            raise NoRoute("there is no such grant")
        return grant

    def _grant_id(self, named: str) -> str:
        """Return the id of the grant that is *named* by its configured name, or by its id."""
        return self._standing.ids.get(named, named)

    def _describe(self, grant: Grant) -> dict[str, object]:
        server = self._servers.get(grant.provider)
        now = self._clock.now()
        described: dict[str, object] = {
            "id": grant.id,
            "name": self._standing.name_of(grant.id),
            "provider": grant.provider,
            "subject": grant.subject,
            "origin": grant.origin,
            "generation": grant.generation,
            "refreshed_at": grant.refreshed_at,
            "refresh_expires_at": grant.refresh_expires_at,
            "ended": None if grant.ended is None else grant.ended.reason,
            "failures": [failure.error or failure.kind for failure in grant.failures.values()],
        }
        if server is not None:
            state = assess(grant, DEFAULT_AUDIENCE, server.options, now=now)
            described["state"] = EMPTY if state is State.EXPIRED and is_empty(grant) else state
            described["login_needed_at"] = login_needed_at(grant, server.options)
        return described

    # --- providers

    async def list_providers(self, _request: web.Request) -> web.Response:
        """What refreshes showed of each provider since the start, and where its configuration doesn't fit that."""
        return web.json_response({"providers": [self._describe_provider(name) for name in self._servers]})

    def _describe_provider(self, name: str) -> dict[str, object]:
        options = self._servers[name].options
        seen = metrics.totals(metrics.PROVIDER_BEHAVIOUR, "provider", name, by="seen")
        counts = {each: seen.get(each.value, 0.0) for each in Seen}
        return {
            "name": name,
            "rotation": options.rotation,
            "seen": {each.value: int(count) for each, count in counts.items()},
            "differs": [
                {"verdict": each.verdict.value, "key": each.key, "text": each.text, "fitting": dict(each.fitting)}
                for each in judge_behaviour(counts, options)
            ],
        }

    # --- handles

    async def list_handles(self, request: web.Request) -> web.Response:
        """All handles, or those of ``?grant=``."""
        named = request.query.get("grant")
        grant_id = None if named is None else self._grant_id(named)
        handles = await self._handles.issued(grant_id)
        # Handles may outlive their grant: only where there are none either, nobody meant one.
        if grant_id is not None and not handles and await self._tokens.grant(grant_id) is None:
            raise NoRoute("there is no such grant")
        return web.json_response(
            {"handles": [{**_describe_handle(each.handle), "keys": each.keys} for each in handles]}
        )

    async def issue_handle(self, request: web.Request) -> web.Response:
        """Issue a handle for a grant."""
        grant = await self._grant(request)
        content = await read_content(request)
        attributes = self._attributes_of(content, grant.provider)
        content.refuse_others()
        return await self._issue(grant.id, attributes)

    async def _issue(self, grant_id: str, attributes: Mapping[str, object]) -> web.Response:
        handle = self._handles.new(grant_id, **attributes)
        credential = await self._handles.issue(handle)
        return web.json_response({**_describe_handle(handle), "handle": credential.reveal()}, status=201)

    async def rotate_handle(self, request: web.Request) -> web.Response:
        """Issue a successor; the handle itself is taken for ``overlap`` seconds more."""
        content = await read_content(request)
        overlap = content.optional_number("overlap") or 0.0
        content.refuse_others()
        rotated = await self._handles.rotate(request.match_info["handle"], overlap_seconds=overlap)
        if rotated is None:
            raise _no_handle(request.match_info["handle"])
        handle, credential = rotated
        return web.json_response({**_describe_handle(handle), "handle": credential.reveal()}, status=201)

    async def revoke_handle(self, request: web.Request) -> web.Response:
        """End a handle now."""
        if not await self._handles.revoke(request.match_info["handle"]):
            raise _no_handle(request.match_info["handle"])
        return web.json_response({"revoked": request.match_info["handle"]})


def _no_handle(named: str) -> NoRoute:
    if is_handle(named.encode()):
        return NoRoute("that is a handle itself, and a secret: name its id, as the list of handles shows it")
    return NoRoute("there is no such handle")


def _describe_handle(handle: Handle) -> dict[str, object]:
    return {
        "id": handle.id,
        "grant": handle.grant_id,
        "label": handle.label,
        "routes": handle.routes,
        "networks": handle.networks,
        "created_at": handle.created_at,
        "ends_at": handle.ends_at,
    }

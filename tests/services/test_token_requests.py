"""What a token request says on the wire, and what comes of it."""

import json
import logging
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl

import pytest
from aiohttp import web

from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.client_auth import AssertionOptions, ClientAuthMethod, ClientTokenOptions
from broker.core.oauth import FailureKind, TokenFailure, TokenSet
from broker.core.provider import Dialect
from broker.core.secret import AccessToken, Secret
from tests.support.clock import ManualClock
from tests.support.document_server import DocumentServer, Request
from tests.support.forge import ec_key, pem
from tests.support.providers import authorization_server, grant

TOKENS = (200, {"access_token": "at", "token_type": "Bearer", "expires_in": 60, "refresh_token": "rt-2"})


@pytest.fixture
async def server() -> AsyncIterator[DocumentServer]:
    async with DocumentServer() as server:
        server.answers["/token"] = TOKENS
        yield server


def form(request: Request) -> dict[str, str]:
    assert "application/x-www-form-urlencoded" == request.headers["Content-Type"]
    return dict(parse_qsl(request.content.decode(), keep_blank_values=True, strict_parsing=True))


async def test_a_refresh_is_written_as_the_rfc_says(server: DocumentServer) -> None:
    """RFC 6749 section 6: grant_type and refresh_token in a form; nothing in the URL."""
    async with authorization_server(token_endpoint=f"{server.url}/token") as provider:
        outcome = await provider.refresh(grant(), DEFAULT_AUDIENCE)

    assert isinstance(outcome, TokenSet)
    (request,) = server.requests
    assert ("POST", "/token", "") == (request.method, request.path, request.query)
    assert {"grant_type": "refresh_token", "refresh_token": "rt-1", "client_id": "client-1"} == form(request)


async def test_tk_06_the_secret_is_never_in_a_url(server: DocumentServer) -> None:
    """With each method that has a secret, the URL holds no query."""
    for method in (
        ClientAuthMethod.CLIENT_SECRET_BASIC,
        ClientAuthMethod.CLIENT_SECRET_POST,
        ClientAuthMethod.CLIENT_SECRET_JWT,
    ):
        async with authorization_server(
            token_endpoint=f"{server.url}/token", client_secret=Secret("canary"), token_endpoint_auth_method=method
        ) as provider:
            assert isinstance(await provider.refresh(grant(), DEFAULT_AUDIENCE), TokenSet)

    assert [("/token", "")] * 3 == [(request.path, request.query) for request in server.requests]


async def test_an_audience_is_named(server: DocumentServer) -> None:
    """A route's resource, audience and scope go along (RFC 8707, RFC 6749 section 6)."""
    audience = Audience(resource="https://orders.example", audience="orders", scope="read")
    async with authorization_server(token_endpoint=f"{server.url}/token", refresh_scope=True) as provider:
        await provider.refresh(grant(scope="openid read write"), audience)
        await provider.refresh(grant(scope="openid read write"), DEFAULT_AUDIENCE)
        await provider.refresh(grant(), DEFAULT_AUDIENCE)

    first, second, third = map(form, server.requests)
    assert ("https://orders.example", "orders", "read") == (first["resource"], first["audience"], first["scope"])
    assert "openid read write" == second["scope"]
    assert "openid" == third["scope"]


async def test_a_code_is_exchanged_with_its_verifier(server: DocumentServer) -> None:
    """RFC 6749 section 4.1.3 and RFC 7636 section 4.5, with what the configuration adds."""
    async with authorization_server(
        token_endpoint=f"{server.url}/token", token_parameters={"resource": "urn:api"}
    ) as provider:
        await provider.exchange_code(
            code=Secret("c"), code_verifier=Secret("v"), redirect_uri="https://app.example/cb?x=1&y=2"
        )

    assert {
        "grant_type": "authorization_code",
        "code": "c",
        "code_verifier": "v",
        "redirect_uri": "https://app.example/cb?x=1&y=2",
        "client_id": "client-1",
        "resource": "urn:api",
    } == form(server.requests[0])


async def test_a_token_is_exchanged(server: DocumentServer) -> None:
    """RFC 8693 section 2.1."""
    async with authorization_server(token_endpoint=f"{server.url}/token") as provider:
        await provider.exchange_token(AccessToken("at-0"), Audience(audience="orders", exchange=True))

    assert {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token": "at-0",
        "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "audience": "orders",
        "client_id": "client-1",
    } == form(server.requests[0])


async def test_a_json_dialect_without_grant_type(server: DocumentServer) -> None:
    """Mosaic's refresh: its own endpoint, a JSON object of the refresh token alone."""
    server.answers["/refresh"] = TOKENS
    async with authorization_server(
        refresh_endpoint=f"{server.url}/refresh",
        dialect=Dialect.JSON,
        refresh_grant_type=False,
        token_endpoint_auth_method=ClientAuthMethod.NONE,
    ) as provider:
        await provider.refresh(grant("rt-ä"), DEFAULT_AUDIENCE)

    (request,) = server.requests
    assert ("application/json", "/refresh") == (request.headers["Content-Type"], request.path)
    assert {"refresh_token": "rt-ä", "client_id": "client-1"} == json.loads(request.content)


async def test_a_client_access_token_is_got_used_and_replaced_after_a_401(server: DocumentServer) -> None:
    """The token comes by client_credentials in a form, serves many calls, and a 401 brings a new one, once."""
    issued = 0

    async def token(_request: Request) -> web.Response:
        nonlocal issued
        issued += 1
        return web.json_response({"access_token": f"cat-{issued}", "expires_in": 3600})

    async def refresh(request: Request) -> web.Response:
        accepted = request.headers.get("Authorization") == "Bearer cat-2"
        return web.json_response(TOKENS[1] if accepted else {"error": "unauthorized"}, status=200 if accepted else 401)

    server.answers |= {"/token": token, "/refresh": refresh}
    async with authorization_server(
        token_endpoint=f"{server.url}/token",
        refresh_endpoint=f"{server.url}/refresh",
        dialect=Dialect.JSON,
        refresh_grant_type=False,
        client_secret=Secret("s"),
        token_endpoint_auth_method=ClientAuthMethod.CLIENT_ACCESS_TOKEN,
        client_token=ClientTokenOptions(scope="backend", resource="urn:r"),
    ) as provider:
        first = await provider.refresh(grant(), DEFAULT_AUDIENCE)
        second = await provider.refresh(grant(), DEFAULT_AUDIENCE)

    assert isinstance(first, TokenSet)
    assert isinstance(second, TokenSet)
    assert ["/token", "/refresh", "/token", "/refresh", "/refresh"] == [request.path for request in server.requests]
    assert {
        "grant_type": "client_credentials",
        "scope": "backend",
        "resource": "urn:r",
        "client_id": "client-1",
        "client_secret": "s",
    } == form(server.requests[0])
    assert {"refresh_token": "rt-1"} == json.loads(server.requests[1].content)


async def test_what_the_metadata_stop_is_not_sent(server: DocumentServer) -> None:
    """Those of another issuer are the operator's fault, each time they are asked; a server that is gone may come back."""
    server.answers["/.well-known/openid-configuration"] = (200, {"issuer": "https://other.example"})
    async with authorization_server(issuer=server.url) as provider:
        outcomes = [await provider.refresh(grant(), DEFAULT_AUDIENCE) for _ in range(2)]
    async with authorization_server(issuer="http://127.0.0.1:9") as provider:
        outcomes.append(await provider.refresh(grant(), DEFAULT_AUDIENCE))

    kinds = [outcome.kind for outcome in outcomes if isinstance(outcome, TokenFailure)]
    assert [FailureKind.OPERATOR, FailureKind.OPERATOR, FailureKind.TRANSIENT] == kinds
    assert 0 == server.count("/token")


async def test_ft_23_a_machine_that_slept_over_the_metadata_presents_nothing(server: DocumentServer) -> None:
    """Others have waited until no answer could come any more, and gone on without this process."""
    clock = ManualClock()

    async def metadata(_request: Request) -> web.Response:
        clock.advance(60)
        return web.json_response({"issuer": server.url, "token_endpoint": f"{server.url}/token"})

    server.answers["/.well-known/openid-configuration"] = metadata
    async with authorization_server(issuer=server.url, clock=clock) as provider:
        outcome = await provider.refresh(grant(), DEFAULT_AUDIENCE)

    assert isinstance(outcome, TokenFailure)
    assert FailureKind.TRANSIENT is outcome.kind
    assert 0 == server.count("/token")


@pytest.mark.parametrize(
    ("error", "options", "key"),
    [
        ("invalid_client", {"client_secret": Secret("s")}, "providers.corp.client_secret"),
        ("invalid_target", {}, "routes.audience"),
    ],
)
async def test_a_refusal_names_the_key_to_look_at(
    server: DocumentServer,
    caplog: pytest.LogCaptureFixture,
    error: str,
    options: dict[str, Any],
    key: str,
) -> None:
    """The failure says which key of the YAML to look at, and shows no secret; whoever knows the grant logs it, once."""
    server.answers["/token"] = (400, {"error": error, "error_description": "canary"})
    with caplog.at_level(logging.WARNING):
        async with authorization_server(token_endpoint=f"{server.url}/token", **options) as provider:
            outcome = await provider.refresh(grant("canary"), DEFAULT_AUDIENCE)

    assert isinstance(outcome, TokenFailure)
    assert key == outcome.look_at
    assert "canary" not in repr(outcome)
    assert [] == caplog.records


async def test_lk_04_a_code_that_brings_no_tokens_is_logged_once(
    server: DocumentServer, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no grant yet that it could be told of; no secret is shown."""
    server.answers["/token"] = (401, {"error": "invalid_client", "error_description": "canary"})
    with caplog.at_level(logging.WARNING):
        async with authorization_server(token_endpoint=f"{server.url}/token") as provider:
            await provider.exchange_code(
                code=Secret("canary"), code_verifier=Secret("canary"), redirect_uri="https://app.example/cb"
            )

    (record,) = caplog.records
    assert ("token_request_failed", "authorization_code") == (record.getMessage(), record.__dict__["grant_type"])
    assert "providers.corp.client_id" == record.__dict__["look_at"]
    assert "canary" not in str(record.__dict__)


async def test_a_grant_without_refresh_token_is_a_fault(server: DocumentServer) -> None:
    """Nobody may ask to refresh what can't be refreshed."""
    async with authorization_server(token_endpoint=f"{server.url}/token") as provider:
        with pytest.raises(ValueError, match="no refresh token"):
            await provider.refresh(grant(refresh_token=None), DEFAULT_AUDIENCE)


@pytest.mark.parametrize(
    ("date", "key"),
    [
        ("Fri, 15 Jan 2027 08:00:00 GMT", "client_assertion"),
        ("Fri, 15 Jan 2027 07:50:00 GMT", "clock_skew"),
        ("Fri, 15 Jan 2027 08:10:00 GMT", "clock_skew"),
    ],
)
async def test_an_assertion_that_a_wrong_clock_spoilt_points_to_the_clock(
    server: DocumentServer, date: str, key: str
) -> None:
    """The answer's date tells the server's time."""

    async def refuse(_request: Request) -> web.Response:
        return web.json_response({"error": "invalid_client"}, status=401, headers={"Date": date})

    server.answers["/token"] = refuse
    async with authorization_server(
        token_endpoint=f"{server.url}/token",
        clock=ManualClock(1_800_000_000),
        client_assertion=AssertionOptions(private_key=Secret(pem(ec_key()))),
    ) as provider:
        outcome = await provider.refresh(grant(), DEFAULT_AUDIENCE)

    assert isinstance(outcome, TokenFailure)
    assert f"providers.corp.{key}" == outcome.look_at

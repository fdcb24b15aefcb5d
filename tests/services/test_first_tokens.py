"""First tokens without a browser: what is asked, and that no failure of it is a grant's end."""

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl

import pytest

from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.client_auth import AssertionOptions, ClientAuthMethod
from broker.core.compact_jws import read_compact
from broker.core.oauth import FailureKind, TokenFailure, TokenSet
from broker.core.secret import Secret
from broker.core.standing import GrantType, StandingGrantOptions
from broker.services.dpop import new_dpop_key
from broker.services.id_tokens import verify
from tests.support.clock import ManualClock
from tests.support.document_server import DocumentServer
from tests.support.forge import ec_key, pem, rsa_key
from tests.support.providers import authorization_server

NOW = 1_800_000_000
TOKENS = (200, {"access_token": "at", "token_type": "Bearer", "expires_in": 60, "session_id": "s-2"})


@pytest.fixture
async def server() -> AsyncIterator[DocumentServer]:
    async with DocumentServer() as server:
        server.answers |= {"/token": TOKENS, "/session": TOKENS}
        yield server


def form(server: DocumentServer, index: int = 0) -> dict[str, str]:
    return dict(parse_qsl(server.requests[index].content.decode(), strict_parsing=True))


def standing(kind: GrantType, **options: Any) -> StandingGrantOptions:
    return StandingGrantOptions(provider="corp", type=kind, **options)


async def test_client_credentials_name_scope_and_target(server: DocumentServer) -> None:
    """RFC 6749 section 4.4, with scope, resource, audience and further parameters; a route's audience counts more."""
    grant = standing(
        GrantType.CLIENT_CREDENTIALS, scope="read", resource="urn:r", audience="a", parameters={"tenant": "acme"}
    )
    async with authorization_server(token_endpoint=f"{server.url}/token") as provider:
        assert isinstance(await provider.first_tokens(grant, DEFAULT_AUDIENCE), TokenSet)
        assert isinstance(await provider.first_tokens(grant, Audience(resource="urn:r2")), TokenSet)

    common = {"grant_type": "client_credentials", "client_id": "client-1", "tenant": "acme"}
    assert {**common, "scope": "read", "resource": "urn:r", "audience": "a"} == form(server)
    assert "urn:r2" == form(server, 1)["resource"]


@pytest.mark.parametrize("token_type", ["DPoP", "Bearer"])
async def test_a_standing_grant_is_bound_to_its_key(server: DocumentServer, token_type: str) -> None:
    """With a key the request carries a proof by it, and a bearer token isn't taken (RFC 9449 section 5)."""
    server.answers["/token"] = (200, {"access_token": "at", "token_type": token_type, "expires_in": 60})
    key = new_dpop_key()
    async with authorization_server(token_endpoint=f"{server.url}/token") as provider:
        grant = standing(GrantType.CLIENT_CREDENTIALS)
        outcome = await provider.first_tokens(grant, DEFAULT_AUDIENCE, dpop_key=key)

    assert (TokenSet if token_type == "DPoP" else TokenFailure) is type(outcome)
    assert json.loads(key.reveal())["x"] == read_compact(server.requests[0].headers["DPoP"]).header["jwk"]["x"]  # type: ignore[index]


async def test_a_password_grant_with_a_client_assertion_is_two_factors(server: DocumentServer) -> None:
    """Apiax: username and password, a signed assertion, and no client_id."""
    grant = standing(GrantType.PASSWORD, username="u", password=Secret("p"), scope="s")
    async with authorization_server(
        token_endpoint=f"{server.url}/token",
        issuer="https://as.example",
        discovery=False,
        client_assertion=AssertionOptions(private_key=Secret(pem(rsa_key())), send_client_id=False),
    ) as provider:
        await provider.first_tokens(grant, DEFAULT_AUDIENCE)

    sent = form(server)
    assert ("password", "u", "p", "s") == (sent["grant_type"], sent["username"], sent["password"], sent["scope"])
    assert "client_id" not in sent
    assert "RS256" == read_compact(sent["client_assertion"]).header["alg"]


async def test_a_user_assertion_speaks_for_its_subject(server: DocumentServer) -> None:
    """RFC 7523 section 2.1: sub is the user, iss the client, aud as configured, jti new each time."""
    grant = standing(GrantType.JWT_BEARER, subject="svc-report", scope="urn:opc:idm:__myscopes__ offline_access")
    async with authorization_server(
        token_endpoint=f"{server.url}/token",
        client_secret=Secret("s"),
        user_assertion=AssertionOptions(
            private_key=Secret(pem(ec_key())), key_id="alias", audience="https://identity.oraclecloud.com/"
        ),
        clock=ManualClock(NOW),
    ) as provider:
        for _ in range(2):
            assert isinstance(await provider.first_tokens(grant, DEFAULT_AUDIENCE), TokenSet)

    sent = form(server)
    jws = read_compact(sent["assertion"])
    claims = jws.claims()
    assert "urn:ietf:params:oauth:grant-type:jwt-bearer" == sent["grant_type"]
    assert "urn:opc:idm:__myscopes__ offline_access" == sent["scope"]
    assert {
        "iss": "client-1",
        "sub": "svc-report",
        "aud": "https://identity.oraclecloud.com/",
        "iat": NOW,
        "exp": NOW + 60,
        "jti": claims["jti"],
    } == claims
    assert verify(jws, "ES256", ec_key())
    assert claims["jti"] != read_compact(form(server, 1)["assertion"]).claims()["jti"]
    assert server.requests[0].headers["Authorization"].startswith("Basic ")


async def test_the_clients_key_serves_for_user_assertions_too(server: DocumentServer) -> None:
    """Without user_assertion, the key of client_assertion signs, for the issuer."""
    async with authorization_server(
        token_endpoint=f"{server.url}/token",
        issuer="https://as.example",
        discovery=False,
        client_assertion=AssertionOptions(private_key=Secret(pem(ec_key()))),
    ) as provider:
        await provider.first_tokens(standing(GrantType.JWT_BEARER, subject="u"), DEFAULT_AUDIENCE)

    sent = form(server)
    assert "https://as.example" == read_compact(sent["assertion"]).claims()["aud"]
    assert sent["assertion"] != sent["client_assertion"]


async def test_without_a_key_no_assertion_is_made(server: DocumentServer) -> None:
    """The failure names the key that is missing, and nothing is sent."""
    async with authorization_server(token_endpoint=f"{server.url}/token") as provider:
        outcome = await provider.first_tokens(standing(GrantType.JWT_BEARER, subject="u"), DEFAULT_AUDIENCE)

    assert isinstance(outcome, TokenFailure)
    assert FailureKind.OPERATOR is outcome.kind
    assert "user_assertion" in outcome.detail
    assert [] == server.requests


async def test_an_imported_grant_cannot_begin_by_itself(server: DocumentServer) -> None:
    """Only its backend can hand its tokens over."""
    async with authorization_server(token_endpoint=f"{server.url}/token") as provider:
        outcome = await provider.first_tokens(standing(GrantType.IMPORTED), DEFAULT_AUDIENCE)

    assert isinstance(outcome, TokenFailure)
    assert FailureKind.OPERATOR is outcome.kind


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((400, {"error": "invalid_grant"}), FailureKind.OPERATOR),
        ((500, b""), FailureKind.TRANSIENT),
        ((503, b""), FailureKind.TRANSIENT),
        ((401, {"error": "invalid_client"}), FailureKind.OPERATOR),
    ],
)
async def test_a_standing_grant_never_ends_by_a_failure_to_begin(
    server: DocumentServer, answer: tuple[int, Any], kind: FailureKind
) -> None:
    """A wrong password or assertion is the operator's to mend, and a lost answer loses nothing."""
    server.answers["/token"] = answer
    grant = standing(GrantType.PASSWORD, username="u", password=Secret("p"))
    async with authorization_server(token_endpoint=f"{server.url}/token") as provider:
        outcome = await provider.first_tokens(grant, DEFAULT_AUDIENCE)

    assert isinstance(outcome, TokenFailure)
    assert kind is outcome.kind


async def test_a_session_at_the_server_brings_tokens(server: DocumentServer) -> None:
    """Mosaic: the session's id as JSON, whatever the dialect of the rest, and its new id comes back."""
    async with authorization_server(
        token_endpoint=f"{server.url}/token",
        session_endpoint=f"{server.url}/session",
        token_endpoint_auth_method=ClientAuthMethod.CLIENT_ACCESS_TOKEN,
        client_secret=Secret("s"),
    ) as provider:
        outcome = await provider.authenticate_session("s-1", Audience(resource="urn:r"))

    assert isinstance(outcome, TokenSet)
    assert "s-2" == outcome.session_id
    (request,) = [request for request in server.requests if request.path == "/session"]
    assert {"session_id": "s-1", "resource": "urn:r"} == json.loads(request.content)
    assert "Bearer at" == request.headers["Authorization"]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((404, {"message": "session not found"}), FailureKind.PERMANENT),
        ((400, {"message": "session expired"}), FailureKind.PERMANENT),
        ((404, b"<html>"), FailureKind.TRANSIENT),
        ((401, {"message": "unauthorized"}), FailureKind.TRANSIENT),
        ((403, {"error": "unauthorized_client"}), FailureKind.OPERATOR),
        ((503, {"error": "temporarily_unavailable"}), FailureKind.TRANSIENT),
        ((503, {"message": "busy"}), FailureKind.IN_DOUBT),
        ((500, b""), FailureKind.IN_DOUBT),
    ],
)
async def test_a_session_that_is_gone_is_told_from_a_server_that_is_down(
    server: DocumentServer, answer: tuple[int, Any], kind: FailureKind
) -> None:
    """A definite answer of the API ends it; gateways, client trouble and outages don't."""
    server.answers["/session"] = answer
    async with authorization_server(session_endpoint=f"{server.url}/session", token_endpoint="https://x/") as provider:
        outcome = await provider.authenticate_session("s-1", DEFAULT_AUDIENCE)

    assert isinstance(outcome, TokenFailure)
    assert kind is outcome.kind


async def test_without_a_session_endpoint_there_is_no_such_way(server: DocumentServer) -> None:
    """Other servers have no session to exchange."""
    async with authorization_server(token_endpoint=f"{server.url}/token") as provider:
        assert isinstance(await provider.authenticate_session("s-1", DEFAULT_AUDIENCE), TokenFailure)
    assert [] == server.requests

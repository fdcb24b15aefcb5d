"""One request at a time: what is sent again, and what never is."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from broker.core.audience import DEFAULT_AUDIENCE
from broker.core.client_auth import ClientAuthMethod
from broker.core.compact_jws import read_compact
from broker.core.oauth import FailureKind, TokenFailure, TokenSet
from broker.core.provider import Dialect
from broker.core.secret import Secret
from broker.errors import ProviderError, ProviderProtocolError
from broker.services.dpop import new_dpop_key
from broker.services.token_endpoint import encode, not_sent, spared
from tests.support.document_server import DocumentServer, Request
from tests.support.providers import authorization_server, grant

BOUND = {"access_token": "at", "token_type": "DPoP", "expires_in": 60, "refresh_token": "rt-2"}


@pytest.fixture
async def server() -> AsyncIterator[DocumentServer]:
    async with DocumentServer() as server:
        yield server


def test_forms_and_objects_say_the_same() -> None:
    """RFC 6749 appendix B for forms, UTF-8 both ways."""
    parameters = {"a": "1 +&=", "b": "ä"}

    assert b"a=1+%2B%26%3D&b=%C3%A4" == encode(parameters, Dialect.FORM)
    assert parameters == json.loads(encode(parameters, Dialect.JSON))


async def test_a_proof_goes_along_where_the_grant_has_a_key(server: DocumentServer) -> None:
    """With a key, the request carries a proof for this very endpoint, and DPoP tokens are taken."""
    server.answers["/token"] = (200, BOUND)
    async with authorization_server(token_endpoint=f"{server.url}/token") as provider:
        outcome = await provider.refresh(grant(dpop_key=new_dpop_key()), DEFAULT_AUDIENCE)

    assert isinstance(outcome, TokenSet)
    assert "DPoP" == outcome.token_type
    claims = read_compact(server.requests[0].headers["DPoP"]).claims()
    assert ("POST", f"{server.url}/token") == (claims["htm"], claims["htu"])


def demanding(nonces: list[str]) -> Any:
    """An endpoint that wants the last of *nonces* in each proof."""

    async def token(request: Request) -> web.Response:
        given = read_compact(request.headers["DPoP"]).claims().get("nonce")
        if given == nonces[-1]:
            return web.json_response(BOUND, headers={"DPoP-Nonce": nonces[-1]})
        return web.json_response({"error": "use_dpop_nonce"}, status=400, headers={"DPoP-Nonce": nonces[-1]})

    return token


async def test_a_nonce_is_learned_and_the_request_sent_once_more(server: DocumentServer) -> None:
    """RFC 9449 section 8: refused for want of a nonce, sent again with it; the next request has it at once."""
    nonces = ["n-1"]
    server.answers["/token"] = demanding(nonces)
    key = new_dpop_key()
    async with authorization_server(token_endpoint=f"{server.url}/token") as provider:
        assert isinstance(await provider.refresh(grant(dpop_key=key), DEFAULT_AUDIENCE), TokenSet)
        assert 2 == server.count("/token")
        assert isinstance(await provider.refresh(grant(dpop_key=key), DEFAULT_AUDIENCE), TokenSet)
        assert 3 == server.count("/token")
        nonces.append("n-2")
        assert isinstance(await provider.refresh(grant(dpop_key=key), DEFAULT_AUDIENCE), TokenSet)
        assert 5 == server.count("/token")

    jtis = [read_compact(request.headers["DPoP"]).claims()["jti"] for request in server.requests]
    assert len(jtis) == len(set(map(str, jtis)))


@pytest.mark.parametrize("nonce", [None, "n-same"])
async def test_a_server_that_is_never_content_is_not_asked_for_ever(server: DocumentServer, nonce: str | None) -> None:
    """Without a new nonce there is no second request, and with one no third."""
    count = 0

    async def token(_request: Request) -> web.Response:
        nonlocal count
        count += 1
        headers = {} if nonce is None else {"DPoP-Nonce": f"{nonce}-{count}"}
        return web.json_response({"error": "use_dpop_nonce"}, status=400, headers=headers)

    server.answers["/token"] = token
    async with authorization_server(token_endpoint=f"{server.url}/token") as provider:
        outcome = await provider.refresh(grant(dpop_key=new_dpop_key()), DEFAULT_AUDIENCE)

    assert isinstance(outcome, TokenFailure)
    assert (FailureKind.OPERATOR, 1 if nonce is None else 2) == (outcome.kind, count)


async def test_a_bearer_token_is_no_bound_token(server: DocumentServer) -> None:
    """A login that asks for bound tokens doesn't take a bearer token for one."""
    server.answers["/token"] = (200, {**BOUND, "token_type": "Bearer"})
    async with authorization_server(token_endpoint=f"{server.url}/token", dpop=True) as provider:
        outcome = await provider.exchange_code(
            code=Secret("c"), code_verifier=Secret("v"), redirect_uri="https://a/", dpop_key=provider.new_dpop_key()
        )

    assert isinstance(outcome, TokenFailure)
    assert "dpop" in outcome.detail


async def test_keys_are_made_only_where_they_are_wanted(server: DocumentServer) -> None:
    """Without dpop: true a grant has no key, and its requests no proof."""
    server.answers["/token"] = (200, {**BOUND, "token_type": "Bearer"})
    async with authorization_server(token_endpoint=f"{server.url}/token") as provider:
        assert provider.new_dpop_key() is None
        await provider.refresh(grant(), DEFAULT_AUDIENCE)

    assert "DPoP" not in server.requests[0].headers


@pytest.mark.parametrize("status", [401, 403, 500, 503])
async def test_a_refresh_token_is_presented_once(server: DocumentServer, status: int) -> None:
    """Whatever the answer is, nothing sends the request again by itself."""
    server.answers["/token"] = (status, b"")
    async with authorization_server(token_endpoint=f"{server.url}/token", client_secret=Secret("s")) as provider:
        await provider.refresh(grant(), DEFAULT_AUDIENCE)

    assert 1 == server.count("/token")


async def test_what_came_of_a_request_decides_its_class(server: DocumentServer) -> None:
    """Nothing sent is transient, no answer is in doubt, and Retry-After comes along."""

    async def busy(_request: Request) -> web.Response:
        return web.Response(status=503, headers={"Retry-After": "7"})

    async def silent(_request: Request) -> web.Response:
        await asyncio.sleep(30)
        raise AssertionError

    server.answers |= {"/busy": busy, "/silent": silent}
    outcomes = []
    for path in ("busy", "silent"):
        async with authorization_server(
            token_endpoint=f"{server.url}/{path}", token_endpoint_timeout_seconds=1.0
        ) as provider:
            outcomes.append(await provider.refresh(grant(), DEFAULT_AUDIENCE))
    async with authorization_server(token_endpoint="http://127.0.0.1:9/token") as provider:
        outcomes.append(await provider.refresh(grant(), DEFAULT_AUDIENCE))

    kinds = [(outcome.kind, outcome.retry_after_seconds) for outcome in outcomes if isinstance(outcome, TokenFailure)]
    assert [(FailureKind.TRANSIENT, 7.0), (FailureKind.IN_DOUBT, None), (FailureKind.TRANSIENT, None)] == kinds


async def test_without_credentials_nothing_is_sent(server: DocumentServer) -> None:
    """A client that can't prove itself, for want of metadata or of its own token, presents no refresh token."""
    options: dict[str, Any] = {"client_secret": Secret("s" * 32), "refresh_endpoint": f"{server.url}/refresh"}
    methods: dict[ClientAuthMethod, dict[str, Any]] = {
        ClientAuthMethod.CLIENT_SECRET_JWT: {"issuer": None, "metadata_url": f"{server.url}/nowhere"},
        ClientAuthMethod.CLIENT_ACCESS_TOKEN: {"token_endpoint": f"{server.url}/nowhere"},
    }
    for method, more in methods.items():
        async with authorization_server(token_endpoint_auth_method=method, **options, **more) as provider:
            outcome = await provider.refresh(grant(), DEFAULT_AUDIENCE)
        assert isinstance(outcome, TokenFailure)
        assert FailureKind.TRANSIENT is outcome.kind
    assert 0 == server.count("/refresh")


async def test_a_client_token_is_replaced_once_after_a_401(server: DocumentServer) -> None:
    """A second 401 is an answer."""
    server.answers |= {"/token": (200, {"access_token": "cat", "expires_in": 60}), "/refresh": (401, {"message": "no"})}
    async with authorization_server(
        token_endpoint=f"{server.url}/token",
        refresh_endpoint=f"{server.url}/refresh",
        client_secret=Secret("s"),
        token_endpoint_auth_method=ClientAuthMethod.CLIENT_ACCESS_TOKEN,
    ) as provider:
        outcome = await provider.refresh(grant(), DEFAULT_AUDIENCE)

    assert isinstance(outcome, TokenFailure)
    assert (2, 2) == (server.count("/token"), server.count("/refresh"))


def test_what_was_not_sent_loses_nothing() -> None:
    """Metadata that can't be had are transient; metadata that lie are the operator's."""
    assert FailureKind.TRANSIENT is not_sent(ProviderError("down")).kind
    assert FailureKind.OPERATOR is not_sent(ProviderProtocolError("lie")).kind
    assert 3.0 == not_sent(ProviderError("down", retry_after_seconds=3)).retry_after_seconds


@pytest.mark.parametrize("kind", list(FailureKind))
def test_what_presented_no_refresh_token_ends_no_grant(kind: FailureKind) -> None:
    """A failure beside the refresh is neither permanent nor in doubt."""
    failure = spared(TokenFailure(kind=kind, error="e", status=400, detail="d"), "client_token")

    assert failure.kind in {FailureKind.OPERATOR, FailureKind.TRANSIENT}
    assert ("e", 400, "client_token: d") == (failure.error, failure.status, failure.detail)

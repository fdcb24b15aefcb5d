"""The device authorization grant, on a real server."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl

import pytest
from aiohttp import web

from broker.core.oauth import FailureKind, TokenFailure, TokenSet
from broker.errors import ProviderError
from broker.services.clock import SystemClock
from tests.support.document_server import DocumentServer, Request
from tests.support.providers import authorization_server

CODES: dict[str, Any] = {
    "device_code": "dc-1",
    "user_code": "WDJB-MJHT",
    "verification_uri": "https://as.example/device",
    "verification_uri_complete": "https://as.example/device?user_code=WDJB-MJHT",
    "expires_in": 600,
    "interval": 0.01,
}


@pytest.fixture
async def server() -> AsyncIterator[DocumentServer]:
    async with DocumentServer() as server:
        server.answers["/device"] = (200, CODES)
        yield server


def options(server: DocumentServer) -> dict[str, Any]:
    return {
        "token_endpoint": f"{server.url}/token",
        "device_authorization_endpoint": f"{server.url}/device",
        "clock": SystemClock(),
    }


async def test_the_user_decides_elsewhere(server: DocumentServer) -> None:
    """The broker asks until the user has allowed it, by the device code and as the same client."""
    answers = iter([{"error": "authorization_pending"}, {"error": "authorization_pending"}])

    async def token(_request: Request) -> web.Response:
        if (waiting := next(answers, None)) is not None:
            return web.json_response(waiting, status=400)
        return web.json_response({"access_token": "at", "expires_in": 60, "refresh_token": "rt"})

    server.answers["/token"] = token
    async with authorization_server(**options(server)) as provider:
        authorization = await provider.device_flow.start("openid offline_access")
        outcome = await provider.device_flow.finish(authorization)

    assert ("WDJB-MJHT", "https://as.example/device") == (authorization.user_code, authorization.verification_uri)
    assert isinstance(outcome, TokenSet)
    first, second, *_ = (dict(parse_qsl(request.content.decode())) for request in server.requests)
    assert {"scope": "openid offline_access", "client_id": "client-1"} == first
    assert {
        "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
        "device_code": "dc-1",
        "client_id": "client-1",
    } == second
    assert 3 == server.count("/token")


@pytest.mark.parametrize("error", ["access_denied", "expired_token"])
async def test_a_refusal_ends_the_waiting(server: DocumentServer, error: str) -> None:
    """A user who refuses, or codes that ended, are definite."""
    server.answers["/token"] = (400, {"error": error})
    async with authorization_server(**options(server)) as provider:
        outcome = await provider.device_flow.finish(await provider.device_flow.start("openid"))

    assert isinstance(outcome, TokenFailure)
    assert (FailureKind.OPERATOR, error) == (outcome.kind, outcome.error)
    assert 1 == server.count("/token")


async def test_a_busy_server_is_asked_again(server: DocumentServer) -> None:
    """An outage doesn't end the waiting (RFC 8628 section 3.5)."""
    answers = iter([(503, {}), (200, {"access_token": "at", "expires_in": 60})])

    async def token(_request: Request) -> web.Response:
        status, content = next(answers)
        return web.json_response(content, status=status)

    server.answers["/token"] = token
    async with authorization_server(**options(server)) as provider:
        assert isinstance(await provider.device_flow.finish(await provider.device_flow.start("openid")), TokenSet)


async def test_a_user_who_does_not_come_is_not_waited_for(server: DocumentServer) -> None:
    """After the codes' end nothing is asked any more."""
    server.answers["/device"] = (200, {**CODES, "expires_in": 0.05})
    server.answers["/token"] = (400, {"error": "authorization_pending"})
    async with authorization_server(**options(server)) as provider:
        outcome = await provider.device_flow.finish(await provider.device_flow.start("openid"))

    assert isinstance(outcome, TokenFailure)
    assert "expired_token" == outcome.error


@pytest.mark.parametrize(
    "answer",
    [
        (500, b""),
        (200, b"<html>"),
        (200, {**CODES, "device_code": None}),
        (200, {**CODES, "user_code": "A\x1b[2J"}),
        (200, {**CODES, "expires_in": 0}),
        (200, {**CODES, "expires_in": "soon"}),
    ],
)
async def test_nonsense_is_no_code(server: DocumentServer, answer: tuple[int, Any]) -> None:
    """An answer without its members, or with control characters for the terminal, is refused."""
    server.answers["/device"] = answer
    async with authorization_server(**options(server)) as provider:
        with pytest.raises(ProviderError):
            await provider.device_flow.start("openid")


async def test_a_server_without_devices_says_so(server: DocumentServer) -> None:
    """Without the endpoint there is no such flow."""
    async with authorization_server(token_endpoint=f"{server.url}/token") as provider:
        with pytest.raises(ProviderError, match="device_authorization_endpoint"):
            await provider.device_flow.start("openid")

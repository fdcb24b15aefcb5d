"""An ``AuthorizationServer`` as the broker has it, towards a server of the test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from broker.core.grant import Grant, Origin
from broker.core.provider import ProviderOptions
from broker.core.secret import RefreshToken
from broker.services.clock import Clock, SystemRandomness
from broker.services.outbound import Outbound
from broker.services.provider import AuthorizationServer
from tests.support.clock import ManualClock


@asynccontextmanager
async def authorization_server(
    *, name: str = "corp", clock: Clock | None = None, **options: Any
) -> AsyncIterator[AuthorizationServer]:
    """Make it from *options*, and close it."""
    provider = ProviderOptions(**{"client_id": "client-1", **options})
    server = AuthorizationServer(
        name,
        provider,
        outbound=Outbound(provider.tls, insecure=provider.insecure),
        clock=clock or ManualClock(),
        randomness=SystemRandomness(),
    )
    try:
        yield server
    finally:
        await server.close()


def grant(refresh_token: str | None = "rt-1", **members: Any) -> Grant:  # noqa: S107 - a refresh token of the tests
    """A grant that holds *refresh_token*."""
    return Grant(
        **{
            "id": "0" * 32,
            "provider": "corp",
            "subject": "alice",
            "origin": Origin.BROWSER,
            "generation": 1,
            "refresh_token": None if refresh_token is None else RefreshToken(refresh_token),
            "refreshed_at": 0.0,
            "chain_started_at": 0.0,
            **members,
        }
    )

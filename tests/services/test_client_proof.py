"""Servers that refuse a wrong secret and an ended grant alike are asked about the client before a grant is at stake."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from broker.core.audience import DEFAULT_AUDIENCE
from broker.core.oauth import FailureKind, TokenFailure, TokenOutcome, TokenSet
from broker.core.options import OptionError
from broker.core.provider import EmptyAnswer
from broker.core.secret import Secret
from tests.support.document_server import DocumentServer, Request
from tests.support.providers import authorization_server, grant


class Taciturn:
    """Answers a refresh with tokens or an empty 400, and speaks of the client at its revocation endpoint alone."""

    def __init__(self, server: DocumentServer) -> None:
        self.refreshes = 0
        self.believes = [True]
        """What it says of the client, the last answer for ever."""
        self.ended = False
        self.server = server
        server.answers |= {"/token": self.token, "/revoke": self.revoke}

    async def token(self, request: Request) -> web.Response:
        assert b"grant_type=refresh_token" in request.content
        self.refreshes += 1
        if self.ended:
            return web.Response(status=400)
        return web.json_response({"access_token": "at", "refresh_token": "rt-2"})

    async def revoke(self, request: Request) -> web.Response:
        assert b"rt-1" not in request.content
        believed = self.believes.pop(0) if len(self.believes) > 1 else self.believes[0]
        return web.Response(status=200 if believed else 401)

    async def refresh(self, **options: Any) -> TokenOutcome:
        async with authorization_server(
            **{
                "token_endpoint": f"{self.server.url}/token",
                "revocation_endpoint": f"{self.server.url}/revoke",
                "client_secret": Secret("s"),
                "empty_400": EmptyAnswer.INVALID_GRANT,
                **options,
            }
        ) as provider:
            return await provider.refresh(grant(), DEFAULT_AUDIENCE)


@pytest.fixture
async def taciturn() -> AsyncIterator[Taciturn]:
    async with DocumentServer() as server:
        yield Taciturn(server)


async def test_a_client_that_is_believed_refreshes(taciturn: Taciturn) -> None:
    """One question more, and no line in the log."""
    assert isinstance(await taciturn.refresh(), TokenSet)
    assert (1, 2) == (taciturn.refreshes, len(taciturn.server.requests))


async def test_a_client_that_is_refused_presents_nothing(taciturn: Taciturn) -> None:
    """The grant is kept, since its token never left; the failure names the key to look at."""
    taciturn.believes = [False]
    outcome = await taciturn.refresh()
    assert isinstance(outcome, TokenFailure)
    assert (FailureKind.OPERATOR, "providers.corp.client_secret") == (outcome.kind, outcome.look_at)
    assert 0 == taciturn.refreshes


async def test_an_ended_grant_ends(taciturn: Taciturn) -> None:
    """The server believes the client and refuses the token: that is what the configuration says it is."""
    taciturn.ended = True
    outcome = await taciturn.refresh()
    assert isinstance(outcome, TokenFailure)
    assert (FailureKind.PERMANENT, 1) == (outcome.kind, taciturn.refreshes)


async def test_a_secret_that_becomes_wrong_in_between_ends_nothing(taciturn: Taciturn) -> None:
    """The refusal counts only if the client is believed after it, too."""
    taciturn.ended, taciturn.believes = True, [True, False]
    outcome = await taciturn.refresh()
    assert isinstance(outcome, TokenFailure)
    assert FailureKind.OPERATOR is outcome.kind


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (503, FailureKind.TRANSIENT),
        (429, FailureKind.TRANSIENT),
        (403, FailureKind.OPERATOR),
        (404, FailureKind.OPERATOR),
    ],
)
async def test_without_a_proof_nothing_is_presented(taciturn: Taciturn, status: int, kind: FailureKind) -> None:
    """Only success is a proof."""
    taciturn.server.answers["/revoke"] = (status, b"")
    outcome = await taciturn.refresh()
    assert isinstance(outcome, TokenFailure)
    assert (kind, 0) == (outcome.kind, taciturn.refreshes)


async def test_a_revocation_endpoint_that_is_gone_leaves_the_token_alone(
    taciturn: Taciturn, unused_tcp_port: int
) -> None:
    """Nothing was sent: it is tried again."""
    outcome = await taciturn.refresh(revocation_endpoint=f"http://127.0.0.1:{unused_tcp_port}/revoke")
    assert isinstance(outcome, TokenFailure)
    assert (FailureKind.TRANSIENT, 0) == (outcome.kind, taciturn.refreshes)


async def test_a_server_without_a_revocation_endpoint_is_not_refreshed_at(taciturn: Taciturn) -> None:
    """By its metadata that is seen when it runs, else when the configuration is read."""
    url = taciturn.server.url
    taciturn.server.answers["/.well-known/openid-configuration"] = (200, {"issuer": url})
    outcome = await taciturn.refresh(issuer=url, revocation_endpoint=None)
    assert isinstance(outcome, TokenFailure)
    assert (FailureKind.OPERATOR, 0) == (outcome.kind, taciturn.refreshes)
    assert "revocation_endpoint" in outcome.detail
    with pytest.raises(OptionError, match="revocation_endpoint"):
        await taciturn.refresh(revocation_endpoint=None)


async def test_other_servers_are_not_asked(taciturn: Taciturn) -> None:
    """Whoever names its errors needs no proof."""
    assert isinstance(await taciturn.refresh(empty_400=EmptyAnswer.TRANSIENT), TokenSet)
    assert 1 == len(taciturn.server.requests)

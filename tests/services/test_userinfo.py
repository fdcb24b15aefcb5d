"""Userinfo, and what stands in for it."""

import base64
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from broker.core.compact_jws import read_compact
from broker.core.provider import ProviderOptions
from broker.core.secret import AccessToken, RefreshToken
from broker.errors import LoginFailed, ProviderError
from broker.services.clock import SystemRandomness
from broker.services.dpop import Proofs, new_dpop_key
from broker.services.metadata import Metadata
from broker.services.outbound import Outbound
from broker.services.userinfo import Userinfo
from tests.support.clock import ManualClock
from tests.support.document_server import DocumentServer, Request
from tests.support.raw_upstream import RawUpstream, answering


@pytest.fixture
async def server() -> AsyncIterator[DocumentServer]:
    async with DocumentServer() as server:
        yield server


async def fetch(
    server: DocumentServer | RawUpstream, *, dpop_key: RefreshToken | None = None, **options: Any
) -> dict[str, object]:
    provider = ProviderOptions(
        client_id="c", token_endpoint=f"{server.url}/t", userinfo_endpoint=f"{server.url}/me", **options
    )
    outbound = Outbound()
    try:
        metadata = Metadata(provider, outbound=outbound, clock=ManualClock(), at="providers.corp")
        proofs = Proofs(ManualClock(), SystemRandomness())
        userinfo = Userinfo(provider, metadata=metadata, outbound=outbound, proofs=proofs)
        return await userinfo.fetch(AccessToken("at"), dpop_key)
    finally:
        await outbound.close()


async def test_claims_come_for_a_bearer(server: DocumentServer) -> None:
    """The access token goes into the Authorization header, and the claims come back."""
    server.answers["/me"] = (200, {"sub": "alice", "name": "Alice"})

    assert {"sub": "alice", "name": "Alice"} == await fetch(server)
    assert "Bearer at" == server.requests[0].headers["Authorization"]


async def test_claims_may_have_other_names(server: DocumentServer) -> None:
    """GitHub's id is a number, and elsewhere the subject lies deeper."""
    server.answers["/me"] = (200, {"id": 583231, "profile": {"display": "Octocat"}})

    claims = await fetch(server, userinfo_members={"sub": "id", "name": "profile.display"})

    assert ("583231", "Octocat") == (claims["sub"], claims["name"])


async def test_rt_12_userinfo_names_no_issuer(server: DocumentServer) -> None:
    """A server without id tokens can't choose another server's realm for its users."""
    server.answers["/me"] = (200, {"sub": "alice", "iss": "https://accounts.google.com"})

    assert "iss" not in await fetch(server)


@pytest.mark.parametrize(
    "claims", [{}, {"sub": ""}, {"sub": None}, {"sub": True}, {"sub": ["alice"]}, {"sub": "a\r\nb"}, {"sub": "a" * 300}]
)
async def test_rt_11_nobody_is_nobody(server: DocumentServer, claims: dict[str, Any]) -> None:
    """Without a sensible subject nobody logs in."""
    server.answers["/me"] = (200, claims)

    with pytest.raises(LoginFailed, match="sub"):
        await fetch(server)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((500, b""), ProviderError),
        ((429, b""), ProviderError),
        ((401, {"error": "invalid_token"}), LoginFailed),
        ((302, b""), LoginFailed),
        ((200, b"<html>"), LoginFailed),
        ((200, [1]), LoginFailed),
        ((200, b""), LoginFailed),
    ],
)
async def test_a_failure_is_the_servers_or_the_logins(
    server: DocumentServer, answer: tuple[int, Any], error: type[Exception]
) -> None:
    """A server that is down may be tried again; one that refuses or answers nonsense ends this login."""
    server.answers["/me"] = answer

    with pytest.raises(error):
        await fetch(server)


async def test_a_token_that_userinfo_refuses_names_the_scope(server: DocumentServer) -> None:
    """Without openid a server needn't say whose it is (OpenID Connect Core section 5.3.1)."""
    server.answers["/me"] = (401, {"error": "invalid_token"})

    with pytest.raises(LoginFailed) as refused:
        await fetch(server)

    assert "scope" == refused.value.look_at


async def test_an_answer_that_is_cut_off_is_the_servers_fault() -> None:
    """Half an answer says nothing of the user, so the login may be tried again."""
    half = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"sub": "al'
    async with RawUpstream(answering(half, close=True)) as server:
        with pytest.raises(ProviderError, match="cut off"):
            await fetch(server)


async def test_a_server_that_is_gone_is_unavailable() -> None:
    """Without a connection it is the provider's fault."""
    async with DocumentServer() as server:
        pass
    with pytest.raises(ProviderError):
        await fetch(server)


@pytest.mark.parametrize("content", [True, False])
async def test_a_bound_token_is_shown_with_a_proof(server: DocumentServer, content: bool) -> None:
    """RFC 9449 sections 7 and 9: the scheme DPoP, a proof for this token and URL, and once more with the nonce."""

    async def me(request: Request) -> web.Response:
        claims = read_compact(request.headers["DPoP"]).claims()
        if content and claims.get("nonce") == "n-1":
            return web.json_response({"sub": "alice"})
        headers = {"DPoP-Nonce": "n-1", "WWW-Authenticate": 'DPoP error="use_dpop_nonce"'}
        return web.Response(status=401, headers=headers)

    server.answers["/me"] = me
    if content:
        assert {"sub": "alice"} == await fetch(server, dpop_key=new_dpop_key())
    else:
        with pytest.raises(LoginFailed):
            await fetch(server, dpop_key=new_dpop_key())

    assert ["DPoP at", "DPoP at"] == [request.headers["Authorization"] for request in server.requests]
    claims = read_compact(server.requests[0].headers["DPoP"]).claims()
    ath = base64.urlsafe_b64encode(hashlib.sha256(b"at").digest()).rstrip(b"=").decode()
    assert ("GET", f"{server.url}/me", ath) == (claims["htm"], claims["htu"], claims["ath"])

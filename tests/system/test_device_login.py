"""A login on a machine without a browser, from the command to the proxied call."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import aiohttp
import pytest
from aiohttp import web
from joserfc.jwk import ECKey

from broker.core.compact_jws import read_compact
from broker.services.clock import SystemClock
from tests.support.broker_process import BrokerProcess
from tests.support.document_server import DocumentServer, Request
from tests.support.dpop_upstream import DpopUpstream, thumbprint
from tests.support.forge import ec_key, public_jwk, sign
from tests.support.upstream import Upstream
from tests.system.test_command_line import call, command

pytestmark = pytest.mark.system

CODES: dict[str, Any] = {
    "device_code": "dc-canary",
    "user_code": "WDJB-MJHT",
    "verification_uri": "https://as.example/device",
    "expires_in": 600,
    "interval": 0.01,
}
TOKENS = {"access_token": "at-canary", "token_type": "Bearer", "expires_in": 600, "refresh_token": "rt-canary"}


def installed(
    directory: Path, server: DocumentServer, upstream: Upstream | DpopUpstream, **changes: Any
) -> BrokerProcess:
    provider = {
        "issuer": server.url,
        "discovery": False,
        "client_id": "device",
        "scope": "api",
        "authorization_endpoint": f"{server.url}/authorize",
        "token_endpoint": f"{server.url}/token",
        "device_authorization_endpoint": f"{server.url}/device",
        "jwks_uri": f"{server.url}/jwks",
        **changes,
    }
    broker = BrokerProcess(
        directory,
        providers={"corp": provider},
        routes=[{"path": "/api", "upstream": upstream.url, "token": "user"}],
    )
    broker.settings["admin"]["token"] = {"value": "an-admin-token-of-thirty-two-characters"}
    return broker


async def log_in(broker: BrokerProcess, *words: str, code: int = 0) -> tuple[str, str]:
    return await command(broker, "login", "--provider", "corp", *words, code=code, count=1)


async def test_a_device_login_ends_in_a_handle(tmp_path: Path) -> None:
    """The user sees where to go and what to enter; the handle calls with the tokens; no token is printed or logged."""
    async with DocumentServer() as server, Upstream() as upstream, installed(tmp_path, server, upstream) as broker:
        server.answers["/device"], server.answers["/token"] = (200, CODES), (200, TOKENS)
        out, err = await log_in(broker, "--subject", "ada", "--label", "cron")
        assert re.fullmatch(r"tbh_[A-Za-z0-9_-]{43}\n", out)
        assert err.startswith("Go to https://as.example/device and enter WDJB-MJHT\n")
        assert 200 == await call(broker, out.strip())
        assert ["Bearer at-canary"] == upstream.received[-1].header("Authorization")
    assert "canary" not in out + err + broker.log_path.read_text()


@pytest.mark.parametrize("type", ["imported", "client_credentials"])
async def test_a_device_login_may_fill_a_configured_grant(tmp_path: Path, type: str) -> None:  # noqa: A002
    """Routes name it, so there is no handle; one that gets its tokens otherwise is refused before anybody logs in."""
    async with DocumentServer() as server, Upstream() as upstream:
        broker = installed(tmp_path, server, upstream)
        broker.settings["grants"] = {"nightly": {"provider": "corp", "type": type}}
        broker.settings["routes"] = [{"path": "/api", "upstream": upstream.url, "token": {"grant": "nightly"}}]
        async with broker:
            server.answers["/device"], server.answers["/token"] = (200, CODES), (200, TOKENS)
            code = 0 if type == "imported" else 1
            out, err = await command(broker, "login", "--grant", "nightly", code=code, count=1)
            if code:
                assert ("", True) == (out, "grants.nightly: there is no such grant of type imported" in err)
                assert 0 == server.count("/device")
                return
            assert out.startswith("nightly: handed over, as grant ")
            async with aiohttp.ClientSession() as http, http.get(f"{broker.url}/api/x") as response:
                assert 200 == response.status
            assert ["Bearer at-canary"] == upstream.received[-1].header("Authorization")
    assert "canary" not in out + err + broker.log_path.read_text()


@pytest.mark.parametrize(
    "words", [(), ("--provider", "corp", "--grant", "nightly"), ("--grant", "nightly", "--label", "x")], ids=str
)
async def test_a_device_login_is_for_one_grant(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A new one, with a handle, or a configured one."""
    async with DocumentServer() as server, Upstream() as upstream, installed(tmp_path, server, upstream) as broker:
        out, err = await command(broker, "login", *words, code=2, count=1)
    assert ("", True) == (out, "--grant" in err)
    assert 0 == server.count("/device")


async def test_a_device_login_may_be_bound_to_a_key(tmp_path: Path) -> None:
    """With ``dpop`` the command makes the key, the broker keeps it, and the upstream gets a proof by it (RFC 9449)."""
    async with (
        DocumentServer() as server,
        DpopUpstream(SystemClock()) as upstream,
        installed(tmp_path, server, upstream, dpop=True) as broker,
    ):

        async def token(request: Request) -> web.Response:
            upstream.keys["at-canary"] = thumbprint(read_compact(request.headers["DPoP"]).header["jwk"])  # type: ignore[arg-type]
            return web.json_response({**TOKENS, "token_type": "DPoP"})

        server.answers["/device"], server.answers["/token"] = (200, CODES), token
        out, err = await log_in(broker, "--subject", "ada")
        assert 200 == await call(broker, out.strip())
        assert ([], 1) == (upstream.refusals, len(upstream.claims))
    assert '"d"' not in out + err + broker.log_path.read_text()


def id_token(server: DocumentServer, **changes: Any) -> str:
    """An id token of the server's, about ada."""
    now = int(SystemClock().now())
    claims = {"iss": server.url, "aud": "device", "sub": "ada", "iat": now, "exp": now + 60, **changes}
    return sign({"alg": "ES256", "kid": "k-1"}, claims, ec_key())


async def test_a_signed_id_token_says_who_it_is(tmp_path: Path) -> None:
    """With openid, the grant is that of the checked id token's subject, and nobody needs to say who logs in."""
    async with (
        DocumentServer() as server,
        Upstream() as upstream,
        installed(tmp_path, server, upstream, scope="openid") as broker,
    ):
        server.answers["/device"] = (200, CODES)
        server.answers["/jwks"] = (200, {"keys": [public_jwk(ec_key(), "k-1")]})
        server.answers["/token"] = (200, {**TOKENS, "id_token": id_token(server)})
        out, _ = await log_in(broker)
        assert 200 == await call(broker, out.strip())
        listed, _ = await command(broker, "grants", "list")
        assert "ada" in listed
        assert 1 == server.count("/jwks")


@pytest.mark.parametrize(
    ("changes", "key", "words", "said"),
    [
        ({"aud": "another"}, ec_key(), (), "can't be believed"),
        ({"iss": "https://evil.example"}, ec_key(), (), "can't be believed"),
        ({}, ec_key("P-256", "other"), (), "can't be believed"),
        ({}, ec_key(), ("--subject", "bob"), "it is ada who logged in"),
    ],
)
async def test_an_id_token_that_is_not_good_leaves_no_grant(
    tmp_path: Path, changes: dict[str, Any], key: ECKey, words: tuple[str, ...], said: str
) -> None:
    """Another audience, issuer, signer or user: the command fails, and the refresh token is revoked."""
    async with (
        DocumentServer() as server,
        Upstream() as upstream,
        installed(tmp_path, server, upstream, scope="openid", revocation_endpoint=f"{server.url}/revoke") as broker,
    ):
        server.answers |= {"/device": (200, CODES), "/revoke": (200, {})}
        server.answers["/jwks"] = (200, {"keys": [public_jwk(key, "k-1")]})
        server.answers["/token"] = (200, {**TOKENS, "id_token": id_token(server, **changes)})
        out, err = await log_in(broker, *words, code=1)
        assert ("", True) == (out, said in err)
        assert [b"rt-canary"] == revoked(server)


@pytest.mark.parametrize("can_revoke", [True, False])
async def test_tokens_that_the_broker_does_not_take_are_revoked(tmp_path: Path, can_revoke: bool) -> None:
    """It stopped while the user decided: the command fails, and says where the tokens couldn't be revoked."""
    async with (
        DocumentServer() as server,
        Upstream() as upstream,
        installed(tmp_path, server, upstream, revocation_endpoint=f"{server.url}/revoke") as broker,
    ):

        async def token(_request: Request) -> web.Response:
            await broker.stop()
            return web.json_response(TOKENS)

        server.answers |= {"/device": (200, CODES), "/token": token, "/revoke": (200 if can_revoke else 503, {})}
        out, err = await log_in(broker, "--subject", "ada", code=1)
        assert ("", True) == (out, "no broker answers" in err)
        assert can_revoke is ("could not be revoked" not in err)
        assert [b"rt-canary"] == revoked(server)
    assert "canary" not in out + err + broker.log_path.read_text()


def revoked(server: DocumentServer) -> list[bytes]:
    """The refresh tokens that the revocation endpoint was given."""
    return [
        value
        for request in server.requests
        if request.path == "/revoke"
        for name, value in parse_qsl(request.content)
        if name == b"token"
    ]


@pytest.mark.parametrize(
    ("changes", "answer", "words", "said"),
    [
        ({}, (200, TOKENS), (), "--subject is needed"),
        ({}, (400, {"error": "access_denied"}), ("--subject", "ada"), "no tokens: access_denied"),
        ({}, (200, {**TOKENS, "refresh_token": None}), ("--subject", "ada"), "providers.corp.scope: "),
        ({"scope": "openid"}, (200, TOKENS), (), "the id token is missing or can't be believed"),
        ({"scope": "openid"}, (200, {**TOKENS, "id_token": "a.b.c"}), ("--subject", "ada"), "can't be believed"),
    ],
)
async def test_what_is_no_login_leaves_no_grant(
    tmp_path: Path, changes: dict[str, Any], answer: Any, words: tuple[str, ...], said: str
) -> None:
    """Neither a refusal, nor tokens that can't be renewed, nor a user whom nobody vouches for."""
    async with (
        DocumentServer() as server,
        Upstream() as upstream,
        installed(tmp_path, server, upstream, **changes) as broker,
    ):
        server.answers["/device"], server.answers["/token"] = (200, CODES), answer
        out, err = await log_in(broker, *words, code=1)
        assert ("", True) == (out, said in err)
        listed, _ = await command(broker, "handles", "list")
        assert 1 == len(listed.splitlines())

"""Authorization requests, in the URL and pushed ahead. What the URL holds is tested in test_provider.py."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest

from broker.core.client_auth import AssertionOptions
from broker.core.compact_jws import read_compact
from broker.core.provider import PushedAuthorization, ResponseMode
from broker.core.secret import Secret
from broker.errors import LoginFailed, ProviderError
from broker.services.authorization import AuthorizationRequest, with_query
from broker.services.id_tokens import verify
from tests.support.clock import ManualClock
from tests.support.document_server import DocumentServer
from tests.support.forge import ec_key, pem, public_jwk, sign
from tests.support.providers import authorization_server

NOW = 1_800_000_000

REQUEST = AuthorizationRequest(
    redirect_uri="https://app.example/cb", state="s-1", nonce="n-1", code_challenge="ch", parameters={"prompt": "login"}
)
PUSHED = (201, {"request_uri": "urn:ietf:params:oauth:request_uri:6esc", "expires_in": 60})


@pytest.fixture
async def server() -> AsyncIterator[DocumentServer]:
    async with DocumentServer() as server:
        server.answers["/par"] = PUSHED
        yield server


def metadata(server: DocumentServer, *, required: bool) -> None:
    server.answers["/.well-known/openid-configuration"] = (
        200,
        {
            "issuer": server.url,
            "authorization_endpoint": f"{server.url}/authorize",
            "pushed_authorization_request_endpoint": f"{server.url}/par",
            "require_pushed_authorization_requests": required,
        },
    )


@pytest.mark.parametrize(
    ("option", "required", "pushed"),
    [
        (PushedAuthorization.AUTO, True, True),
        (PushedAuthorization.AUTO, False, False),
        (PushedAuthorization.ALWAYS, False, True),
        (PushedAuthorization.NEVER, True, False),
    ],
)
async def test_a_request_is_pushed_where_the_server_or_the_operator_wants_it(
    server: DocumentServer, option: PushedAuthorization, required: bool, pushed: bool
) -> None:
    """RFC 9126: pushed with the client's own authentication; the URL then holds only its reference."""
    metadata(server, required=required)
    async with authorization_server(
        issuer=server.url,
        client_secret=Secret("s"),
        pushed_authorization=option,
        allowed_parameters=("prompt",),
    ) as provider:
        url = await provider.authorization_url(REQUEST)

    query = dict(parse_qsl(urlsplit(url).query))
    assert pushed is (server.count("/par") == 1)
    if pushed:
        assert {"client_id": "client-1", "request_uri": PUSHED[1]["request_uri"]} == query
        (request,) = [request for request in server.requests if request.path == "/par"]
        assert request.headers["Authorization"].startswith("Basic ")
        query = dict(parse_qsl(request.content.decode()))
    assert {
        "response_type": "code",
        "client_id": "client-1",
        "redirect_uri": "https://app.example/cb",
        "scope": "openid",
        "state": "s-1",
        "nonce": "n-1",
        "code_challenge": "ch",
        "code_challenge_method": "S256",
        "prompt": "login",
    } == query


@pytest.mark.parametrize(
    "answer",
    [
        (400, {"error": "invalid_request"}),
        (401, {"error": "invalid_client\r\nX: y"}),
        (201, {}),
        (201, {"request_uri": 7}),
        (201, {"request_uri": "a\r\nb"}),
        (201, b"<html>"),
        (503, b""),
    ],
)
async def test_a_push_that_fails_fails_the_login(server: DocumentServer, answer: tuple[int, Any]) -> None:
    """Nobody is sent away with a request that the server doesn't have."""
    metadata(server, required=True)
    server.answers["/par"] = answer
    async with authorization_server(issuer=server.url) as provider:
        with pytest.raises(ProviderError) as caught:
            await provider.authorization_url(REQUEST)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        ((400, {"error": "invalid_redirect_uri"}), "public_url"),
        ((400, {"error": "invalid_scope"}), "providers.corp.scope"),
        ((400, {"error": "invalid_target"}), "providers.corp.authorization_parameters"),
        ((401, {"error": "invalid_client"}), "providers.corp.client_secret"),
        ((400, {"error": "strange"}), None),
    ],
)
async def test_a_push_that_is_refused_names_its_key(
    server: DocumentServer, caplog: pytest.LogCaptureFixture, answer: tuple[int, Any], key: str | None
) -> None:
    """The browser isn't sent anywhere, so this is the only place where the refusal shows."""
    metadata(server, required=True)
    server.answers["/par"] = answer
    async with authorization_server(issuer=server.url, client_secret=Secret("s")) as provider:
        with pytest.raises(ProviderError):
            await provider.authorization_url(REQUEST)

    (record,) = [record for record in caplog.records if record.message == "pushed_authorization_refused"]
    assert key == record.__dict__["look_at"]


async def test_a_scope_that_is_empty_is_not_sent() -> None:
    """A plain OAuth 2.0 server without scopes isn't asked for an empty one."""
    async with authorization_server(
        authorization_endpoint="https://as.example/a", token_endpoint="https://as.example/t", scope=""
    ) as provider:
        assert "scope" not in await provider.authorization_url(REQUEST)


async def test_a_request_may_be_signed(server: DocumentServer) -> None:
    """
    RFC 9101: one signed parameter holds it all, made for this server and for a few minutes.

    The URL repeats what OpenID Connect Core section 6.1 wants there; a pushed request repeats nothing.
    """
    key = AssertionOptions(private_key=Secret(pem(ec_key())), key_id="k-1")
    options: dict[str, Any] = {
        "issuer": server.url,
        "client_assertion": key,
        "request_object": True,
        "clock": ManualClock(NOW),
    }
    metadata(server, required=False)
    async with authorization_server(**options) as provider:
        query = dict(parse_qsl(urlsplit(await provider.authorization_url(REQUEST)).query))
    metadata(server, required=True)
    async with authorization_server(**options) as provider:
        pushed = dict(parse_qsl(urlsplit(await provider.authorization_url(REQUEST)).query))

    assert {"client_id", "request", "response_type", "scope"} == query.keys()
    assert {"client_id", "request_uri"} == pushed.keys()
    (push,) = [parse_qs(each.content.decode()) for each in server.requests if each.path == "/par"]
    assert {"client_id", "request", "client_assertion_type", "client_assertion"} == push.keys()
    jws = read_compact(query["request"])
    assert verify(jws, "ES256", ec_key())
    assert ("oauth-authz-req+jwt", "k-1") == (jws.header["typ"], jws.header["kid"])
    claims = jws.claims()
    assert ("client-1", server.url, NOW + 300) == (claims["iss"], claims["aud"], claims["exp"])
    assert ("s-1", "n-1", "ch", "code") == (
        claims["state"],
        claims["nonce"],
        claims["code_challenge"],
        claims["response_type"],
    )
    assert {name: query[name] for name in ("client_id", "response_type", "scope")}.items() <= claims.items()


def secured(server: DocumentServer, **claims: Any) -> dict[str, str]:
    """An authorization response as a JWT (JARM section 2.1)."""
    good = {"iss": server.url, "aud": "client-1", "exp": NOW + 60, "code": "c-1", "state": "s-1"}
    return {"response": sign({"alg": "ES256", "kid": "k-1"}, {**good, **claims}, ec_key())}


async def test_a_response_may_come_signed(server: DocumentServer) -> None:
    """JARM: the request asks for it, the response is checked, and nothing beside it counts."""
    metadata(server, required=False)
    document: Any = server.answers["/.well-known/openid-configuration"]
    server.answers["/.well-known/openid-configuration"] = (200, {**document[1], "jwks_uri": f"{server.url}/jwks"})
    server.answers["/jwks"] = (200, {"keys": [public_jwk(ec_key(), "k-1")]})
    async with authorization_server(
        issuer=server.url, response_mode=ResponseMode.JWT, clock=ManualClock(NOW)
    ) as provider:
        assert "response_mode=jwt" in await provider.authorization_url(REQUEST)
        parameters = await provider.read_response({**secured(server), "code": "c-evil", "state": "s-evil"})
        assert {"iss": server.url, "code": "c-1", "state": "s-1"} == parameters

        for refused in (
            {},
            {"code": "c-1", "state": "s-1", "iss": server.url},
            {"response": "garbage"},
            secured(server, iss="https://evil.example"),
            secured(server, aud="client-2"),
            secured(server, exp=NOW - 60),
            {"response": sign({"alg": "ES256", "kid": "k-1"}, {"iss": server.url}, ec_key("P-256", "other"))},
        ):
            with pytest.raises(LoginFailed, match="authorization response"):
                await provider.read_response(refused)


async def test_a_plain_response_is_read_as_it_is(server: DocumentServer) -> None:
    """Without JARM the parameters are those of the query."""
    async with authorization_server(token_endpoint=f"{server.url}/token") as provider:
        assert {"code": "c", "response": "x"} == await provider.read_response({"code": "c", "response": "x"})


def test_a_query_is_added_to_what_is_there() -> None:
    """RFC 6749 section 3.1: an endpoint may have a query, which must be kept."""
    assert "https://a/?b=c&d=e+f" == with_query("https://a/?b=c", {"d": "e f"})
    assert "https://a/?d=%26" == with_query("https://a/", {"d": "&"})

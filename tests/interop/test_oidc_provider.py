"""The provider side of the broker against npm oidc-provider, which is certified and was written by nobody here."""

import asyncio
import html
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urljoin, urlsplit

import aiohttp
import pytest
from aiohttp import web

from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.client_auth import AssertionOptions, ClientAuthMethod, TlsOptions
from broker.core.compact_jws import unverified_claim
from broker.core.grant import Grant
from broker.core.oauth import FailureKind, TokenFailure, TokenSet
from broker.core.pkce import code_challenge
from broker.core.provider import PushedAuthorization
from broker.core.secret import Secret
from broker.core.standing import GrantType, StandingGrantOptions
from broker.services.clock import SystemClock
from broker.services.provider import AuthorizationRequest, AuthorizationServer
from tests.interop.oidc_provider import OidcProvider, log_in
from tests.support.certificates import Authority
from tests.support.document_server import DocumentServer, Request
from tests.support.forge import ec_key, pem, public_jwk
from tests.support.providers import authorization_server, grant

pytestmark = pytest.mark.interop

CALLBACK = "https://app.example/bff/callback/idp"
SECRET = "a client secret: +/%&= of many characters"  # which Basic must encode, and HS256 takes
SCOPE = "openid offline_access read"


def client(method: str, **metadata: Any) -> dict[str, Any]:
    """A registered client, named after its method."""
    return {
        "client_id": method,
        "client_secret": SECRET,
        "token_endpoint_auth_method": method,
        "redirect_uris": [CALLBACK],
        "post_logout_redirect_uris": ["https://app.example/"],
        "grant_types": ["authorization_code", "refresh_token", "client_credentials"],
        "scope": f"{SCOPE} write",
        **metadata,
    }


def clients() -> list[dict[str, Any]]:
    public = client("none", grant_types=["authorization_code", "refresh_token"])
    del public["client_secret"]
    return [
        public,
        client("client_secret_basic"),
        client("client_secret_post"),
        client("client_secret_jwt", token_endpoint_auth_signing_alg="HS256"),
        client(
            "private_key_jwt",
            jwks={"keys": [public_jwk(ec_key(), "k-1")]},
            token_endpoint_auth_signing_alg="ES256",
            id_token_signed_response_alg="ES256",
        ),
        client("tls_client_auth", tls_client_auth_subject_dn="CN=client"),
        client("client_secret_basic", client_id="dpop", dpop_bound_access_tokens=True),
        client(
            "client_secret_basic",
            client_id="device",
            grant_types=["urn:ietf:params:oauth:grant-type:device_code", "refresh_token"],
            response_types=[],
            redirect_uris=[],
        ),
    ]


def options(method: str, **more: Any) -> dict[str, Any]:
    """How the broker is configured for a client."""
    return {
        "client_id": method,
        "client_secret": Secret(SECRET),
        "token_endpoint_auth_method": ClientAuthMethod(method),
        "client_assertion": AssertionOptions(private_key=Secret(pem(ec_key())), key_id="k-1"),
        "scope": SCOPE,
        "authorization_parameters": {"prompt": "consent"},
        "clock": SystemClock(),
        **more,
    }


async def authorize(server: AuthorizationServer, tls: ssl.SSLContext | None = None, **parameters: str) -> TokenSet:
    """Log in as the broker and a browser do."""
    verifier = "v" * 43
    url = await server.authorization_url(
        AuthorizationRequest(
            redirect_uri=CALLBACK,
            state="s-1",
            nonce="n-1",
            code_challenge=code_challenge(verifier),
            parameters=parameters,
        )
    )
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        end = await log_in(browser, url, CALLBACK, tls=tls)
    response = dict(parse_qsl(urlsplit(end).query))
    assert "s-1" == response["state"], response
    await server.check_issuer(response["iss"])
    tokens = await server.exchange_code(
        code=Secret(response["code"]),
        code_verifier=Secret(verifier),
        redirect_uri=CALLBACK,
        dpop_key=server.new_dpop_key(),
    )
    assert isinstance(tokens, TokenSet), tokens
    return tokens


def held(tokens: TokenSet, **members: Any) -> Grant:
    assert tokens.refresh_token is not None
    return grant(tokens.refresh_token.reveal(), **members)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def provider(**options: Any) -> AsyncIterator[OidcProvider]:
    async with OidcProvider(clients(), **options) as running:
        yield running
    assert [] == [event for event in running.events if event["event"] == "fault"]


@pytest.mark.parametrize(
    "method", ["none", "client_secret_basic", "client_secret_post", "client_secret_jwt", "private_key_jwt"]
)
async def test_each_client_logs_in_refreshes_and_revokes(method: str) -> None:
    """Login with PKCE and iss, a checked id token, rotation, reuse detection, revocation: by each authentication."""
    async with provider() as idp, authorization_server(issuer=idp.url, **options(method)) as server:
        first = await authorize(server)
        identity = await server.identify(
            id_token=first.id_token, access_token=first.access_token, nonce="n-1", parameters={}
        )
        assert (idp.url, "alice") == (identity.issuer, identity.subject)
        assert 5 == first.expires_at - first.requested_at

        second = await server.refresh(held(first), DEFAULT_AUDIENCE)
        assert isinstance(second, TokenSet), second
        assert second.refresh_token is not None
        assert second.refresh_token != first.refresh_token
        assert second.id_token is not None
        refreshed = await server.check_refreshed(second.id_token)
        assert refreshed is not None
        assert "alice" == refreshed.subject

        await server.revoke(second.refresh_token)
        third = await server.refresh(held(second), DEFAULT_AUDIENCE)
        assert isinstance(third, TokenFailure)
        assert (FailureKind.PERMANENT, "invalid_grant") == (third.kind, third.error)


async def test_reuse_revokes_the_family() -> None:
    """What rotation: strict is for: the old token, presented again, takes the newest with it."""
    async with provider() as idp, authorization_server(issuer=idp.url, **options("client_secret_basic")) as server:
        first = await authorize(server)
        second = await server.refresh(held(first), DEFAULT_AUDIENCE)
        assert isinstance(second, TokenSet)
        for stale in (first, second):
            outcome = await server.refresh(held(stale), DEFAULT_AUDIENCE)
            assert isinstance(outcome, TokenFailure)
            assert FailureKind.PERMANENT is outcome.kind
        assert idp.count(event="revoked") >= 1


async def test_mutual_tls_authenticates_the_client(authority: Authority) -> None:
    """RFC 8705: the certificate at the token endpoint, and none for another."""
    leaf, stranger, server_leaf = authority.issue("client"), authority.issue("stranger"), authority.issue("server")
    tls = {"certificate": server_leaf.certificate_file, "key": server_leaf.key_file, "ca": authority.ca_file}
    trust = ssl.create_default_context(cafile=authority.ca_file)
    async with provider(tls=tls) as idp:
        own, other = (
            options(
                "tls_client_auth",
                tls=TlsOptions(
                    ca_file=authority.ca_file, certificate_file=shown.certificate_file, key_file=shown.key_file
                ),
            )
            for shown in (leaf, stranger)
        )
        async with authorization_server(issuer=idp.url, **own) as server:
            tokens = await server.refresh(held(await authorize(server, tls=trust)), DEFAULT_AUDIENCE)
            assert isinstance(tokens, TokenSet), tokens
        async with authorization_server(issuer=idp.url, **other) as server:
            outcome = await server.refresh(held(tokens), DEFAULT_AUDIENCE)
            assert isinstance(outcome, TokenFailure)
            assert (FailureKind.OPERATOR, "invalid_client") == (outcome.kind, outcome.error)


async def test_wrong_credentials_end_nothing() -> None:
    """A wrong secret is the operator's fault, and the grant lives on with the right one."""
    async with provider() as idp:
        async with authorization_server(issuer=idp.url, **options("client_secret_basic")) as server:
            tokens = await authorize(server)
        wrong = options("client_secret_basic", client_secret=Secret("wrong"))
        async with authorization_server(issuer=idp.url, **wrong) as server:
            outcome = await server.refresh(held(tokens), DEFAULT_AUDIENCE)
            assert isinstance(outcome, TokenFailure)
            assert (FailureKind.OPERATOR, "invalid_client") == (outcome.kind, outcome.error)
        async with authorization_server(issuer=idp.url, **options("client_secret_basic")) as server:
            assert isinstance(await server.refresh(held(tokens), DEFAULT_AUDIENCE), TokenSet)


async def test_requests_are_pushed_where_the_server_demands_it() -> None:
    """RFC 9126: the metadata's word is enough, and a request that isn't pushed gets nowhere."""
    async with provider(requirePushedAuthorization=True) as idp:
        async with authorization_server(issuer=idp.url, **options("private_key_jwt")) as server:
            assert "request_uri=urn" in await server.authorization_url(
                AuthorizationRequest(redirect_uri=CALLBACK, state="s", nonce="n", code_challenge="c" * 43)
            )
            await authorize(server)
        never = options("private_key_jwt", pushed_authorization=PushedAuthorization.NEVER)
        async with authorization_server(issuer=idp.url, **never) as server:
            with pytest.raises((AssertionError, KeyError)):
                await authorize(server)


async def test_tokens_are_bound_to_a_key_with_nonces() -> None:
    """RFC 9449: code and refresh with proofs, a nonce learned on the way, and nothing without the key."""
    async with (
        provider(requireDpopNonce=True) as idp,
        authorization_server(issuer=idp.url, **options("client_secret_basic", client_id="dpop", dpop=True)) as server,
    ):
        verifier, key = "v" * 43, server.new_dpop_key()
        assert key is not None
        url = await server.authorization_url(
            AuthorizationRequest(redirect_uri=CALLBACK, state="s", nonce="n-1", code_challenge=code_challenge(verifier))
        )
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
            response = dict(parse_qsl(urlsplit(await log_in(browser, url, CALLBACK)).query))
        tokens = await server.exchange_code(
            code=Secret(response["code"]), code_verifier=Secret(verifier), redirect_uri=CALLBACK, dpop_key=key
        )
        assert isinstance(tokens, TokenSet), tokens
        assert "DPoP" == tokens.token_type
        assert 1 == idp.count(event="refused", error="use_dpop_nonce")

        refreshed = await server.refresh(held(tokens, dpop_key=key), DEFAULT_AUDIENCE)
        assert isinstance(refreshed, TokenSet), refreshed
        assert "DPoP" == refreshed.token_type
        unbound = await server.refresh(held(refreshed), DEFAULT_AUDIENCE)
        assert isinstance(unbound, TokenFailure)
        assert unbound.kind is not FailureKind.PERMANENT or "invalid_grant" == unbound.error


async def test_tokens_are_for_the_resource_that_was_asked_for() -> None:
    """RFC 8707: one refresh token, an access token for each resource, each with its own audience and scope."""
    orders, reports = "https://orders.example/", "https://reports.example/"
    resources = {"authorization_parameters": {"prompt": "consent", "resource": orders}}
    async with (
        provider() as idp,
        authorization_server(issuer=idp.url, **options("client_secret_post", **resources)) as server,
    ):
        tokens = await authorize(server)
        outcome = await server.refresh(held(tokens), Audience(resource=orders, scope="read"))
        assert isinstance(outcome, TokenSet), outcome
        assert orders == unverified_claim(outcome.access_token.reveal(), "aud")
        assert "read" == unverified_claim(outcome.access_token.reveal(), "scope")
        refused = await server.refresh(held(outcome), Audience(resource=reports))
        assert isinstance(refused, TokenFailure)
        assert (FailureKind.OPERATOR, "invalid_target") == (refused.kind, refused.error)
        # This server judges the resource after it has rotated, so a wrong one costs the grant: no client can help that.
        lost = await server.refresh(held(outcome), DEFAULT_AUDIENCE)
        assert isinstance(lost, TokenFailure)
        assert FailureKind.PERMANENT is lost.kind


async def test_client_credentials_bring_tokens() -> None:
    """RFC 6749 section 4.4, for a resource."""
    standing = StandingGrantOptions(
        provider="idp", type=GrantType.CLIENT_CREDENTIALS, resource="https://orders.example/", scope="read"
    )
    async with provider() as idp, authorization_server(issuer=idp.url, **options("private_key_jwt")) as server:
        tokens = await server.first_tokens(standing, DEFAULT_AUDIENCE)

    assert isinstance(tokens, TokenSet), tokens
    assert "https://orders.example/" == unverified_claim(tokens.access_token.reveal(), "aud")


async def test_a_device_logs_in() -> None:
    """RFC 8628: the user decides in a browser elsewhere."""
    async with (
        provider() as idp,
        authorization_server(issuer=idp.url, **options("client_secret_basic", client_id="device")) as server,
    ):
        authorization = await server.device_flow.start("openid offline_access")
        assert authorization.verification_uri_complete is not None
        finishing = asyncio.ensure_future(server.device_flow.finish(authorization))
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
            await confirm_device(browser, authorization.verification_uri_complete)
        tokens = await asyncio.wait_for(finishing, 30)

    assert isinstance(tokens, TokenSet), tokens
    assert tokens.refresh_token is not None


async def confirm_device(browser: aiohttp.ClientSession, url: str) -> None:
    """Confirm the code, log in and consent."""
    form: Mapping[str, str] | None = None
    for _ in range(20):
        method = "GET" if form is None else "POST"
        async with browser.request(method, url, data=form) as response:
            page, url = await response.text(), str(response.url)
        if "Sign-in Success" in page or "may close" in page.lower():
            return
        fields = dict(re.findall(r'<input[^>]*name="([a-z_]+)"[^>]*value="([^"]*)"', page))
        action = re.search(r'<form[^>]* action="([^"]+)"', page)
        assert action is not None, page[:2000]
        url = urljoin(url, html.unescape(action[1]))
        form = {name: html.unescape(value) for name, value in fields.items() if name != "abort"}
        if form.get("prompt") == "login":
            form |= {"login": "alice", "password": "any"}
    raise AssertionError("the device was not confirmed")


async def test_a_logout_elsewhere_is_told_by_a_logout_token() -> None:
    """OpenID Connect Back-Channel Logout: the token that the server sends names the session of the id token."""
    received: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def logout(request: Request) -> web.Response:
        received.set_result(parse_qs(request.content.decode())["logout_token"][0])
        return web.Response(status=200)

    async with DocumentServer() as relying_party:
        relying_party.answers["/backchannel"] = logout
        registered = client(
            "client_secret_basic",
            client_id="logout",
            backchannel_logout_uri=f"{relying_party.url}/backchannel",
            backchannel_logout_session_required=True,
        )
        async with (
            OidcProvider([registered]) as idp,
            authorization_server(issuer=idp.url, **options("client_secret_basic", client_id="logout")) as server,
            aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser,
        ):
            url = await server.authorization_url(
                AuthorizationRequest(
                    redirect_uri=CALLBACK, state="s", nonce="n-1", code_challenge=code_challenge("v" * 43)
                )
            )
            response = dict(parse_qsl(urlsplit(await log_in(browser, url, CALLBACK)).query))
            tokens = await server.exchange_code(
                code=Secret(response["code"]), code_verifier=Secret("v" * 43), redirect_uri=CALLBACK
            )
            assert isinstance(tokens, TokenSet)
            identity = await server.identify(
                id_token=tokens.id_token, access_token=tokens.access_token, nonce="n-1", parameters={}
            )
            away = await server.end_session_url(
                id_token=tokens.id_token, post_logout_redirect_uri="https://app.example/", state="bye"
            )
            assert away is not None
            assert "https://app.example/?state=bye" == await log_in(browser, away, "https://app.example/")
            claims = await server.check_logout_token(await asyncio.wait_for(received, 10))

    assert identity.provider_session is not None
    assert (idp.url, "alice", identity.provider_session) == (claims.issuer, claims.subject, claims.sid)


async def test_step_up_is_answered_by_the_server() -> None:
    """max_age brings auth_time, which is checked."""
    stepping = options("client_secret_basic", allowed_parameters=("max_age",))
    async with provider() as idp, authorization_server(issuer=idp.url, **stepping) as server:
        tokens = await authorize(server, max_age="60")
        identity = await server.identify(
            id_token=tokens.id_token, access_token=tokens.access_token, nonce="n-1", parameters={"max_age": "60"}
        )

    assert "auth_time" in identity.claims


async def test_userinfo_is_asked_where_it_is_wanted() -> None:
    """Claims that the id token lacks come from userinfo."""
    asking = options("client_secret_basic", userinfo=True, require_verified_email=True, scope=f"{SCOPE} email profile")
    metadata = client("client_secret_basic", scope=f"{SCOPE} email profile")
    async with OidcProvider([metadata]) as idp, authorization_server(issuer=idp.url, **asking) as server:
        tokens = await authorize(server)
        identity = await server.identify(
            id_token=tokens.id_token, access_token=tokens.access_token, nonce="n-1", parameters={}
        )

    assert ("alice@corp.example", True) == (identity.claims["email"], identity.claims["email_verified"])

"""An authorization server as the broker sees it: logins, identities, logouts."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from aiohttp import web

from broker.core.id_token import LOGOUT_EVENT
from broker.core.oauth import TokenSet
from broker.core.options import OptionError
from broker.core.provider import RESERVED_PARAMETERS
from broker.core.secret import AccessToken, IdToken, RefreshToken, Secret
from broker.errors import BadRequest, LoginFailed, ProviderError
from broker.services.provider import AuthorizationRequest, AuthorizationServer
from tests.support.clock import ManualClock
from tests.support.document_server import DocumentServer, Request
from tests.support.forge import ec_key, public_jwk, sign
from tests.support.providers import authorization_server

NOW = 1_800_000_000
REQUEST = AuthorizationRequest(
    redirect_uri="https://app.example/bff/callback/corp", state="s-1", nonce="n-1", code_challenge="ch-1"
)


@pytest.fixture
async def server() -> AsyncIterator[DocumentServer]:
    async with DocumentServer() as server:
        server.answers |= {
            "/.well-known/openid-configuration": (200, metadata(server)),
            "/jwks": (200, {"keys": [public_jwk(ec_key(), "ec-1")]}),
            "/revoke": (200, b""),
            "/userinfo": (200, {"sub": "alice", "email": "alice@corp.example", "email_verified": True}),
        }
        yield server


def metadata(server: DocumentServer, **more: Any) -> dict[str, Any]:
    paths = {
        "authorization_endpoint": "authorize?tenant=7",
        "token_endpoint": "token",
        "jwks_uri": "jwks",
        "revocation_endpoint": "revoke",
        "userinfo_endpoint": "userinfo",
        "end_session_endpoint": "logout",
    }
    return {"issuer": server.url, **{name: f"{server.url}/{path}" for name, path in paths.items()}, **more}


@pytest.fixture
async def provider(server: DocumentServer) -> AsyncIterator[AuthorizationServer]:
    async with authorization_server(issuer=server.url, clock=ManualClock(NOW)) as provider:
        yield provider


def token(server: DocumentServer, **claims: Any) -> IdToken:
    return IdToken(
        sign(
            {"alg": "ES256", "kid": "ec-1"},
            {
                "iss": server.url,
                "aud": "client-1",
                "sub": "alice",
                "iat": NOW,
                "exp": NOW + 60,
                "nonce": "n-1",
                **claims,
            },
            ec_key(),
        )
    )


async def identify(provider: AuthorizationServer, id_token: IdToken | None, **parameters: str) -> Any:
    return await provider.identify(
        id_token=id_token, access_token=AccessToken("at"), nonce="n-1", parameters=parameters
    )


def query(url: str) -> dict[str, str]:
    parameters = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    assert len(parameters) == len(dict(parameters))
    return dict(parameters)


async def test_a_login_asks_for_a_code_with_pkce_state_and_nonce(
    server: DocumentServer, provider: AuthorizationServer
) -> None:
    """The authorization request is RFC 6749's, RFC 7636's and OpenID Connect's, behind the endpoint's own query."""
    url = await provider.authorization_url(REQUEST)

    assert url.startswith(f"{server.url}/authorize?tenant=7&")
    assert {
        "tenant": "7",
        "response_type": "code",
        "client_id": "client-1",
        "redirect_uri": "https://app.example/bff/callback/corp",
        "scope": "openid",
        "state": "s-1",
        "nonce": "n-1",
        "code_challenge": "ch-1",
        "code_challenge_method": "S256",
    } == query(url)


async def test_lg_06_the_callers_parameters_count_only_if_listed(server: DocumentServer) -> None:
    """Only the prompt is listed and counts: scope, redirect_uri, acr_values and an invented one are ignored."""
    chosen = {
        "prompt": "login",
        "acr_values": "none",
        "scope": "admin",
        "redirect_uri": "https://evil.example",
        "response_type": "token",
        "state": "x",
        "nonce": "x",
        "code_challenge": "x",
        "code_challenge_method": "plain",
        "client_id": "x",
        "request": "x",
        "x": "y",
    }
    async with authorization_server(
        issuer=server.url,
        allowed_parameters=("prompt",),
        authorization_parameters={"prompt": "consent", "access_type": "offline"},
    ) as provider:
        asked = query(await provider.authorization_url(replace(REQUEST, parameters=chosen)))
        plain = query(await provider.authorization_url(REQUEST))

    assert {**plain, "prompt": "login"} == asked
    assert ("consent", "offline") == (plain["prompt"], plain["access_type"])


@pytest.mark.parametrize("name", sorted(RESERVED_PARAMETERS))
async def test_lg_06_what_secures_a_login_can_never_be_listed(server: DocumentServer, name: str) -> None:
    """A configuration that lets the caller choose state, scope or redirect_uri is refused."""
    with pytest.raises(OptionError):
        async with authorization_server(issuer=server.url, allowed_parameters=(name,)):
            raise AssertionError


@pytest.mark.parametrize(
    ("promised", "iss", "taken"),
    [
        (True, "{url}", True),
        (True, None, False),
        (True, "https://evil.example", False),
        (True, "{url}/", False),
        (True, "", False),
        (False, None, True),
        (False, "{url}", True),
        (False, "https://evil.example", False),
    ],
)
async def test_lg_02_an_answer_of_another_server_is_refused(
    server: DocumentServer, promised: bool, iss: str | None, taken: bool
) -> None:
    """A wrong iss always, and a missing one where it is promised, fail before any token request (RFC 9207)."""
    server.answers["/.well-known/openid-configuration"] = (
        200,
        metadata(server, authorization_response_iss_parameter_supported=promised),
    )
    async with authorization_server(issuer=server.url) as provider:
        given = None if iss is None else iss.replace("{url}", server.url)
        if taken:
            await provider.check_issuer(given)
        else:
            with pytest.raises(LoginFailed, match="iss"):
                await provider.check_issuer(given)
    assert 0 == server.count("/token")


async def test_lg_02_an_issuer_is_compared_where_no_metadata_name_it(server: DocumentServer) -> None:
    """With the configured one, whether the server says it or not; without that, what it says can't be believed."""
    named: dict[str, Any] = {"discovery": False, "token_endpoint": f"{server.url}/token"}
    async with authorization_server(issuer=server.url, **named) as provider:
        await provider.check_issuer(None)
        await provider.check_issuer(server.url)
        with pytest.raises(LoginFailed, match="another server"):
            await provider.check_issuer("https://evil.example")
    async with authorization_server(issuer=None, **named) as provider:
        await provider.check_issuer(None)
        with pytest.raises(LoginFailed, match="iss") as raised:
            await provider.check_issuer(server.url)
    assert "issuer" == raised.value.look_at


async def test_lg_02_a_code_goes_to_the_issuers_own_token_endpoint(server: DocumentServer) -> None:
    """With two providers, a code goes where the provider's own metadata say, whatever the other says."""

    async def answer(request: Request) -> web.Response:
        return web.json_response({"access_token": parse_qs(request.content.decode())["code"][0], "expires_in": 60})

    server.answers["/token"] = answer
    async with DocumentServer() as other, authorization_server(issuer=server.url) as provider:
        other.answers["/.well-known/openid-configuration"] = (200, metadata(other))
        other.answers["/token"] = answer
        async with authorization_server(issuer=other.url, name="other") as second:
            await second.authorization_url(REQUEST)
            outcome = await provider.exchange_code(
                code=Secret("c-1"), code_verifier=Secret("v"), redirect_uri=REQUEST.redirect_uri
            )
    assert isinstance(outcome, TokenSet)
    assert (1, 0) == (server.count("/token"), other.count("/token"))


async def test_an_identity_comes_from_the_id_token(server: DocumentServer, provider: AuthorizationServer) -> None:
    """Issuer, subject and session are named, what is about the token is left out, the rest are the user's claims."""
    identity = await identify(provider, token(server, sid="sid-1", name="Alice", groups=["a"]))

    assert (server.url, "alice", "sid-1") == (identity.issuer, identity.subject, identity.provider_session)
    assert {"name": "Alice", "groups": ["a"]} == identity.claims
    assert 0 == server.count("/userinfo")


async def test_lg_02_an_injected_code_fails_by_its_nonce(server: DocumentServer, provider: AuthorizationServer) -> None:
    """A stolen code brings an id token of another login: refused."""
    with pytest.raises(LoginFailed, match="nonce"):
        await identify(provider, token(server, nonce="n-of-the-victim"))


async def test_an_openid_login_without_id_token_is_refused(provider: AuthorizationServer) -> None:
    """Without it no nonce is checked: userinfo can't stand in for it."""
    with pytest.raises(LoginFailed, match="id token"):
        await identify(provider, None)


async def test_lg_08_what_was_asked_for_is_checked_in_the_token(
    server: DocumentServer, provider: AuthorizationServer
) -> None:
    """A step-up counts only if the token says so."""
    assert await identify(provider, token(server, acr="gold"), acr_values="gold")
    with pytest.raises(LoginFailed, match="acr"):
        await identify(provider, token(server, acr="bronze"), acr_values="gold")


@pytest.mark.parametrize(
    ("configured", "chosen", "claims", "refused"),
    [
        ({"acr_values": "phr phrh"}, {}, {"acr": "phrh"}, None),
        ({"acr_values": "phr phrh"}, {}, {"acr": "pwd"}, "authorization_parameters"),
        ({"acr_values": "phr phrh"}, {}, {}, "authorization_parameters"),
        ({"max_age": "60"}, {}, {"auth_time": NOW - 60}, None),
        ({"max_age": "60"}, {}, {"auth_time": NOW - 3600}, "authorization_parameters"),
        ({"max_age": "60"}, {}, {}, "authorization_parameters"),
        ({"acr_values": "pwd"}, {"acr_values": "phr"}, {"acr": "phr"}, None),
        ({"acr_values": "pwd"}, {"acr_values": "phr"}, {"acr": "pwd"}, "allowed_parameters"),
        ({"acr_values": "phr"}, {"max_age": "60"}, {"acr": "pwd", "auth_time": NOW}, "authorization_parameters"),
        ({"acr_values": "phr"}, {"max_age": "60"}, {"acr": "phr", "auth_time": 0}, "allowed_parameters"),
    ],
)
async def test_lg_08_what_the_configuration_asks_for_is_checked_in_the_token(
    server: DocumentServer,
    configured: dict[str, str],
    chosen: dict[str, str],
    claims: dict[str, Any],
    refused: str | None,
) -> None:
    """So is each of its parameters in whose place the caller chose none, and the log names the key."""
    options: dict[str, Any] = {"authorization_parameters": configured, "allowed_parameters": tuple(chosen)}
    async with authorization_server(issuer=server.url, clock=ManualClock(NOW), **options) as provider:
        asked = query(await provider.authorization_url(replace(REQUEST, parameters=chosen)))
        assert {**configured, **chosen}.items() <= asked.items()
        if refused is None:
            assert await identify(provider, token(server, **claims), **chosen)
        else:
            with pytest.raises(LoginFailed, match=r"acr|auth_time") as raised:
                await identify(provider, token(server, **claims), **chosen)
            assert refused == raised.value.look_at


async def test_userinfo_adds_claims_where_it_is_configured(server: DocumentServer) -> None:
    """With userinfo: true its claims come along, below those of the id token."""
    async with authorization_server(issuer=server.url, userinfo=True, clock=ManualClock(NOW)) as provider:
        identity = await identify(provider, token(server, email="token@corp.example"))

        assert ("token@corp.example", True) == (identity.claims["email"], identity.claims["email_verified"])
        with pytest.raises(LoginFailed, match="another subject"):
            await identify(provider, token(server, sub="bob"))


async def test_rt_11_an_address_of_another_domain_does_not_log_in(server: DocumentServer) -> None:
    """email_domains holds for what the id token says."""
    async with authorization_server(
        issuer=server.url, email_domains=("corp.example",), clock=ManualClock(NOW)
    ) as provider:
        good = token(server, email="a@corp.example", email_verified=True)
        assert "alice" == (await identify(provider, good)).subject
        for claims in (
            {"email": "a@evil.example", "email_verified": True},
            {"email": "a@corp.example", "email_verified": "true"},
            {"email": "a@evil.example@corp.example", "email_verified": True},
            {},
        ):
            with pytest.raises(LoginFailed, match="email"):
                await identify(provider, token(server, **claims))


async def test_rt_12_the_same_subject_at_two_providers_is_two_users(server: DocumentServer) -> None:
    """The key of a user is issuer and subject; where nobody vouches for an issuer, it is the provider's name."""
    async with DocumentServer() as other:
        other.answers |= {"/me": (200, {"sub": "alice", "iss": server.url})}
        async with (
            authorization_server(issuer=server.url, clock=ManualClock(NOW)) as first,
            authorization_server(
                name="plain",
                token_endpoint=f"{other.url}/token",
                userinfo_endpoint=f"{other.url}/me",
                scope="read",
            ) as second,
        ):
            users = [await identify(first, token(server)), await identify(second, None)]

    assert [(server.url, "alice"), ("plain", "alice")] == [(user.issuer, user.subject) for user in users]


@pytest.mark.parametrize(
    ("claims", "subject"),
    [({}, "alice"), ({"sub": "bob"}, "bob"), ({"aud": "x"}, None), ({"iss": "x"}, None), ({"exp": 1}, None)],
)
async def test_jw_04_a_refreshed_id_token_is_judged_but_for_its_subject(
    server: DocumentServer, provider: AuthorizationServer, claims: Mapping[str, Any], subject: str | None
) -> None:
    """A bad one is ignored; a good one of another subject is shown to the caller."""
    identity = await provider.check_refreshed(token(server, **claims))

    assert subject == (identity and identity.subject)


async def test_a_refreshed_id_token_that_cannot_be_checked_is_ignored(
    server: DocumentServer, provider: AuthorizationServer
) -> None:
    """Without keys nothing is believed, and nothing fails."""
    server.answers["/jwks"] = (500, b"")

    assert await provider.check_refreshed(token(server)) is None


async def test_jw_06_a_logout_token_is_read(server: DocumentServer, provider: AuthorizationServer) -> None:
    """A good one names the session; an id token in its place is refused."""
    events: dict[str, Any] = {LOGOUT_EVENT: {}}
    good = sign(
        {"alg": "ES256", "kid": "ec-1", "typ": "logout+jwt"},
        {"iss": server.url, "aud": "client-1", "iat": NOW, "exp": NOW + 60, "jti": "j", "sid": "s", "events": events},
        ec_key(),
    )

    claims = await provider.check_logout_token(good)

    assert (server.url, None, "s", "j") == (claims.issuer, claims.subject, claims.sid, claims.jti)
    with pytest.raises(BadRequest, match="logout token"):
        await provider.check_logout_token(token(server).reveal())


async def test_tk_07_a_refresh_token_is_revoked(server: DocumentServer, provider: AuthorizationServer) -> None:
    """RFC 7009 section 2.1, with the client's own authentication."""
    assert await provider.revoke(RefreshToken("rt-1"))

    (request,) = [request for request in server.requests if request.path == "/revoke"]
    assert {"token": ["rt-1"], "token_type_hint": ["refresh_token"], "client_id": ["client-1"]} == parse_qs(
        request.content.decode()
    )
    assert "" == request.query


@pytest.mark.parametrize("status", [400, 401, 500, 503])
async def test_tk_07_a_revocation_that_fails_says_so(
    server: DocumentServer, provider: AuthorizationServer, status: int
) -> None:
    """The caller learns that the server still honours the token, and goes on."""
    server.answers["/revoke"] = (status, b"")

    with pytest.raises(ProviderError, match=str(status)):
        await provider.revoke(RefreshToken("rt-1"))


async def test_tk_07_a_server_that_cannot_revoke_isnt_asked(server: DocumentServer) -> None:
    """Without a revocation endpoint there is nothing to do."""
    async with authorization_server(token_endpoint=f"{server.url}/token") as provider:
        assert not await provider.revoke(RefreshToken("rt-1"))
    assert [] == server.requests


async def test_a_logout_goes_on_at_the_server(server: DocumentServer, provider: AuthorizationServer) -> None:
    """RP-initiated logout, without the id token in the URL unless the configuration wants it."""
    here = {"post_logout_redirect_uri": "https://app.example/", "state": "s"}
    url = await provider.end_session_url(id_token=IdToken("canary"), **here)
    async with authorization_server(issuer=server.url, end_session_id_token_hint=True) as hinting:
        hinted = await hinting.end_session_url(id_token=IdToken("it"), **here)
        alone = await hinting.end_session_url(id_token=None, post_logout_redirect_uri=None, state="s")

    assert url is not None
    assert hinted is not None
    assert alone is not None
    assert url.startswith(f"{server.url}/logout?")
    assert {"client_id": "client-1", **here} == query(url)
    assert {"client_id": "client-1", "id_token_hint": "it", **here} == query(hinted)
    assert {"client_id": "client-1"} == query(alone)


async def test_a_server_without_logout_has_no_logout_url(server: DocumentServer) -> None:
    """Where there is no end_session_endpoint, the browser goes nowhere."""
    async with authorization_server(token_endpoint=f"{server.url}/token") as provider:
        assert await provider.end_session_url(id_token=None, post_logout_redirect_uri=None, state=None) is None


async def test_a_login_at_a_server_that_is_down_is_unavailable() -> None:
    """Without metadata there is nowhere to send the browser."""
    async with DocumentServer() as server:
        url = server.url
    async with authorization_server(issuer=url) as provider:
        with pytest.raises(ProviderError):
            await provider.authorization_url(REQUEST)
        with pytest.raises(ProviderError):
            await provider.check_issuer(None)

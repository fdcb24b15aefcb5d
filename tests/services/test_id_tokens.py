"""Id tokens and logout tokens: the corpus tests/corpus/id_tokens.toml, with real keys from a real server."""

import asyncio
import base64
import json
import math
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from joserfc.jwk import Key

from broker.core.id_token import LOGOUT_EVENT, ClaimsRefused
from broker.core.provider import ProviderOptions
from broker.core.secret import AccessToken, IdToken, Secret
from broker.errors import LoginFailed, ProviderError
from broker.services.id_tokens import IdTokens, Login
from broker.services.jwks import Jwks
from broker.services.last_good import FAILURE_REST_SECONDS
from broker.services.metadata import Metadata
from broker.services.outbound import Outbound
from tests.support.clock import ManualClock
from tests.support.document_server import DocumentServer
from tests.support.forge import base64url, ec_key, ed_key, join, mac, public_jwk, public_pem, rsa_key, sign

NOW = 1_800_000_000
SECRET = "a client secret of 32 characters"
CASES: list[dict[str, Any]] = tomllib.loads(
    (Path(__file__).parent.parent / "corpus" / "id_tokens.toml").read_text("utf-8")
)["case"]
KEYS: dict[str, Key] = {"RS": rsa_key(), "PS": rsa_key(), "ES": ec_key(), "Ed": ed_key()}


@pytest.fixture
async def server() -> AsyncIterator[DocumentServer]:
    async with DocumentServer() as server:
        server.answers["/.well-known/openid-configuration"] = (
            200,
            {"issuer": server.url, "jwks_uri": f"{server.url}/jwks"},
        )
        server.answers["/jwks"] = (
            200,
            {
                "keys": [
                    {"kty": "oct", "k": base64url(b"published"), "kid": "oct-1"},
                    {"kty": "RSA", "kid": "broken"},
                    {"kty": "unheard-of", "kid": "new-1"},
                    "no key at all",
                    public_jwk(rsa_key(), "enc-1", use="enc"),
                    public_jwk(rsa_key(), "rsa-512", alg="RS512"),
                    public_jwk(rsa_key(), "rsa-1", use="sig"),
                    public_jwk(ec_key(), "ec-1"),
                    public_jwk(ed_key(), "ed-1"),
                ]
            },
        )
        yield server


@pytest.fixture
async def outbound() -> AsyncIterator[Outbound]:
    outbound = Outbound()
    yield outbound
    await outbound.close()


def checker(server: DocumentServer, outbound: Outbound, clock: ManualClock, **options: Any) -> IdTokens:
    if "id_token_algorithms" in options:
        options["id_token_algorithms"] = tuple(options["id_token_algorithms"])
    provider = ProviderOptions(issuer=server.url, client_id="client-1", client_secret=Secret(SECRET), **options)
    metadata = Metadata(provider, outbound=outbound, clock=clock, at="providers.corp")
    jwks = Jwks(metadata, outbound=outbound, clock=clock)
    return IdTokens(provider, metadata=metadata, jwks=jwks, clock=clock)


def filled(value: Any, server: DocumentServer) -> Any:
    """Put the run's values into a row's texts."""
    match value:
        case str():
            text = value.replace("{issuer}", server.url).replace("{server}", server.url)
            return text.replace("{100kB}", "x" * 100_000).replace("{surrogate}", "\ud800")
        case dict():
            return {name: filled(member, server) for name, member in value.items()}
        case list():
            return [filled(member, server) for member in value]
        case _:
            return value


def build(case: dict[str, Any], server: DocumentServer) -> str:
    """Make the token that a row describes."""
    if "token" in case:
        return str(case["token"])
    header: dict[str, Any] = {"alg": "RS256", "kid": "rsa-1", **filled(case.get("header", {}), server)}
    claims: dict[str, Any] = {
        "iss": server.url,
        "aud": "client-1",
        "sub": "alice",
        "sid": "s-1",
        "iat": NOW - 10,
        "exp": NOW + 3600,
    }
    if case.get("use") == "logout":
        claims |= {"events": {LOGOUT_EVENT: {}}, "jti": "j-1", "exp": NOW + 120}
    else:
        claims |= {"nonce": "n-1"}
    claims |= filled(case.get("claims", {}), server)
    for name in case.get("no_claims", ()):
        del claims[name]
    for name in case.get("no_header", ()):
        del header[name]
    key = KEYS.get(str(header.get("alg"))[:2], rsa_key())
    match case.get("sign", "server"):
        case "server" if case.get("refused") == "the signature" and header["kid"] == "ec-1":
            return sign(header, claims, ec_key(), "ES256")
        case "server":
            return sign(header, claims, key)
        case "none" | "unsigned":
            return join(header, claims)
        case "other":
            return sign(header, claims, rsa_key("other"), "RS256")
        case "embedded":
            other = rsa_key("other")
            return sign({**header, "jwk": public_jwk(other, "rsa-1")}, claims, other, "RS256")
        case "public-as-secret":
            return mac(header, claims, public_pem(rsa_key()))
        case "secret":
            return mac(header, claims, SECRET.encode())
        case "zeros":
            return join(header, claims, bytes(64))
        case "der":
            raw = sign(header, claims, ec_key())
            signature = base64.urlsafe_b64decode(raw.rpartition(".")[2] + "==")
            der = encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))
            return join(header, claims, der)
        case "text":
            return sign(header, b'"alice"', key)
        case "twice":
            return sign(header, json.dumps(claims).replace("{", '{"sub":"bob",', 1).encode(), key)
        case "padded":
            return f" {sign(header, claims, key)}"
        case "equals":
            return f"{sign(header, claims, key)}=="
        case unknown:
            raise AssertionError(unknown)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
async def test_jw_01_02_05_06_07_each_token_is_judged_as_the_table_says(
    case: dict[str, Any], server: DocumentServer, outbound: Outbound
) -> None:
    """Each token of the corpus is taken or refused as its row says, and no URL in it is fetched."""
    id_tokens = checker(server, outbound, ManualClock(NOW), **case.get("options", {}))
    token = build(case, server)
    login = Login(nonce="n-1", access_token=AccessToken("at-1"), parameters=case.get("login", {}).get("parameters", {}))

    refusal = None
    try:
        match case.get("use", "login"):
            case "login":
                assert "alice" == (await id_tokens.check_login(IdToken(token), login))["sub"]
            case "refreshed":
                assert "alice" == (await id_tokens.check_refreshed(IdToken(token)))["sub"]
            case "logout":
                claims = await id_tokens.check_logout(token)
                assert (server.url, "j-1", NOW + 120) == (claims.issuer, claims.jti, claims.exp)
                assert "alice" == claims.subject or "sub" in case["no_claims"]
                assert "s-1" == claims.sid or "sid" in case["no_claims"]
            case unknown:
                raise AssertionError(unknown)
    except (LoginFailed, ClaimsRefused) as fault:
        refusal = str(fault).removeprefix("id token refused: ")

    if "refused" in case:
        assert refusal is not None
        assert refusal.startswith(case["refused"])
    else:
        assert refusal is None
    assert {"/.well-known/openid-configuration", "/jwks"} >= {request.path for request in server.requests}


def test_the_corpus_is_large() -> None:
    """The corpus holds at least 50 tokens, each under a name of its own."""
    assert 50 <= len(CASES) == len({case["name"] for case in CASES})


async def test_the_access_token_hash_is_checked(server: DocumentServer, outbound: Outbound) -> None:
    """The example of OpenID Connect Core appendix A.3: this at_hash belongs to this access token."""
    id_tokens = checker(server, outbound, ManualClock(NOW))
    case = {"claims": {"at_hash": "77QmUPtjPfzWtF2AnpK9RQ"}}
    login = Login(nonce="n-1", access_token=AccessToken("jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y"), parameters={})

    assert "alice" == (await id_tokens.check_login(IdToken(build(case, server)), login))["sub"]


async def test_jw_03_500_unknown_keys_cause_one_fetch(server: DocumentServer, outbound: Outbound) -> None:
    """500 tokens by unknown keys within a second cause one further fetch; after the cooldown one more."""
    clock = ManualClock(NOW)
    id_tokens = checker(server, outbound, clock)
    await id_tokens.check_refreshed(IdToken(build({}, server)))
    tokens = [build({"sign": "other", "header": {"kid": f"unknown-{n}"}}, server) for n in range(500)]

    outcomes = await asyncio.gather(
        *(id_tokens.check_refreshed(IdToken(token)) for token in tokens), return_exceptions=True
    )
    assert {ClaimsRefused} == {type(outcome) for outcome in outcomes}
    assert 2 == server.count("/jwks")

    clock.advance(31)
    with pytest.raises(ClaimsRefused):
        await id_tokens.check_refreshed(IdToken(tokens[0]))
    assert 3 == server.count("/jwks")


@pytest.mark.parametrize(
    "answer",
    [(500, b""), (200, b"<html>"), (200, {}), (200, {"keys": []}), (200, {"keys": [{"kty": "oct", "k": "AA"}]})],
)
async def test_jw_03_a_failed_fetch_keeps_the_last_good_keys(
    server: DocumentServer, outbound: Outbound, answer: tuple[int, Any]
) -> None:
    """
    When new keys can't be had, the old ones go on checking, and of a token by an unknown key nothing is known.

    A flood of those causes one fetch; once the server is well again, a token by its new key is taken.
    """
    clock = ManualClock(NOW)
    id_tokens = checker(server, outbound, clock)
    await id_tokens.check_refreshed(IdToken(build({}, server)))
    unknown = [IdToken(build({"sign": "other", "header": {"kid": f"new-{n}"}}, server)) for n in range(500)]
    server.answers["/jwks"] = answer

    outcomes = await asyncio.gather(*map(id_tokens.check_refreshed, unknown), return_exceptions=True)
    assert all(isinstance(outcome, ProviderError) for outcome in outcomes)
    assert "alice" == (await id_tokens.check_refreshed(IdToken(build({}, server))))["sub"]
    assert 2 == server.count("/jwks")

    server.answers["/jwks"] = (200, {"keys": [public_jwk(rsa_key("other"), "new-0")]})
    clock.advance(FAILURE_REST_SECONDS)
    assert "alice" == (await id_tokens.check_refreshed(unknown[0]))["sub"]
    with pytest.raises(ClaimsRefused):
        await id_tokens.check_refreshed(unknown[1])
    assert 3 == server.count("/jwks")


@pytest.mark.parametrize("kid", ["rsa-2", "rsa-1", None])
async def test_jw_03_a_rotation_works_within_one_refetch(
    server: DocumentServer, outbound: Outbound, kid: str | None
) -> None:
    """A token by a new key is taken at once, whether the key has a new name, the old one or none."""
    id_tokens = checker(server, outbound, ManualClock(NOW))
    await id_tokens.check_refreshed(IdToken(build({}, server)))
    server.answers["/jwks"] = (200, {"keys": [public_jwk(rsa_key("new"), kid)]})
    claims = {"iss": server.url, "aud": "client-1", "sub": "alice", "iat": NOW, "exp": NOW + 60}
    header = {"alg": "RS256"} if kid is None else {"alg": "RS256", "kid": kid}

    token = sign(header, claims, rsa_key("new"))

    assert "alice" == (await id_tokens.check_refreshed(IdToken(token)))["sub"]
    assert 2 == server.count("/jwks")


def test_numbers_of_the_corpus_are_what_they_seem() -> None:
    """TOML's nan and inf reach the tokens as JSON's forbidden constants."""
    odd = {case["name"]: case["claims"]["exp"] for case in CASES if case["name"] in {"exp NaN", "exp Infinity"}}

    assert math.isnan(odd["exp NaN"])
    assert math.isinf(odd["exp Infinity"])

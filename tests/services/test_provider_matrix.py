"""Every grant, by every client authentication, in every dialect: one table, each row against a strict server."""

import itertools
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pytest

from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.client_auth import (
    AssertionOptions,
    BasicEncoding,
    ClientAuthMethod,
    ClientTokenOptions,
    TlsOptions,
)
from broker.core.oauth import FailureKind, TokenFailure, TokenOutcome, TokenSet
from broker.core.provider import Dialect, EmptyAnswer
from broker.core.secret import AccessToken, Secret
from broker.core.standing import GrantType, StandingGrantOptions
from broker.services.device_flow import DeviceAuthorization
from broker.services.provider import AuthorizationServer
from tests.support.certificates import Authority
from tests.support.clock import ManualClock
from tests.support.document_server import DocumentServer
from tests.support.doubles.strict import CLIENT_ID, CLIENT_SECRET, ISSUER, StrictServer
from tests.support.forge import ec_key, pem
from tests.support.providers import authorization_server, grant

NOW = 1_800_000_000
KEY = Secret(pem(ec_key()))


def standing(kind: GrantType, **options: Any) -> StandingGrantOptions:
    return StandingGrantOptions(provider="corp", type=kind, scope="s", **options)


Ask = Callable[[AuthorizationServer], Coroutine[Any, Any, TokenOutcome]]

GRANTS: dict[str, tuple[Ask, dict[str, str]]] = {
    "authorization_code": (
        lambda server: server.exchange_code(
            code=Secret("c"), code_verifier=Secret("v"), redirect_uri="https://app.example/cb"
        ),
        {
            "grant_type": "authorization_code",
            "code": "c",
            "code_verifier": "v",
            "redirect_uri": "https://app.example/cb",
        },
    ),
    "refresh_token": (
        lambda server: server.refresh(grant("rt +&=/ä"), DEFAULT_AUDIENCE),
        {"grant_type": "refresh_token", "refresh_token": "rt +&=/ä"},
    ),
    "refresh_token for an audience": (
        lambda server: server.refresh(grant(), Audience(resource="urn:r", audience="a", scope="s")),
        {"grant_type": "refresh_token", "refresh_token": "rt-1", "resource": "urn:r", "audience": "a", "scope": "s"},
    ),
    "client_credentials": (
        lambda server: server.first_tokens(standing(GrantType.CLIENT_CREDENTIALS), DEFAULT_AUDIENCE),
        {"grant_type": "client_credentials", "scope": "s"},
    ),
    "password": (
        lambda server: server.first_tokens(
            standing(GrantType.PASSWORD, username="ü", password=Secret("p+ &")), DEFAULT_AUDIENCE
        ),
        {"grant_type": "password", "username": "ü", "password": "p+ &", "scope": "s"},
    ),
    "jwt_bearer": (
        lambda server: server.first_tokens(standing(GrantType.JWT_BEARER, subject="u"), DEFAULT_AUDIENCE),
        {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": "…", "scope": "s"},
    ),
    "token_exchange": (
        lambda server: server.exchange_token(AccessToken("at-0"), Audience(audience="a", exchange=True)),
        {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "subject_token": "at-0",
            "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "audience": "a",
        },
    ),
    "device_code": (
        lambda server: server.device_flow.finish(
            DeviceAuthorization(
                device_code=Secret("d"),
                user_code="u",
                verification_uri="https://as.example/device",
                verification_uri_complete=None,
                expires_at=NOW + 60,
                interval_seconds=0.0,
            )
        ),
        {"grant_type": "urn:ietf:params:oauth:grant-type:device_code", "device_code": "d"},
    ),
    "session": (
        lambda server: server.authenticate_session("s-1", Audience(resource="urn:r")),
        {"session_id": "s-1", "resource": "urn:r"},
    ),
}

PLAIN = {"access_token": "at", "token_type": "Bearer", "expires_in": 600, "refresh_token": "rt-2"}

DIALECTS: dict[str, tuple[dict[str, Any], Mapping[str, Any]]] = {
    "form": ({}, PLAIN),
    "json": ({"dialect": Dialect.JSON}, PLAIN),
    "a refresh endpoint of its own": ({"refresh_endpoint": "{url}/refresh"}, PLAIN),
    "JSON without grant_type at a refresh endpoint": (
        {"dialect": Dialect.JSON, "refresh_endpoint": "{url}/refresh", "refresh_grant_type": False},
        PLAIN,
    ),
    "renamed members": (
        {"token_response": {"access_token": "data.token", "expires_in": "data.ttl", "refresh_token": "next"}},
        {"data": {"token": "at", "ttl": 600}, "next": "rt-2", "access_token": "decoy"},
    ),
    "a Java timestamp and no token_type": ({}, {**PLAIN, "token_type": None, "expires_in": (NOW + 600) * 1000}),
    "expires_at as text and bearer in lower case": (
        {},
        {"access_token": "at", "token_type": "bearer", "expires_at": str(NOW + 600), "refresh_token": "rt-2"},
    ),
    "expires_at as a date, and a refresh token without end": (
        {},
        {"access_token": "at", "expires_at": "2027-01-15T08:10:00Z", "refresh_expires_in": 0, "refresh_token": "rt-2"},
    ),
    "further parameters": ({"token_parameters": {"tenant": "acme"}}, PLAIN),
    "the scope at each refresh": ({"refresh_scope": True, "scope": "openid s"}, PLAIN),
}

METHODS = [
    *(method.value for method in ClientAuthMethod),
    "client_secret_basic raw",
]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


def client(name: str, url: str, authority: Authority) -> dict[str, Any]:
    """The options of a client that authenticates itself by the method *name*."""
    method = ClientAuthMethod(name.removesuffix(" raw"))
    options: dict[str, Any] = {
        "client_id": CLIENT_ID,
        "client_secret": Secret(CLIENT_SECRET),
        "token_endpoint_auth_method": method,
        "issuer": ISSUER,
        "discovery": False,
        "user_assertion": AssertionOptions(private_key=KEY),
    }
    if name.endswith(" raw"):
        options["basic_encoding"] = BasicEncoding.RAW
    if method is ClientAuthMethod.PRIVATE_KEY_JWT:
        options["client_assertion"] = AssertionOptions(private_key=KEY)
    if method is ClientAuthMethod.CLIENT_ACCESS_TOKEN:
        options["client_token"] = ClientTokenOptions(token_endpoint=f"{url}/client-token")
    if method is ClientAuthMethod.TLS_CLIENT_AUTH:
        leaf = authority.issue("client")
        options["tls"] = TlsOptions(
            ca_file=authority.ca_file, certificate_file=leaf.certificate_file, key_file=leaf.key_file
        )
    return options


ROWS = list(itertools.product(METHODS, DIALECTS))


@pytest.mark.parametrize(("method", "dialect"), ROWS, ids=[" / ".join(row) for row in ROWS])
async def test_each_grant_by_each_method_in_each_dialect(method: str, dialect: str, authority: Authority) -> None:
    """The strict server takes every grant's request, and each answer is read whole."""
    quirks, answer = DIALECTS[dialect]
    tls = None
    if method == "tls_client_auth":
        tls = authority.server_context(authority.issue("server"), client_certificates=True)
    strict = StrictServer(
        method=ClientAuthMethod(method.removesuffix(" raw")),
        dialect=quirks.get("dialect", Dialect.FORM),
        answer=answer,
        basic_encoding=BasicEncoding.RAW if method.endswith(" raw") else BasicEncoding.FORM,
        tls=tls,
    )
    async with strict as server:
        options = {
            name: value.format(url=server.url) if isinstance(value, str) else value for name, value in quirks.items()
        }
        options |= client(method, server.url, authority)
        options |= {"token_endpoint": f"{server.url}/token", "session_endpoint": f"{server.url}/session"}
        async with authorization_server(clock=ManualClock(NOW), **options) as provider:
            outcomes = {name: await ask(provider) for name, (ask, _) in GRANTS.items()}

    assert [] == strict.refusals
    for (name, outcome), (path, parameters) in zip(outcomes.items(), strict.accepted, strict=True):
        assert isinstance(outcome, TokenSet), outcome
        assert outcome.refresh_token is not None
        assert ("at", "rt-2", "Bearer", 600) == (
            outcome.access_token.reveal(),
            outcome.refresh_token.reveal(),
            outcome.token_type,
            outcome.expires_at - NOW,
        )
        assert expected(name, quirks) == (
            path,
            {**parameters, **({"assertion": "…"} if "assertion" in parameters else {})},
        )


def expected(name: str, quirks: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Where a grant's request goes under *quirks*, and with which parameters beside the client's proof."""
    parameters = {**GRANTS[name][1], **quirks.get("token_parameters", {})}
    if name == "session":
        return "/session", parameters
    if name == "refresh_token" and quirks.get("refresh_scope"):
        parameters["scope"] = quirks["scope"]
    if not name.startswith("refresh_token"):
        return "/token", parameters
    if not quirks.get("refresh_grant_type", True):
        del parameters["grant_type"]
    return "/refresh" if "refresh_endpoint" in quirks else "/token", parameters


def test_the_matrix_is_whole() -> None:
    """Every method of client authentication is a row, and every type of grant that the configuration knows."""
    assert {kind.value for kind in GrantType} - {"imported"} <= GRANTS.keys()
    assert {method.value for method in ClientAuthMethod} <= set(METHODS)
    assert len(GRANTS) * len(METHODS) * len(DIALECTS) > 400  # each grant is asked for in each row


INVALID_GRANT = {"error": "invalid_grant"}

REFUSALS: dict[str, tuple[dict[str, Any], tuple[int, Any], FailureKind]] = {
    "invalid_grant": ({}, (400, INVALID_GRANT), FailureKind.PERMANENT),
    "invalid_grant with status 200": ({}, (200, INVALID_GRANT), FailureKind.PERMANENT),
    "invalid_grant with status 401": ({}, (401, INVALID_GRANT), FailureKind.PERMANENT),
    "invalid_grant with status 500": ({}, (500, INVALID_GRANT), FailureKind.PERMANENT),
    "error of another name": (
        {"token_response": {"error": "fault.code"}},
        (400, {"fault": {"code": "invalid_grant"}, "error": "decoy"}),
        FailureKind.PERMANENT,
    ),
    "another permanent error": (
        {"permanent_errors": ("bad_refresh_token",)},
        (200, {"error": "bad_refresh_token"}),
        FailureKind.PERMANENT,
    ),
    "an empty 400": ({}, (400, b""), FailureKind.TRANSIENT),
    "an empty 400 that is a verdict": (
        {"empty_400": EmptyAnswer.INVALID_GRANT, "revocation_endpoint": "{url}/revoke"},
        (400, b""),
        FailureKind.PERMANENT,
    ),
    "a wrong client": ({}, (401, {"error": "invalid_client"}), FailureKind.OPERATOR),
    "a wrong scope": ({}, (400, {"error": "invalid_scope"}), FailureKind.OPERATOR),
    "a busy server": ({}, (503, {"error": "temporarily_unavailable"}), FailureKind.TRANSIENT),
    "a broken server": ({}, (502, b"<html>"), FailureKind.IN_DOUBT),
}

SPARED = {FailureKind.PERMANENT: FailureKind.OPERATOR, FailureKind.IN_DOUBT: FailureKind.TRANSIENT}
"""How a failure counts where no refresh token was presented that could end or be in doubt."""
WITHOUT_REFRESH_TOKEN = {"client_credentials", "password", "jwt_bearer", "token_exchange"}


REFUSED = [
    (name, refusal)
    for name, refusal in itertools.product(GRANTS, REFUSALS)
    if name != "device_code" or REFUSALS[refusal][2] is not FailureKind.TRANSIENT  # it asks again
]


@pytest.mark.parametrize(("name", "refusal"), REFUSED, ids=[" / ".join(row) for row in REFUSED])
async def test_each_grant_reads_each_refusal(name: str, refusal: str) -> None:
    """The class of a failure is the same for all grants, but for those that have no refresh token to lose."""
    ask, _ = GRANTS[name]
    quirks, answer, kind = REFUSALS[refusal]
    async with DocumentServer() as server:
        server.answers |= dict.fromkeys(("/token", "/session"), answer) | {"/revoke": (200, b"")}
        options = {
            key: value.format(url=server.url) if isinstance(value, str) and "{" in value else value
            for key, value in quirks.items()
        }
        options |= {"token_endpoint": f"{server.url}/token", "session_endpoint": f"{server.url}/session"}
        options |= {"client_secret": Secret(CLIENT_SECRET), "user_assertion": AssertionOptions(private_key=KEY)}
        async with authorization_server(clock=ManualClock(NOW), **options) as provider:
            outcome = await ask(provider)

    assert isinstance(outcome, TokenFailure)
    expected_kind = SPARED.get(kind, kind) if name in WITHOUT_REFRESH_TOKEN else kind
    assert expected_kind is outcome.kind

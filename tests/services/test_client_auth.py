"""The client's proofs, one method after the other."""

import base64
from typing import Any
from urllib.parse import unquote_plus

import pytest

from broker.core.client_auth import AssertionOptions, BasicEncoding, ClientAuthMethod, ClientTokenOptions, TlsOptions
from broker.core.compact_jws import read_compact
from broker.core.oauth import FailureKind, TokenFailure
from broker.core.options import OptionError
from broker.core.provider import ProviderOptions
from broker.core.secret import AccessToken, Secret
from broker.errors import ConfigError
from broker.services.client_auth import ASSERTION_TYPE, ClientAuthentication, Credentials
from broker.services.clock import SystemRandomness
from tests.support.clock import ManualClock
from tests.support.forge import ec_key, pem

NOW = 1_800_000_000
ISSUER = "https://as.example"
SECRET = "s3cr:et/ä+ %"


def authentication(method: ClientAuthMethod, **options: Any) -> ClientAuthentication:
    async def audience() -> str:
        return ISSUER

    return ClientAuthentication(
        method,
        ProviderOptions(issuer=ISSUER, token_endpoint_auth_method=method, **{"client_id": "my client:1", **options}),
        audience=audience,
        clock=ManualClock(NOW),
        randomness=SystemRandomness(),
    )


async def credentials(method: ClientAuthMethod, **options: Any) -> Credentials:
    result = await authentication(method, **options).credentials()
    assert isinstance(result, Credentials)
    return result


async def test_none_is_the_client_id_alone() -> None:
    """A public client sends client_id and nothing else."""
    result = await credentials(ClientAuthMethod.NONE)

    assert ({}, {"client_id": "my client:1"}) == (result.headers, result.parameters)


async def test_basic_encodes_both_parts_first() -> None:
    """RFC 6749 section 2.3.1: a colon, a plus and a letter outside ASCII survive the way to the server."""
    result = await credentials(ClientAuthMethod.CLIENT_SECRET_BASIC, client_secret=Secret(SECRET))

    name, _, password = base64.b64decode(result.headers["Authorization"].removeprefix("Basic ")).decode().partition(":")
    assert ("my+client%3A1", "s3cr%3Aet%2F%C3%A4%2B+%25") == (name, password)
    assert ("my client:1", SECRET) == (unquote_plus(name), unquote_plus(password))
    assert {} == result.parameters


async def test_basic_may_be_raw() -> None:
    """basic_encoding: raw sends both parts as they are."""
    result = await credentials(
        ClientAuthMethod.CLIENT_SECRET_BASIC,
        client_id="c",
        client_secret=Secret("a+b/c"),
        basic_encoding=BasicEncoding.RAW,
    )

    assert "c:a+b/c" == base64.b64decode(result.headers["Authorization"].removeprefix("Basic ")).decode()


async def test_post_puts_the_secret_into_the_body() -> None:
    """client_secret_post sends id and secret as parameters, which are a body's."""
    result = await credentials(ClientAuthMethod.CLIENT_SECRET_POST, client_secret=Secret(SECRET))

    assert ({}, {"client_id": "my client:1", "client_secret": SECRET}) == (result.headers, result.parameters)


async def test_tls_shows_the_id_and_leaves_the_proof_to_the_connection() -> None:
    """tls_client_auth sends client_id; the certificate is the connection's."""
    result = await credentials(ClientAuthMethod.TLS_CLIENT_AUTH, tls=TlsOptions(certificate_file="c.pem"))

    assert ({}, {"client_id": "my client:1"}) == (result.headers, result.parameters)


@pytest.mark.parametrize("method", [ClientAuthMethod.PRIVATE_KEY_JWT, ClientAuthMethod.CLIENT_SECRET_JWT])
async def test_tk_06_an_assertion_is_for_the_issuer_and_used_once(method: ClientAuthMethod) -> None:
    """Its iss and sub are the client, aud is the issuer, exp is near, and each request has a jti of its own."""
    client = authentication(
        method,
        client_secret=Secret(SECRET),
        client_assertion=AssertionOptions(private_key=Secret(pem(ec_key())), claims={"extra": "1"}),
    )

    first, second = await client.credentials(), await client.credentials()

    assert isinstance(first, Credentials)
    assert isinstance(second, Credentials)
    assert {} == first.headers
    assert {"client_id", "client_assertion_type", "client_assertion"} == first.parameters.keys()
    assert ASSERTION_TYPE == first.parameters["client_assertion_type"]
    claims = read_compact(first.parameters["client_assertion"]).claims()
    jti = claims.pop("jti")
    assert {
        "iss": "my client:1",
        "sub": "my client:1",
        "aud": ISSUER,
        "iat": NOW,
        "exp": NOW + 60,
        "extra": "1",
    } == claims
    assert isinstance(jti, str)
    assert 32 == len(jti)
    assert jti != read_compact(second.parameters["client_assertion"]).claims()["jti"]


async def test_an_assertion_may_be_made_as_oracle_and_apiax_want_it() -> None:
    """Audience, issuer, kid and the absence of client_id are the configuration's."""
    result = await credentials(
        ClientAuthMethod.PRIVATE_KEY_JWT,
        client_assertion=AssertionOptions(
            private_key=Secret(pem(ec_key())),
            key_id="alias",
            audience="https://identity.oraclecloud.com/",
            issuer="other",
            send_client_id=False,
        ),
    )

    jws = read_compact(result.parameters["client_assertion"])
    assert "client_id" not in result.parameters
    assert "alias" == jws.header["kid"]
    assert ("https://identity.oraclecloud.com/", "other") == (jws.claims()["aud"], jws.claims()["iss"])


class Source:
    """A source of client tokens."""

    def __init__(self, answer: AccessToken | TokenFailure) -> None:
        self.answer = answer
        self.rejected: list[AccessToken] = []

    async def get(self) -> AccessToken | TokenFailure:
        return self.answer

    def reject(self, token: AccessToken) -> None:
        self.rejected.append(token)


def with_token(source: Source | None) -> ClientAuthentication:
    async def audience() -> str:
        return ISSUER

    return ClientAuthentication(
        ClientAuthMethod.CLIENT_ACCESS_TOKEN,
        ProviderOptions(
            issuer=ISSUER,
            client_id="c",
            client_secret=Secret("s"),
            token_endpoint_auth_method=ClientAuthMethod.CLIENT_ACCESS_TOKEN,
        ),
        audience=audience,
        clock=ManualClock(NOW),
        randomness=SystemRandomness(),
        client_token=source,
    )


async def test_a_client_access_token_is_a_bearer_and_can_be_renewed() -> None:
    """The token goes into the Authorization header, and its source is told when a 401 answers it."""
    source = Source(AccessToken("cat"))
    client = with_token(source)

    result = await client.credentials()

    assert isinstance(result, Credentials)
    assert ({"Authorization": "Bearer cat"}, {}) == (result.headers, result.parameters)
    assert client.renew(result)
    assert [AccessToken("cat")] == source.rejected


async def test_without_a_client_access_token_there_are_no_credentials() -> None:
    """Why there is none is handed on; and a method that needs one doesn't start without a source."""
    failure = TokenFailure(kind=FailureKind.TRANSIENT)

    assert failure is await with_token(Source(failure)).credentials()
    with pytest.raises(ConfigError, match="client_token"):
        with_token(None)


async def test_other_proofs_are_not_renewed() -> None:
    """A 401 to a secret is not answered by sending the secret again."""
    client = authentication(ClientAuthMethod.CLIENT_SECRET_POST, client_secret=Secret("s"))
    result = await client.credentials()
    assert isinstance(result, Credentials)

    assert not client.renew(result)


def test_lk_01_credentials_hide_themselves() -> None:
    """No repr of a proof shows it."""
    shown = repr(Credentials(headers={"Authorization": "Basic canary"}, parameters={"client_secret": "canary"}))

    assert "canary" not in shown


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"token_endpoint_auth_method": ClientAuthMethod.CLIENT_SECRET_BASIC}, "client_secret"),
        ({"token_endpoint_auth_method": ClientAuthMethod.CLIENT_SECRET_JWT}, "client_secret"),
        ({"token_endpoint_auth_method": ClientAuthMethod.PRIVATE_KEY_JWT}, "client_assertion"),
        ({"token_endpoint_auth_method": ClientAuthMethod.TLS_CLIENT_AUTH}, "tls"),
        ({"token_endpoint_auth_method": ClientAuthMethod.TLS_CLIENT_AUTH, "tls": TlsOptions()}, "tls"),
        ({"token_endpoint_auth_method": ClientAuthMethod.CLIENT_ACCESS_TOKEN}, "client_secret"),
    ],
)
def test_a_method_without_its_means_is_refused(options: dict[str, Any], key: str) -> None:
    """A secret, key or certificate that a method needs must be configured."""
    with pytest.raises(OptionError) as caught:
        ProviderOptions(client_id="c", issuer=ISSUER, **options)

    assert key == caught.value.key


@pytest.mark.parametrize(
    ("options", "method"),
    [
        ({}, ClientAuthMethod.NONE),
        ({"client_secret": Secret("s")}, ClientAuthMethod.CLIENT_SECRET_BASIC),
        (
            {"client_secret": Secret("s"), "client_assertion": AssertionOptions(private_key=Secret("k"))},
            ClientAuthMethod.PRIVATE_KEY_JWT,
        ),
        (
            {"client_secret": Secret("s"), "token_endpoint_auth_method": ClientAuthMethod.CLIENT_SECRET_POST},
            ClientAuthMethod.CLIENT_SECRET_POST,
        ),
    ],
)
def test_the_method_follows_from_what_is_there(options: dict[str, Any], method: ClientAuthMethod) -> None:
    """A key means private_key_jwt, a secret Basic, nothing a public client; what is configured wins."""
    assert method is ProviderOptions(client_id="c", issuer=ISSUER, **options).auth_method


def test_client_tokens_do_not_authenticate_themselves() -> None:
    """The token that authenticates can't be what gets it."""
    with pytest.raises(OptionError):
        ClientTokenOptions(auth_method=ClientAuthMethod.CLIENT_ACCESS_TOKEN)

"""From a refusal to the key of the YAML."""

from dataclasses import fields
from typing import Any

import pytest

from broker.core import troubleshooting
from broker.core.client_auth import AssertionOptions, ClientAuthMethod, TlsOptions
from broker.core.oauth import FailureKind, TokenFailure
from broker.core.provider import ProviderOptions
from broker.core.secret import Secret
from broker.core.troubleshooting import (
    key_of_authorization_error,
    key_of_claim,
    key_to_look_at,
    yaml_path,
)

MEANS: dict[str, Any] = {
    "client_secret": Secret("s"),
    "client_assertion": AssertionOptions(private_key=Secret("k")),
    "tls": TlsOptions(certificate_file="c.pem"),
}


@pytest.mark.parametrize(
    ("method", "key"),
    [
        (ClientAuthMethod.NONE, "client_id"),
        (ClientAuthMethod.CLIENT_SECRET_BASIC, "client_secret"),
        (ClientAuthMethod.CLIENT_SECRET_POST, "client_secret"),
        (ClientAuthMethod.CLIENT_SECRET_JWT, "client_secret"),
        (ClientAuthMethod.PRIVATE_KEY_JWT, "client_assertion"),
        (ClientAuthMethod.TLS_CLIENT_AUTH, "tls"),
        (ClientAuthMethod.CLIENT_ACCESS_TOKEN, "client_token"),
    ],
)
def test_a_refused_client_points_to_its_credentials(method: ClientAuthMethod, key: str) -> None:
    """Each method has its own key to look at."""
    options = ProviderOptions(
        client_id="c", token_endpoint="https://as.example/t", token_endpoint_auth_method=method, **MEANS
    )

    for failure in (
        TokenFailure(kind=FailureKind.OPERATOR, error="invalid_client", status=401),
        TokenFailure(kind=FailureKind.OPERATOR, error="unauthorized_client", status=401),
        TokenFailure(kind=FailureKind.OPERATOR, error="unauthorized_client", status=403),
        TokenFailure(kind=FailureKind.TRANSIENT, status=401),
    ):
        assert key == key_to_look_at(failure, options)


@pytest.mark.parametrize(
    ("failure", "key"),
    [
        (TokenFailure(kind=FailureKind.OPERATOR, error="invalid_scope", status=400), "scope"),
        (TokenFailure(kind=FailureKind.OPERATOR, error="unauthorized_client", status=400), "client_id"),
        (TokenFailure(kind=FailureKind.OPERATOR, error="not_allowed", status=400), "scope"),
        (TokenFailure(kind=FailureKind.OPERATOR, error="invalid_target", status=400), "audience"),
        (TokenFailure(kind=FailureKind.TRANSIENT, status=404), "token_endpoint"),
        (TokenFailure(kind=FailureKind.OPERATOR, status=200, detail="token_type mac can't be sent"), "token_response"),
        (TokenFailure(kind=FailureKind.OPERATOR, detail="the metadata speaks for another issuer"), "issuer"),
        (TokenFailure(kind=FailureKind.PERMANENT, error="invalid_grant", status=400), None),
        (TokenFailure(kind=FailureKind.TRANSIENT, detail="nothing was sent"), None),
        (TokenFailure(kind=FailureKind.IN_DOUBT, status=502), None),
    ],
)
def test_other_refusals_point_to_theirs_or_to_nothing(failure: TokenFailure, key: str | None) -> None:
    """Only what the YAML can mend points into it."""
    assert key == key_to_look_at(failure, ProviderOptions(client_id="c", token_endpoint="https://as.example/t"))


@pytest.mark.parametrize(
    "keys",
    [
        troubleshooting._BY_METHOD,
        troubleshooting._BY_ERROR,
        troubleshooting._BY_CLAIM,
        troubleshooting._BY_AUTHORIZATION_ERROR,
    ],
)
def test_every_key_that_is_named_is_there(keys: dict[object, str]) -> None:
    """The log must not send the operator to a key that the configuration doesn't know."""
    names = {field.name.removesuffix("_seconds") for field in fields(ProviderOptions)}
    assert set() == set(keys.values()) - names - troubleshooting._ELSEWHERE.keys()


def test_a_key_is_named_by_where_it_is() -> None:
    """Most are the provider's, but not all."""
    assert "providers.corp.clock_skew" == yaml_path("corp", key_of_claim("iat"))
    assert ("allowed_parameters", "authorization_parameters") == (
        key_of_claim("acr", chosen={"acr_values"}),
        key_of_claim("acr"),
    )
    assert "providers.corp.scope" == yaml_path("corp", key_of_authorization_error("invalid_scope"))
    assert "routes.audience" == yaml_path("corp", "audience")
    assert (None, None) == (yaml_path("corp", key_of_claim("nonce")), key_of_authorization_error("access_denied"))


@pytest.mark.parametrize(
    ("method", "ahead_seconds", "key"),
    [
        (ClientAuthMethod.PRIVATE_KEY_JWT, 0.0, "client_assertion"),
        (ClientAuthMethod.PRIVATE_KEY_JWT, 30.0, "client_assertion"),
        (ClientAuthMethod.PRIVATE_KEY_JWT, 31.0, "clock_skew"),
        (ClientAuthMethod.CLIENT_SECRET_JWT, -31.0, "clock_skew"),
        (ClientAuthMethod.CLIENT_SECRET_BASIC, 600.0, "client_secret"),
    ],
)
def test_an_assertion_by_a_clock_that_is_off_is_the_clocks_fault(
    method: ClientAuthMethod, ahead_seconds: float, key: str
) -> None:
    """Only assertions have a time; a secret is wrong at any time."""
    options = ProviderOptions(
        client_id="c", token_endpoint="https://as.example/t", token_endpoint_auth_method=method, **MEANS
    )
    refused = TokenFailure(kind=FailureKind.OPERATOR, error="invalid_client", status=401, ahead_seconds=ahead_seconds)
    assert key == key_to_look_at(refused, options)

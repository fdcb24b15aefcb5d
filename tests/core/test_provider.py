"""The options of a provider: what is refused, and by which key."""

from typing import Any

import pytest

from broker.core.client_auth import AssertionOptions, Thumbprint, TlsOptions
from broker.core.options import OptionError
from broker.core.provider import ProviderOptions
from broker.core.secret import Secret

ISSUER = "https://as.example"


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"client_id": ""}, "client_id"),
        ({"issuer": None}, "issuer"),
        ({"discovery": False}, "issuer"),
        ({"token_response": {"token": "a"}}, "token_response"),
        ({"id_token_algorithms": ()}, "id_token_algorithms"),
        ({"id_token_algorithms": ("none",)}, "id_token_algorithms[0]"),
        ({"id_token_algorithms": ("RS256", "HS256")}, "id_token_algorithms"),
        ({"allowed_parameters": ("prompt", "scope")}, "allowed_parameters[1]"),
        ({"allowed_parameters": ("kc_idp_hint", "login_hints")}, "allowed_parameters[1]"),
        ({"authorization_parameters": {"prompt": "login", "nonce": "n"}}, "authorization_parameters.nonce"),
        ({"authorization_parameters": {"max_age": "1h"}}, "authorization_parameters.max_age"),
        ({"rotation_grace_seconds": -1.0}, "rotation_grace"),
        ({"rotation_grace_seconds": float("nan")}, "rotation_grace"),
        ({"token_endpoint_timeout_seconds": 0.0}, "token_endpoint_timeout"),
        ({"default_expires_in_seconds": 0.0}, "default_expires_in"),
        ({"clock_skew_seconds": 3600.0}, "clock_skew"),
        ({"idle_timeout_seconds": 0.0}, "idle_timeout"),
        ({"max_rotation_seconds": float("inf")}, "max_rotation"),
    ],
)
def test_ad_02_what_makes_no_sense_is_refused(options: dict[str, Any], key: str) -> None:
    """Each refusal names the key as the YAML spells it."""
    with pytest.raises(OptionError) as caught:
        ProviderOptions(**{"client_id": "c", "issuer": ISSUER, **options})

    assert key == caught.value.key


@pytest.mark.parametrize(
    "options",
    [
        {"issuer": ISSUER},
        {"issuer": ISSUER, "discovery": False, "token_endpoint": "https://as.example/t"},
        {"metadata_url": "https://as.example/metadata"},
        {"refresh_endpoint": "https://as.example/refresh"},
        {"issuer": ISSUER, "id_token_algorithms": ("HS256",), "client_secret": Secret("s")},
    ],
)
def test_enough_is_enough(options: dict[str, Any]) -> None:
    """An issuer to discover, or any place to get tokens from, makes a provider."""
    assert "c" == ProviderOptions(client_id="c", **options).client_id


def test_options_share_nothing_mutable() -> None:
    """What is changed in the document afterwards changes no option."""
    members = {"access_token": "data.token"}
    options = ProviderOptions(client_id="c", issuer=ISSUER, token_response=members)
    members.clear()

    assert {"access_token": "data.token"} == options.token_response
    with pytest.raises(TypeError):
        options.token_response["access_token"] = "x"  # type: ignore[index]


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: AssertionOptions(private_key=Secret("k"), pkcs12_file="f"), "pkcs12_file"),
        (lambda: AssertionOptions(private_key=Secret("k"), alg="none"), "alg"),
        (lambda: AssertionOptions(private_key=Secret("k"), lifetime_seconds=0.0), "lifetime"),
        (lambda: AssertionOptions(private_key=Secret("k"), thumbprint=Thumbprint.X5T), "thumbprint"),
        (lambda: TlsOptions(key_file="k.pem"), "certificate_file"),
    ],
)
def test_parts_are_judged_too(make: Any, key: str) -> None:
    """Assertions and TLS name their own keys."""
    with pytest.raises(OptionError) as caught:
        make()

    assert key == caught.value.key


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keep_alive_per_second", 0.0),
        ("keep_alive_per_second", float("nan")),
        ("max_concurrent_token_requests", 0),
    ],
)
def test_ad_02_a_rate_at_which_nothing_happens_is_refused(name: str, value: float) -> None:
    """With no request at a time nobody gets a token, and a rate of 0 would end the keep-alive."""
    with pytest.raises(OptionError) as caught:
        ProviderOptions(client_id="c", issuer=ISSUER, **{name: value})  # type: ignore[arg-type]

    assert name == caught.value.key

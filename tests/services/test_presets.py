"""Presets, loaded as the configuration loads them, and held to what their sources say."""

import re
from pathlib import Path
from typing import Any

import pytest

from broker.config.binding import REFUSED, Binder
from broker.config.document import parse
from broker.config.presets import with_presets
from broker.config.shapes import Options
from broker.config.sources import HostSource
from broker.core.client_auth import ClientAuthMethod
from broker.core.options import OptionError
from broker.core.provider import Dialect, ProviderOptions, Rotation
from broker.services.presets import load_preset, preset_keys, preset_names
from tests.support.forge import ec_key, pem

SECRET = "client_secret: {value: s}"
DAY = 86400.0

MINIMAL = {
    "apiax": "",
    "auth0": f"client_id: c\n{SECRET}\nbase_url: https://acme.eu.auth0.com",
    "cognito": f"client_id: c\n{SECRET}\nbase_url: https://cognito-idp.eu-west-1.amazonaws.com\ntenant: eu-west-1_Abc",
    "entra-id": f"client_id: c\n{SECRET}\ntenant: 8eaef023-2b34-4da1-9baa-8bc8c9d6a490",
    "generic-oauth2": f"client_id: c\n{SECRET}\ntoken_endpoint: https://as.example/t",
    "generic-oidc": f"client_id: c\n{SECRET}\nissuer: https://as.example",
    "github": f"client_id: c\n{SECRET}",
    "gitlab": f"client_id: c\n{SECRET}",
    "google": f"client_id: c\n{SECRET}",
    "keycloak": "client_id: c\nbase_url: https://kc.example/\nrealm: acme",
    "okta": f"client_id: c\n{SECRET}\nbase_url: https://acme.okta.com",
    "oracle-idcs": f"client_id: c\n{SECRET}\nbase_url: https://idcs-1.identity.oraclecloud.com",
    "ping": f"client_id: c\n{SECRET}\nbase_url: https://auth.pingone.eu\ntenant: env-1",
    "transmit-mosaic": f"client_id: c\n{SECRET}",
    "transmit-mosaic-backend": f"client_id: c\n{SECRET}",
}
"""The least that an operator writes for each preset, beside its name."""


def bind(yaml: str) -> tuple[Any, list[str]]:
    """Bind a provider as the configuration does; returns it and what is wrong."""
    binder = Binder(HostSource({}, Path("/")), {ProviderOptions: with_presets(preset_keys)})
    value = binder.bind(parse(yaml.encode(), file="c"), Options(ProviderOptions))
    return value, [str(problem) for problem in binder.report.problems]


def provider(name: str, more: str = "") -> ProviderOptions:
    value, problems = bind(f"preset: {name}\n{MINIMAL[name]}\n{more}")
    assert [] == problems
    assert isinstance(value, ProviderOptions)
    return value


def test_each_preset_is_known_here() -> None:
    """The fifteen presets of the documentation are there, and no other."""
    assert tuple(sorted(MINIMAL)) == preset_names()
    assert 15 == len(MINIMAL)


@pytest.mark.parametrize("name", sorted(MINIMAL))
def test_each_preset_makes_a_provider(name: str) -> None:
    """With the least that an operator writes, the preset is complete, and no placeholder is left in it."""
    options = provider(name)

    assert not re.search(r"[{}]", "".join(value for value in load_texts(options)))
    for field in ("issuer", "token_endpoint", "refresh_endpoint", "authorization_endpoint"):
        value = getattr(options, field)
        assert value is None or value.startswith("https://")


def load_texts(options: ProviderOptions) -> list[str]:
    return [value for name in ProviderOptions.__slots__ if isinstance(value := getattr(options, name), str)]


@pytest.mark.parametrize("name", sorted(MINIMAL))
def test_each_fact_has_its_source(name: str) -> None:
    """Every preset's file names where its facts come from: a URL, an RFC, a seed's title."""
    text = (Path(__file__).parents[2] / "broker" / "presets" / f"{name}.toml").read_text("utf-8")
    comments = " ".join(line for line in text.splitlines() if line.startswith("#"))

    assert re.search(r'https://|RFC \d+|OpenID Connect Core|"[A-Z]', comments)


@pytest.mark.parametrize(
    ("name", "missing"), [("keycloak", "realm"), ("entra-id", "tenant"), ("oracle-idcs", "base_url")]
)
def test_what_a_preset_needs_is_asked_for_by_name(name: str, missing: str) -> None:
    """A missing placeholder is reported under its own key."""
    lines = [line for line in MINIMAL[name].splitlines() if not line.startswith(missing)]

    value, problems = bind("\n".join([f"preset: {name}", *lines]))

    assert value is REFUSED or problems
    assert any(missing in problem for problem in problems)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    """A slip in the name gets the list; a path gets nowhere."""
    for name in ("keycloack", "../presets/keycloak", ""):
        with pytest.raises(OptionError, match="keycloak"):
            load_preset(name)


def test_every_value_can_be_overridden() -> None:
    """What the operator writes wins, key by key, within mappings too."""
    options = provider(
        "transmit-mosaic-backend",
        "base_url: https://api.eu.transmitsecurity.io\nissuer: https://eu.userid.security\nmax_rotation: 14d\n"
        "client_token: {auth_method: client_secret_basic}",
    )

    assert "https://api.eu.transmitsecurity.io/cis/v1/auth/token/refresh" == options.refresh_endpoint
    assert ("https://eu.userid.security", 14 * DAY) == (options.issuer, options.max_rotation_seconds)
    assert options.client_token is not None
    assert "https://api.eu.transmitsecurity.io/oidc/token" == options.client_token.token_endpoint
    assert ClientAuthMethod.CLIENT_SECRET_BASIC is options.client_token.auth_method


@pytest.mark.parametrize("base_url", ["https://github.com", "https://github.example"])
def test_github_has_an_issuer_to_compare_and_none_to_discover(base_url: str) -> None:
    """GitHub says who it is in authorization responses, and publishes no metadata and no id tokens."""
    options = provider("github", "" if base_url == "https://github.com" else f"base_url: {base_url}")

    assert (f"{base_url}/login/oauth", False) == (options.issuer, options.discovery)
    assert "openid" not in options.scope.split()


def test_mosaic_oidc_is_as_its_page_says() -> None:
    """Seed 001: offline_access with consent, the secret in the form, rotation on each use, 14 days in all."""
    options = provider("transmit-mosaic")

    assert "https://api.transmitsecurity.io/oidc/token" == options.token_endpoint
    assert "https://api.transmitsecurity.io/cis/oidc/auth" == options.authorization_endpoint
    assert ("openid offline_access", {"prompt": "consent"}) == (options.scope, options.authorization_parameters)
    assert ClientAuthMethod.CLIENT_SECRET_POST is options.auth_method
    assert (Rotation.STRICT, 14 * DAY) == (options.rotation, options.max_rotation_seconds)


def test_mosaic_backend_is_as_its_page_says() -> None:
    """Seed 000: JSON, no grant_type, the client's access token, a year of rotations."""
    options = provider("transmit-mosaic-backend")

    assert "https://api.transmitsecurity.io/cis/v1/auth/token/refresh" == options.refresh_endpoint
    assert (Dialect.JSON, False) == (options.dialect, options.refresh_grant_type)
    assert ClientAuthMethod.CLIENT_ACCESS_TOKEN is options.auth_method
    assert (365 * DAY, 14 * DAY) == (options.max_rotation_seconds, options.idle_timeout_seconds)


def test_apiax_is_as_its_page_says(tmp_path: Path) -> None:
    """Seed 003: a public client of the realm apiax; with a key, two factors and no client_id."""
    options = provider("apiax")
    (tmp_path / "key.pem").write_text(pem(ec_key()))
    second = provider(
        "apiax",
        "token_endpoint_auth_method: private_key_jwt\nclient_assertion:\n  alg: ES256\n"
        f"  private_key: {{file: {tmp_path}/key.pem}}",
    )

    assert (
        "https://auth.apiax.io/auth/realms/apiax/protocol/openid-connect/token",
        "integration-api",
        ClientAuthMethod.NONE,
        1800.0,
    ) == (options.token_endpoint, options.client_id, options.auth_method, options.default_expires_in_seconds)
    assert ClientAuthMethod.PRIVATE_KEY_JWT is second.auth_method
    assert second.client_assertion is not None
    assert not second.client_assertion.send_client_id


def test_oracle_is_as_its_page_says(tmp_path: Path) -> None:
    """Seed 004: the tenant's token endpoint, Basic or an assertion for the fixed audience."""
    options = provider("oracle-idcs")
    (tmp_path / "key.pem").write_text(pem(ec_key()))
    asserted = provider(
        "oracle-idcs",
        f"client_assertion: {{alg: ES256, key_id: alias, private_key: {{file: {tmp_path}/key.pem}}}}",
    )

    assert "https://idcs-1.identity.oraclecloud.com/oauth2/v1/token" == options.token_endpoint
    assert ClientAuthMethod.CLIENT_SECRET_BASIC is options.auth_method
    assert ClientAuthMethod.PRIVATE_KEY_JWT is asserted.auth_method
    assert asserted.client_assertion is not None
    assert ("https://identity.oraclecloud.com/", "alias") == (
        asserted.client_assertion.audience,
        asserted.client_assertion.key_id,
    )

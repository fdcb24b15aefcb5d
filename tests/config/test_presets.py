"""Presets in the configuration."""

from collections.abc import Mapping

import pytest

from broker.config import ConfigErrors, PretendedSource, Settings
from broker.config.binding import Binder
from broker.config.document import MappingNode, parse
from broker.config.presets import with_presets
from broker.config.problems import Report
from broker.config.shapes import Options
from broker.core.provider import ProviderOptions, Rotation
from broker.services.presets import preset_names
from tests.config.configs import settings_of


def settings(provider: str) -> Settings:
    fragment = f"providers:\n  corp:\n{provider}grants: {{}}\n"
    return settings_of(fragment, source=PretendedSource())


def problems(provider: str) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        settings(provider)
    return list(map(str, caught.value.problems))


NAMES = ", ".join(preset_names())
KEYCLOAK = "    preset: keycloak\n    client_id: spa\n    base_url: https://sso.example\n    realm: main\n"


def test_a_preset_gives_what_the_operator_left_out() -> None:
    """Its facts are read just as the operator's own keys would be, durations and all."""
    options = settings(KEYCLOAK).providers["corp"]
    assert "https://sso.example/realms/main" == options.issuer
    assert 30 * 86400.0 == options.idle_timeout_seconds


def test_what_the_operator_writes_overrides_the_preset() -> None:
    """Every value of a preset can be overridden."""
    options = settings(f"{KEYCLOAK}    rotation: none\n    idle_timeout: 1h\n").providers["corp"]
    assert (Rotation.NONE, 3600.0) == (options.rotation, options.idle_timeout_seconds)


def test_a_mapping_is_overridden_key_by_key() -> None:
    """Of a mapping, what isn't overridden stays as the preset has it."""

    def preset_keys(_name: str, _given: Mapping[str, object]) -> Mapping[str, object]:
        return {"token_parameters": {"a": "1", "b": "2"}, "permanent_errors": ["x"], "issuer": "https://a.example"}

    binder = Binder(PretendedSource(), {ProviderOptions: with_presets(preset_keys)})
    node = parse(b"{preset: acme, client_id: spa, token_parameters: {b: '3'}}", file="c")
    options = binder.bind(node, Options(ProviderOptions))
    assert [] == binder.report.problems
    assert isinstance(options, ProviderOptions)
    assert {"a": "1", "b": "3"} == options.token_parameters
    assert ("x",) == options.permanent_errors


MISSPELT = (
    f'c.yaml:3:13: providers.corp.preset: expected one of {NAMES}, found the text "keycloack" (did you mean keycloak?)'
)


@pytest.mark.parametrize(
    ("provider", "problem"),
    [
        (
            "    preset: keycloack\n    client_id: spa\n    issuer: https://a.example\n",
            MISSPELT,
        ),
        (  # nothing is said of what the preset would have brought
            "    preset: keycloack\n    client_id: spa\n    realm: main\n",
            MISSPELT,
        ),
        (
            f"{KEYCLOAK.replace('    realm: main', '')}    discovery: false\n    token_endpoint: https://a.example\n",
            "c.yaml:3:13: providers.corp.realm: expected a value: the preset needs it, found nothing: the key is missing",
        ),
        (
            "    preset: 5\n    client_id: spa\n    issuer: https://a.example\n",
            "c.yaml:3:13: providers.corp.preset: expected a text, found the number 5 (put it in quotes)",
        ),
        (
            f"{KEYCLOAK}    token_parameters: [x]\n",
            "c.yaml:7:23: providers.corp.token_parameters: expected a mapping, found a list",
        ),
    ],
)
def test_ad_02_what_a_preset_lacks_is_named(provider: str, problem: str) -> None:
    """An unknown preset, and a key that a preset needs, are named with their places."""
    assert [problem] == problems(provider)


def test_a_placeholder_of_the_wrong_type_is_named_where_it_stands() -> None:
    """A realm that is a number is refused at its own line."""
    provider = KEYCLOAK.replace("realm: main", "realm: 5") + "    issuer: https://a.example\n"
    assert ["c.yaml:6:12: providers.corp.realm: expected a text, found the number 5 (put it in quotes)"] == problems(
        provider
    )


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads(name: str) -> None:
    """Each preset, with its placeholders filled and whatever endpoints it leaves open, is a good provider."""
    text = (
        f"    preset: {name}\n    client_id: spa\n    client_secret: {{env: SECRET}}\n    base_url: https://a.example\n"
        "    realm: main\n    tenant: t1\n"
    )
    if name.startswith("generic"):
        text += "    issuer: https://a.example\n    token_endpoint: https://a.example/token\n"
    if name == "apiax":
        text += "    client_assertion: {private_key: {env: KEY}}\n"
    assert name == settings(text).providers["corp"].preset


def test_a_preset_that_is_no_configuration_is_our_own_fault() -> None:
    """A data file with a value of another kind fails loudly."""
    node = parse(b"preset: odd", file="c")
    assert isinstance(node, MappingNode)
    with pytest.raises(TypeError, match="a preset holds a bytes"):
        with_presets(lambda _name, _given: {"client_id": b"bytes"})(node, "p", Report())

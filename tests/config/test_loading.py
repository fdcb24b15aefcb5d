"""From a file to settings."""

import os
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from broker.config import ConfigErrors, HostSource, PretendedSource, Settings, load, load_for_operator, loads
from broker.core.secret import Secret
from tests.config.configs import ENVIRONMENT, over_base, settings_of

KEY = ENVIRONMENT["KEY"]


def write(directory: Path, fragment: str = "keys: [{file: key}]\n") -> Path:
    (directory / "key").write_text(f"{KEY}\n")
    (directory / "key").chmod(0o600)
    path = directory / "broker.yaml"
    path.write_text(over_base(fragment))
    return path


def test_a_file_becomes_settings(tmp_path: Path) -> None:
    """A good file is read with its secrets, whose relative paths begin beside it."""
    settings = load(write(tmp_path))
    assert (Secret(KEY),) == settings.keys
    assert "https://app.example.com" == settings.public_url.origin
    assert "spa" == settings.providers["corp"].client_id
    assert () == settings.warnings


def test_settings_are_frozen(tmp_path: Path) -> None:
    """What was read once can't be changed."""
    settings = load(write(tmp_path))
    with pytest.raises(FrozenInstanceError):
        settings.workers = 2  # type: ignore[misc]


def test_settings_hide_their_secrets(tmp_path: Path) -> None:
    """The repr of the settings shows no secret."""
    assert KEY not in repr(load(write(tmp_path)))


def test_the_process_environment_is_the_default_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``{env: NAME}`` is looked up in the environment of the process."""
    monkeypatch.setenv("KEY", KEY)
    assert (Secret(KEY),) == load(write(tmp_path, "workers: 1\n")).keys


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none.yaml", "No such file or directory"), (".", "Is a directory"), ("a\0b", "not a path")],
)
def test_ft_18_a_file_that_can_not_be_read(tmp_path: Path, name: str, reason: str) -> None:
    """A missing file is refused like a wrong one."""
    path = tmp_path / name
    with pytest.raises(ConfigErrors) as caught:
        load(path)
    shown = str(path).replace("\0", "\\u0000")
    assert f"{shown}:1:1: expected a readable file, found the error: {reason}" == str(caught.value)


def test_ft_18_a_half_written_file_is_refused_or_whole(tmp_path: Path) -> None:
    """Cut anywhere, a file is refused, unless what is left is a whole configuration by itself."""
    text = write(tmp_path).read_bytes()
    refused = 0
    for end in range(len(text)):
        try:
            settings = loads(text[:end], file="c.yaml", source=PretendedSource())
        except ConfigErrors:
            refused += 1
        else:
            assert settings.keys
    assert refused > len(text) / 2


def test_ad_02_on_reload_the_former_settings_stay(tmp_path: Path) -> None:
    """A file that has become bad raises and returns nothing, so that whoever has settings keeps them whole."""
    path = write(tmp_path)
    former = load(path)
    path.write_text("public_url: [")
    with pytest.raises(ConfigErrors):
        load(path)
    assert "https://app.example.com" == former.public_url.origin


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """A file beyond the limit is refused after the first mebibyte."""
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 1 << 40)
    with pytest.raises(ConfigErrors, match="expected a file of at most 1MiB, found a larger one"):
        load(path)


@pytest.mark.parametrize(
    ("fragment", "warnings"),
    [
        (
            "public_url: http://localhost:8080\n",
            ["c.yaml:1:13: public_url: without TLS, cookies have no Secure attribute and no prefix: for development"],
        ),
        (
            "admin: {listen: 0.0.0.0:9090}\n",
            ["c.yaml:1:17: admin.listen: other hosts reach health and metrics, and the admin API if it has a token"],
        ),
        (
            f"keys: [{{value: {KEY}}}]\n",
            ["c.yaml:1:8: keys[0]: the secret is written in the configuration itself"],
        ),
        (
            "routes: [{path: /, upstream: http://orders.internal, token: none, insecure: true}]\n",
            ["c.yaml:1:67: routes[0].insecure: Let the token go over plain HTTP to a host that isn't loopback."],
        ),
        (
            "providers: {corp: {issuer: http://idp.internal, client_id: spa, insecure: true}}\n",
            ["c.yaml:1:65: providers.corp.insecure: Allow plain http off loopback. Never in production."],
        ),
        ("routes: [{path: /, upstream: http://127.0.0.1:3000, token: none, insecure: false}]\n", []),
        ("admin: {listen: 127.0.0.1:9090}\n", []),
        (
            "store: {url: 'memory:'}\n",
            ["c.yaml:1:14: store.url: sessions and grants end with the process: for development"],
        ),
        ("store: {url: 'sqlite:///a.db'}\n", []),
    ],
)
def test_ad_03_insecure_switches_are_in_the_warnings(fragment: str, warnings: list[str]) -> None:
    """Each insecure setting is one warning, which the start-up log shows."""
    settings = settings_of(fragment, source=HostSource(ENVIRONMENT, Path("/nonexistent")))
    assert warnings == list(map(str, settings.warnings))


def test_what_can_not_come_to_anything_is_in_the_warnings() -> None:
    """No routes, and certificates that nobody may name, are good configurations that serve nobody."""
    text = over_base("callers: {certificates: {%s: {provider: corp, subject: batch}}}\n" % ("8f" * 32))
    text = "".join(f"{line}\n" for line in text.splitlines() if not line.startswith("routes:"))
    settings = loads(text.encode(), file="c.yaml", source=PretendedSource())
    assert [
        "c.yaml:1:1: routes: there are none, so nothing is forwarded: all paths but the broker's own answer 404",
        "c.yaml:1:25: callers.certificates: nobody can show one, since Client-Cert is believed of `trusted_proxies` alone",
    ] == list(map(str, settings.warnings))
    settings = loads(f"trusted_proxies: [10.0.0.0/8]\n{text}".encode(), file="c.yaml", source=PretendedSource())
    assert ["routes"] == [notice.key for notice in settings.warnings]


def test_the_base_path_reaches_the_login() -> None:
    """The one key ``base_path`` is the login's base path, too."""
    settings = settings_of("base_path: /auth\n", source=HostSource(ENVIRONMENT, Path("/nonexistent")))
    assert "/auth" == settings.login.base_path


def test_a_preset_source_needs_nothing(tmp_path: Path) -> None:
    """With pretended secrets a configuration is checked where its secrets are not."""
    settings = load(write(tmp_path, "keys: [{file: /run/secrets/none}, {env: NONE}]\n"), source=PretendedSource())
    assert 2 == len(settings.keys)
    assert isinstance(settings, Settings)


def test_an_operators_command_needs_the_admin_token_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell under another user hasn't got the broker's secrets; the token is never pretended."""
    monkeypatch.delenv("KEY", raising=False)
    monkeypatch.setenv("ADMIN_TOKEN", "t" * 43)
    rest = "keys: [{file: /run/secrets/none}, {env: KEY}]\ntls: {certificate_file: none.pem, key_file: none.key}\n"
    plain = "v" * 43
    for reference, obtained in (
        ("{env: ADMIN_TOKEN}", "t" * 43),
        ("{file: token}", "f" * 43),
        (f"{{value: {plain}}}", plain),
    ):
        path = write(tmp_path, f"{rest}admin: {{token: {reference}}}\n")
        (tmp_path / "token").write_text("f" * 43)
        assert Secret(obtained) == load_for_operator(path).admin.token
    assert load_for_operator(write(tmp_path, rest)).admin.token is None

    for missing in ("{env: NONE}", "{file: none}"):
        with pytest.raises(ConfigErrors) as refused:
            load_for_operator(write(tmp_path, f"{rest}admin: {{token: {missing}}}\n"))
        assert ["admin.token"] == [problem.key for problem in refused.value.problems]


@pytest.mark.parametrize("text", ["", "[]", "admin: x\n", "admin: {token: x}\n", "admin: {token: {env: [1]}}\n"])
def test_an_operators_command_refuses_what_check_refuses(tmp_path: Path, text: str) -> None:
    """What isn't a configuration isn't looked into."""
    path = write(tmp_path)
    path.write_text(text and over_base(text) if text != "[]" else text)
    with pytest.raises(ConfigErrors):
        load_for_operator(path)

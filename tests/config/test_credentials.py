"""Certificates and keys that can't be used are mistakes of the configuration, each with its whole key."""

from pathlib import Path

import pytest

from broker.config import ConfigErrors, HostSource, PretendedSource
from tests.config.configs import ENVIRONMENT, settings_of
from tests.support.certificates import Authority
from tests.support.forge import ec_key, pem

PROVIDER = "issuer: 'https://idp.example.com', client_id: spa"
ROUTE = "path: /, token: none"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Certificates and keys, and one file that is neither."""
    authority = Authority(tmp_path, "ca")
    for name in ("own", "other"):
        authority.issue(name)
    authority.issue("encrypted", password=b"hunter2")
    (tmp_path / "junk.pem").write_text("hunter2")
    (tmp_path / "signing.key").write_text(pem(ec_key()))
    return tmp_path


def problems_of(fragment: str, directory: Path) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        settings_of(fragment, source=HostSource(ENVIRONMENT, directory))
    assert "hunter2" not in str(caught.value)
    return [f"{problem.key}: expected {problem.expected}" for problem in caught.value.problems]


CASES = {
    "the listener's key": (
        "tls: {certificate_file: own.pem, key_file: other.key}",
        "tls.key_file: expected the private key of the certificate in certificate_file",
    ),
    "the listener's certificate": (
        "tls: {certificate_file: junk.pem, key_file: own.key}",
        "tls.certificate_file: expected certificates in PEM form",
    ),
    "the password of the listener's key": (
        "tls: {certificate_file: encrypted.pem, key_file: encrypted.key}",
        "tls.key_password: expected the password of the encrypted key in key_file",
    ),
    "the listener's authority": (
        "tls: {certificate_file: own.pem, key_file: own.key, client_ca_file: junk.pem}",
        "tls.client_ca_file: expected certificates in PEM form",
    ),
    "a provider's authority": (
        f"providers: {{corp: {{{PROVIDER}, tls: {{ca_file: junk.pem}}}}}}",
        "providers.corp.tls.ca_file: expected certificates in PEM form",
    ),
    "a client certificate": (
        f"providers: {{corp: {{{PROVIDER}, tls: {{certificate_file: own.pem, key_file: other.key}}}}}}",
        "providers.corp.tls.key_file: expected the private key of the certificate in certificate_file",
    ),
    "an upstream's authority": (
        f"routes: [{{{ROUTE}, upstream: {{urls: ['https://a.example'], tls: {{ca_file: junk.pem}}}}}}]",
        "routes[0].upstream.tls.ca_file: expected certificates in PEM form",
    ),
    "the store's authority": (
        "store: {url: 'rediss://redis.internal', tls: {ca_file: junk.pem}}",
        "store.tls.ca_file: expected certificates in PEM form",
    ),
    "the client certificate for the store": (
        "store: {url: 'rediss://redis.internal', tls: {cert_file: encrypted.pem, key_file: encrypted.key}}",
        "store.tls.key_password: expected the password of the encrypted key in key_file",
    ),
    "the key of assertions": (
        f"providers: {{corp: {{{PROVIDER}, client_assertion: {{private_key: {{file: junk.pem}}}}}}}}",
        "providers.corp.client_assertion.private_key: expected a private key in PEM form, or one JWK",
    ),
    "the key of assertions about users": (
        f"providers: {{corp: {{{PROVIDER}, user_assertion: {{private_key: {{file: encrypted.key}}}}}}}}",
        "providers.corp.user_assertion.password: expected the password of private_key, which is encrypted",
    ),
    "the algorithm of assertions": (
        f"providers: {{corp: {{{PROVIDER}, client_assertion: {{private_key: {{file: signing.key}}, alg: RS256}}}}}}",
        "providers.corp.client_assertion.alg: expected an algorithm that fits the key",
    ),
}


@pytest.mark.parametrize(("fragment", "problem"), CASES.values(), ids=CASES)
def test_cr_07_what_can_not_be_used_is_refused(directory: Path, fragment: str, problem: str) -> None:
    """What the start couldn't load is no good configuration."""
    assert [problem] == problems_of(f"{fragment}\n", directory)


def test_all_are_told_at_once(directory: Path) -> None:
    """One bad file hides no other, nor another kind of mistake."""
    fragment = "tls: {certificate_file: junk.pem}\nstore: {url: 'rediss://a', tls: {ca_file: junk.pem}}\nworkers: 0.5\n"
    assert ["tls.certificate_file", "store.tls.ca_file", "workers"] == [
        problem.partition(":")[0] for problem in problems_of(fragment, directory)
    ]


def test_what_can_be_used_is_taken(directory: Path) -> None:
    """Each of these places with files that fit."""
    pair = "certificate_file: own.pem, key_file: own.key"
    settings = settings_of(
        f"tls: {{{pair}, client_ca_file: ca.pem}}\n"
        f"store: {{url: 'rediss://a', tls: {{ca_file: ca.pem, cert_file: own.pem, key_file: own.key}}}}\n"
        f"providers: {{corp: {{{PROVIDER}, tls: {{ca_file: ca.pem, {pair}}}, "
        "client_assertion: {private_key: {file: signing.key}}}}\n"
        f"routes: [{{{ROUTE}, upstream: {{urls: ['https://a.example'], tls: {{ca_file: ca.pem}}}}}}]\n",
        source=HostSource(ENVIRONMENT, directory),
    )
    assert settings.tls is not None


def test_what_is_pretended_is_not_loaded() -> None:
    """Where the files aren't, nothing is said of them."""
    for fragment, _ in CASES.values():
        assert settings_of(f"{fragment}\n", source=PretendedSource()).keys

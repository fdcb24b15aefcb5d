"""Keys that the broker signs with."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from joserfc.jwk import Key, OctKey

from broker.core.client_auth import AssertionOptions, Thumbprint
from broker.core.compact_jws import read_compact
from broker.core.secret import Secret
from broker.errors import ConfigError
from broker.services.id_tokens import verify
from broker.services.signing import load_signing_key, sign_by_secret
from tests.support.certificates import Authority
from tests.support.forge import base64url, ec_key, ed_key, pem, rsa_key


@pytest.mark.parametrize(
    ("key", "alg", "expected"),
    [
        (rsa_key(), None, "RS256"),
        (rsa_key(), "PS384", "PS384"),
        (ec_key(), None, "ES256"),
        (ec_key("P-384"), None, "ES384"),
        (ec_key("P-521"), None, "ES512"),
        (ed_key(), None, "EdDSA"),
        (ed_key(), "Ed25519", "Ed25519"),
    ],
)
@pytest.mark.parametrize("form", ["pem", "jwk"])
def test_each_kind_of_key_signs(key: Key, alg: str | None, expected: str, form: str) -> None:
    """RSA, EC and Ed25519 keys, in PEM or as a JWK, sign by their algorithm, and the public half checks it."""
    text = pem(key) if form == "pem" else json.dumps(key.as_dict(private=True))
    signing = load_signing_key(AssertionOptions(private_key=Secret(text), alg=alg, key_id="k-1"))

    jws = read_compact(signing.sign({"sub": "c"}))

    assert {"alg": expected, "typ": "JWT", "kid": "k-1"} == jws.header
    assert {"sub": "c"} == jws.claims()
    assert verify(jws, expected, key)


def test_a_jwk_brings_its_own_name() -> None:
    """The kid of a JWK is used where none is configured."""
    jwk = {**ec_key().as_dict(private=True), "kid": "own"}

    signing = load_signing_key(AssertionOptions(private_key=Secret(json.dumps(jwk))))

    assert "own" == read_compact(signing.sign({})).header["kid"]


def test_a_public_half_shows_nothing_private() -> None:
    """The public JWK has no private member, and the key's repr no member at all."""
    signing = load_signing_key(AssertionOptions(private_key=Secret(pem(ec_key()))))

    assert {"kty", "crv", "x", "y"} == signing.public_jwk().keys()
    assert "SigningKey(ES256)" == repr(signing)


@pytest.mark.parametrize(("thumbprint", "digest"), [(Thumbprint.X5T, "sha1"), (Thumbprint.X5T_S256, "sha256")])
def test_a_certificate_is_named_by_its_thumbprint(thumbprint: Thumbprint, digest: str, tmp_path: Path) -> None:
    """x5t is the SHA-1, x5t#S256 the SHA-256 of the certificate in DER (RFC 7515 sections 4.1.7 and 4.1.8)."""
    leaf = Authority(tmp_path).issue("client")
    der = x509.load_pem_x509_certificate(Path(leaf.certificate_file).read_bytes()).public_bytes(
        serialization.Encoding.DER
    )
    signing = load_signing_key(
        AssertionOptions(
            private_key=Secret(Path(leaf.key_file).read_text("utf-8")),
            certificate_file=leaf.certificate_file,
            thumbprint=thumbprint,
        )
    )

    assert base64url(hashlib.new(digest, der).digest()) == read_compact(signing.sign({})).header[thumbprint]


def test_a_pkcs12_file_brings_key_and_certificate(tmp_path: Path) -> None:
    """A PKCS#12 file opens with its password; its certificate gives the thumbprint."""
    leaf = Authority(tmp_path).issue("client")
    key = serialization.load_pem_private_key(Path(leaf.key_file).read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    certificate = x509.load_pem_x509_certificate(Path(leaf.certificate_file).read_bytes())
    path = tmp_path / "client.p12"
    path.write_bytes(
        pkcs12.serialize_key_and_certificates(
            b"client",
            key,
            certificate,
            None,
            serialization.BestAvailableEncryption(b"right"),
        )
    )
    options: dict[str, Any] = {"pkcs12_file": str(path), "thumbprint": Thumbprint.X5T_S256}

    header = read_compact(load_signing_key(AssertionOptions(**options, password=Secret("right"))).sign({})).header

    assert "x5t#S256" in header
    with pytest.raises(ConfigError, match="pkcs12_file"):
        load_signing_key(AssertionOptions(**options, password=Secret("wrong")))


def test_an_encrypted_key_opens_by_its_password() -> None:
    """PKCS#8 with a password is read with it, and refused without."""
    private = ec_key().private_key
    assert private is not None
    text = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"right"),
    ).decode()

    assert "ES256" == load_signing_key(AssertionOptions(private_key=Secret(text), password=Secret("right"))).alg
    for password in (None, Secret("wrong")):
        with pytest.raises(ConfigError, match=r"^user_assertion\.password: ") as caught:
            load_signing_key(AssertionOptions(private_key=Secret(text), password=password), within="user_assertion")
        assert "wrong" not in str(caught.value)


def test_a_password_without_an_encrypted_key_is_told() -> None:
    """Whoever configured it thinks that the key is protected."""
    with pytest.raises(ConfigError, match=r"^client_assertion\.password: expected no password"):
        load_signing_key(AssertionOptions(private_key=Secret(pem(ec_key())), password=Secret("idle")))


def small_rsa() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - it is there to be refused
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "private_key"),
        ({"private_key": ""}, "private_key"),
        ({"private_key": "canary"}, "private_key"),
        ({"private_key": "-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----"}, "private_key"),
        ({"private_key": '{"kty":"RSA","d":"canary"}'}, "private_key"),
        ({"private_key": json.dumps(ec_key().as_dict(private=False))}, "private_key"),
        ({"private_key": json.dumps(OctKey.generate_key(256).as_dict(private=True))}, "private_key"),
        ({"private_key": small_rsa()}, "private_key"),
        ({"private_key": pem(ec_key()), "alg": "RS256"}, "alg"),
        ({"private_key": pem(ec_key()), "alg": "ES384"}, "alg"),
        ({"private_key": pem(ec_key()), "certificate_file": "/nonexistent"}, "certificate_file"),
        ({"pkcs12_file": "/nonexistent"}, "pkcs12_file"),
    ],
)
def test_a_key_that_cannot_sign_stops_the_start(options: dict[str, Any], named: str) -> None:
    """The error names the YAML's key and shows nothing of the secret."""
    if "private_key" in options:
        options = {**options, "private_key": Secret(options["private_key"])}

    with pytest.raises(ConfigError, match=f"client_assertion.{named}") as caught:
        load_signing_key(AssertionOptions(**options))
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_a_secret_makes_macs(alg: str) -> None:
    """client_secret_jwt is a MAC by the bytes of the secret."""
    jws = read_compact(sign_by_secret(Secret("a client secret of 32 characters"), alg, {"sub": "c"}))
    key = OctKey.import_key(
        {"kty": "oct", "k": base64.urlsafe_b64encode(b"a client secret of 32 characters").decode().rstrip("=")}
    )

    assert alg == jws.header["alg"]
    assert verify(jws, alg, key)

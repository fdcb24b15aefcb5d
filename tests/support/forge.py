"""Makes JWTs, good ones and every kind of bad one."""

import base64
import functools
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey
from joserfc.jws import JWSRegistry


def base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def join(header: Mapping[str, Any], claims: Mapping[str, Any] | bytes, signature: bytes = b"") -> str:
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    return f"{base64url(json.dumps(header).encode())}.{base64url(payload)}.{base64url(signature)}"


def sign(header: Mapping[str, Any], claims: Mapping[str, Any] | bytes, key: Key, alg: str | None = None) -> str:
    """Sign by *alg*, whatever the header says."""
    signing_input = join(header, claims).rpartition(".")[0]
    signature = JWSRegistry.algorithms[alg or str(header["alg"])].sign(signing_input.encode(), key)
    return f"{signing_input}.{base64url(signature)}"


def mac(header: Mapping[str, Any], claims: Mapping[str, Any] | bytes, secret: bytes) -> str:
    signing_input = join(header, claims).rpartition(".")[0]
    digest = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}[str(header["alg"])]
    return f"{signing_input}.{base64url(hmac.new(secret, signing_input.encode(), digest).digest())}"


@functools.cache
def rsa_key(name: str = "rsa") -> RSAKey:
    """A key that is made once per run, since RSA keys take time."""
    del name
    return RSAKey.import_key(rsa.generate_private_key(public_exponent=65537, key_size=2048))


@functools.cache
def ec_key(curve: str = "P-256", name: str = "ec") -> ECKey:
    del name
    return ECKey.generate_key(curve)


@functools.cache
def ed_key(name: str = "ed") -> OKPKey:
    del name
    return OKPKey.generate_key("Ed25519")


def public_jwk(key: Key, kid: str | None = None, **members: str) -> dict[str, Any]:
    """The public half as a member of a JWK set."""
    jwk: dict[str, Any] = {**key.as_dict(private=False), **members}
    jwk.pop("kid", None)
    return jwk if kid is None else {**jwk, "kid": kid}


def pem(key: Key) -> str:
    """The private key in PKCS#8."""
    private = key.private_key
    assert private is not None
    assert not isinstance(private, bytes)
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def public_pem(key: RSAKey) -> bytes:
    return key.public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

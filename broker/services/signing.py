"""
Keys that the broker signs with, and the JWTs it makes: client assertions, user assertions, proofs of possession.

This and ``keyring`` are the only modules that handle private keys.
"""

import base64
import hashlib
import hmac
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, JWKRegistry, Key, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from broker.core.client_auth import AssertionOptions, Thumbprint
from broker.core.json_object import read_object
from broker.core.secret import Secret
from broker.errors import ConfigError

_CURVE_ALGORITHMS = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
_HMAC = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}
_CERTIFICATE_HASHES = {Thumbprint.X5T: hashes.SHA1, Thumbprint.X5T_S256: hashes.SHA256}


class SigningKey:
    """A private key with the algorithm and the header that its signatures carry. It never shows itself."""

    def __init__(self, key: Key, alg: str, header: Mapping[str, str]) -> None:
        self._key = key
        self.alg = alg
        self.header = header

    def __repr__(self) -> str:
        return f"SigningKey({self.alg})"

    def public_jwk(self) -> dict[str, object]:
        """Return the public half as a JWK."""
        return cast("dict[str, object]", self._key.as_dict(private=False))

    def sign(self, claims: Mapping[str, object], *, header: Mapping[str, object] | None = None) -> str:
        """Return *claims* as a signed JWT in compact form, with *header* beside the key's own."""
        signing_input = _signing_input({"alg": self.alg, **self.header, **(header or {})}, claims)
        return f"{signing_input}.{_base64url(JWSRegistry.algorithms[self.alg].sign(signing_input.encode(), self._key))}"


def sign_by_secret(secret: Secret, alg: str, claims: Mapping[str, object]) -> str:
    """Return *claims* as a JWT with a MAC by a client secret (``client_secret_jwt``)."""
    signing_input = _signing_input({"alg": alg, "typ": "JWT"}, claims)
    return f"{signing_input}.{_base64url(mac(secret, alg, signing_input.encode()))}"


def mac(secret: Secret, alg: str, signing_input: bytes) -> bytes:
    """Return the MAC of *signing_input* by HS256, HS384 or HS512 (RFC 7518 section 3.2)."""
    return hmac.new(secret.reveal().encode(), signing_input, _HMAC[alg]).digest()


def load_signing_key(options: AssertionOptions) -> SigningKey:
    """
    Return the key that *options* name.

    Raises:
        ConfigError: If it can't be read, or doesn't fit its algorithm. The text names the key of the YAML.
    """
    password = None if options.password is None else options.password.reveal().encode()
    key, certificate = _read_pkcs12(options.pkcs12_file, password) if options.pkcs12_file else _read(options, password)
    if not key.is_private:
        raise ConfigError("client_assertion.private_key: the key is a public one")
    alg = options.alg or _default_algorithm(key)
    try:
        JWSRegistry.algorithms[alg].check_key(key)
    except JoseError as fault:
        raise ConfigError(f"client_assertion.alg: {alg} doesn't fit the key") from fault
    header: dict[str, str] = {"typ": "JWT"}
    key_id = options.key_id or key.get("kid")
    if isinstance(key_id, str):
        header["kid"] = key_id
    if options.thumbprint is not None and certificate is not None:
        header[options.thumbprint] = _base64url(certificate.fingerprint(_CERTIFICATE_HASHES[options.thumbprint]()))
    return SigningKey(key, alg, header)


def _read(options: AssertionOptions, password: bytes | None) -> tuple[Key, x509.Certificate | None]:
    if options.private_key is None:
        raise ConfigError("client_assertion.private_key: there is no key")
    certificate = None
    if options.certificate_file is not None:
        try:
            certificate = x509.load_pem_x509_certificate(Path(options.certificate_file).read_bytes())
        except (OSError, ValueError) as fault:
            raise ConfigError(f"client_assertion.certificate_file: {type(fault).__name__}") from fault
    text = options.private_key.reveal().strip().encode()
    try:
        if text.startswith(b"{"):
            with warnings.catch_warnings():
                warnings.simplefilter("error", SecurityWarning)
                return JWKRegistry.import_key(read_object(text) or {}), certificate  # type: ignore[arg-type]
        return _wrapped(serialization.load_pem_private_key(text, password)), certificate
    except (JoseError, ValueError, TypeError, SecurityWarning) as fault:
        # The fault's text may quote the key, and so may its chain.
        raise ConfigError(f"client_assertion.private_key: neither PEM nor a JWK ({type(fault).__name__})") from None


def _read_pkcs12(path: str, password: bytes | None) -> tuple[Key, x509.Certificate | None]:
    try:
        private_key, certificate, _chain = pkcs12.load_key_and_certificates(Path(path).read_bytes(), password)
        return _wrapped(private_key), certificate
    except (OSError, ValueError, TypeError) as fault:
        raise ConfigError(f"client_assertion.pkcs12_file: {type(fault).__name__}: {fault}") from None


def _wrapped(key: object) -> Key:
    match key:
        case rsa.RSAPrivateKey() if key.key_size >= 2048:
            return RSAKey.import_key(key)
        case ec.EllipticCurvePrivateKey():
            return ECKey.import_key(key)
        case ed25519.Ed25519PrivateKey():
            return OKPKey.import_key(key)
        case _:
            raise ValueError("no RSA key of 2048 bits or more, no EC and no Ed25519 key")


def _default_algorithm(key: Key) -> str:
    match key:
        case RSAKey():
            return "RS256"
        case ECKey():
            return _CURVE_ALGORITHMS.get(key.curve_name, "ES256")
        case OKPKey():
            return "EdDSA"
        case _:
            raise ConfigError("client_assertion.private_key: a shared secret belongs into client_secret")


def _signing_input(header: Mapping[str, object], claims: Mapping[str, object]) -> str:
    return ".".join(
        _base64url(json.dumps(part, separators=(",", ":")).encode()) for part in (dict(header), dict(claims))
    )


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")

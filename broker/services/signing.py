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
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, JWKRegistry, Key, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from broker.core.client_auth import AssertionOptions, Thumbprint
from broker.core.json_object import read_object
from broker.core.secret import Secret
from broker.errors import UnusableCredential

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


def load_signing_key(options: AssertionOptions, *, within: str = "client_assertion") -> SigningKey:
    """
    Return the key that *options* name.

    Args:
        options: Where the key is, and how it signs.
        within: Where the options are, for the error: ``user_assertion``.

    Raises:
        UnusableCredential: If it can't be read, or doesn't fit its algorithm.
    """
    try:
        return _load(options)
    except _Refusal as refusal:
        # What was caught may quote the key, and so may its chain.
        raise UnusableCredential.at(
            refusal.key, within=within, expected=refusal.expected, found=refusal.found
        ) from None


class _Refusal(Exception):
    """An option that can't be applied: its key, and what was expected and found."""

    def __init__(self, key: str, *, expected: str, found: str) -> None:
        super().__init__(key)
        self.key = key
        self.expected = expected
        self.found = found


def _load(options: AssertionOptions) -> SigningKey:
    password = None if options.password is None else options.password.reveal().encode()
    key, certificate = _read_pkcs12(options.pkcs12_file, password) if options.pkcs12_file else _read(options, password)
    if not key.is_private:
        raise _Refusal("private_key", expected="a private key", found="the public half of one")
    alg = options.alg or _default_algorithm(key)
    try:
        JWSRegistry.algorithms[alg].check_key(key)
    except JoseError:
        raise _Refusal("alg", expected="an algorithm that fits the key", found=alg) from None
    header: dict[str, str] = {"typ": "JWT"}
    key_id = options.key_id or key.get("kid")
    if isinstance(key_id, str):
        header["kid"] = key_id
    if options.thumbprint is not None and certificate is not None:
        header[options.thumbprint] = _base64url(certificate.fingerprint(_CERTIFICATE_HASHES[options.thumbprint]()))
    return SigningKey(key, alg, header)


def _read(options: AssertionOptions, password: bytes | None) -> tuple[Key, x509.Certificate | None]:
    if options.private_key is None:
        raise _Refusal("private_key", expected="a private key", found="nothing: the key is missing")
    certificate = None
    if options.certificate_file is not None:
        try:
            certificate = x509.load_pem_x509_certificate(Path(options.certificate_file).read_bytes())
        except OSError as fault:
            raise _unreadable("certificate_file", fault) from None
        except ValueError:
            found = "a file without any, or with a broken one"
            raise _Refusal("certificate_file", expected="a certificate in PEM form", found=found) from None
    text = options.private_key.reveal().strip().encode()
    return (_read_jwk(text) if text.startswith(b"{") else _read_pem(text, password)), certificate


def _read_jwk(text: bytes) -> Key:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SecurityWarning)
        try:
            return JWKRegistry.import_key(read_object(text) or {})  # type: ignore[arg-type]
        except (JoseError, ValueError, TypeError, SecurityWarning):
            raise _Refusal("private_key", expected="a JWK that can be used", found="another JSON text") from None


def _read_pem(text: bytes, password: bytes | None) -> Key:
    try:
        key = serialization.load_pem_private_key(text, password)
    except TypeError:  # the one fault that tells whether the key is encrypted
        if password is None:
            expected, found = "the password of private_key, which is encrypted", "nothing: the key is missing"
        else:
            expected, found = "no password, since private_key isn't encrypted", "one"
        raise _Refusal("password", expected=expected, found=found) from None
    except ValueError:
        if b"ENCRYPTED" in text and password is not None:  # RFC 7468 section 11, RFC 1421 section 4.6.1.1
            raise _Refusal("password", expected="the password of private_key", found="another one") from None
        found = "a text that is neither, or broken"
        raise _Refusal("private_key", expected="a private key in PEM form, or one JWK", found=found) from None
    except UnsupportedAlgorithm:
        raise _weak("private_key") from None
    return _wrapped(key, "private_key")


def _read_pkcs12(path: str, password: bytes | None) -> tuple[Key, x509.Certificate | None]:
    try:
        private_key, certificate, _chain = pkcs12.load_key_and_certificates(Path(path).read_bytes(), password)
    except OSError as fault:
        raise _unreadable("pkcs12_file", fault) from None
    except (ValueError, TypeError):
        # A wrong password and a broken file look alike in this format.
        expected, found = "a PKCS#12 file that `password` opens", "another password, or no such file"
        raise _Refusal("pkcs12_file", expected=expected, found=found) from None
    except UnsupportedAlgorithm:
        raise _weak("pkcs12_file") from None
    return _wrapped(private_key, "pkcs12_file"), certificate


def _unreadable(key: str, fault: OSError) -> _Refusal:
    return _Refusal(key, expected="a readable file", found=f"the error: {fault.strerror}")


def _weak(key: str) -> _Refusal:
    return _Refusal(key, expected="an RSA key of 2048 bits or more, an EC key or an Ed25519 key", found="another one")


def _wrapped(key: object, option: str) -> Key:
    match key:
        case rsa.RSAPrivateKey() if key.key_size >= 2048:
            return RSAKey.import_key(key)
        case ec.EllipticCurvePrivateKey():
            try:
                return ECKey.import_key(key)
            except (JoseError, ValueError, KeyError):  # a curve that no JWS algorithm knows
                raise _weak(option) from None
        case ed25519.Ed25519PrivateKey():
            return OKPKey.import_key(key)
        case _:
            raise _weak(option)


def _default_algorithm(key: Key) -> str:
    match key:
        case RSAKey():
            return "RS256"
        case ECKey():
            return _CURVE_ALGORITHMS.get(key.curve_name, "ES256")
        case OKPKey():
            return "EdDSA"
        case _:
            expected = "a private key; a shared secret belongs into `client_secret`"
            raise _Refusal("private_key", expected=expected, found="a shared secret")


def _signing_input(header: Mapping[str, object], claims: Mapping[str, object]) -> str:
    return ".".join(
        _base64url(json.dumps(part, separators=(",", ":")).encode()) for part in (dict(header), dict(claims))
    )


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")

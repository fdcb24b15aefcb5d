"""Which option is at fault when a certificate or its key can't be used."""

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from broker.certificates import Identity, reading_certificates
from broker.core.secret import Secret
from broker.errors import UnusableCredential
from tests.support.certificates import Authority

BROKEN = "-----BEGIN {0}-----\nAAAA\n-----END {0}-----\n"


class Files:
    """A certificate with its key, another one, an encrypted one, and what is none."""

    def __init__(self, directory: Path) -> None:
        authority = Authority(directory)
        self.ca_file = authority.ca_file
        own, other = authority.issue("own"), authority.issue("other")
        encrypted = authority.issue("encrypted", password=b"right")
        self.certificate, self.key = own.certificate_file, own.key_file
        self.other_key = other.key_file
        self.encrypted, self.encrypted_key = encrypted.certificate_file, encrypted.key_file
        self.junk = self._write(directory / "junk", "junk")
        self.broken = self._write(directory / "broken.pem", BROKEN.format("CERTIFICATE"))
        self.broken_key = self._write(directory / "broken.key", BROKEN.format("PRIVATE KEY"))
        self.both = self._write(directory / "both.pem", Path(self.certificate).read_text() + Path(self.key).read_text())
        self.none = str(directory / "none")
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.rsa_key = self._write(
            directory / "rsa.key",
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            ).decode(),
        )

    @staticmethod
    def _write(path: Path, text: str) -> str:
        path.write_text(text)
        return str(path)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def load(certificate: str, key: str | None, password: str | None = None) -> None:
    Identity(
        certificate_file=certificate,
        key_file=key,
        key_password=None if password is None else Secret(password),
        within="tls",
    ).load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


CASES: dict[str, tuple[Callable[[Files], tuple[str | None, ...]], str]] = {
    "another key": (
        lambda files: (files.certificate, files.other_key),
        "tls.key_file: expected the private key of the certificate in certificate_file, found that of another one",
    ),
    "a key of another kind": (
        lambda files: (files.certificate, files.rsa_key),
        "tls.key_file: expected the private key of the certificate in certificate_file, found that of another one",
    ),
    "another key, encrypted": (
        lambda files: (files.certificate, files.encrypted_key, "right"),
        "tls.key_file: expected the private key of the certificate in certificate_file, found that of another one",
    ),
    "no certificate": (
        lambda files: (files.junk, files.key),
        "tls.certificate_file: expected certificates in PEM form, found a file without any, or with a broken one",
    ),
    "a broken certificate": (
        lambda files: (files.broken, files.key),
        "tls.certificate_file: expected certificates in PEM form, found a file without any, or with a broken one",
    ),
    "no key": (
        lambda files: (files.certificate, files.junk),
        "tls.key_file: expected a private key in PEM form, found a file without any, or a broken one",
    ),
    "a broken key": (
        lambda files: (files.certificate, files.broken_key),
        "tls.key_file: expected a private key in PEM form, found a file without any, or a broken one",
    ),
    "no key beside the certificate": (
        lambda files: (files.certificate, None),
        "tls.certificate_file: expected the private key in the same file, or key_file beside it, found none",
    ),
    "no password": (
        lambda files: (files.encrypted, files.encrypted_key),
        "tls.key_password: expected the password of the encrypted key in key_file, found nothing: the key is missing",
    ),
    "another password": (
        lambda files: (files.encrypted, files.encrypted_key, "wrong"),
        "tls.key_password: expected the password of the encrypted key in key_file, found another one",
    ),
    "a huge password": (
        lambda files: (files.encrypted, files.encrypted_key, "w" * 2000),
        "tls.key_password: expected the password of the encrypted key in key_file, found another one",
    ),
    "a certificate that isn't there": (
        lambda files: (files.none, files.key),
        "tls.certificate_file: expected a readable file, found the error: No such file or directory",
    ),
    "a key that isn't there": (
        lambda files: (files.certificate, files.none),
        "tls.key_file: expected a readable file, found the error: No such file or directory",
    ),
}


@pytest.mark.parametrize(("chosen", "sentence"), CASES.values(), ids=CASES)
def test_cr_07_the_option_at_fault_is_named(
    files: Files, chosen: Callable[[Files], tuple[str | None, ...]], sentence: str
) -> None:
    """One sentence says which option is wrong and how, in words and without the password."""
    with pytest.raises(UnusableCredential) as caught:
        load(*chosen(files))  # type: ignore[arg-type]
    assert sentence == str(caught.value)


def test_what_fits_is_taken(files: Files) -> None:
    """In two files, in one, or encrypted."""
    load(files.certificate, files.key)
    load(files.both, None)
    load(files.encrypted, files.encrypted_key, "right")


@pytest.mark.parametrize("name", ["junk", "broken", "key", "none"])
def test_cr_07_a_file_without_certificates_is_no_authority(files: Files, name: str) -> None:
    """Neither is a key, nor what isn't there."""
    expected = r"^store\.tls\.ca_file: expected "
    with pytest.raises(UnusableCredential, match=expected), reading_certificates("ca_file", within="store.tls"):
        ssl.create_default_context(cafile=getattr(files, name))
    with reading_certificates("ca_file", within="store.tls"):
        ssl.create_default_context(cafile=files.ca_file)

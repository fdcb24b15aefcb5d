"""
Certificates and their keys in PEM files, for every TLS context of the broker.

OpenSSL says "PEM lib" of nearly all that can be wrong with them. Here it is found out which option is at fault, so that
the operator need not guess.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from broker.core.secret import Secret
from broker.errors import UnusableCredential

_OF_ANOTHER_KEY = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})
"""What OpenSSL calls a private key that isn't the certificate's; the last is a key of another kind."""

_WEAK = frozenset({"EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"})
"""What it calls a certificate that it doesn't take."""


@contextmanager
def reading_certificates(key: str, *, within: str) -> Iterator[None]:
    """
    Translate what goes wrong while the certificates of a file are read.

    Args:
        key: The option that names the file.
        within: Where that option is.

    Raises:
        UnusableCredential: If the file can't be read, or holds no certificate.
    """
    try:
        yield
    except ssl.SSLError:
        raise UnusableCredential.at(
            key, within=within, expected="certificates in PEM form", found="a file without any, or with a broken one"
        ) from None
    except (OSError, ValueError) as fault:
        raise _unreadable(key, within, fault) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """
    A certificate with its private key, as options name them.

    Attributes:
        certificate_file: The certificate with its chain.
        key_file: Its private key; None if that is in the same file.
        key_password: What decrypts the key.
        within: Where the options are: ``tls``.
        certificate_key: The option that names the certificate; the others are called as here.
    """

    certificate_file: str
    key_file: str | None
    key_password: Secret | None
    within: str
    certificate_key: str = "certificate_file"

    def load_into(self, context: ssl.SSLContext) -> None:
        """
        Have *context* show the certificate.

        Raises:
            UnusableCredential: If it can't. An option that can't be applied stops the start (CVE-2026-22750).
        """
        asked = False

        def password() -> str:
            # An encrypted key without a password must be refused, not asked for on the terminal.
            nonlocal asked
            asked = True
            return "" if self.key_password is None else self.key_password.reveal()

        try:
            context.load_cert_chain(self.certificate_file, self.key_file, password)
        except (OSError, ValueError) as fault:
            self._check_readable()
            raise self._refusal(getattr(fault, "reason", None) or "", is_encrypted=asked) from None

    def _check_readable(self) -> None:
        """Look which of the files is not there; the error doesn't say it."""
        for key, path in ((self.certificate_key, self.certificate_file), ("key_file", self.key_file)):
            try:
                if path is not None:
                    Path(path).open("rb").close()
            except (OSError, ValueError) as fault:
                raise _unreadable(key, self.within, fault) from None

    def _refusal(self, reason: str, *, is_encrypted: bool) -> UnusableCredential:
        beside = self.certificate_key if self.key_file is None else "key_file"
        with reading_certificates(self.certificate_key, within=self.within):
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(self.certificate_file)
        if reason in _WEAK:
            expected, found = "a chain with larger keys and SHA-256 or better", f"a weak one ({reason})"
            return UnusableCredential.at(self.certificate_key, within=self.within, expected=expected, found=found)
        if reason in _OF_ANOTHER_KEY:
            expected, found = f"the private key of the certificate in {self.certificate_key}", "that of another one"
            return UnusableCredential.at(beside, within=self.within, expected=expected, found=found)
        if is_encrypted:
            expected = f"the password of the encrypted key in {beside}"
            found = "nothing: the key is missing" if self.key_password is None else "another one"
            return UnusableCredential.at("key_password", within=self.within, expected=expected, found=found)
        if self.key_file is None:
            expected = "the private key in the same file, or key_file beside it"
            return UnusableCredential.at(beside, within=self.within, expected=expected, found="none")
        return UnusableCredential.at(
            beside,
            within=self.within,
            expected="a private key in PEM form",
            found="a file without any, or a broken one",
        )


def _unreadable(key: str, within: str, fault: OSError | ValueError) -> UnusableCredential:
    reason = fault.strerror if isinstance(fault, OSError) and fault.strerror else "not a path"
    return UnusableCredential.at(key, within=within, expected="a readable file", found=f"the error: {reason}")

"""The cookies of login attempts: each is sealed for its attempt, and holds all that is kept of it."""

import base64
import binascii
import json

from broker.core import login as core
from broker.core.login import LoginTransaction
from broker.core.pkce import text_of
from broker.errors import KeyringError
from broker.services.clock import Clock
from broker.services.keyring import Keyring

TRANSACTION = "login"
RETURN = "login-return"
"""Kinds of sealed cookies: an attempt that is open, and one that succeeded and is on its way back."""
RETURN_SECONDS = 60.0


class LoginCookies:
    """Seals and opens what is in them."""

    def __init__(self, keyring: Keyring, clock: Clock, *, timeout_seconds: float) -> None:
        """
        Args:
            keyring: Seals them.
            clock: Time.
            timeout_seconds: How long a login may take.
        """
        self._keyring = keyring
        self._clock = clock
        self._timeout_seconds = timeout_seconds

    def seal(self, transaction: LoginTransaction) -> str:
        """Return the content of the attempt's cookie."""
        return self._seal(TRANSACTION, core.attempt_of(transaction.state), core.encode(transaction))

    def open(self, attempt: str, value: bytes) -> LoginTransaction | None:
        """Return the transaction that was sealed for this attempt; None if it wasn't, or its time is over."""
        content = self._open(TRANSACTION, attempt, value)
        if content is None:
            return None
        try:
            transaction = core.decode(content)
        except core.UnknownTransaction:
            return None
        expired = transaction.is_expired(now=self._clock.now(), timeout_seconds=self._timeout_seconds)
        return None if expired else transaction

    def seal_return(self, attempt: str, return_url: str) -> str:
        """Return what replaces the attempt's cookie once it succeeded: where the browser goes, for a minute."""
        content = json.dumps([return_url, self._clock.now() + RETURN_SECONDS])
        return self._seal(RETURN, attempt, content.encode())

    def open_return(self, attempt: str, value: bytes) -> str | None:
        """Return where the browser of a login that has just succeeded goes."""
        content = self._open(RETURN, attempt, value)
        if content is None:
            return None
        return_url, until = json.loads(content)
        return str(return_url) if self._clock.now() < until else None

    def _seal(self, kind: str, attempt: str, content: bytes) -> str:
        return text_of(self._keyring.seal(kind, attempt, content))

    def _open(self, kind: str, attempt: str, value: bytes) -> bytes | None:
        try:
            sealed = base64.b64decode(value + b"=" * (-len(value) % 4), altchars=b"-_", validate=True)
            return self._keyring.open(kind, attempt, sealed)
        except (binascii.Error, KeyringError):
            return None

"""The cookies of login attempts: each is sealed for its attempt, and holds all that is kept of it."""

import base64
import binascii
import json
from dataclasses import dataclass

from broker.core import login as core
from broker.core.login import LoginTransaction
from broker.core.pkce import text_of
from broker.errors import KeyringError
from broker.services.clock import Clock
from broker.services.keyring import Keyring

TRANSACTION = "login"
RETURN = "login-return-2"
"""Kinds of sealed cookies: an attempt that is open, and one that succeeded and is on its way back."""
RETURN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class WayBack:
    """
    What a browser knows of its login that succeeded.

    Attributes:
        return_url: Where it goes.
        session_key: The store key of the session that began; None if none did. The cookie comes with the session's
            own, so a browser that shows this one has that one, even where it doesn't show it (SameSite=Strict).
    """

    return_url: str
    session_key: str | None


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

    def seal_return(self, attempt: str, way_back: WayBack) -> str:
        """Return what replaces the attempt's cookie once it succeeded, for a minute."""
        content = json.dumps([way_back.return_url, way_back.session_key, self._clock.now() + RETURN_SECONDS])
        return self._seal(RETURN, attempt, content.encode())

    def open_return(self, attempt: str, value: bytes) -> WayBack | None:
        """Return the way back of a login that has just succeeded."""
        content = self._open(RETURN, attempt, value)
        if content is None:
            return None
        return_url, session_key, until = json.loads(content)
        return WayBack(return_url, session_key) if self._clock.now() < until else None

    def _seal(self, kind: str, attempt: str, content: bytes) -> str:
        return text_of(self._keyring.seal(kind, attempt, content))

    def _open(self, kind: str, attempt: str, value: bytes) -> bytes | None:
        try:
            sealed = base64.b64decode(value + b"=" * (-len(value) % 4), altchars=b"-_", validate=True)
            return self._keyring.open(kind, attempt, sealed)
        except (binascii.Error, KeyringError):
            return None

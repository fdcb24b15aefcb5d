"""Secrets that hide themselves: no ``repr``, ``str``, ``format``, pickle or traceback shows their value."""

import hmac
import re
from typing import NoReturn, Self

from broker.errors import ProviderError


class Secret:
    """
    A text that must never be shown.

    Two secrets of one type compare in constant time. :meth:`reveal` is the only way to the value, so that a search
    for it finds every place where a secret leaves its wrapping.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value. Call this only where it is sealed, sent or hashed."""
        return self._value

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        assert isinstance(other, Secret)
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash((type(self).__name__, self._value))

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} can't be pickled")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self


SHARED_SECRET = "32 to 256 visible ASCII characters, at random"
"""What a secret must be that others show to the broker in a header field, as a phrase."""

_SHARED_SECRET = re.compile(r"[!-~]{32,256}")


def is_shared_secret(secret: Secret) -> bool:
    """Return whether *secret* is long enough not to be guessed, and of characters that a header field may hold."""
    return _SHARED_SECRET.fullmatch(secret.reveal()) is not None


class AccessToken(Secret):
    """An access token (RFC 6749 section 1.4)."""

    __slots__ = ("_field",)

    def __init__(self, value: str) -> None:
        super().__init__(value)
        self._field = b""

    def field(self, token_type: str) -> bytes:
        """
        Return the Authorization field with this token (RFC 9110 section 11.6.2), as a line of a head.

        Args:
            token_type: The scheme. A token has one, so what was made for it is kept: each request asks.

        Raises:
            ProviderError: If the token holds what no field may hold.
        """
        if not self._field:
            if not (self._value.isascii() and self._value.isprintable()):
                raise ProviderError("the access token holds a byte that no header field may hold")
            self._field = f"Authorization: {token_type} {self._value}\r\n".encode()
        return self._field


class RefreshToken(Secret):
    """A refresh token (RFC 6749 section 1.5). It leaves the broker only towards its own token endpoint."""

    __slots__ = ()


class IdToken(Secret):
    """An id token (OpenID Connect Core section 2) in its compact form."""

    __slots__ = ()


class SessionId(Secret):
    """What the session cookie carries."""

    __slots__ = ()

"""What can come of asking for a token. A closed set: callers match on it and end with ``assert_never``."""

from dataclasses import dataclass
from enum import StrEnum

from broker.core.secret import AccessToken, RefreshToken


@dataclass(frozen=True, slots=True)
class Token:
    """
    A token that may be sent upstream now.

    Attributes:
        access_token: The access token.
        token_type: ``Bearer`` or ``DPoP``, the scheme of the Authorization header.
        generation: Names this token within its grant. An upstream's 401 is reported with it.
        expires_at: Unix seconds from which it must not be sent.
        dpop_key: The key that it is bound to (RFC 9449), as a JWK in JSON; None for a bearer token.
    """

    access_token: AccessToken
    token_type: str
    generation: int
    expires_at: float
    dpop_key: RefreshToken | None = None


@dataclass(frozen=True, slots=True)
class LoginNeeded:
    """
    The grant has ended or is gone: only the user can help.

    Attributes:
        reason: A word for the log: one of ``EndReason``, or ``unknown_grant``, ``no_refresh_token``.
    """

    reason: str


class Cause(StrEnum):
    """Who is unavailable."""

    PROVIDER = "provider"
    STORE = "store"


@dataclass(frozen=True, slots=True)
class Unavailable:
    """
    No token can be had now; nothing is lost, and the caller should try again.

    Attributes:
        cause: Who is unavailable.
        retry_after_seconds: When it is worth trying again.
    """

    cause: Cause
    retry_after_seconds: float


TokenResult = Token | LoginNeeded | Unavailable

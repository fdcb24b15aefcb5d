"""
What can come of asking for a token, and which of it a grant gives.

A closed set: callers match on it and end with ``assert_never``.
"""

from dataclasses import dataclass
from enum import StrEnum

from broker.core.audience import Audience
from broker.core.grant import Grant, HeldToken
from broker.core.refresh import held_token
from broker.core.secret import AccessToken, RefreshToken

LEAST_WAIT_SECONDS = 0.5
"""What a caller is told to wait at least after a failure."""


@dataclass(frozen=True, slots=True)
class Token:
    """
    A token that may be sent upstream now.

    Attributes:
        access_token: The access token.
        token_type: ``Bearer`` or ``DPoP``, the scheme of the Authorization header.
        generation: Names this token within its grant. An upstream's 401 is reported with it.
        expires_at: Unix seconds from which it must not be sent.
        provider: The configured name of the authorization server that issued it.
        dpop_key: The key that it is bound to (RFC 9449), as a JWK in JSON; None for a bearer token.
    """

    access_token: AccessToken
    token_type: str
    generation: int
    expires_at: float
    provider: str
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


def token_of(grant: Grant, held: HeldToken) -> Token:
    """Return what a caller gets of a token that *grant* holds."""
    dpop_key = grant.dpop_key if held.token_type == "DPoP" else None
    return Token(held.access_token, held.token_type, held.generation, held.expires_at, grant.provider, dpop_key)


def token_for(grant: Grant, audience: Audience) -> Token | None:
    """Return what a caller gets of a grant's token for *audience*; None if there is none."""
    held = grant.tokens.get(audience.key)
    return None if held is None else token_of(grant, held)


def after_failure(grant: Grant, audience: Audience, *, now: float, rejected_generation: int | None) -> TokenResult:
    """
    Return what a caller gets after a token request that brought nothing for *audience*.

    Args:
        grant: As ``core.refresh.fail`` left it.
        audience: For whom it was.
        now: Unix seconds.
        rejected_generation: The generation of a token that an upstream has just answered with 401.
    """
    if grant.ended is not None:
        return LoginNeeded(grant.ended.reason)
    held = held_token(grant, audience, now=now, rejected_generation=rejected_generation)
    if held is not None:
        return token_of(grant, held)
    return Unavailable(Cause.PROVIDER, max(grant.failures[audience.key].retry_at - now, LEAST_WAIT_SECONDS))

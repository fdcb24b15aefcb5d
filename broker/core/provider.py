"""How an authorization server is spoken to, as the operator configures it."""

from dataclasses import dataclass
from enum import StrEnum

from broker.core.options import option
from broker.core.secret import Secret


class Rotation(StrEnum):
    """What an authorization server does with a refresh token that is presented again."""

    STRICT = "strict"
    """Reuse revokes the whole family (RFC 9700 section 4.14.2), or might: the safe assumption."""
    GRACE = "grace"
    """Reuse within ``rotation_grace`` is answered with tokens."""
    NONE = "none"
    """Refresh tokens are not rotated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderOptions:
    """One authorization server."""

    issuer: str | None = option("The issuer identifier; discovery starts here.", default=None)
    client_id: str = option("The client identifier.")
    client_secret: Secret | None = option("The client secret.", default=None)
    scope: str = option("What is asked for at login.", default="openid")
    rotation: Rotation = option(
        "What the server does with a refresh token that is presented again.", default=Rotation.STRICT
    )
    rotation_grace_seconds: float = option("How long a rotated refresh token is still taken.", default=30.0)
    refresh_before_expiry_seconds: float = option(
        "Refresh this long before the access token expires; at most a quarter of its life.", default=60.0
    )
    idle_timeout_seconds: float | None = option(
        "How long the server keeps a refresh token that isn't used, where it doesn't say so.", default=None
    )
    max_rotation_seconds: float | None = option(
        "How long a chain of rotated refresh tokens may live; then the user must log in again.", default=None
    )
    token_endpoint_timeout_seconds: float = option("Deadline of one token request.", default=10.0)

"""What an answer of the token endpoint means, as values (RFC 6749 section 5)."""

from dataclasses import dataclass, field
from enum import StrEnum

from broker.core.secret import AccessToken, IdToken, RefreshToken


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSet:
    """
    One successful token response (RFC 6749 section 5.1).

    Attributes:
        access_token: The access token.
        token_type: ``Bearer`` or ``DPoP``, in that spelling.
        expires_at: Unix seconds from which the access token must not be used.
        requested_at: Unix seconds, read before the request was sent.
        refresh_token: The new refresh token; None keeps the former one (RFC 6749 section 6).
        refresh_expires_at: Unix seconds at which the refresh token ends; None if unknown.
        id_token: The id token, unchecked; None keeps the former one.
        scope: What was granted; None means what was asked.
        session_id: The provider's own session (Mosaic ``session_id``, Keycloak ``session_state``); None keeps the
            former one.
    """

    access_token: AccessToken
    token_type: str = "Bearer"
    expires_at: float
    requested_at: float
    refresh_token: RefreshToken | None = None
    refresh_expires_at: float | None = None
    id_token: IdToken | None = None
    scope: str | None = None
    session_id: str | None = None


class FailureKind(StrEnum):
    """
    The four classes of failure at the token endpoint.

    They decide what happens to a grant, and nothing else does.
    """

    PERMANENT = "permanent"
    """``invalid_grant``: the authorization server will not honour this grant again."""
    OPERATOR = "operator"
    """The broker is configured wrongly (``invalid_client`` …): the grant is kept."""
    TRANSIENT = "transient"
    """The request was certainly not processed: try again later."""
    IN_DOUBT = "in_doubt"
    """The request may have been processed, and the answer is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFailure:
    """
    A token request that brought no tokens.

    Attributes:
        kind: What it means for the grant.
        error: The ``error`` member (RFC 6749 section 5.2), bounded and printable; None if there was none.
        status: The HTTP status; None if no answer came.
        retry_after_seconds: ``Retry-After`` in seconds from the answer; None if it wasn't sent.
        detail: A phrase for the log, without any byte of the answer's body.
        ahead_seconds: How far this machine's clock is ahead of the server's, by the answer; 0 if that isn't known.
        look_at: Where in the YAML to look, if that may mend it.
    """

    kind: FailureKind
    error: str | None = None
    status: int | None = None
    retry_after_seconds: float | None = None
    detail: str = ""
    ahead_seconds: float = field(default=0.0, compare=False)
    look_at: str | None = field(default=None, compare=False)

    def logged(self) -> dict[str, object]:
        """Return what a log record says of it."""
        return {
            "kind": self.kind.value,
            "error": self.error,
            "status": self.status,
            "detail": self.detail,
            "look_at": self.look_at,
        }


TokenOutcome = TokenSet | TokenFailure
"""What can come of a token request."""

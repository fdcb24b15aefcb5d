"""A browser's session: who logged in, and until when. It holds no token."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from broker.core.options import OptionError, option


class SameSite(StrEnum):
    """The SameSite attribute of the session cookie."""

    STRICT = "strict"
    LAX = "lax"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """How long browser sessions live, and how their cookie is set."""

    idle_timeout_seconds: float = option("A session that is not used for this long ends.", default=8 * 3600.0)
    absolute_timeout_seconds: float = option(
        "A session ends this long after its login, however much it is used.", default=30 * 86400.0
    )
    same_site: SameSite = option("SameSite of the session cookie.", default=SameSite.STRICT)
    cache_ttl_seconds: float = option(
        "How long a process may use what it knows of a session without asking the store again. Logouts are pushed to "
        "every process at once and do not wait for it.",
        default=5.0,
    )
    outage_grace_seconds: float = option(
        "How long a process may go on using what it knows while the store is down; 0 refuses at once.",
        default=60.0,
    )
    max_cached: int = option("How many sessions one process keeps in memory.", default=100_000)

    def __post_init__(self) -> None:
        if not 0 < self.idle_timeout_seconds <= self.absolute_timeout_seconds:
            raise OptionError("idle_timeout", "a duration above 0 and not above absolute_timeout")
        if not 0 <= self.cache_ttl_seconds <= 300:
            raise OptionError("cache_ttl", "a duration between 0s and 5m")
        if not 0 <= self.outage_grace_seconds <= 3600:
            raise OptionError("outage_grace", "a duration between 0s and 1h")
        if self.max_cached < 1:
            raise OptionError("max_cached", "a number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """
    A browser's tie to a grant.

    Attributes:
        grant_id: The grant whose tokens the session's calls carry.
        provider: The configured name of the authorization server.
        issuer: ``iss`` of the id token; with *subject*, the key of the user (OpenID Connect Core section 5.7).
        subject: ``sub`` of the id token.
        claims: The claims that the user endpoint and header templates may show.
        authenticated_at: Unix seconds of the login.
        last_seen_at: Unix seconds of the last use that was written down; the idle limit counts from it.
        ends_at: Unix seconds of the absolute end.
        provider_session: ``sid`` of the id token, for back-channel logout; None if it has none.
    """

    grant_id: str
    provider: str
    issuer: str
    subject: str
    claims: Mapping[str, object] = field(default_factory=dict)
    authenticated_at: float
    last_seen_at: float
    ends_at: float
    provider_session: str | None = None


def is_live(session: Session, *, now: float, idle_timeout_seconds: float) -> bool:
    """Return whether *session* may still be used at *now* (Unix seconds)."""
    return now < session.ends_at and now < session.last_seen_at + idle_timeout_seconds


def should_touch(session: Session, *, now: float, idle_timeout_seconds: float) -> bool:
    """Return whether the use at *now* is worth writing down: at most sixteen writes per idle timeout."""
    return now - session.last_seen_at >= idle_timeout_seconds / 16

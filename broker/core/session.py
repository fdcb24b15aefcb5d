"""A browser's session: who logged in, and until when. It holds no token."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from broker.core.options import OptionError, option
from broker.core.stored_form import of_known_members

FORMAT = 1
FORMAT_WITH_REPLACED = 2
"""
Versions of the stored form: the second has what the session replaces. A record of a later version is left unharmed and
not used (rolling upgrades).

A member that older releases can do without needs no new one: they leave it out, and what they write lacks it. One that
narrows what a session permits is none of these.
"""

TOUCHES_PER_IDLE_TIMEOUT = 16
"""A use is written down at most this often per idle timeout."""


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
        "How long a process may use what it knows of a session, or of a caller without a browser, without asking the "
        "store again. Logouts and revocations are pushed to every process at once and do not wait for it.",
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
        replaces: The store key of the session that the browser had before. It ends once the browser has shown that it
            has this one; None if there is nothing to end any more.
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
    replaces: str | None = None


def same_user(one: Session, other: Session) -> bool:
    """Return whether two sessions are the same user's."""
    return (one.issuer, one.subject) == (other.issuer, other.subject)


def lives_until(session: Session, *, idle_timeout_seconds: float) -> float:
    """Return the Unix seconds from which *session* is over if it isn't used again."""
    return min(session.ends_at, session.last_seen_at + idle_timeout_seconds)


def touch_at(session: Session, *, idle_timeout_seconds: float) -> float:
    """
    Return the Unix seconds from which a use is worth writing down: at most sixteen writes per idle timeout.

    The first use of one that replaces another always is: it shows that the browser doesn't need the other any more.
    """
    if session.replaces is not None:
        return -math.inf
    return session.last_seen_at + idle_timeout_seconds / TOUCHES_PER_IDLE_TIMEOUT


def lifetime_seconds(session: Session, *, now: float, idle_timeout_seconds: float) -> float:
    """Return how long *session* lives from *now* (Unix seconds) if it isn't used again; 0 or less if it is over."""
    return lives_until(session, idle_timeout_seconds=idle_timeout_seconds) - now


class Index(StrEnum):
    """By what sessions are found, other than by their id. Words are hashed before they reach the store."""

    SUBJECT = "session-subject"
    """``iss`` and ``sub``: all sessions of a user."""
    PROVIDER_SESSION = "session-sid"
    """``iss`` and ``sid``: the session that a provider ends by back-channel logout."""
    GRANT = "session-grant"
    """The grant: whose claims changed, or whose grant was revoked."""
    PROVIDER = "session-provider"
    """The configured provider: every session that it vouched for."""


def index_word(*parts: str) -> str:
    """Return the word that *parts* make in an index. No two different sequences make the same one."""
    return json.dumps(parts)


def index_words(session: Session) -> dict[Index, str]:
    """Return the words by which *session* is found."""
    words = {
        Index.SUBJECT: index_word(session.issuer, session.subject),
        Index.GRANT: index_word(session.grant_id),
        Index.PROVIDER: index_word(session.provider),
    }
    if session.provider_session is not None:
        words[Index.PROVIDER_SESSION] = index_word(session.issuer, session.provider_session)
    return words


_read_json = json.JSONDecoder().raw_decode
"""What ``json.loads`` does at its core. Around it, white space and encodings are looked for that aren't there."""


class UnknownFormat(ValueError):
    """The record was written by a later release."""


def encode(session: Session) -> bytes:
    """Return the stored form of *session*, in clear: it must be sealed before it leaves the process."""
    # Not asdict: it copies every claim.
    document = {"v": FORMAT_WITH_REPLACED, **{name: getattr(session, name) for name in Session.__slots__}}
    if session.replaces is None:
        document["v"] = FORMAT
        del document["replaces"]
    return json.dumps(document, separators=(",", ":")).encode()


def decode(stored: bytes) -> Session:
    """
    Return the session that :func:`encode` wrote.

    Raises:
        UnknownFormat: If a later release wrote it.
    """
    document, _ = _read_json(stored.decode())
    if document.pop("v") not in {FORMAT, FORMAT_WITH_REPLACED}:
        raise UnknownFormat("a session of another release")
    return of_known_members(Session, document)

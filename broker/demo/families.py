"""
Refresh token families: rotation, and what becomes of a refresh token that is presented again.

A family is everything that grew from one login: each refresh token of it replaced the one before. Presenting a replaced
one tells the server that somebody copied it, so the whole family ends (RFC 9700 section 4.14.2).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from broker.core.provider import Rotation
from broker.services.clock import Clock, Randomness


@dataclass(slots=True, kw_only=True)
class Family:
    """
    One grant of one user to one client.

    Attributes:
        id: Names it; not a secret.
        client_id: Whose it is.
        subject: The user.
        scope: What was granted.
        sid: The user's session at this server (OpenID Connect Front-Channel Logout section 3).
        auth_time: Unix seconds of the user's login.
        resources: The resources that may be asked for (RFC 8707); empty allows every one.
        generation: Counts the refresh tokens that were issued.
        revoked: Why it ended; None while it lives.
    """

    id: str
    client_id: str
    subject: str
    scope: str
    sid: str
    auth_time: float
    resources: tuple[str, ...] = ()
    generation: int = 0
    revoked: str | None = None


@dataclass(slots=True, kw_only=True)
class IssuedToken:
    """
    A refresh token that was issued.

    Attributes:
        token: Its value.
        family: The family's id.
        generation: Its place in the family, from 1.
        issued_at: Unix seconds.
        expires_at: Unix seconds.
        spent_at: Unix seconds of the presentation that replaced it; None while it is unspent.
    """

    token: str
    family: str
    generation: int
    issued_at: float
    expires_at: float
    spent_at: float | None = None


class Answer(StrEnum):
    """What came of a presentation."""

    ROTATED = "rotated"
    KEPT = "kept"
    GRACE = "grace"
    """A spent token, presented again within the grace: taken once more."""
    REUSED = "reused"
    """A spent token: the family was revoked for it."""
    REVOKED = "revoked"
    EXPIRED = "expired"
    UNKNOWN = "unknown"
    FOREIGN = "foreign"
    """Another client's token."""


GRANTED = frozenset({Answer.ROTATED, Answer.KEPT, Answer.GRACE})
"""The answers that bring tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Presentation:
    """
    A refresh token was presented.

    Attributes:
        token: What was presented.
        answer: What came of it.
        at: Unix seconds.
        family: Its family, if the token is known.
        replacement: The refresh token that the response carries; None if the presentation was refused.
    """

    token: str
    answer: Answer
    at: float
    family: Family | None = None
    replacement: IssuedToken | None = None


FamilyEvent = IssuedToken | Presentation
"""What an observer is told, in the order in which it happens."""


class Families:
    """Every family of a server, in memory."""

    def __init__(
        self,
        *,
        clock: Clock,
        randomness: Randomness,
        rotation: Rotation = Rotation.STRICT,
        rotation_grace_seconds: float = 30.0,
        refresh_token_seconds: float = 14 * 86400.0,
        observer: Callable[[FamilyEvent], None] | None = None,
    ) -> None:
        """
        Args:
            clock: The time.
            randomness: Makes the tokens.
            rotation: What is done with a refresh token that is presented again.
            rotation_grace_seconds: How long after its use a spent refresh token is still taken, with ``grace``.
            refresh_token_seconds: Lifetime of a refresh token.
            observer: Is told of every token and every presentation.
        """
        self._clock = clock
        self._randomness = randomness
        self.rotation = rotation
        self.rotation_grace_seconds = rotation_grace_seconds
        self.refresh_token_seconds = refresh_token_seconds
        self._observer = observer
        self.by_id: dict[str, Family] = {}
        self._issued: dict[str, IssuedToken] = {}

    def start(
        self,
        *,
        client_id: str,
        subject: str,
        scope: str,
        sid: str,
        auth_time: float,
        resources: tuple[str, ...] = (),
    ) -> tuple[Family, IssuedToken]:
        """Begin a family. Returns it with its first refresh token."""
        family = Family(
            id=self._randomness.token_bytes(8).hex(),
            client_id=client_id,
            subject=subject,
            scope=scope,
            sid=sid,
            auth_time=auth_time,
            resources=resources,
        )
        self.by_id[family.id] = family
        return family, self._issue(family)

    def present(self, token: str, client_id: str) -> Presentation:
        """Take the refresh token *token* from the client *client_id*, and tell what comes of it."""
        now = self._clock.now()
        issued = self._issued.get(token)
        family = self.by_id[issued.family] if issued else None
        answer = self._judge(issued, family, client_id, now)
        if answer is Answer.REUSED and family is not None:
            family.revoked = "reuse"
        replacement = None
        if answer in GRANTED and issued is not None and family is not None:
            replacement = self._replace(issued, family, answer, now)
        presentation = Presentation(token=token, answer=answer, at=now, family=family, replacement=replacement)
        self._tell(presentation)
        return presentation

    def find(self, token: str) -> Family | None:
        """Return the family of a refresh token that was ever issued."""
        issued = self._issued.get(token)
        return self.by_id[issued.family] if issued else None

    def revoke(self, family: Family, reason: str) -> None:
        """End *family*; the first reason stays."""
        family.revoked = family.revoked or reason

    def revoke_session(self, sid: str) -> None:
        """End every family of the user's session *sid*."""
        for family in self.by_id.values():
            if family.sid == sid:
                self.revoke(family, "logout")

    def _judge(self, issued: IssuedToken | None, family: Family | None, client_id: str, now: float) -> Answer:
        if issued is None or family is None:
            return Answer.UNKNOWN
        if family.client_id != client_id:
            return Answer.FOREIGN
        if family.revoked:
            return Answer.REVOKED
        if now >= issued.expires_at:
            return Answer.EXPIRED
        if self.rotation is Rotation.NONE:
            return Answer.KEPT
        if issued.spent_at is None:
            return Answer.ROTATED
        if self.rotation is Rotation.GRACE and now - issued.spent_at <= self.rotation_grace_seconds:
            return Answer.GRACE
        return Answer.REUSED

    def _replace(self, issued: IssuedToken, family: Family, answer: Answer, now: float) -> IssuedToken:
        if answer is Answer.KEPT:
            family.generation += 1
            return issued
        if issued.spent_at is None:
            issued.spent_at = now  # the grace counts from the first use
        return self._issue(family)

    def _issue(self, family: Family) -> IssuedToken:
        now = self._clock.now()
        family.generation += 1
        issued = IssuedToken(
            token="rt_" + self._randomness.token_bytes(24).hex(),
            family=family.id,
            generation=family.generation,
            issued_at=now,
            expires_at=now + self.refresh_token_seconds,
        )
        self._issued[issued.token] = issued
        self._tell(issued)
        return issued

    def _tell(self, event: FamilyEvent) -> None:
        if self._observer is not None:
            self._observer(event)

"""What a LedgerServer wrote down, and the questions that tests ask it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from broker.demo.families import GRANTED, Answer, Family, FamilyEvent, IssuedToken, Presentation


@dataclass(slots=True, kw_only=True)
class PresentedToken:
    """
    One presentation of a refresh token.

    Attributes:
        token: What was presented.
        answer: What the server decided.
        at: Unix seconds by the server's clock.
        family: The family's id; None for a token that was never issued.
        replacement: The refresh token of the response.
    """

    token: str
    answer: Answer
    at: float
    family: str | None
    replacement: str | None


@dataclass(slots=True, kw_only=True)
class TokenCall:
    """
    One request of the token endpoint.

    Attributes:
        number: Counts the calls, from 1.
        grant_type: As it was sent.
        client_id: As it was sent in the form; None with Basic.
        refresh_token: As it was sent.
        family: The family of the refresh token, or the one that the call began.
        parameters: ``scope``, ``resource`` and ``audience``, as they were sent.
        received_at: Monotonic seconds of the server's process.
        finished_at: The same, at the answer, or when the caller was found to have closed its connection; None before.
        processed: Whether the server acted on it; False if a fault came first.
        status: The HTTP status of the answer; None if none was sent.
        error: The ``error`` of the server's own answer.
        delivered: Whether the whole answer of the server was handed to an open connection.
        fault: What was done instead of answering.
    """

    number: int
    grant_type: str
    client_id: str | None
    refresh_token: str | None
    family: str | None = None
    parameters: dict[str, list[str]] = field(default_factory=dict)
    received_at: float
    finished_at: float | None = None
    processed: bool = False
    status: int | None = None
    error: str | None = None
    delivered: bool = False
    fault: str | None = None


@dataclass(slots=True)
class Ledger:
    """
    Every refresh token that was issued, every presentation and every token request, each in its order.

    Attributes:
        families: By their ids.
        issued: The refresh tokens.
        presented: Their presentations.
        calls: The requests of the token endpoint, refused and failed ones included.
    """

    families: dict[str, Family] = field(default_factory=dict)
    issued: list[IssuedToken] = field(default_factory=list)
    presented: list[PresentedToken] = field(default_factory=list)
    calls: list[TokenCall] = field(default_factory=list)

    def record(self, event: FamilyEvent) -> None:
        """Write down what the server's families tell."""
        match event:
            case IssuedToken():
                self.issued.append(event)
            case Presentation():
                self.presented.append(
                    PresentedToken(
                        token=event.token,
                        answer=event.answer,
                        at=event.at,
                        family=event.family.id if event.family else None,
                        replacement=event.replacement.token if event.replacement else None,
                    )
                )

    def token_calls(self, grant_type: str | None = None, *, subject: str | None = None) -> list[TokenCall]:
        """Return the requests of the token endpoint, of one grant type or user where named."""
        return [
            call
            for call in self.calls
            if grant_type in {None, call.grant_type} and (subject is None or self._subject(call.family) == subject)
        ]

    def count(self, grant_type: str | None = None, *, subject: str | None = None) -> int:
        """Return how many such requests there were."""
        return len(self.token_calls(grant_type, subject=subject))

    def presented_twice(self) -> dict[str, int]:
        """Return the refresh tokens that reached the server's judgement more than once, and how often."""
        counts = Counter(entry.token for entry in self.presented)
        return {token: count for token, count in counts.items() if count > 1}

    def sent_twice(self) -> dict[str, int]:
        """Return the refresh tokens that were *sent* more than once, failed calls included."""
        counts = Counter(call.refresh_token for call in self.calls if call.refresh_token)
        return {token: count for token, count in counts.items() if count > 1}

    def families_revoked(self, reason: str | None = "reuse") -> list[Family]:
        """Return the families that ended for *reason*; None: for any."""
        return [family for family in self.families.values() if family.revoked and reason in {None, family.revoked}]

    def families_of(self, subject: str) -> list[Family]:
        """Return the user's families, oldest first."""
        return [family for family in self.families.values() if family.subject == subject]

    def newest(self, family_id: str) -> IssuedToken:
        """Return the newest refresh token of a family."""
        return next(token for token in reversed(self.issued) if token.family == family_id)

    def usable(self, family_id: str) -> set[str]:
        """Return the refresh tokens of a family that would still be taken, whatever the rotation."""
        if self.families[family_id].revoked:
            return set()
        return {token.token for token in self.issued if token.family == family_id and token.spent_at is None}

    def lost_tokens(self, held: Iterable[str]) -> list[Family]:
        """
        Return the live families of which the client holds no usable refresh token.

        Args:
            held: Every refresh token that the client still has.
        """
        kept = set(held)
        return [
            family
            for family in self.families.values()
            if not family.revoked and kept.isdisjoint(self.usable(family.id))
        ]

    def lost_answers(self) -> list[TokenCall]:
        """Return the calls that brought tokens whose answer never left the server whole."""
        granted = {entry.token for entry in self.presented if entry.answer in GRANTED}
        return [call for call in self.calls if call.processed and not call.delivered and call.refresh_token in granted]

    def overlapping(self) -> list[tuple[TokenCall, TokenCall]]:
        """Return the pairs of calls that used one family's refresh token at the same time."""
        pairs = []
        last: dict[str, TokenCall] = {}
        for call in sorted(self.token_calls("refresh_token"), key=lambda each: each.received_at):
            if call.family is None:
                continue
            before = last.get(call.family)
            if before is not None and (before.finished_at is None or call.received_at < before.finished_at):
                pairs.append((before, call))
            last[call.family] = call
        return pairs

    def _subject(self, family_id: str | None) -> str | None:
        return self.families[family_id].subject if family_id in self.families else None

    def to_document(self) -> dict[str, Any]:
        """Return the ledger as JSON values."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "Ledger":
        """Return the ledger that :meth:`to_document` wrote."""
        return cls(
            families={
                key: Family(**{**each, "resources": tuple(each["resources"])})
                for key, each in document["families"].items()
            },
            issued=[IssuedToken(**each) for each in document["issued"]],
            presented=[PresentedToken(**{**each, "answer": Answer(each["answer"])}) for each in document["presented"]],
            calls=[TokenCall(**each) for each in document["calls"]],
        )

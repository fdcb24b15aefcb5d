"""
Judges a run with faults by what three witnesses wrote down: the callers, the authorization server, the upstream.

The invariants are those of the fault list: no request with another user's token (I1), no access without a session (I2),
one refresh at a time for a grant (I3), a session that was logged out stays dead (I4), no passing fault logs a user out
(I5), no secret leaks (I6), and all is well within five seconds of a fault's end (I7). During a fault a caller may be told
to come again, and nothing worse.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.ledger import Ledger
from tests.support.upstream import Received

RECOVERY_SECONDS = 5.0
"""All is well this long after a fault's end (I7)."""
LONGEST_CALL_SECONDS = 35.0
"""No caller is left waiting for longer."""


@dataclass(slots=True, kw_only=True)
class Call:
    """
    One request of a caller, and what it was told. Times are monotonic seconds.

    Attributes:
        user: Who called; empty for somebody without a session.
        session: Which login of the user's the call belongs to, counted from 1; 0 without one.
        path: What was asked for.
        began: When it was sent.
        ended: When its answer was there, or the connection broke.
        status: None if there was no answer.
        has_retry_after: Whether it was told when to come again.
        code: The problem's code.
        seen_as: The subject whose token the upstream was shown.
        error: How the connection broke.
        mark: What ``X-Call`` said, so that the upstream can tell whether this very call reached it.
    """

    user: str
    session: int
    path: str
    began: float
    ended: float
    status: int | None
    has_retry_after: bool = False
    code: str = ""
    seen_as: str | None = None
    error: str = ""
    mark: str = ""

    @property
    def is_sent_away(self) -> bool:
        """Whether the broker asked for a login. A 401 without a code is the upstream's own."""
        return self.status == 401 and self.code != ""

    def __str__(self) -> str:
        outcome = self.error if self.status is None else f"{self.status} {self.code}".rstrip()
        return f"{self.user or 'nobody'} {self.path} at {self.began:.2f} (+{self.ended - self.began:.2f} s): {outcome}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """
    A time in which callers may be refused.

    Attributes:
        began: Monotonic seconds.
        ended: The same, of the fault's end; the time to recover comes after it.
        statuses: What they may be answered, always with ``Retry-After`` where it is 503.
        breaks: Whether connections may break, too: the process was killed.
    """

    began: float
    ended: float
    statuses: frozenset[int] = frozenset({503})
    breaks: bool = False

    def excuses(self, call: Call) -> bool:
        """Return whether the fault explains why *call* failed."""
        if call.ended < self.began or call.began > self.ended + RECOVERY_SECONDS:
            return False
        if call.status is None:
            return self.breaks
        if call.is_sent_away:
            return False
        return call.status in self.statuses and (call.status != 503 or call.has_retry_after)


@dataclass(slots=True)
class History:
    """
    What callers did and were told.

    Attributes:
        calls: Those that were answered or broke; whoever hangs up learns nothing.
        hung_up: How many hung up.
        logins: How often each user logged in.
        logged_out: When the answer to the logout of a user's session was there.
        secrets: What must be in no log.
    """

    calls: list[Call] = field(default_factory=list)
    hung_up: int = 0
    logins: Counter[str] = field(default_factory=Counter)
    logged_out: dict[tuple[str, int], float] = field(default_factory=dict)
    secrets: set[str] = field(default_factory=set)

    def statuses(self, *, since: float = 0.0) -> Counter[int | None]:
        """Return how many calls were answered what."""
        return Counter(call.status for call in self.calls if call.began >= since)

    def logged_out_by_fault(self) -> set[str]:
        """Return the users whose session ended although they didn't end it."""
        return {call.user for call in self.calls if call.is_sent_away and self.is_live(call)}

    def is_live(self, call: Call) -> bool:
        """Return whether the session of *call* ought to have been alive all the time."""
        return call.session > 0 and self.logged_out.get((call.user, call.session), call.ended) >= call.ended

    def is_dead(self, call: Call) -> bool:
        """Return whether *call* had no session, or one whose end had been confirmed before."""
        return call.session == 0 or self.logged_out.get((call.user, call.session), call.began) < call.began


def violations(
    history: History,
    ledger: Ledger,
    received: Sequence[Received] = (),
    *,
    outages: Iterable[Outage] = (),
    may_log_in_again: Collection[str] = (),
    log: Path | None = None,
) -> list[str]:
    """
    Return what broke an invariant, in words; empty if all is well.

    Args:
        history: The callers' view.
        ledger: The authorization server's.
        received: The upstream's. Callers name themselves in ``X-Caller``.
        outages: The faults.
        may_log_in_again: Users whose answer was truly lost, or whose records were: they, and nobody else, may.
        log: What the broker wrote.
    """
    excuses = list(outages)
    found = [*_strangers(history, received), *_doors(history), *_failures(history, excuses)]
    found += [f"I3: two refreshes of {first.family} at once" for first, _ in ledger.overlapping()]
    found += _logouts(history, ledger, may_log_in_again)
    if log is not None:
        found += _leaks(history, ledger, received, log)
    return found


def _strangers(history: History, received: Sequence[Received]) -> list[str]:
    """I1: each token belongs to the caller."""
    found = [f"I1: seen as {call.seen_as}: {call}" for call in history.calls if call.seen_as not in {None, call.user}]
    for request in received:
        callers, subject = request.header("x-caller"), request.claims.get("sub")
        if subject is not None and callers not in ([], [subject]):
            found.append(f"I1: the upstream was shown the token of {subject} by {callers}")
    return found


def _doors(history: History) -> list[str]:
    """I2 and I4: nobody gets in without a session, or with one that has ended."""
    return [
        f"{'I4' if call.session else 'I2'}: let in: {call}"
        for call in history.calls
        if call.path.startswith("/api") and call.status is not None and call.status < 400 and history.is_dead(call)
    ]


def _failures(history: History, outages: Sequence[Outage]) -> list[str]:
    """No request fails but by an outage, and none after it (I7)."""
    found = []
    for call in history.calls:
        failed = call.status is None or call.status >= 500 or (call.status == 401 and not call.is_sent_away)
        if failed and not any(outage.excuses(call) for outage in outages):
            found.append(f"I7: failed: {call}")
        if call.ended - call.began > LONGEST_CALL_SECONDS:
            found.append(f"I7: left waiting: {call}")
    return found


def _logouts(history: History, ledger: Ledger, may_log_in_again: Collection[str]) -> list[str]:
    """I5: whoever didn't log out is logged in."""
    found = [
        f"I5: logged out: {call}"
        for call in history.calls
        if call.is_sent_away and call.user not in may_log_in_again and history.is_live(call)
    ]
    found += [
        f"I5: the family of {family.subject} was revoked for reuse"
        for family in ledger.families_revoked()
        if family.subject not in may_log_in_again
    ]
    found += [
        f"I5: {user} logged in {count} times"
        for user, count in history.logins.items()
        if count > 1 and user not in may_log_in_again and not any(key[0] == user for key in history.logged_out)
    ]
    return found


def _leaks(history: History, ledger: Ledger, received: Sequence[Received], log: Path) -> list[str]:
    """I6: no secret is in the log."""
    text = log.read_text(errors="replace")
    tokens = {value.partition(" ")[2] for request in received for value in request.header("authorization")}
    secrets = history.secrets | tokens | {issued.token for issued in ledger.issued}
    return [f"I6: a secret is in the log: {secret[:6]}…" for secret in secrets if secret and secret in text]


def now() -> float:
    """Return the time by which histories are written."""
    return time.monotonic()

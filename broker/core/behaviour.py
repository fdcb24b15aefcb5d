"""What refreshes show of an authorization server, and where its configuration differs from that, as values."""

from collections.abc import Iterator, Mapping
from enum import Enum, StrEnum

from broker.core.diagnosis import Finding, Verdict
from broker.core.oauth import FailureKind, TokenOutcome, TokenSet
from broker.core.provider import ProviderOptions, Rotation
from broker.core.secret import RefreshToken

ENOUGH_REFRESHES = 20
"""From so many on, what never came is taken for what never comes."""
ENOUGH_REFUSALS = 5
"""One token that dies early was revoked; so many are a habit."""


class Seen(StrEnum):
    """What is counted for each provider."""

    REFRESHED = "refreshed"
    """A refresh token was presented for the first time, and brought tokens."""
    ROTATED = "rotated"
    """A new refresh token came along."""
    ID_TOKEN = "id_token"
    """An id token came along."""
    REFRESH_EXPIRY = "refresh_expiry"
    """The answer said how long the refresh token lives."""
    TAKEN_AGAIN = "taken_again"
    """A refresh token whose answer was lost was presented again, and brought tokens."""
    REFUSED_AGAIN = "refused_again"
    """The same, while the configuration says that it's taken, and the grant had ended."""
    REFUSED_EARLY = "refused_early"
    """An upstream refused an access token that ``expires_in`` lets live."""


class Reuse(Enum):
    """What becomes of a refresh token that is presented again."""

    NOT_ROTATED = "the server doesn't rotate refresh tokens"
    TAKEN = "the server takes a refresh token again after it was rotated"
    REFUSED = "the server refuses a refresh token that was rotated, and the grant lives on"
    ENDS_THE_GRANT = "the server ends the whole grant when a refresh token is presented again"


_SAFE = {
    Reuse.NOT_ROTATED: {Rotation.NONE, Rotation.GRACE, Rotation.STRICT},
    Reuse.TAKEN: {Rotation.NONE, Rotation.GRACE, Rotation.STRICT},
    Reuse.REFUSED: {Rotation.STRICT},
    Reuse.ENDS_THE_GRANT: {Rotation.STRICT},
}
_FITS = {Reuse.NOT_ROTATED: Rotation.NONE, Reuse.TAKEN: Rotation.GRACE}


def judge_reuse(reuse: Reuse, options: ProviderOptions) -> Finding:
    """Say whether the configured ``rotation`` fits what an experiment has shown."""
    configured, fitting = options.rotation, _FITS.get(reuse, Rotation.STRICT)
    if configured not in _SAFE[reuse]:
        text = f"{reuse.value}: with rotation {configured.value} a lost answer costs a login at once"
        return Finding(verdict=Verdict.ERROR, key="rotation", text=text, fitting={"rotation": fitting.value})
    if configured is Rotation.STRICT and fitting is not configured:
        text = f"{reuse.value}: with rotation {fitting.value} a lost answer costs nothing"
        return Finding(verdict=Verdict.NOTE, key="rotation", text=text, fitting={"rotation": fitting.value})
    return Finding(verdict=Verdict.GOOD, text=f"{reuse.value}: rotation {configured.value} fits")


def seen_in(outcome: TokenOutcome, *, presented: RefreshToken, again: bool, in_time: bool) -> Iterator[Seen]:
    """
    Yield what one answer shows.

    Args:
        outcome: The answer.
        presented: The refresh token that it answers.
        again: Whether the answer to an earlier presentation of it was lost.
        in_time: Whether the configuration says that it is taken again now.
    """
    if isinstance(outcome, TokenSet):
        yield Seen.TAKEN_AGAIN if again else Seen.REFRESHED
        if outcome.refresh_token not in {None, presented}:
            yield Seen.ROTATED
        if outcome.id_token is not None:
            yield Seen.ID_TOKEN
        if outcome.refresh_expires_at is not None:
            yield Seen.REFRESH_EXPIRY
    elif again and in_time and outcome.kind is FailureKind.PERMANENT:
        yield Seen.REFUSED_AGAIN


def judge_behaviour(counts: Mapping[Seen, float], options: ProviderOptions) -> Iterator[Finding]:
    """
    Yield where the configuration doesn't fit what was seen.

    Nothing follows from it by itself: what would be bolder, only the operator decides, and what is too bold has cost a
    login before it is seen.
    """
    rotated, refreshed = counts.get(Seen.ROTATED, 0), counts.get(Seen.REFRESHED, 0)
    if options.rotation is not Rotation.STRICT and counts.get(Seen.REFUSED_AGAIN, 0):
        yield Finding(
            verdict=Verdict.WARNING,
            key="rotation",
            text=f"the server ended a grant whose refresh token was presented again: it isn't {options.rotation.value}",
            fitting={"rotation": Rotation.STRICT.value},
        )
    elif options.rotation is Rotation.NONE and rotated:
        yield Finding(
            verdict=Verdict.NOTE,
            key="rotation",
            text="new refresh tokens come: rotation none is right only where the former ones are taken as well",
        )
    elif options.rotation is Rotation.STRICT and refreshed >= ENOUGH_REFRESHES and not rotated:
        yield Finding(
            verdict=Verdict.NOTE,
            key="rotation",
            text="no refresh brought a new refresh token: with rotation none a lost answer costs nothing",
            fitting={"rotation": Rotation.NONE.value},
        )
    if counts.get(Seen.REFUSED_EARLY, 0) >= ENOUGH_REFUSALS:
        text = "upstreams refuse access tokens that should still live: renewed earlier, fewer calls are sent twice"
        yield Finding(verdict=Verdict.NOTE, key="refresh_before_expiry", text=text)

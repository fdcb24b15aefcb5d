"""What refreshes show, and where a configuration doesn't fit it."""

import pytest

from broker.core.behaviour import ENOUGH_REFRESHES, ENOUGH_REFUSALS, Reuse, Seen, judge_behaviour, judge_reuse, seen_in
from broker.core.diagnosis import Verdict
from broker.core.oauth import FailureKind, TokenFailure, TokenOutcome, TokenSet
from broker.core.provider import ProviderOptions, Rotation
from broker.core.secret import AccessToken, IdToken, RefreshToken

PRESENTED = RefreshToken("rt-1")


def tokens(refresh_token: str | None = None, *, id_token: str | None = None, ends: float | None = None) -> TokenSet:
    return TokenSet(
        access_token=AccessToken("at"),
        expires_at=60,
        requested_at=0,
        refresh_token=None if refresh_token is None else RefreshToken(refresh_token),
        refresh_expires_at=ends,
        id_token=None if id_token is None else IdToken(id_token),
    )


ENDED = TokenFailure(kind=FailureKind.PERMANENT, error="invalid_grant", status=400)
LOST = TokenFailure(kind=FailureKind.IN_DOUBT)


@pytest.mark.parametrize(
    ("outcome", "again", "in_time", "expected"),
    [
        (tokens(), False, True, [Seen.REFRESHED]),
        (tokens("rt-1"), False, True, [Seen.REFRESHED]),
        (tokens("rt-2"), False, True, [Seen.REFRESHED, Seen.ROTATED]),
        (tokens(id_token="i", ends=9.0), False, True, [Seen.REFRESHED, Seen.ID_TOKEN, Seen.REFRESH_EXPIRY]),
        (tokens("rt-2"), True, True, [Seen.TAKEN_AGAIN, Seen.ROTATED]),
        (ENDED, True, True, [Seen.REFUSED_AGAIN]),
        (ENDED, True, False, []),  # past the grace, or strict: it was the last resort
        (ENDED, False, True, []),
        (LOST, True, True, []),
    ],
)
def test_each_answer_shows_something_of_its_server(
    outcome: TokenOutcome, again: bool, in_time: bool, expected: list[Seen]
) -> None:
    """An end shows something only where the configuration promised another answer."""
    assert expected == list(seen_in(outcome, presented=PRESENTED, again=again, in_time=in_time))


MANY = {Seen.REFRESHED: ENOUGH_REFRESHES}


@pytest.mark.parametrize(
    ("rotation", "counts", "verdict", "key", "fitting"),
    [
        (Rotation.NONE, {Seen.REFUSED_AGAIN: 1, Seen.ROTATED: 9}, Verdict.WARNING, "rotation", {"rotation": "strict"}),
        (Rotation.GRACE, {Seen.REFUSED_AGAIN: 1}, Verdict.WARNING, "rotation", {"rotation": "strict"}),
        (Rotation.NONE, {Seen.ROTATED: 1}, Verdict.NOTE, "rotation", {}),
        (Rotation.STRICT, MANY, Verdict.NOTE, "rotation", {"rotation": "none"}),
        (Rotation.STRICT, {Seen.REFUSED_EARLY: ENOUGH_REFUSALS}, Verdict.NOTE, "refresh_before_expiry", {}),
    ],
)
def test_what_does_not_fit_names_its_key(
    rotation: Rotation, counts: dict[Seen, float], verdict: Verdict, key: str, fitting: dict[str, str]
) -> None:
    """Only what has cost a login is a warning."""
    (finding,) = judge_behaviour(counts, ProviderOptions(issuer="https://a.example", client_id="c", rotation=rotation))
    assert (verdict, key, fitting) == (finding.verdict, finding.key, finding.fitting)


@pytest.mark.parametrize(
    ("rotation", "counts"),
    [
        (Rotation.STRICT, {}),
        (Rotation.STRICT, {Seen.REFRESHED: ENOUGH_REFRESHES - 1}),
        (Rotation.STRICT, {**MANY, Seen.ROTATED: 1}),
        (Rotation.STRICT, {Seen.REFUSED_AGAIN: 1}),
        (Rotation.GRACE, {**MANY, Seen.ROTATED: 20, Seen.TAKEN_AGAIN: 3}),
        (Rotation.NONE, {**MANY, Seen.TAKEN_AGAIN: 1}),
        (Rotation.STRICT, {Seen.REFUSED_EARLY: ENOUGH_REFUSALS - 1}),
    ],
)
def test_what_fits_or_is_not_known_yet_is_not_told(rotation: Rotation, counts: dict[Seen, float]) -> None:
    """A few answers prove nothing."""
    options = ProviderOptions(issuer="https://a.example", client_id="c", rotation=rotation)
    assert [] == list(judge_behaviour(counts, options))


@pytest.mark.parametrize(
    ("reuse", "strict", "grace", "none"),
    [
        (Reuse.NOT_ROTATED, Verdict.NOTE, Verdict.GOOD, Verdict.GOOD),
        (Reuse.TAKEN, Verdict.NOTE, Verdict.GOOD, Verdict.GOOD),
        (Reuse.REFUSED, Verdict.GOOD, Verdict.ERROR, Verdict.ERROR),
        (Reuse.ENDS_THE_GRANT, Verdict.GOOD, Verdict.ERROR, Verdict.ERROR),
    ],
)
def test_an_experiment_says_which_rotation_fits(reuse: Reuse, strict: Verdict, grace: Verdict, none: Verdict) -> None:
    """Too careful is a note, too bold an error; both come with what fits."""
    for rotation, verdict in {Rotation.STRICT: strict, Rotation.GRACE: grace, Rotation.NONE: none}.items():
        options = ProviderOptions(issuer="https://a.example", client_id="c", rotation=rotation)
        finding = judge_reuse(reuse, options)
        assert verdict is finding.verdict
        assert (verdict is Verdict.GOOD) is (finding.fitting == {})

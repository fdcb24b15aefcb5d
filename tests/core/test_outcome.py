"""What a caller gets of a grant."""

from dataclasses import replace

import pytest

from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.grant import EndReason, Failure
from broker.core.oauth import FailureKind
from broker.core.outcome import (
    LEAST_WAIT_SECONDS,
    Cause,
    LoginNeeded,
    TokenResult,
    Unavailable,
    after_failure,
    token_for,
    token_of,
)
from broker.core.refresh import end
from broker.core.secret import RefreshToken
from tests.support.grants import LIFE, NOW, grant, held

OTHER = Audience(resource="https://orders.example")
FIRST = grant(tokens={"": held(), OTHER.key: held(generation=2)}, generation=2)


@pytest.mark.parametrize(("token_type", "bound"), [("DPoP", True), ("Bearer", False)])
def test_a_bound_token_goes_with_its_key(token_type: str, bound: bool) -> None:
    """Only a token of type DPoP is sent with a proof: a bearer token beside a key stays one (RFC 9449 section 6.1)."""
    key = RefreshToken("{}")
    token = replace(FIRST.tokens[""], token_type=token_type)

    assert (key if bound else None) == token_of(replace(FIRST, dpop_key=key), token).dpop_key


def test_each_audience_has_its_own_token() -> None:
    """A token for another one is none."""
    own, other = token_for(FIRST, DEFAULT_AUDIENCE), token_for(FIRST, OTHER)

    assert own is not None
    assert other is not None
    assert ("at-1", "at-2") == (own.access_token.reveal(), other.access_token.reveal())
    assert token_for(FIRST, Audience(audience="nobody")) is None


FAILED = replace(
    FIRST, failures={"": Failure(kind=FailureKind.TRANSIENT, count=1, at=NOW + LIFE, retry_at=NOW + LIFE + 7)}
)


@pytest.mark.parametrize(
    ("now", "rejected_generation", "expected"),
    [
        (NOW, None, token_of(FAILED, FAILED.tokens[""])),
        (NOW, 1, Unavailable(Cause.PROVIDER, LIFE + 7)),
        (NOW + LIFE, None, Unavailable(Cause.PROVIDER, 7.0)),
        (NOW + LIFE + 6.9, None, Unavailable(Cause.PROVIDER, LEAST_WAIT_SECONDS)),
    ],
)
def test_after_a_failure_a_live_token_serves_on(
    now: float, rejected_generation: int | None, expected: TokenResult
) -> None:
    """Without one its caller waits for the next attempt, and never for next to nothing."""
    assert expected == after_failure(FAILED, DEFAULT_AUDIENCE, now=now, rejected_generation=rejected_generation)


def test_after_the_end_only_the_user_can_help() -> None:
    """The reason is told."""
    ended = end(FIRST, EndReason.INVALID_GRANT, now=NOW)

    assert LoginNeeded("invalid_grant") == after_failure(ended, DEFAULT_AUDIENCE, now=NOW, rejected_generation=None)

"""One process learns from the answers to refresh tokens."""

import logging
from dataclasses import replace
from typing import Any

import pytest

from broker.core.grant import Grant, Intent
from broker.core.oauth import FailureKind, TokenFailure, TokenSet
from broker.core.provider import ProviderOptions, Rotation
from broker.core.secret import AccessToken, RefreshToken
from broker.services import metrics
from broker.services.learning import LIMIT, Learning
from tests.support.clock import ManualClock
from tests.support.providers import grant

NOW = 1_800_000_000.0
LOST = TokenFailure(kind=FailureKind.IN_DOUBT, detail="no answer")
ENDED = TokenFailure(kind=FailureKind.PERMANENT, error="invalid_grant", status=400)
NEW = TokenSet(access_token=AccessToken("a"), expires_at=1, requested_at=0, refresh_token=RefreshToken("rt-2"))


def learning(name: str, **options: Any) -> Learning:
    made = ProviderOptions(issuer="https://a.example", client_id="c", **options)
    return Learning(name, made, clock=ManualClock(NOW))


def presenting(*, carried: bool = False, started_at: float = NOW, **members: Any) -> Grant:
    intent = Intent(attempt="a", owner="o", started_at=started_at, presented_at=NOW, carried=carried)
    return grant(intent=intent, **members)


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str, Any]]:
    return [
        (record.levelno, record.__dict__["look_at"], record.__dict__["fitting"])
        for record in caplog.records
        if record.message == "provider_behaviour_differs"
    ]


def seen(name: str) -> dict[str, float]:
    return metrics.totals(metrics.PROVIDER_BEHAVIOUR, "provider", name, by="seen")


@pytest.mark.parametrize("rotation", [Rotation.NONE, Rotation.GRACE])
@pytest.mark.parametrize("by_another", [False, True])
def test_a_token_that_is_not_taken_again_is_told_once(
    caplog: pytest.LogCaptureFixture, rotation: Rotation, by_another: bool
) -> None:
    """Whether this process lost the answer a moment ago, or another one before."""
    name = f"refused-{rotation}-{by_another}"
    it = learning(name, rotation=rotation)
    for _ in range(3):
        if not by_another:
            it.watch(presenting(), LOST)
        it.watch(presenting(carried=by_another), ENDED)
    assert [(logging.WARNING, f"providers.{name}.rotation", {"rotation": "strict"})] == told(caplog)
    assert {"refused_again": 3.0} == seen(name)


def test_the_last_resort_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Past the grace nobody expects anything else."""
    it = learning("late", rotation=Rotation.GRACE, rotation_grace_seconds=30)
    it.watch(presenting(carried=True, started_at=NOW - 31), ENDED)
    assert ([], {}) == (told(caplog), seen("late"))


def test_an_ordinary_end_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Users are logged out elsewhere; and a lost answer that was settled since is forgotten."""
    it = learning("ended", rotation=Rotation.NONE)
    it.watch(presenting(), LOST)
    it.watch(presenting(), replace(NEW, refresh_token=None))
    it.watch(presenting(), ENDED)
    assert ([], {"taken_again": 1.0}) == (told(caplog), seen("ended"))


def test_new_refresh_tokens_where_none_are_expected_are_noted(caplog: pytest.LogCaptureFixture) -> None:
    """It may be right, so it is no warning."""
    caplog.set_level(logging.INFO)
    it = learning("rotating", rotation=Rotation.NONE)
    for _ in range(3):
        it.watch(presenting(), NEW)
    assert [(logging.INFO, "providers.rotating.rotation", {})] == told(caplog)


def test_lost_answers_are_remembered_within_bounds() -> None:
    """The oldest is forgotten first."""
    it = learning("bounded", rotation=Rotation.NONE)
    for number in range(LIMIT + 1):
        it.watch(presenting(id=f"{number:032x}"), LOST)
    for number in (0, LIMIT):
        it.watch(presenting(id=f"{number:032x}"), ENDED)
    assert {"refused_again": 1.0} == seen("bounded")

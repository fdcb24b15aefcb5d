"""The rules of rotation, as a table."""

import pytest

from broker.core.provider import Rotation
from broker.demo.families import Answer, Families, FamilyEvent, IssuedToken, Presentation
from broker.services.clock import SystemRandomness


class StillClock:
    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


def begin(rotation: Rotation) -> tuple[Families, StillClock, str, list[FamilyEvent]]:
    """Return families with one grant of alice's to the client "c", the clock, the first token, and what was told."""
    clock, told = StillClock(), list[FamilyEvent]()
    families = Families(
        clock=clock,
        randomness=SystemRandomness(),
        rotation=rotation,
        rotation_grace_seconds=10,
        refresh_token_seconds=100,
        observer=told.append,
    )
    _, first = families.start(client_id="c", subject="alice", scope="openid", sid="s", auth_time=1000)
    return families, clock, first.token, told


@pytest.mark.parametrize(
    ("rotation", "seconds", "expected"),
    [
        (Rotation.STRICT, 0, Answer.REUSED),
        (Rotation.STRICT, 50, Answer.REUSED),
        (Rotation.GRACE, 10, Answer.GRACE),
        (Rotation.GRACE, 11, Answer.REUSED),
        (Rotation.NONE, 50, Answer.KEPT),
        (Rotation.STRICT, 100, Answer.EXPIRED),
        (Rotation.NONE, 100, Answer.EXPIRED),
    ],
)
def test_a_second_presentation(rotation: Rotation, seconds: float, expected: Answer) -> None:
    """What comes of a spent refresh token depends on the rotation and on the time."""
    families, clock, token, _ = begin(rotation)
    families.present(token, "c")
    clock.time += seconds
    assert expected is families.present(token, "c").answer


def test_reuse_ends_the_newest_token_too() -> None:
    """After a reuse, no token of the family is taken."""
    families, _, token, _ = begin(Rotation.STRICT)
    second = families.present(token, "c").replacement
    families.present(token, "c")
    assert second is not None
    assert Answer.REVOKED is families.present(second.token, "c").answer


def test_another_clients_token_is_refused_and_unharmed() -> None:
    """A foreign presentation is no reuse: the owner's token stays good."""
    families, _, token, _ = begin(Rotation.STRICT)
    assert Answer.FOREIGN is families.present(token, "other").answer
    assert Answer.ROTATED is families.present(token, "c").answer


def test_an_unknown_token_belongs_to_nobody() -> None:
    """A token that was never issued has no family."""
    families, _, _, _ = begin(Rotation.STRICT)
    presentation = families.present("rt_?", "c")
    assert (Answer.UNKNOWN, None, None) == (presentation.answer, presentation.family, presentation.replacement)


def test_the_end_of_a_session_ends_its_families() -> None:
    """A logout at the server revokes what grew from the login, and keeps the first reason."""
    families, _, token, _ = begin(Rotation.STRICT)
    families.revoke_session("s")
    family = families.find(token)
    assert family is not None
    families.revoke(family, "later")
    assert "logout" == family.revoked
    assert Answer.REVOKED is families.present(token, "c").answer


def test_an_observer_is_told_everything_in_order() -> None:
    """Issue, issue of the replacement, presentation."""
    families, _, token, told = begin(Rotation.STRICT)
    families.present(token, "c")
    assert [IssuedToken, IssuedToken, Presentation] == [type(event) for event in told]

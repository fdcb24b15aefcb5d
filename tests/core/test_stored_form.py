"""A stored form is read by older releases, too."""

from dataclasses import dataclass, field

import pytest

from broker.core.stored_form import of_known_members


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    x: int
    y: int = 0
    sum: int = field(init=False, default=0)


@pytest.mark.parametrize("members", [{"x": 1, "y": 2}, {"x": 1, "y": 2, "z": 3}, {"x": 1, "y": 2, "sum": 9}])
def test_what_is_known_is_read_and_the_rest_left_out(members: dict[str, int]) -> None:
    """A member that is computed isn't read either."""
    assert Point(x=1, y=2) == of_known_members(Point, members)


def test_a_member_that_is_needed_is_missed() -> None:
    """What isn't there is not guessed."""
    with pytest.raises(TypeError, match="x"):
        of_known_members(Point, {"y": 2, "z": 3})

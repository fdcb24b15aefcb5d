"""
A small explicit-state model checker: every state that can be reached, each checked, with the way to the one that fails.

States are hashable values; a model says what can happen in a state. Breadth first, so the way that is shown is among
the shortest.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)

Steps = Callable[[S], Iterable[tuple[str, S]]]
"""What can happen in a state: the name of each step, and the state after it."""


class Violation(AssertionError):
    """A state that must not be reached, and the way to it."""

    def __init__(self, broken: str, way: list[str]) -> None:
        super().__init__(f"{broken}\n  by: " + "\n      ".join(way or ["the initial state"]))
        self.broken = broken
        self.way = way


@dataclass
class Explored(Generic[S]):
    """
    What was reached.

    Attributes:
        came_from: By state, the step that first led there and the state before; None for initial states.
        edges: How many steps were looked at.
    """

    came_from: dict[S, tuple[str, S] | None]
    edges: int = 0

    def way_to(self, state: S) -> list[str]:
        """Return the names of the steps from an initial state to *state*."""
        way = []
        current: S | None = state
        while current is not None:
            step = self.came_from[current]
            if step is None:
                break
            way.append(step[0])
            current = step[1]
        return way[::-1]


def explore(
    initial: Iterable[S], steps: Steps[S], *, check: Callable[[S], str | None], limit: int = 5_000_000
) -> Explored[S]:
    """
    Reach every state there is.

    Args:
        initial: Where it begins.
        steps: What can happen.
        check: Returns what is wrong with a state, or None.
        limit: More states than this are a mistake of the model.

    Raises:
        Violation: At the first state that *check* refuses.
    """
    explored = Explored[S](dict.fromkeys(initial))
    waiting = deque(explored.came_from)
    while waiting:
        state = waiting.popleft()
        if (broken := check(state)) is not None:
            raise Violation(broken, explored.way_to(state))
        for name, after in steps(state):
            explored.edges += 1
            if after not in explored.came_from:
                assert len(explored.came_from) < limit, "the model has too many states"
                explored.came_from[after] = (name, state)
                waiting.append(after)
    return explored


def check_recovery(
    explored: Explored[S],
    next_step: Callable[[S], tuple[str, S] | None],
    *,
    check: Callable[[S], str | None],
    longest: int = 500,
) -> None:
    """
    From every state that was reached, go on without any further fault, and check where that ends.

    Args:
        explored: The states.
        next_step: What happens next when nothing goes wrong; None where nothing remains to be done.
        check: Returns what is wrong with a state in which it ends, or None.
        longest: A way that takes more steps never ends.

    Raises:
        Violation: If a way doesn't end, or ends in a state that *check* refuses.
    """
    good: set[S] = set()
    for start in explored.came_from:
        way: list[str] = []
        passed: list[S] = []
        state = start
        while state not in good:
            passed.append(state)
            step = next_step(state)
            if step is None:
                if (broken := check(state)) is not None:
                    raise Violation(broken, [*explored.way_to(start), "-- no more faults --", *way])
                break
            way.append(step[0])
            state = step[1]
            if len(way) > longest:
                raise Violation("service never returns", [*explored.way_to(start), "-- no more faults --", *way[:60]])
        good.update(passed)

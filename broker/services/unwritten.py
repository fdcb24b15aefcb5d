"""What this process knows of its presentations and could not write down."""

from collections import OrderedDict
from collections.abc import Callable

from broker.core.grant import Grant

LIMIT = 10_000


class Unwritten:
    """
    Results by attempt, bounded; the oldest goes first.

    To everybody else the intent of such an attempt is in doubt, and stays so if this process forgets the result.
    """

    def __init__(self) -> None:
        self._results: OrderedDict[str, Callable[[Grant], Grant]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._results)

    def note(self, attempt: str, result: Callable[[Grant], Grant]) -> None:
        """Remember what becomes of the grant by what came of *attempt*."""
        self._results[attempt] = result
        if len(self._results) > LIMIT:
            self._results.popitem(last=False)

    def take(self, attempt: str) -> Callable[[Grant], Grant] | None:
        """Return the result of *attempt*, and forget it."""
        return self._results.pop(attempt, None)

"""
Answers that the store has acknowledged, for as long as it may yet forget them.

A failover may go on with a replica that lacks the last writes. Then the record has a refresh token that is spent, and
only the process that saved the answer knows: it writes the answer again in place of presenting that token.
"""

from collections import OrderedDict

from broker.core.grant import Grant
from broker.services.clock import Clock
from broker.services.spool import Entry

KEPT_SECONDS = 60.0
"""A failover is over by then, and whatever a replica lacked was lost."""
LIMIT = 4096


class SavedAnswers:
    """Answers by grant, bounded; the grant whose last one was saved longest ago goes first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._saved: OrderedDict[str, list[tuple[float, Entry]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._saved)

    def note(self, entry: Entry) -> None:
        """Remember an answer that the store has taken."""
        now = self._clock.monotonic()
        known = self._saved.pop(entry.grant_id, [])
        young = [(at, each) for at, each in known if self._is_kept(at) and each.attempt != entry.attempt]
        self._saved[entry.grant_id] = [*young, (now, entry)]
        while len(self._saved) > LIMIT or not self._is_kept(next(iter(self._saved.values()))[-1][0]):
            self._saved.popitem(last=False)

    def lost(self, grant: Grant) -> list[Entry]:
        """Return the answers that *grant*, as it was just read, had and has no more, oldest first."""
        if grant.ended is not None:
            return []
        return sorted(
            (
                entry
                for at, entry in self._saved.get(grant.id, ())
                if self._is_kept(at)
                and entry.chain_started_at == grant.chain_started_at
                and entry.chain_length >= grant.chain_length
            ),
            key=lambda entry: entry.chain_length,
        )

    def _is_kept(self, at: float) -> bool:
        return self._clock.monotonic() < at + KEPT_SECONDS

"""Whether the store can be had: told once when that changes, and not at each call that fails."""

import logging

from broker.errors import StoreError
from broker.services import metrics
from broker.services.clock import Clock

log = logging.getLogger(__name__)


class StoreWatch:
    """What one process finds of the store, each time that it looks."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lost_at: float | None = None

    def failed(self, fault: StoreError) -> None:
        """The store didn't answer."""
        metrics.STORE_UP.set(0)
        if self._lost_at is None:
            self._lost_at = self._clock.monotonic()
            log.warning("store_lost", extra={"error": str(fault), "look_at": fault.look_at})

    def worked(self) -> None:
        """The store answered."""
        metrics.STORE_UP.set(1)
        if self._lost_at is not None:
            log.warning("store_back", extra={"seconds": round(self._clock.monotonic() - self._lost_at)})
            self._lost_at = None

"""The subscribers of one process."""

import logging
from collections.abc import Callable

from broker.stores.base import Event, Topic

log = logging.getLogger(__name__)

RESYNC = Event(Topic.RESYNC, "")


class Listeners:
    """Functions that want to hear every event. One that raises does not silence the others."""

    def __init__(self) -> None:
        self._listeners: dict[object, Callable[[Event], None]] = {}

    def __len__(self) -> int:
        return len(self._listeners)

    def add(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Add *listener*, and return the function that removes it again."""
        ticket = object()
        self._listeners[ticket] = listener

        def remove() -> None:
            self._listeners.pop(ticket, None)

        return remove

    def tell(self, event: Event) -> None:
        """Call every listener with *event*. Only on the event loop."""
        for listener in tuple(self._listeners.values()):
            try:
                listener(event)
            except Exception:
                log.exception("listener_failed", extra={"topic": event.topic.value})

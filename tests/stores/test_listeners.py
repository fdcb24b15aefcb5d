"""Listeners are told in order, and none silences another."""

import pytest

from broker.stores.base import Event, Topic
from broker.stores.listeners import Listeners

EVENT = Event(Topic.GRANT_ENDED, "grant:01")


def test_each_listener_is_told() -> None:
    """All listeners hear an event, also one that was added twice."""
    listeners, heard = Listeners(), list[Event]()
    first = listeners.add(heard.append)
    listeners.add(heard.append)
    assert 2 == len(listeners)
    listeners.tell(EVENT)
    assert [EVENT, EVENT] == heard
    first()
    first()
    listeners.tell(EVENT)
    assert 3 == len(heard)


def test_a_listener_may_leave_while_it_is_told() -> None:
    """Removing oneself, or another, in the middle of an event harms nobody."""
    listeners, heard = Listeners(), list[Event]()
    removals = [listeners.add(lambda _: removals[1]())]
    removals.append(listeners.add(heard.append))
    listeners.tell(EVENT)
    listeners.tell(EVENT)
    assert 1 == len(heard)


def test_a_fault_is_logged_and_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    """The next listener hears the event all the same."""
    listeners, heard = Listeners(), list[Event]()

    def faulty(_: Event) -> None:
        raise RuntimeError

    listeners.add(faulty)
    listeners.add(heard.append)
    listeners.tell(EVENT)
    assert [EVENT] == heard
    assert ["listener_failed"] == [record.message for record in caplog.records]

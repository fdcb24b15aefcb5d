"""The feed of events finds each one once, and says so when some are gone."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.stores.base import Event, Topic
from broker.stores.listeners import RESYNC
from broker.stores.sqlite_events import EventFeed
from broker.stores.sqlite_file import SqliteFile
from tests.support.clock import ManualClock


class Process:
    """A process with a feed of its own."""

    def __init__(self, path: Path) -> None:
        self.file = SqliteFile(path, ManualClock())
        self.feed = EventFeed()

    @property
    def db(self) -> sqlite3.Connection:
        return self.file.open().db

    def publish(self, *numbers: int, topic: str = "generation") -> None:
        for number in numbers:
            self.db.execute(
                "INSERT INTO events (topic, key, number, created_at) VALUES (?, 'k', ?, 0)", (topic, number)
            )

    def listen(self) -> None:
        self.feed.is_wanted = True
        self.feed.follow(self.db)

    def poll(self) -> list[Event]:
        self.feed.follow(self.db)
        return self.feed.poll(self.db)


def events(*numbers: int) -> list[Event]:
    return [Event(Topic.GENERATION, "k", number) for number in numbers]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[tuple[Process, Process]]:
    pair = Process(tmp_path / "b.db"), Process(tmp_path / "b.db")
    yield pair
    for process in pair:
        process.file.close()


def test_each_event_is_found_once(processes: tuple[Process, Process]) -> None:
    """Events of another process are found in order, and not again."""
    writer, reader = processes
    writer.publish(1)
    reader.listen()
    assert [] == reader.poll(), "what was before is over"
    writer.publish(2, 3)
    assert events(2, 3) == reader.poll()
    assert [] == reader.poll()
    writer.publish(4)
    assert events(4) == reader.poll()


def test_own_events_are_found_too(processes: tuple[Process, Process]) -> None:
    """A process hears itself, in one order with the others."""
    other, process = processes
    process.listen()
    other.publish(1)
    process.publish(2)
    process.feed.is_behind = True
    assert events(1, 2) == process.poll()
    assert [] == process.poll()


def test_who_does_not_listen_reads_nothing(processes: tuple[Process, Process]) -> None:
    """Without listeners the table isn't read; who begins again begins with the events after that."""
    writer, reader = processes
    writer.publish(1)
    assert [] == reader.poll()
    reader.listen()
    reader.feed.is_wanted = False
    reader.poll()
    writer.publish(2)
    reader.listen()
    writer.publish(3)
    assert events(3) == reader.poll()


@pytest.mark.parametrize("left", [0, 1])
def test_pruned_events_give_a_resync(processes: tuple[Process, Process], left: int) -> None:
    """A process that slept until its events were pruned is told that it missed some."""
    writer, reader = processes
    reader.listen()
    writer.publish(1, 2, 3)
    writer.db.execute("DELETE FROM events WHERE number <= ?", (3 - left,))
    assert [RESYNC, *events(3)[:left]] == reader.poll()
    writer.publish(4)
    assert events(4) == reader.poll()


def test_a_file_opened_anew_gives_a_resync(processes: tuple[Process, Process]) -> None:
    """What happened while the file was closed isn't known."""
    writer, reader = processes
    reader.listen()
    reader.file.close()
    writer.publish(1)
    assert [RESYNC] == reader.poll()
    writer.publish(2)
    assert events(2) == reader.poll()


def test_unknown_topics_are_left_out(processes: tuple[Process, Process]) -> None:
    """What a newer release publishes is passed over, and so is a RESYNC that nobody may publish."""
    writer, reader = processes
    reader.listen()
    writer.publish(1, topic="new_topic")
    writer.publish(2, topic="resync")
    writer.publish(3)
    assert events(3) == reader.poll()

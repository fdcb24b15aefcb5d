"""What a process knows of its presentations and could not write down."""

from broker.core.refresh import withdraw
from broker.services.unwritten import LIMIT, Unwritten


def test_a_result_is_told_once() -> None:
    """Whoever takes it writes it down, or notes it again."""
    unwritten = Unwritten()
    unwritten.note("a1", withdraw)

    assert withdraw is unwritten.take("a1")
    assert unwritten.take("a1") is None
    assert unwritten.take("never noted") is None


def test_what_is_remembered_is_bounded() -> None:
    """A store that is down for long doesn't fill the memory; the oldest results become doubts."""
    unwritten = Unwritten()
    for number in range(LIMIT + 1):
        unwritten.note(str(number), withdraw)

    assert LIMIT == len(unwritten)
    assert unwritten.take("0") is None

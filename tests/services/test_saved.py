"""Answers that the store has acknowledged and may yet forget."""

from dataclasses import replace

import pytest

from broker.core.audience import DEFAULT_AUDIENCE
from broker.core.grant import EndReason, Grant
from broker.core.refresh import end
from broker.services.saved import KEPT_SECONDS, LIMIT, SavedAnswers
from broker.services.spool import Entry
from tests.support.clock import ManualClock
from tests.support.grants import NOW, answer, grant


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


def entry(number: int, of: Grant) -> Entry:
    """The answer to a grant's refresh token as it is the *number*-th link of its chain."""
    return Entry(
        attempt=f"a{number}",
        grant_id=of.id,
        provider=of.provider,
        subject=of.subject,
        chain_length=number,
        chain_started_at=of.chain_started_at,
        audience=DEFAULT_AUDIENCE,
        answer=answer(number + 1),
    )


def test_what_a_grant_has_no_more_is_told_in_order(clock: ManualClock) -> None:
    """Of a record that went back, whatever came after it; of the newest, nothing."""
    saved, old = SavedAnswers(clock), grant(chain_length=1)
    for number in (2, 1):
        saved.note(entry(number, old))
    saved.note(entry(2, old))

    assert [1, 2] == [each.chain_length for each in saved.lost(old)]
    assert [2] == [each.chain_length for each in saved.lost(replace(old, chain_length=2))]
    assert [] == saved.lost(replace(old, chain_length=3))


def test_another_chain_and_an_end_want_none_of_it(clock: ManualClock) -> None:
    """Tokens were handed over since, or the user has logged out."""
    saved, old = SavedAnswers(clock), grant(chain_length=1)
    saved.note(entry(1, old))

    assert [] == saved.lost(replace(old, chain_started_at=NOW + 1))
    assert [] == saved.lost(end(old, EndReason.LOGOUT, now=NOW))
    assert [] == saved.lost(replace(old, id="f" * 32))


def test_it_is_kept_for_a_while(clock: ManualClock) -> None:
    """And then forgotten, whether somebody asks for it or not."""
    saved, old = SavedAnswers(clock), grant(chain_length=1)
    saved.note(entry(1, old))
    clock.advance(KEPT_SECONDS)

    assert [] == saved.lost(old)
    saved.note(entry(1, grant(id="f" * 32)))
    assert 1 == len(saved)


def test_what_is_kept_is_bounded(clock: ManualClock) -> None:
    """A storm of refreshes doesn't fill the memory."""
    saved = SavedAnswers(clock)
    for number in range(LIMIT + 1):
        saved.note(entry(1, grant(id=f"{number:032x}")))

    assert LIMIT == len(saved)
    assert [] == saved.lost(grant(id=f"{0:032x}", chain_length=1))

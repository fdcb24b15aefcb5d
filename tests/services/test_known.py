"""What a process knows of grants."""

from dataclasses import astuple, replace

import pytest

from broker.core.audience import DEFAULT_AUDIENCE
from broker.core.grant import EndReason, Failure
from broker.core.oauth import FailureKind
from broker.core.outcome import Token
from broker.core.refresh import SETTLE_SECONDS, due_from, end, succeed, usable_until
from broker.core.secret import AccessToken, RefreshToken
from broker.services.known import UNSAVED, Known, KnownGrants, KnownToken, _pack, _unpack
from tests.support.clock import ManualClock
from tests.support.grants import NOW, answer, grant, intent, provider_options

TTL = 5.0
OPTIONS = provider_options()
FIRST = grant()
SECOND = succeed(FIRST, DEFAULT_AUDIENCE, answer(2))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def grants(clock: ManualClock) -> KnownGrants:
    return KnownGrants({"corp": OPTIONS}, clock, ttl_seconds=TTL, limit=3)


def generation(grants: KnownGrants) -> int | None:
    seen = grants.get(FIRST.id)
    return None if seen is None else seen.generation


def is_stale(grants: KnownGrants) -> bool:
    seen = grants.get(FIRST.id)
    assert seen is not None
    return grants.is_stale(seen)


def test_what_is_known_tells_when_its_token_is_due_and_usable(grants: KnownGrants) -> None:
    """The hot path needs no rule but two comparisons."""
    grants.learn(FIRST)
    seen = grants.get(FIRST.id)
    assert seen is not None
    held = FIRST.tokens[""]

    token = seen.token(DEFAULT_AUDIENCE, NOW)

    assert token is not None
    assert (held.access_token, 1, due_from(held, OPTIONS), usable_until(held)) == (
        token.token.access_token,
        token.token.generation,
        token.due_at,
        token.usable_until,
    )
    assert seen.token(DEFAULT_AUDIENCE, usable_until(held)) is None


def test_what_is_kept_small_comes_back_whole() -> None:
    """A grant that wasn't used lately is kept as plain values: nothing of it may be lost by that."""
    token = Token(AccessToken("a"), "DPoP", 2, NOW + 300, "corp", RefreshToken("k"))
    known = Known(
        provider="corp",
        generation=2,
        tokens={"": KnownToken(token, NOW, NOW + 200, NOW + 290)},
        ended="logout",
        version=7,
        era=3,
        stale_at=NOW + 5,
    )

    again = _unpack(_pack(known))

    assert known == again
    assert token == again.tokens[""].token
    assert None not in astuple(again.tokens[""].token)


def test_a_grant_that_backs_off_is_not_due_before_its_time(grants: KnownGrants) -> None:
    """While a provider is down, the calls of the soft window don't ask the store each time whether they may refresh."""
    failure = Failure(kind=FailureKind.TRANSIENT, count=9, at=NOW + 250, retry_at=NOW + 254)
    grants.learn(replace(FIRST, failures={"": failure}))
    seen = grants.get(FIRST.id)
    assert seen is not None

    assert NOW + 254 == seen.tokens[""].due_at


def test_a_token_in_doubt_is_not_due_at_each_request(grants: KnownGrants, clock: ManualClock) -> None:
    """A strict server isn't presented with it while the access token lives; others may tell what came of it."""
    clock.advance(due_from(FIRST.tokens[""], OPTIONS) - NOW + 1)
    grants.learn(replace(FIRST, intent=intent()))
    seen = grants.get(FIRST.id)
    assert seen is not None

    assert clock.now() + SETTLE_SECONDS == seen.tokens[""].due_at


def test_what_was_seen_is_asked_for_again_after_a_while(grants: KnownGrants, clock: ManualClock) -> None:
    """Events may be lost."""
    grants.learn(FIRST)
    clock.advance(TTL - 0.1)
    assert not is_stale(grants)
    clock.advance(0.1)
    assert is_stale(grants)


def test_what_the_store_still_has_is_known_for_another_while(grants: KnownGrants, clock: ManualClock) -> None:
    """After its time, and after events were lost; but what is another version than the one that was found isn't."""
    grants.learn(FIRST, version=7)
    clock.advance(TTL)
    grants.outdate_all()
    assert grants.confirm(FIRST.id, 6) == grants.get(FIRST.id)
    assert is_stale(grants)

    confirmed = grants.confirm(FIRST.id, 7)

    assert confirmed is not None
    assert confirmed is grants.get(FIRST.id)
    assert not is_stale(grants)
    assert grants.confirm("unknown", 7) is None


def test_an_older_generation_never_replaces_a_newer_one(grants: KnownGrants) -> None:
    """A read that began before a refresh ends after it."""
    grants.learn(SECOND)
    grants.learn(FIRST)

    assert 2 == generation(grants)


def test_news_of_a_newer_generation_keeps_what_serves_while_the_store_is_down(grants: KnownGrants) -> None:
    """It is stale, not gone: its token lives."""
    grants.learn(FIRST)
    grants.outdate(FIRST.id, 1)
    assert not is_stale(grants)

    grants.outdate(FIRST.id, 2)

    assert is_stale(grants)
    assert 1 == generation(grants)


def test_lost_events_outdate_all_but_what_the_store_does_not_have(grants: KnownGrants) -> None:
    """An answer that couldn't be saved is served from memory alone."""
    grants.learn_unsaved(SECOND)
    grants.learn(replace(FIRST, id="other"))

    grants.outdate_all()

    seen, other = grants.get(SECOND.id), grants.get("other")
    assert seen is not None
    assert other is not None
    assert (UNSAVED, False, True) == (seen.stale_at, grants.is_stale(seen), grants.is_stale(other))


def test_what_was_unsaved_is_ordinary_once_it_is_saved(grants: KnownGrants, clock: ManualClock) -> None:
    """It gets stale as all else."""
    grants.learn_unsaved(SECOND)
    grants.learn(SECOND)
    clock.advance(TTL)

    assert is_stale(grants)


def test_se_07_an_end_beats_a_read_that_began_before(grants: KnownGrants, clock: ManualClock) -> None:
    """No late read brings a logged-out grant back to life, of whatever generation."""
    grants.learn(FIRST)
    grants.end(FIRST.id, "logout")
    grants.learn(SECOND)
    grants.learn_unsaved(SECOND)

    seen = grants.get(FIRST.id)
    assert seen is not None
    assert ("logout", None) == (seen.ended, seen.token(DEFAULT_AUDIENCE, NOW))

    clock.advance(TTL)  # no read takes as long; a store that went back to an older state may have the grant again
    grants.learn(FIRST)
    assert 1 == generation(grants)


def test_the_stored_end_replaces_whatever_was_known(grants: KnownGrants) -> None:
    """An ended grant has the generation that it had."""
    grants.learn_unsaved(SECOND)
    grants.learn(end(FIRST, EndReason.INVALID_GRANT, now=NOW))

    seen = grants.get(FIRST.id)
    assert seen is not None
    assert (EndReason.INVALID_GRANT, {}) == (seen.ended, seen.tokens)


def test_what_is_remembered_is_bounded(grants: KnownGrants) -> None:
    """The grant that was seen longest ago goes first."""
    for name in "abcd":
        grants.learn(replace(FIRST, id=name))
        grants.learn(replace(FIRST, id="a"))

    assert 3 == len(grants)
    assert [name for name in "abcd" if grants.get(name)] == ["a", "c", "d"]


def test_a_grant_of_an_unknown_provider_is_not_remembered(grants: KnownGrants) -> None:
    """Nothing can be said of when it is due."""
    grants.learn(replace(FIRST, provider="gone"))

    assert 0 == len(grants)


def test_the_remembered_grants_are_counted_by_provider_and_state() -> None:
    """What is replaced, ends or falls out is counted once, or no more."""
    clock = ManualClock()
    known = KnownGrants({"corp": provider_options()}, clock, ttl_seconds=5.0, limit=2)

    known.learn(grant(id="a"))
    known.learn(grant(id="a", generation=2))
    known.learn(grant(id="b"))
    known.end("b", "logout")
    assert {("corp", "live"): 1, ("corp", "ended"): 1} == +known.counts

    known.learn(grant(id="c"))
    assert {("corp", "live"): 1, ("corp", "ended"): 1} == +known.counts

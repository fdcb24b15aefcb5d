import math
from dataclasses import replace

import pytest

from broker.core.options import OptionError
from broker.core.session import (
    Index,
    Session,
    SessionOptions,
    UnknownFormat,
    decode,
    encode,
    index_word,
    index_words,
    lifetime_seconds,
    lives_until,
    touch_at,
)

NOW = 1_800_000_000.0
IDLE = 1600.0
SESSION = Session(
    grant_id="g1",
    provider="corp",
    issuer="https://idp.example.com",
    subject="ada",
    claims={"name": "Ada", "groups": ["a", "b"], "address": {"country": "GB"}, "age": 36, "admin": False},
    authenticated_at=NOW - 100,
    last_seen_at=NOW,
    ends_at=NOW + 5000,
    provider_session="sid-1",
)


def test_a_session_comes_back_as_it_was() -> None:
    """Claims of every JSON type included."""
    assert SESSION == decode(encode(SESSION))


def test_a_session_of_a_later_release_is_refused() -> None:
    """It is not misread."""
    with pytest.raises(UnknownFormat):
        decode(encode(SESSION).replace(b'{"v":1,', b'{"v":3,'))


def test_ft_14_members_that_a_later_release_added_are_left_out() -> None:
    """As long as the format is the same, nobody who goes back to this release is logged out."""
    assert SESSION == decode(encode(SESSION).replace(b'{"v":1,', b'{"v":1,"added":true,'))


@pytest.mark.parametrize(
    ("at", "live"), [(NOW, True), (NOW + IDLE - 1, True), (NOW + IDLE, False), (NOW + 5000, False), (NOW - 3600, True)]
)
def test_se_05_a_session_ends_at_its_idle_or_its_absolute_end(at: float, *, live: bool) -> None:
    """Whichever comes first; ``lifetime_seconds`` says the same in seconds."""
    assert live == (at < lives_until(SESSION, idle_timeout_seconds=IDLE))
    assert live == (lifetime_seconds(SESSION, now=at, idle_timeout_seconds=IDLE) > 0)
    assert SESSION.ends_at == lives_until(SESSION, idle_timeout_seconds=math.inf)


def test_a_use_is_written_down_sixteen_times_per_idle_timeout() -> None:
    """Not more often."""
    assert NOW + 100 == touch_at(SESSION, idle_timeout_seconds=IDLE)


def test_the_first_use_of_a_session_that_replaces_another_is_written_down() -> None:
    """Whatever the clock says: the other one must not outlive it."""
    assert touch_at(replace(SESSION, replaces="session:1"), idle_timeout_seconds=IDLE) < -1e18


def test_a_session_that_replaces_none_reads_as_it_always_did() -> None:
    """An earlier release, which knows no such member, reads it too; it refuses the others as a later release's."""
    replacing = replace(SESSION, replaces="session:1")

    assert encode(SESSION).startswith(b'{"v":1,')
    assert b"replaces" not in encode(SESSION)
    assert encode(replacing).startswith(b'{"v":2,')
    assert replacing == decode(encode(replacing))


def test_se_08_no_two_users_share_an_index_word() -> None:
    """However the texts are cut, another issuer or subject is another word."""
    pairs = [
        ("a", "bc"),
        ("ab", "c"),
        ("", "abc"),
        ("abc", ""),
        ('a","b', "c"),
        ("a", 'b","c'),
        ("a\x00b", "c"),
        ("a", "b\x00c"),
    ]

    assert len(pairs) == len({index_word(*pair) for pair in pairs})


def test_a_session_without_a_sid_is_in_no_sid_index() -> None:
    """A back-channel logout by ``sid`` can't meet it."""
    assert set(Index) == set(index_words(SESSION))
    words = index_words(decode(encode(SESSION).replace(b'"sid-1"', b"null")))
    assert set(Index) - {Index.PROVIDER_SESSION} == set(words)


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("idle_timeout", {"idle_timeout_seconds": 0.0}),
        ("idle_timeout", {"idle_timeout_seconds": 2.0, "absolute_timeout_seconds": 1.0}),
        ("idle_timeout", {"idle_timeout_seconds": math.nan}),
        ("cache_ttl", {"cache_ttl_seconds": 301.0}),
        ("outage_grace", {"outage_grace_seconds": -1.0}),
        ("max_cached", {"max_cached": 0}),
    ],
)
def test_wrong_options_are_refused(key: str, options: dict[str, float]) -> None:
    """Each names its key as the configuration spells it."""
    with pytest.raises(OptionError) as refusal:
        SessionOptions(**options)  # type: ignore[arg-type]

    assert key == refusal.value.key

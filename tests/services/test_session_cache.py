import gc
import tracemalloc

from broker.core.session import Session, encode
from broker.services.session_cache import LiveSession, SessionCache
from broker.services.session_records import StoredSession


def entry(number: int) -> tuple[bytes, StoredSession]:
    session = Session(
        grant_id=f"{number:032x}",
        provider="corp",
        issuer="https://idp.example.com",
        subject=f"user-{number}",
        claims={"name": "Ada Lovelace", "email": "ada@example.com", "groups": [f"group-{at}" for at in range(100)]},
        authenticated_at=float(number),
        last_seen_at=number + 0.5,
        ends_at=number + 1.5,
        provider_session=f"sid-{number}",
    )
    return number.to_bytes(32), StoredSession(f"session:{number:064x}", number, session, encode(session))


def test_the_cache_is_bounded() -> None:
    """The sessions that were read longest ago go first, and unknown ids take no room beyond theirs."""
    cache = SessionCache(100)
    for number in range(1000):
        digest, stored = entry(number)
        cache.put(digest, LiveSession.of(stored, idle_timeout_seconds=60.0, read_at=0.0))
        cache.put_absent(b"absent" + digest, until=1.0)

    assert 100 == len(cache)
    assert 100 == len(cache._digests)
    assert len(cache._absent) <= 100
    assert cache.get(entry(999)[0]) is not None
    assert cache.get(entry(899)[0]) is None


def test_a_cached_session_takes_less_than_3_kib_and_no_time_to_collect() -> None:
    """Two thousand sessions with a hundred groups each; none of them is left to the garbage collector to visit."""
    cache = SessionCache(10_000)
    tracemalloc.start()
    try:
        for number in range(2000):
            digest, stored = entry(number)
            cache.put(digest, LiveSession.of(stored, idle_timeout_seconds=60.0, read_at=float(number)))
        size = tracemalloc.get_traced_memory()[0] / 2000
    finally:
        tracemalloc.stop()

    assert size < 3 * 1024
    assert not any(map(gc.is_tracked, cache._sessions._packed.values()))


def test_what_is_absent_is_known_for_its_time() -> None:
    """Afterwards the store is asked again."""
    cache = SessionCache(100)
    cache.put_absent(b"a", until=5.0)

    assert cache.is_absent(b"a", at=4.9)
    assert not cache.is_absent(b"a", at=5.0)
    assert not cache.is_absent(b"a", at=0.0), "it is forgotten then"
    assert not cache.is_absent(b"b", at=0.0)


def test_a_dropped_session_is_gone_by_both_names() -> None:
    """Dropping one that isn't there does nothing."""
    cache = SessionCache(100)
    digest, stored = entry(1)
    cache.put(digest, LiveSession.of(stored, idle_timeout_seconds=60.0, read_at=0.0))

    cache.drop("session:unknown")
    cache.drop(stored.key)
    cache.drop(stored.key)

    assert cache.get(digest) is None
    assert 0 == len(cache)


def test_lk_01_a_live_session_shows_its_key_and_nothing_else() -> None:
    """Whoever logs it logs no claim."""
    _, stored = entry(1)
    live = LiveSession.of(stored, idle_timeout_seconds=60.0, read_at=0.0)

    assert f"LiveSession(key={stored.key!r})" == repr(live)
    assert stored.session == live.session
    assert (stored.version, stored.session.grant_id, "corp") == (live.version, live.grant_id, live.provider)
    assert stored.session.ends_at == live.lives_until

from broker.services.limits import TokenBuckets
from tests.support.clock import ManualClock


def test_a_burst_passes_and_then_the_rate() -> None:
    """Five at once, then two a second; who is refused is told when to come again."""
    clock = ManualClock()
    buckets = TokenBuckets(requests_per_second=2, burst=5, monotonic=clock.monotonic)

    assert [0.0] * 5 == [buckets.take("a") for _ in range(5)]
    assert 0.5 == round(buckets.take("a"), 6)
    clock.advance(0.5)
    assert 0.0 == buckets.take("a")
    assert 0.5 == round(buckets.take("a"), 6)


def test_a_refusal_costs_nothing() -> None:
    """Whoever keeps knocking isn't punished for it."""
    clock = ManualClock()
    buckets = TokenBuckets(requests_per_second=1, burst=1, monotonic=clock.monotonic)
    buckets.take("a")
    for _ in range(100):
        assert buckets.take("a") > 0
    clock.advance(1)

    assert 0.0 == buckets.take("a")


def test_callers_have_buckets_of_their_own() -> None:
    """One's burst takes nothing from another."""
    buckets = TokenBuckets(requests_per_second=1, burst=1, monotonic=ManualClock().monotonic)

    assert [0.0, 0.0] == [buckets.take("a"), buckets.take("b")]
    assert buckets.take("a") > 0


def test_ds_04_a_million_callers_take_bounded_memory() -> None:
    """Whoever was touched longest ago is forgotten first; whoever comes often stays limited."""
    clock = ManualClock()
    buckets = TokenBuckets(requests_per_second=1, burst=1, monotonic=clock.monotonic, max_callers=100)
    buckets.take("often")
    for number in range(10_000):
        buckets.take(f"caller-{number}")
        assert buckets.take("often") > 0

    assert 100 == len(buckets)


def test_a_long_pause_fills_a_bucket_only_once() -> None:
    """An hour of silence allows one burst, not an hour's worth."""
    clock = ManualClock()
    buckets = TokenBuckets(requests_per_second=10, burst=3, monotonic=clock.monotonic)
    buckets.take("a")
    clock.advance(3600)

    assert [0.0] * 3 == [buckets.take("a") for _ in range(3)]
    assert buckets.take("a") > 0


def test_a_token_can_be_given_back() -> None:
    """What was taken in vain isn't missed."""
    buckets = TokenBuckets(requests_per_second=1, burst=1, monotonic=ManualClock().monotonic)
    buckets.take("a")
    buckets.give_back("a")
    buckets.give_back("nobody")

    assert 0.0 == buckets.take("a")
    assert 0 < buckets.take("a")

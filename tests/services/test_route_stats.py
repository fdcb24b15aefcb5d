from prometheus_client import REGISTRY

from broker.services.route_stats import RouteStats


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_what_was_counted_is_handed_on_once() -> None:
    """Statuses by class, durations by bucket; a second flush adds nothing."""
    stats = RouteStats("/counted")
    for status, seconds in ((200, 0.001), (204, 0.02), (404, 0.3), (502, 100.0), (0, 1.0)):
        stats.count(status, seconds)
    stats.flush()
    stats.flush()

    assert 2 == sample("proxy_requests_total", route="/counted", status="2xx")
    assert 1 == sample("proxy_requests_total", route="/counted", status="4xx")
    assert 1 == sample("proxy_requests_total", route="/counted", status="5xx")
    assert 1 == sample("proxy_requests_total", route="/counted", status="gone")
    assert 5 == sample("proxy_request_duration_seconds_count", route="/counted")
    assert 101.321 == round(sample("proxy_request_duration_seconds_sum", route="/counted"), 3)
    assert 1 == sample("proxy_request_duration_seconds_bucket", route="/counted", le="0.0025")
    assert 2 == sample("proxy_request_duration_seconds_bucket", route="/counted", le="0.025")
    assert 4 == sample("proxy_request_duration_seconds_bucket", route="/counted", le="30.0")
    assert 5 == sample("proxy_request_duration_seconds_bucket", route="/counted", le="+Inf")


def test_a_route_that_nobody_asks_for_has_no_numbers() -> None:
    """Nothing is handed on."""
    RouteStats("/idle").flush()

    assert 0 == sample("proxy_request_duration_seconds_count", route="/idle")

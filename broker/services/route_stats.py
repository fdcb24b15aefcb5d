"""
What is counted for each proxied request: plain numbers, which are handed to Prometheus once a second.

A labelled Prometheus metric costs microseconds each time, several of which would be a tenth of what a request may cost.
"""

from bisect import bisect_left
from typing import Final

from broker.services import metrics

BOUNDS: Final = metrics.PROXY_BUCKETS


class RouteStats:
    """The numbers of one route."""

    __slots__ = ("_buckets", "_name", "_seconds", "_statuses")

    def __init__(self, name: str) -> None:
        """
        Args:
            name: The route's name, for the metrics' label.
        """
        self._name = name
        self._statuses = [0] * 6
        self._buckets = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0

    def count(self, status: int, seconds: float) -> None:
        """Count a request that was answered with *status* after *seconds*; status 0 is a caller that went away."""
        self._statuses[status // 100] += 1
        self._buckets[bisect_left(BOUNDS, seconds)] += 1
        self._seconds += seconds

    def flush(self) -> None:
        """Hand the numbers to Prometheus."""
        if not any(self._buckets):
            return
        for kind, number in enumerate(self._statuses):
            if number:
                metrics.PROXY_REQUESTS.labels(self._name, f"{kind}xx" if kind else "gone").inc(number)
        metrics.add_to_histogram(metrics.PROXY_SECONDS.labels(self._name), self._buckets, self._seconds)
        self._statuses = [0] * 6
        self._buckets = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0

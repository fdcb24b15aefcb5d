"""
Every metric of the broker, in Prometheus' words.

Names and labels are public: a golden file holds them, and each has a heading in the reference. With several workers the
values of all processes are added up by the admin listener (prometheus_client's multiprocess mode).
On the hot path nothing looks a label up: what is counted there is counted in plain numbers and flushed now and then.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""Of :func:`exposition`."""


class ReloadCounts(Protocol):
    """What came of reloads (``web.reloads.Reloads``)."""

    @property
    def succeeded(self) -> int: ...

    @property
    def refused(self) -> int: ...

    @property
    def is_last_successful(self) -> bool: ...


def exposition(reloads: ReloadCounts | None = None) -> bytes:
    """Return every metric in Prometheus' text format, of all processes where there are several."""
    alone = "PROMETHEUS_MULTIPROC_DIR" not in os.environ
    told = generate_latest(REGISTRY if alone else _of_all_processes())
    if reloads is None:
        return told
    of_supervisor = CollectorRegistry()
    of_supervisor.register(SupervisorsCollector(reloads))
    return told + generate_latest(of_supervisor)


class SupervisorsCollector(Collector):
    """Metrics of the supervisor, which has none of its own: it answers nobody."""

    def __init__(self, reloads: ReloadCounts) -> None:
        self._reloads = reloads

    def collect(self) -> Iterable[Metric]:
        counted = CounterMetricFamily(
            "config_reloads", "Reloads of the configuration by their result: success, refused.", labels=["result"]
        )
        counted.add_metric(["success"], self._reloads.succeeded)
        counted.add_metric(["refused"], self._reloads.refused)
        yield counted
        yield GaugeMetricFamily(
            "config_last_reload_successful",
            "0 while the former configuration serves, since the last reload was refused.",
            value=self._reloads.is_last_successful,
        )


def totals(counter: Counter, label: str, value: str, *, by: str) -> dict[str, float]:
    """Return the values of *counter* where *label* is *value*, by another label, of all processes."""
    (own,) = counter.collect()
    alone = "PROMETHEUS_MULTIPROC_DIR" not in os.environ
    return {
        sample.labels[by]: sample.value
        for metric in ([own] if alone else _of_all_processes().collect())
        for sample in metric.samples
        if sample.name == f"{own.name}_total" and sample.labels.get(label) == value
    }


def highest(gauge: Gauge) -> float:
    """
    Return the highest value of *gauge*, which has no labels and is ``livemax``, of all processes that live.

    A directory that the operator has named may still have files of processes that were killed together.
    """
    (own,) = gauge.collect()
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    files = () if directory is None else Path(directory).glob("gauge_livemax_*.db")
    shared = _merged(str(path) for path in files if _is_alive(int(path.stem.rpartition("_")[2])))
    return max(sample.value for metric in (own, *shared) for sample in metric.samples if sample.name == own.name)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:  # it is gone, or its number is another user's now
        return False
    return True


def _merged(files: Iterable[str]) -> Iterable[Metric]:
    return MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call, no-any-return]


def _of_all_processes() -> CollectorRegistry:
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


# --- tokens

TOKEN_REFRESH = Counter(
    "token_refresh_total", "Token requests by their result: success, permanent, operator, transient, in_doubt.",
    ["provider", "result"],
)  # fmt: skip
TOKEN_REFRESH_SECONDS = Histogram(
    "token_refresh_duration_seconds", "How long a token request took.", ["provider"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)  # fmt: skip
TOKEN_REFRESH_COALESCED = Counter(
    "token_refresh_coalesced_total", "Callers that shared a refresh which another had begun in this process."
)
REFRESH_LOCK_WAIT_SECONDS = Histogram(
    "refresh_lock_wait_seconds", "How long a refresh waited for the grant's lease, or for its holder's result.",
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 15),
)  # fmt: skip
UPSTREAM_401_RETRY = Counter(
    "upstream_401_retry_total", "Upstream 401s by what came of them: replayed, passed_on, login_needed, step_up, "
    "unavailable.",
    ["result"],
)  # fmt: skip
GRANT_EVENTS = Counter("grant_events_total", "What happened to grants: created, ended.", ["provider", "event"])
GRANTS = Gauge(
    "grants", "Grants that were used lately, by their state: live, ended.", ["provider", "state"],
    multiprocess_mode="livesum",
)  # fmt: skip
PROVIDER_DEGRADED = Gauge(
    "provider_degraded", "1 while the authorization server refuses the broker itself.", ["provider"],
    multiprocess_mode="livemax",
)  # fmt: skip
PROVIDER_BEHAVIOUR = Counter(
    "provider_behaviour_total", "What refreshes showed of the authorization server.", ["provider", "seen"]
)
STORE_UP = Gauge(
    "store_up", "0 if a process couldn't reach the store when it looked last, about once a second.",
    multiprocess_mode="livemin",
)  # fmt: skip
SPOOL_RECORDS = Gauge("spool_records", "Token responses that the store doesn't have yet.", multiprocess_mode="livesum")
KEEP_ALIVE = Counter("keep_alive_total", "Refreshes of grants that nobody used.", ["provider", "result"])

EVENT_LOOP_STALLED_SECONDS = Counter(
    "event_loop_stalled_seconds_total", "Seconds during which the event loop of a process stood still."
)

MEMORY_USED_RATIO = Gauge(
    "memory_used_ratio", "The memory in use as a share of its limit, the nearest one; 0 without a limit.",
    multiprocess_mode="livemax",
)  # fmt: skip
LOAD_SHEDDING = Gauge(
    "load_shedding", "What is refused since memory is nearly out: 1 requests, 2 connections, too.",
    multiprocess_mode="livemax",
)  # fmt: skip
CONNECTIONS_REFUSED = Counter(
    "connections_refused_total", "Connections that were closed at once: too_many, overloaded.", ["reason"]
)

# --- logins and sessions

LOGINS = Counter(
    "logins_total", "Logins by their result: success, refused, unanswered, unavailable.", ["provider", "result"]
)
SESSIONS = Counter("sessions_total", "Browser sessions by what happened to them: started, ended.", ["event"])
REQUESTS_REFUSED = Counter("requests_refused_total", "Requests that the broker answered with an error.", ["code"])

# --- the data plane

PROXY_BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
PROXY_REQUESTS = Counter(
    "proxy_requests_total", "Requests of a route by the class of their answer; gone: the caller did not wait.",
    ["route", "status"],
)  # fmt: skip
PROXY_SECONDS = Histogram(
    "proxy_request_duration_seconds", "How long a request took, from its head to the end of its answer.",
    ["route"], buckets=PROXY_BUCKETS,
)  # fmt: skip

FORWARD_AUTH = Counter(
    "forward_auth_total", "Questions of gateways by their answer: allowed, refused, unavailable.", ["result"]
)


def add_to_histogram(child: Histogram, numbers: Sequence[int], total: float) -> None:
    """
    Add many observations at once, which ``Histogram.observe`` takes only one by one.

    Args:
        child: The labelled histogram.
        numbers: How many observations fell into each bucket, the last being all above its bounds.
        total: Their sum.
    """
    for bucket, number in zip(child._buckets, numbers, strict=True):  # noqa: SLF001 - see above
        if number:
            bucket.inc(number)
    child._sum.inc(total)  # noqa: SLF001

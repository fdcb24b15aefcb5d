"""What `make bench` says of its figures."""

import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.proxies import NAMES, Subject
from benchmarks.report import FAST, NGINX, TARGETS, Run, plot, write

MEMORY = {"session_kib": 2.5, "grant_kib": 1.5, "gc_ms": 20.0, "count": 1000.0}


def run_of(**cpu_us: list[float]) -> Run:
    names = {"nginx": NGINX, "broker": FAST}
    subjects = [Subject(names[key], 1, 1, (), samples={"cpu_us": values}) for key, values in cpu_us.items()]
    return Run(subjects, MEMORY, starts=1, rounds=3, seconds=1, at=datetime(2026, 1, 2, tzinfo=UTC))


@pytest.mark.parametrize(
    ("cpu_us", "verdict"), [([15.0, 18.0, 17.0], "met"), ([19.0, 19.0, 10.0], "**missed**"), ([], "not measured")]
)
def test_a_verdict_is_of_the_median(cpu_us: list[float], verdict: str) -> None:
    """A target is met by the median of the slices, not by the best of them."""
    (first, *_) = [line for line in run_of(nginx=[10.0] * 3, broker=cpu_us).targets().splitlines() if "T1:" in line]
    assert first.endswith(f"| {verdict} |")


def test_every_target_is_about_proxies_that_there_are() -> None:
    """A renamed proxy doesn't drop out of the verdicts in silence."""
    named = {target.subject for target in TARGETS} | {target.against for target in TARGETS if target.against}
    assert set() == named - set(NAMES)


def test_a_document_and_a_plot_are_written(tmp_path: Path) -> None:
    """Both come from the run alone, and the plot is well-formed with a bar for each proxy."""
    for directory in ("reference", "images"):
        (tmp_path / directory).mkdir()
    run = run_of(nginx=[10.0, 12.0], broker=[20.0, 22.0])
    write(run, tmp_path)
    drawing = ET.fromstring(plot(run))  # noqa: S314 - made here
    bars = drawing.findall("{http://www.w3.org/2000/svg}rect")

    assert "2026-01-02" in (tmp_path / "reference/performance-results.md").read_text()
    assert plot(run) == (tmp_path / "images/performance.svg").read_text()
    assert 2 == len(bars)

"""The figures of a run as a table, as ratios against the targets, and as a plot."""

from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path

from benchmarks.data_plane import quartile
from benchmarks.machine import description
from benchmarks.proxies import Subject

COLUMNS = (
    ("cpu_us", "CPU µs / request", 1),
    ("post_us", "CPU µs / POST", 1),
    ("chunked_us", "CPU µs / chunked POST", 1),
    ("rate", "requests / s", 0),
    ("p50_ms", "p50 ms", 2),
    ("p99_ms", "p99 ms", 2),
    ("lone_p50_us", "p50 µs, 1 connection", 0),
    ("mib_us", "CPU µs / MiB down", 0),
    ("mb_s", "MB/s down", 0),
    ("upload_us", "CPU µs / MiB up", 0),
    ("message_us", "CPU µs / message", 1),
    ("messages", "messages / s", 0),
    ("idle_kib", "KiB / idle connection", 1),
    ("slow_reader_mib", "MiB, slow reader", 1),
)

NGINX, SHM, REDIS, CADDY = "nginx", "mod_auth_openidc, shm", "mod_auth_openidc, Redis", "Caddy"
FAST, SLOW, TWO = "broker, SQLite", "broker, SQLite, by the handler", "broker, SQLite, 2 workers"
SCRUBBED, HANDLE = "broker, SQLite, scrubbed", "broker, SQLite, handle"
OPEN, BROKER_REDIS, UNCACHED = "broker, SQLite, no session", "broker, Redis", "broker, Redis, nothing kept"
CONFIRMED = "broker, Redis, no cache"


@dataclass(frozen=True, slots=True)
class Target:
    """A figure of one subject against the same figure of another, or by itself."""

    name: str
    figure: str
    subject: str
    against: str | None
    at_most: float
    least: bool = False


TARGETS = (
    Target("T1: GET, session in process", "cpu_us", FAST, NGINX, 1.8),
    Target("T1", "cpu_us", FAST, SHM, 0.30),
    Target("T1", "cpu_us", FAST, None, 35),
    Target("T1", "rate", FAST, None, 28_000, least=True),
    Target("T1", "p99_ms", FAST, None, 2.5),
    *(
        Target(f"T2: {what}", figure, subject, against, at_most)
        for what, figure, subject in (
            ("a GET", "cpu_us", FAST),
            ("a POST with a small body", "post_us", FAST),
            ("a POST in chunks", "chunked_us", FAST),
            ("a GET whose answer is scrubbed", "cpu_us", SCRUBBED),
            ("a GET by a handle", "cpu_us", HANDLE),
            ("any request, without the fast path", "cpu_us", SLOW),
        )
        for against, at_most in ((NGINX, 2.8), (SHM, 0.5), (REDIS, 0.2), (CADDY, 0.6), (None, 60))
    ),
    Target("T3: every request read from Redis and opened", "cpu_us", UNCACHED, REDIS, 0.25),
    Target("T3", "cpu_us", UNCACHED, None, 75),
    Target("T3: every request confirmed by Redis", "cpu_us", CONFIRMED, REDIS, 0.25),
    Target("T3", "cpu_us", CONFIRMED, None, 75),
    Target("T4: session and token over plain proxying", "cpu_us", FAST, OPEN, 1.15),
    Target("T5: 1 MiB bodies down", "mib_us", FAST, None, 700),
    Target("T5", "mb_s", FAST, None, 1400, least=True),
    Target("T5: 1 MiB bodies up", "upload_us", FAST, NGINX, 1.0),
    Target("T6: one connection", "lone_p50_us", FAST, NGINX, 1.35),
    Target("T6: WebSocket", "message_us", FAST, NGINX, 1.2),
    Target("T7: idle connection", "idle_kib", FAST, None, 14),
    Target("T7: slow reader", "slow_reader_mib", FAST, None, 3),
    Target("p99 at 32 connections", "p99_ms", FAST, NGINX, 3.0),
    Target("2 workers against 1", "cpu_us", TWO, FAST, 1.10),
    Target("Redis against SQLite", "cpu_us", BROKER_REDIS, FAST, 1.10),
)


class Run:
    """One run's figures."""

    def __init__(
        self,
        subjects: list[Subject],
        memory: dict[str, float],
        *,
        starts: int,
        rounds: int,
        seconds: float,
        at: datetime,
    ) -> None:
        self.subjects = {subject.name: subject for subject in subjects}
        self.memory = memory
        self.starts = starts
        self.rounds = rounds
        self.seconds = seconds
        self.at = at

    def median(self, name: str, figure: str) -> float | None:
        return self._quartile(name, figure, 1)

    def _quartile(self, name: str, figure: str, which: int) -> float | None:
        subject = self.subjects.get(name)
        samples = subject.samples.get(figure) if subject is not None else None
        return quartile(samples, which) if samples else None

    def best(self, name: str, figure: str) -> float | None:
        """The quartile at the better end: p25 of costs, p75 of rates."""
        return self._quartile(name, figure, 2 if figure in {"rate", "mb_s", "messages"} else 0)

    def table(self) -> str:
        lines = ["| | " + " | ".join(title for _, title, _ in COLUMNS) + " | x nginx | x mod_auth_openidc, shm |"]
        lines.append("|---|" + "---|" * (len(COLUMNS) + 2))
        for name, subject in self.subjects.items():
            cells = []
            for figure, _, digits in COLUMNS:
                median, best = self.median(name, figure), self.best(name, figure)
                shown = subject.pid is not None or not figure.endswith("_us") or figure == "lone_p50_us"
                cells.append(_pair(median, best, digits) if shown else "-")
            cells += [_number(self._ratio("cpu_us", name, against), 2) for against in (NGINX, SHM)]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def _ratio(self, figure: str, name: str, against: str) -> float | None:
        ours, theirs = self.median(name, figure), self.median(against, figure)
        return ours / theirs if ours and theirs else None

    def targets(self) -> str:
        lines = ["| target | figure | against | wanted | measured (p25) | |", "|---|---|---|---|---|---|"]
        for target in TARGETS:
            got, best = self._measured(target)
            sign = "≥" if target.least else "≤"
            lines.append(
                f"| {target.name} | `{target.figure}` of {target.subject} | {target.against or ''} | "
                f"{sign} {target.at_most:g} | {_number(got, 2)} ({_number(best, 2)}) | {_verdict(target, got)} |"
            )
        memory = self.memory
        for name, figure, most in (
            ("T7: cached session of 2 KiB", "session_kib", 3.0),
            ("T7: full garbage collection", "gc_ms", 5.0),
        ):
            met = "met" if memory[figure] <= most else "**missed**"
            lines.append(
                f"| {name} | `{figure}`, {memory['count']:.0f} sessions in one process | | ≤ {most:g} | "
                f"{memory[figure]:.2f} | {met} |"
            )
        return "\n".join(lines)

    def _measured(self, target: Target) -> tuple[float | None, float | None]:
        results = []
        for take in (self.median, self.best):
            ours = take(target.subject, target.figure)
            theirs = 1.0 if target.against is None else take(target.against, target.figure)
            results.append(ours / theirs if ours is not None and theirs else None)
        return results[0], results[1]


def _verdict(target: Target, got: float | None) -> str:
    if got is None:
        return "not measured"
    met = got >= target.at_most if target.least else got <= target.at_most
    return "met" if met else "**missed**"


def _pair(median: float | None, best: float | None, digits: int) -> str:
    return "-" if median is None or best is None else f"{median:.{digits}f} ({best:.{digits}f})"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


_PAGE = """\
# Performance: a run

<!-- Made by `make bench`. Do not edit. -->

{date}, {machine}; everything started {starts} times, and after each {rounds} rounds of {seconds:g} s slices, interleaved. What is compared and how is told in
[performance](../explanation/performance.md). Each cell is the median over the slices, and in parentheses the quartile at its better end
(p25 of costs, p75 of rates). Rates and latencies at 32 connections unless the head says otherwise.

![CPU time per request](../images/performance.svg)

{table}

Memory of {count:.0f} sessions in one process: {session:.2f} KiB for each cached session with 2 KiB of claims, {grant:.2f} KiB for each grant whose
token of 700 bytes is known; a full garbage collection then takes {gc:.1f} ms.

## Against the targets

{targets}
"""


def write(run: Run, docs: Path) -> None:
    """Write the document and the plot."""
    page = _PAGE.format(
        date=f"{run.at:%Y-%m-%d}",
        machine=description(),
        starts=run.starts,
        rounds=run.rounds,
        seconds=run.seconds,
        table=run.table(),
        targets=run.targets(),
        count=run.memory["count"],
        session=run.memory["session_kib"],
        grant=run.memory["grant_kib"],
        gc=run.memory["gc_ms"],
    )
    (docs / "reference/performance-results.md").write_text(page)
    (docs / "images/performance.svg").write_text(plot(run))


def plot(run: Run) -> str:
    """Return bars of the CPU time per request, as an SVG that suits light and dark pages."""
    bars = [
        (name, cpu)
        for name, subject in run.subjects.items()
        if subject.pid is not None and (cpu := run.median(name, "cpu_us")) is not None
    ]
    left, width, row = 210, 420, 24
    scale = width / max(cpu for _, cpu in bars)
    height = row * len(bars) + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 70} {height}"',
        ' font-family="sans-serif" font-size="13" fill="#888">',
        f'<text x="{left}" y="18">CPU µs per request, median; {run.at:%Y-%m-%d}</text>',
    ]
    for number, (name, cpu) in enumerate(bars):
        top = 30 + number * row
        color = "#2a78d6" if name.startswith("broker") else "#9aa0a6"
        parts += [
            f'<text x="{left - 8}" y="{top + 14}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{left}" y="{top}" width="{cpu * scale:.1f}" height="{row - 6}" fill="{color}"/>',
            f'<text x="{left + cpu * scale + 6:.1f}" y="{top + 14}">{cpu:.0f}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])

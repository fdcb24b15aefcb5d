"""
The log: one JSON object per line, or text, written by a thread of its own, with no secret in it.

A log that can't be written never stops the service: lines are dropped and counted. Texts from outside are escaped by
JSON, so a record is always one line, and are cut to a bounded length.
"""

import json
import logging
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import IO

from broker.errors import BrokerError

REQUEST_ID: ContextVar[str] = ContextVar("request_id")
"""The id of the request that is served; log records carry it."""

MAX_TEXT = 512
MAX_BACKLOG = 20_000
FLUSH_SECONDS = 0.02

_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class LineWriter:
    """Writes lines from a thread of its own. :meth:`write` never blocks and never fails."""

    def __init__(
        self, stream: IO[str], *, dropped: Callable[[int], None] = lambda _: None, max_backlog: int = MAX_BACKLOG
    ) -> None:
        """
        Args:
            stream: Where the lines go.
            dropped: Is told how many lines were dropped since it was told last.
            max_backlog: How many lines wait while the stream is blocked; more are dropped.
        """
        self._stream = stream
        self._dropped = dropped
        self._max_backlog = max_backlog
        self._lines: deque[str] = deque()
        self._wake = threading.Event()
        self._idle = True
        self._closing = False
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Write *line*, which ends without a newline, soon."""
        if len(self._lines) >= self._max_backlog:
            self._lost += 1
            return
        self._lines.append(line)
        if self._idle:
            self._idle = False
            self._wake.set()

    def _run(self) -> None:
        while not (self._closing and not self._lines):
            self._wake.wait(1.0)
            if not self._closing:
                threading.Event().wait(FLUSH_SECONDS)  # a busy broker writes many lines at once
            self._wake.clear()
            self._idle = True
            self._flush()

    def _flush(self) -> None:
        count = len(self._lines)
        if count:
            lines = [self._lines.popleft() for _ in range(count)]
            try:
                self._stream.write("\n".join([*lines, ""]))
                self._stream.flush()
            except (OSError, ValueError):
                self._lost += count
        if self._lost:
            lost, self._lost = self._lost, 0
            self._dropped(lost)

    def close(self) -> None:
        """Write what is left and stop."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout=2.0)


class Handler(logging.Handler):
    """Hands formatted records to a :class:`LineWriter`."""

    def __init__(self, writer: LineWriter, formatter: logging.Formatter) -> None:
        super().__init__()
        self._writer = writer
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.write(self.format(record))
        except Exception:  # noqa: BLE001 - a record that can't be formatted must not fail a request
            told = logging.LogRecord(__name__, logging.ERROR, "", 0, "log_record_unprintable", None, None)
            self._writer.write(self.format(told))


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time, level, event, logger, request id, then what the caller added."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(describe(record), separators=(",", ":"), default=_shown)


class TextFormatter(logging.Formatter):
    """The same for eyes: time (RFC 3339, in UTC), level, event, then ``key=value``."""

    def format(self, record: logging.LogRecord) -> str:
        described = describe(record)
        del described["logger"]
        return _in_text(described)


def formatter(*, as_json: bool) -> logging.Formatter:
    """Return what writes records in one of the two forms."""
    return JsonFormatter() if as_json else TextFormatter()


def as_text(line: str) -> str:
    """Return in the form for eyes what *line* says in JSON."""
    return _in_text(json.loads(line))


def _in_text(described: dict[str, object]) -> str:
    time, level, event = (described.pop(key) for key in ("time", "level", "event"))
    named = str(event) if str(event).isprintable() else json.dumps(event)  # of libraries' records it may be anything
    details = " ".join(f"{key}={json.dumps(value, default=_shown)}" for key, value in described.items())
    return f"{str(time).replace('+00:00', 'Z')} {level!s:7} {named} {details}".rstrip()


def describe(record: logging.LogRecord) -> dict[str, object]:
    """Return what is logged of *record*, as JSON values."""
    described: dict[str, object] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "event": _bounded(record.getMessage()),
        "logger": record.name,
    }
    request_id = REQUEST_ID.get("")
    if request_id:
        described["request_id"] = request_id
    for key, value in record.__dict__.items():
        if key not in _PLAIN:
            described[key] = _bounded(value) if isinstance(value, str) else value
    if record.exc_info and record.exc_info[1] is not None:
        described["exception"] = _exception(record.exc_info[1])
    return described


def _bounded(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"


def _exception(fault: BaseException) -> Mapping[str, object]:
    """
    Where a fault came from.

    The text of foreign exceptions is left out: a library may quote a URL with a password, or a header.
    """
    frames = traceback.extract_tb(fault.__traceback__)[-8:]
    described: dict[str, object] = {
        "type": type(fault).__qualname__,
        "at": [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames],
    }
    if isinstance(fault, BrokerError):
        described["text"] = _bounded(str(fault))
    return described


def _shown(value: object) -> object:
    if isinstance(value, bytes):
        return _bounded(value.decode("latin-1"))
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    return _bounded(repr(value))


def set_up(*, level: str, as_json: bool, stream: IO[str] = sys.stderr) -> LineWriter:
    """
    Send every record of this process to *stream*.

    Args:
        level: The least level that is written: ``debug``, ``info``, ``warning`` or ``error``.
        as_json: JSON lines, or text for eyes.
        stream: Where to.

    Returns:
        The writer, for access lines and for its end.
    """
    writer = LineWriter(stream)
    root = logging.getLogger()
    root.handlers = [Handler(writer, formatter(as_json=as_json))]
    root.setLevel(level.upper())
    # Libraries that log what callers send: their errors are enough.
    for name in ("aiohttp", "asyncio", "redis", "aiosqlite"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    # aiohttp logs each malformed request with its bytes and a traceback; the broker counts and answers them itself.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    return writer

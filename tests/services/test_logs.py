import io
import json
import logging
import threading

import pytest

from broker.core.secret import AccessToken
from broker.errors import StoreError
from broker.services.logs import MAX_TEXT, REQUEST_ID, Handler, JsonFormatter, LineWriter, TextFormatter, as_text


def record(event: str, *, exc: BaseException | None = None, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": event, "levelname": "WARNING", "name": "broker.test", **extra})
    if exc is not None:
        made.exc_info = (type(exc), exc, exc.__traceback__)
    return made


def test_lk_01_a_secret_in_a_record_is_hidden() -> None:
    """Neither as a value nor inside a container does a secret show."""
    secret = AccessToken("canary")
    nested = {"list": [secret], "tuple": (secret,)}

    for formatter in (JsonFormatter(), TextFormatter()):
        line = formatter.format(record("event", token=secret, nested=nested))
        assert "canary" not in line
        assert "AccessToken" in line


def test_lk_01_the_text_of_a_foreign_exception_is_left_out() -> None:
    """A library may quote a URL with its password; our own errors hold none."""
    try:
        raise ValueError("redis://:canary@host")
    except ValueError as fault:
        foreign = JsonFormatter().format(record("event", exc=fault))
    try:
        raise StoreError("the store answers READONLY")
    except StoreError as fault:
        own = JsonFormatter().format(record("event", exc=fault))

    assert "canary" not in foreign
    assert "ValueError" == json.loads(foreign)["exception"]["type"]
    assert "the store answers READONLY" == json.loads(own)["exception"]["text"]


@pytest.mark.parametrize("text", ['a\r\nb: {"level":"info"}', "\x1b[2Jx", '"},{"', "\x00\x85\u2028", "é\udcff"])
def test_lk_02_text_from_outside_stays_one_line(text: str) -> None:
    """Line breaks, terminal codes, quotes and 8-bit texts are escaped."""
    line = JsonFormatter().format(record("event", path=text))

    assert line.isascii()
    assert line.isprintable()
    assert text == json.loads(line)["path"]


def test_text_begins_with_the_time_in_utc() -> None:
    """The same record and the same access line, in the other form: date, time and zone, then what happened."""
    made = record("started", created=1_700_000_000.1234, msecs=123.4, listen=["127.0.0.1:80"])
    line = '{"time":"2023-11-14T22:13:20.123+00:00","level":"info","event":"request","path":"/\\u2028","status":200}'

    assert '2023-11-14T22:13:20.123Z warning started listen=["127.0.0.1:80"]' == TextFormatter().format(made)
    assert '2023-11-14T22:13:20.123Z info    request path="/\\u2028" status=200' == as_text(line)


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_a_record_that_can_not_be_formatted_is_told_in_the_same_form(formatter: logging.Formatter) -> None:
    """It fails no request, and whoever reads the log finds no line of another form."""
    stream = io.StringIO()
    writer = LineWriter(stream)

    Handler(writer, formatter).emit(record("%d", args=("x",)))
    writer.close()

    assert "log_record_unprintable" in stream.getvalue()
    assert isinstance(formatter, JsonFormatter) == stream.getvalue().startswith("{")


def test_lk_02_long_text_is_cut() -> None:
    """A text is logged up to its bound."""
    assert MAX_TEXT + 1 == len(json.loads(JsonFormatter().format(record("event", path="x" * 100_000)))["path"])


def test_records_carry_the_request_id() -> None:
    """What is logged while a request is served names the request."""
    token = REQUEST_ID.set("r-1")
    try:
        assert "r-1" == json.loads(JsonFormatter().format(record("event")))["request_id"]
    finally:
        REQUEST_ID.reset(token)


def test_lines_are_written_in_order_and_all_of_them() -> None:
    """Closing the writer writes what is left."""
    stream = io.StringIO()
    writer = LineWriter(stream)

    for number in range(1000):
        writer.write(str(number))
    writer.close()

    assert [str(number) for number in range(1000)] == stream.getvalue().split()


def test_ft_17_a_stream_that_fails_drops_lines_and_counts_them() -> None:
    """A closed or full log never raises into the service."""

    class Broken(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    lost: list[int] = []
    writer = LineWriter(Broken(), dropped=lost.append)
    handler = Handler(writer, JsonFormatter())

    handler.emit(record("one"))
    handler.emit(record("two"))
    writer.close()

    assert 2 == sum(lost)


def test_ft_17_a_blocked_stream_drops_lines_past_the_backlog() -> None:
    """Memory stays bounded while nobody reads the log."""
    release = threading.Event()

    class Blocked(io.StringIO):
        def write(self, text: str) -> int:
            release.wait(10)
            return super().write(text)

    lost: list[int] = []
    writer = LineWriter(Blocked(), dropped=lost.append, max_backlog=10)
    for number in range(100):
        writer.write(str(number))
    release.set()
    writer.close()

    assert 80 <= sum(lost) < 100

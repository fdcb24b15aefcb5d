import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker.web.access_log import MAX_LOGGED_PATH, access_line

USUAL: dict[str, Any] = {
    "now": 1_700_000_000.1234,
    "request_id": "ab-1",
    "client": "192.0.2.1",
    "method": "GET",
    "path": "/api/orders",
    "status": 200,
    "seconds": 0.01234,
}


def test_a_line_says_who_asked_for_what() -> None:
    """One JSON object, with the route and the session where there are any."""
    expected = {
        "time": "2023-11-14T22:13:20.123+00:00",
        "level": "info",
        "event": "request",
        "request_id": "ab-1",
        "client": "192.0.2.1",
        "method": "GET",
        "path": "/api/orders",
        "status": 200,
        "duration_ms": 12.3,
    }

    assert expected == json.loads(access_line(**USUAL))
    assert {**expected, "route": "h/api", "session": "session:1"} == json.loads(
        access_line(**USUAL, more=',"route":"h/api","session":"session:1"')
    )


@given(st.text())
def test_lk_02_any_path_gives_one_line(path: str) -> None:
    """Whatever is in a path, the line is one line, and JSON."""
    line = access_line(**{**USUAL, "path": path})

    assert [line] == line.splitlines()
    assert path[:MAX_LOGGED_PATH] == json.loads(line)["path"]

"""One line for each request."""

import json
import re
from datetime import UTC, datetime
from functools import lru_cache

MAX_LOGGED_PATH = 256

_PLAIN = re.compile(r"[ !#-\[\]-~]*")


def access_line(
    *,
    now: float,
    request_id: str,
    client: str,
    method: str,
    path: str,
    status: int,
    seconds: float,
    route: str = "",
    session: str = "",
) -> str:
    """
    Return the line of JSON about a request. Its query stays out: codes and tokens are in queries.

    Args:
        now: Unix seconds of its end.
        request_id: Its id.
        client: The address of the caller.
        method: Its method.
        path: Its path, as it came, without the query.
        status: What was answered; 0 if the caller went away.
        seconds: How long it took.
        route: The name of the route that took it, if one did.
        session: The store key of the caller's session, if there was one.
    """
    time, shown = _instant(int(now * 1000)), _shown(path[:MAX_LOGGED_PATH])
    return (
        f'{{"time":"{time}","level":"info","event":"request","request_id":"{request_id}","client":"{client}",'
        f'"method":"{method[:16]}","path":{shown},"status":{status},"duration_ms":{seconds * 1000:.1f}'
        + (f',"route":{_quoted(route)}' if route else "")
        + (f',"session":"{session}"' if session else "")
        + "}"
    )


@lru_cache(maxsize=1024)
def _quoted(route: str) -> str:
    return json.dumps(route)


@lru_cache(maxsize=1024)
def _shown(path: str) -> str:
    return f'"{path}"' if _PLAIN.fullmatch(path) else json.dumps(path)


@lru_cache(maxsize=2)
def _instant(milliseconds: int) -> str:
    """Return Unix milliseconds as every other log record writes them (RFC 3339). Under load many requests share one."""
    second, fraction = divmod(milliseconds, 1000)
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:03d}+00:00"

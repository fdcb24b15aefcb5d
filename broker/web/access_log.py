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
    more: str = "",
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
        more: Further members, each with a comma before it.
    """
    return (
        f'{{"time":"{_instant(int(now * 1000))}","level":"info","event":"request","request_id":"{request_id}",'
        f'"client":"{client}","method":"{method[:16]}","path":{_shown(path[:MAX_LOGGED_PATH])},"status":{status},'
        f'"duration_ms":{seconds * 1000:.1f}{more}}}'
    )


@lru_cache(maxsize=1024)
def _shown(path: str) -> str:
    return f'"{path}"' if _PLAIN.fullmatch(path) else json.dumps(path)


@lru_cache(maxsize=2)
def _instant(milliseconds: int) -> str:
    """Return Unix milliseconds as every other log record writes them (RFC 3339). Under load many requests share one."""
    second, fraction = divmod(milliseconds, 1000)
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:03d}+00:00"

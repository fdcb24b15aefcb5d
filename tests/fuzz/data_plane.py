"""
Random input for everything in the data plane that reads bytes from outside.

    python -m tests.fuzz.data_plane [--minutes 10] [--seed N]

Each target gets its share of the time. What it finds is printed with what brings it back: the input, or its seed.
A finding belongs into the corpus of its kind (tests/corpus), with the mend.
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import httptools

from broker.core.cookies import CookieNames, read_cookie, strip_cookies
from broker.core.paths import read_target
from broker.core.request_fields import FieldRules
from broker.core.request_stream import RequestStream
from broker.core.response_head import ResponseRules
from broker.errors import BadRequest, CallerError, UpstreamUnavailable
from tests.core.test_paths import HOST, PIECES, ROUTES, decide
from tests.core.test_response_head import LINES
from tests.support.path_readers import READERS, route_of
from tests.support.proxying import ProxyUnderTest
from tests.support.raw_upstream import RawUpstream
from tests.support.request_fuzz import random_request
from tests.web.test_fast_path import COOKIE, Fast, as_sent, exchange, routes

NAMES = CookieNames.for_public_url("https://app.example.com")
MAX_LENGTH = 60
Target = Callable[[random.Random], None]


class Finding(AssertionError):
    """An input that shows a fault."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """Makes inputs of pieces that mean something, and of bytes that mean nothing."""

    pieces: tuple[bytes, ...]

    def make(self, source: random.Random) -> bytes:
        parts = [source.choice(self.pieces) for _ in range(source.randrange(12))]
        if source.random() < 0.3:
            parts.insert(source.randrange(len(parts) + 1), source.randbytes(source.randrange(4)))
        return b"".join(parts)[:MAX_LENGTH]


PATHS = Pieces(tuple(PIECES))
COOKIES = Pieces(
    (
        NAMES.session.encode(),
        b"=",
        b";",
        b" ",
        b"\t",
        b"a",
        b"%5f",
        b"__Host-",
        b'"',
        b"\xc2\xa0",
        b",",
        b"=x; ",
        b"login-01234567",
    )
)
ANSWER_LINES = tuple(LINES)
FIELD_PIECES = Pieces(
    (
        b"X-User",
        b"Host",
        b": ",
        b":",
        b" ",
        b"\t",
        b"_",
        b"-",
        b"a",
        b"\x00",
        b"\r",
        b"\n",
        b"Content-Length",
        b"5",
        b",",
        b"Cookie",
        b"chunked",
    )
)


MAX_LINE = 48 << 10
_CHUNKED = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
REQUESTS = (
    b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /b HTTP/1.0\r\nContent-Length: 7\r\nConnection: keep-alive\r\n\r\n\r\n\r\nabc",
    _CHUNKED + b"0\r\n\r\n",
    _CHUNKED + b"5;a=b\r\n\r\n\r\n0\r\n1A\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nX-Trailer: 1\r\n\r\n",
    b"\r\nPUT /d HTTP/1.1\r\nHost: x\r\ncontent-length:3\r\n\r\nabc",
)
STREAM_PIECES = (
    b"", b" ", b"\r", b"\n", b"\r\n", b"\0", b":", b";", b"0", b"5", b"f", b"\r\n\r\n", b"0\r\n\r\n", b"GET ", b" HTTP/1.1",
    b"\r\nContent-Length: 5", b"\r\nTransfer-Encoding: chunked", b"\r\nUpgrade: h2c\r\nConnection: Upgrade", b"\t", b"-", b",",
)  # fmt: skip


def paths(source: random.Random) -> None:
    """A target is refused, or names the same route for every reader."""
    target = b"/" + PATHS.make(source)
    decision = decide(target)
    if decision != "refused":
        path = read_target(target, HOST).path
        if {decision} != {route_of(reader(path), ROUTES) for reader in READERS}:
            raise Finding(f"path {target!r}")


def cookies(source: random.Random) -> None:
    """What is stripped is never read again as ours."""
    line = COOKIES.make(source)
    rest = strip_cookies([line], NAMES.matcher())
    try:
        left = read_cookie(rest, NAMES.session.encode())
    except BadRequest:
        left = b"twice"
    if left is not None:
        raise Finding(f"cookie {line!r}")


def fields(source: random.Random) -> None:
    """What passes can't split a head, and is read alike twice."""
    lines = [FIELD_PIECES.make(source) for _ in range(source.randrange(1, 4))]
    rules = FieldRules(session_cookie=NAMES.session.encode(), is_own_cookie=NAMES.matcher())
    try:
        first = rules.read(lines)
    except BadRequest:
        return
    if first != rules.read(lines) or b"\n" in first.passed.replace(b"\r\n", b"") or b"\0" in first.passed:
        raise Finding(f"fields {lines!r}")


def answers(source: random.Random) -> None:
    """An answer's head is refused, or read alike twice."""
    lines = [source.choice(ANSWER_LINES) for _ in range(source.randrange(5))]
    raw = b"\r\n".join([source.choice([b"HTTP/1.1 200 OK", b"HTTP/1.0 200", b"HTTP/1.1 204 x"]), *lines])
    if source.random() < 0.3:
        at = source.randrange(len(raw))
        raw = raw[:at] + source.randbytes(1) + raw[at + 1 :]
    rules = ResponseRules(with_token=True, no_store=True, is_own_cookie=NAMES.matcher())
    try:
        first = rules.read(raw, "GET")
    except UpstreamUnavailable:
        return
    rules.read(b"HTTP/1.1 200 OK", "GET")
    if first != rules.read(raw, "GET") or b"\n" in first.passed.replace(b"\r\n", b""):
        raise Finding(f"answer {raw!r}")


class Messages:
    """Counts what llhttp takes."""

    def __init__(self) -> None:
        self.begun = 0
        self.complete = 0
        self.names: list[bytes] = []

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        self.names.append(name)

    def on_message_complete(self) -> None:
        self.complete += 1


def streams(source: random.Random) -> None:
    """However a connection is cut, it is one; and llhttp counts the same requests, and sees no trailer."""
    data = b"".join(source.choice(REQUESTS) for _ in range(source.randrange(1, 5)))
    if source.random() < 0.5:
        at = source.randrange(len(data))
        data = data[:at] + source.choice(STREAM_PIECES) + data[at + source.randrange(3) :]
    whole, cut = RequestStream(MAX_LINE), RequestStream(MAX_LINE)
    at_once = b"".join(whole.follow(data))
    cuts = sorted(source.randrange(len(data) + 1) for _ in range(5))
    pieces = [cut.follow(data[a:b]) for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    state = (whole.heads, whole.is_between_requests, whole.is_broken)
    if state != (cut.heads, cut.is_between_requests, cut.is_broken):
        raise Finding(f"stream {data!r} cut at {cuts}")
    if not whole.is_broken and at_once != b"".join(b"".join(each) for each in pieces):
        raise Finding(f"stream {data!r} cut at {cuts}")
    messages = Messages()
    try:
        httptools.HttpRequestParser(messages).feed_data(at_once)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return
    agreed = messages.begun == messages.complete == whole.heads and b"X-Trailer" not in messages.names
    if whole.is_broken or (whole.is_between_requests and not agreed):
        raise Finding(f"stream {data!r}")


PURE: tuple[Target, ...] = (paths, cookies, fields, answers, streams)


def run_pure(target: Target, source: random.Random, seconds: float) -> int:
    """Run *target* for so long. Returns how many inputs it took."""
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(200):
            try:
                target(source)
            except (Finding, CallerError):
                raise
            except Exception as fault:
                raise Finding(f"{target.__name__}: {fault!r}") from fault
        count += 200
    return count


async def compare_paths(seed: int, seconds: float) -> int:
    """The fast path and the slow one do the same. Returns how many requests were compared."""
    count, end = 0, time.monotonic() + seconds
    async with RawUpstream() as upstream:
        fast = Fast(upstream)
        async with fast.proxy as quick, ProxyUnderTest(routes(upstream), fast=False) as slow:
            while time.monotonic() < end:
                data = random_request(seed + count, cookie=COOKIE)
                outcomes = []
                for proxy in (quick, slow):
                    answer = await asyncio.wait_for(exchange(proxy, data, seed=seed + count), 10)
                    outcomes.append((answer, [as_sent(each) for each in upstream.requests if each.target != b"/warm"]))
                    upstream.requests.clear()
                if outcomes[0] != outcomes[1]:
                    raise Finding(f"seed {seed + count}: {data!r}\nfast {outcomes[0]}\nslow {outcomes[1]}")
                count += 1
    return count


def main() -> int:
    """Run every target. Returns the exit code: 1 if something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    arguments = parser.parse_args()
    share = arguments.minutes * 60 / (len(PURE) + 2)
    print(f"seed {arguments.seed}")
    source = random.Random(arguments.seed)
    try:
        for target in PURE:
            print(f"{target.__name__:12} {run_pure(target, source, share):10} inputs", flush=True)
        compared = asyncio.run(compare_paths(arguments.seed, 2 * share))
        print(f"{'fast = slow':12} {compared:10} requests")
    except Finding as finding:
        print(f"FOUND {finding}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

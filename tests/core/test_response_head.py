import tomllib
from pathlib import Path
from typing import Any

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.cookies import CookieNames
from broker.core.headers import MAX_REMEMBERED
from broker.core.response_head import ResponseHead, ResponseRules
from broker.errors import UpstreamUnavailable
from broker.web.relay import challenges_of

CORPUS = tomllib.loads((Path(__file__).parents[1] / "corpus/response_heads.toml").read_text())["case"]
NAMES = CookieNames.for_public_url("https://app.example.com")


def token_route() -> ResponseRules:
    return ResponseRules(with_token=True, no_store=True, is_own_cookie=NAMES.matcher())


def as_bytes(head: str) -> bytes:
    return head.encode("latin-1").replace(b"\n", b"\r\n")


def framing(head: ResponseHead) -> int | str:
    if head.chunked:
        return "chunked"
    if head.until_close:
        return "close"
    assert head.body_length is not None
    return head.body_length


@pytest.mark.parametrize("case", CORPUS, ids=[f"{case.get('method', 'GET')} {case['head']!r}" for case in CORPUS])
def test_up_03_an_answer_ends_in_one_place_or_is_refused(case: dict[str, Any]) -> None:
    """Each case of [UR] is framed as the corpus says, twice over, or refused."""
    rules = token_route()
    for _ in range(2):
        if case["body"] == "refused":
            with pytest.raises(UpstreamUnavailable):
                rules.read(as_bytes(case["head"]), case.get("method", "GET"))
        else:
            head = rules.read(as_bytes(case["head"]), case.get("method", "GET"))
            assert (case["body"], case.get("reuse", True)) == (framing(head), head.reusable)


@pytest.mark.parametrize("case", [case for case in CORPUS if "fields" in case], ids=lambda case: case["head"])
def test_up_05_06_what_passes_to_the_caller(case: dict[str, Any]) -> None:
    """On a route with a token: no cookie of ours, no cache but none, no other origin, no password prompt."""
    head = token_route().read(as_bytes(case["head"]), "GET")

    assert [line.encode("latin-1") for line in case["fields"]] == head.passed.split(b"\r\n")[1:-1]


def test_up_06_an_anonymous_route_keeps_its_caching_and_cors() -> None:
    """Where no session is looked at, the upstream says what may be stored, and who may read it."""
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nCache-Control: public\r\nAccess-Control-Allow-Origin: *"
    head = ResponseRules().read(raw, "GET")

    assert b"HTTP/1.1 200 OK\r\nCache-Control: public\r\nAccess-Control-Allow-Origin: *\r\n" == head.passed


@pytest.mark.parametrize("name", [b"X-Accel-Redirect", b"X-Sendfile", b"x-reproxy-url"])
def test_up_06_an_answer_in_place_of_its_own_is_the_routes_to_allow(name: bytes) -> None:
    """Whoever is in front of the broker hears of it only from upstreams that are trusted with that."""
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n%b: /internal" % name

    assert b"/internal" not in ResponseRules().read(raw, "GET").passed
    assert b"%b: /internal\r\n" % name in ResponseRules(internal_redirects=True).read(raw, "GET").passed


@pytest.mark.parametrize(
    ("raw", "method", "ready"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5", "GET", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5", "HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        (
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5",
            "GET",
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        ),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 0", "GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"HTTP/1.1 304 Not Modified", "GET", b"HTTP/1.1 304 Not Modified\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", "GET", b""),
        (b"HTTP/1.1 200 OK", "GET", b""),
    ],
)
def test_a_head_is_ready_if_its_length_is_known(raw: bytes, method: str, ready: bytes) -> None:
    """What can be sent as it is, is made once; 204 has no Content-Length (RFC 9110 section 8.6)."""
    assert ready == ResponseRules().read(raw, method).ready


def test_the_last_head_is_not_taken_for_another_methods() -> None:
    """The same bytes answer HEAD without a body and GET with one."""
    rules, raw = ResponseRules(), b"HTTP/1.1 200 OK\r\nContent-Length: 5"

    assert (0, 5, 0) == (
        rules.read(raw, "HEAD").body_length,
        rules.read(raw, "GET").body_length,
        rules.read(raw, "HEAD").body_length,
    )


def test_a_switch_counts_only_if_connection_names_it() -> None:
    """An Upgrade field alone switches nothing (RFC 9110 section 7.8)."""
    named = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: upgrade"

    assert b"websocket" == ResponseRules().read(named, "GET").upgrade
    assert b"" == ResponseRules().read(named.replace(b"upgrade", b"x"), "GET").upgrade


class _Answer:
    """What llhttp makes of an answer."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value.rstrip(b" \t")))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


STATUS_LINES = [
    b"HTTP/1.1 200 OK",
    b"HTTP/1.1 404 ",
    b"HTTP/1.0 200 OK",
    b"HTTP/1.1 304 x",
    b"HTTP/1.1 204",
    b"HTTP/1.1 200",
]
ODD_STATUS_LINES = [b"HTTP/1.1 99 X", b"HTTP/3.0 200 OK", b"HTTP/1.1  200 OK", b"HTTP/1.1 200\tOK", b"HTTP/1.1 2000 OK"]
LINES = [
    b"Content-Length: 5", b"Content-Length: 0", b"content-length:\t7\t", b"Content-Length: 05", b"Content-Length: 5, 5",
    b"Content-Length: +5", b"Transfer-Encoding: chunked", b"transfer-encoding: CHUNKED", b"Transfer-Encoding: gzip",
    b"Transfer-Encoding: gzip, chunked", b"X-A: 1", b"X-B:2", b"X-C: \t3 ", b"X-D:", b"Connection: close",
    b"Connection: keep-alive", b" folded", b"X-E : 1", b"X\x00: 1", b"X-F: \x01", b"X-G: \xff", b"Upgrade: x",
]  # fmt: skip


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Heads that are mostly right, or of the corpus, some with a byte that isn't."""
    if draw(st.booleans()):
        raw = as_bytes(draw(st.sampled_from(CORPUS))["head"])
    else:
        status_line = draw(st.sampled_from(STATUS_LINES + ODD_STATUS_LINES))
        raw = b"\r\n".join([status_line, *draw(st.lists(st.sampled_from(LINES), max_size=5))])
    if raw and draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + draw(st.binary(max_size=2)) + raw[at + 1 :]
    return raw


@settings(max_examples=1000)
@given(heads())
def test_up_03_llhttp_takes_what_is_taken_here_and_reads_the_same(raw: bytes) -> None:
    """This reader is only stricter than the parser that everybody uses: the same status, fields, and end of the body."""
    try:
        head = ResponseRules().read(raw, "GET")
    except UpstreamUnavailable:
        return
    if head.status < 200:
        return  # another head follows
    answer = _Answer()
    parser = httptools.HttpResponseParser(answer)
    parser.feed_data(raw + b"\r\n\r\n")

    read = [line.partition(b": ") for line in head.passed.split(b"\r\n")[1:-1]]
    names = {name.lower() for name, _, _ in read}
    assert head.status == parser.get_status_code()
    assert [(name, value) for name, value in answer.fields if name.lower() in names] == [
        (name, value) for name, _, value in read
    ]
    if head.chunked:
        parser.feed_data(b"3\r\nabc\r\n0\r\n\r\n")
        assert (b"abc", True) == (answer.body, answer.complete)
    elif head.until_close:
        parser.feed_data(b"a" * 1000)
        assert (b"a" * 1000, False) == (answer.body, answer.complete)
    elif head.body_length is not None and head.body_length < 1000:
        parser.feed_data(b"a" * head.body_length)
        assert (b"a" * head.body_length, True) == (answer.body, answer.complete)


def test_memory_is_bounded() -> None:
    """However many different lines and names come, no more than so many are remembered."""
    rules = ResponseRules()
    for number in range(2 * MAX_REMEMBERED):
        rules.read(b"HTTP/1.1 200 OK\r\nX-%d: 1" % number, "GET")

    assert MAX_REMEMBERED >= len(rules._remembered)
    assert MAX_REMEMBERED >= len(rules._names)


def test_the_nonce_of_proofs_is_the_brokers_own() -> None:
    """DPoP-Nonce is read and doesn't pass, on any route; two of them are none (RFC 9449 section 8.2)."""
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\ndpop-nonce: n-1"
    for rules in (ResponseRules(), token_route()):
        assert (b"n-1", False) == (rules.read(raw, "GET").dpop_nonce, b"n-1" in rules.read(raw, "GET").passed)
        assert b"" == rules.read(raw + b"\r\nDPoP-Nonce: n-2", "GET").dpop_nonce


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("value", "passes"),
    [
        (b'"' + b'\\"' * 300_000, False),  # took an hour
        (b'"' + b'\\"' * 300_000 + b'"', True),
        (b'"" ' * 200_000, True),
        (b'"x", ' * 120_000 + b"Basic", False),
        (b" " * 600_000 + b"x", True),
    ],
    ids=["no end", "escapes", "quotes", "members", "blanks"],
)
def test_ds_03_challenges_are_looked_through_once(value: bytes, *, passes: bool) -> None:
    """However much is in them. A list whose last quotation has no end is none."""
    raw = b"HTTP/1.1 401 No\r\nContent-Length: 0\r\nWWW-Authenticate: Bearer x=" + value
    head = ResponseRules(with_token=True).read(raw, "GET")

    assert passes == (b"WWW-Authenticate" in head.passed) == bool(challenges_of(head))

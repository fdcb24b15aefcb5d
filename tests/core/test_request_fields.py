import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.cookies import CookieNames
from broker.core.headers import MAX_REMEMBERED
from broker.core.request_fields import FieldRules
from broker.errors import BadRequest

CORPUS = tomllib.loads((Path(__file__).parents[1] / "corpus/request_fields.toml").read_text())["case"]
NAMES = CookieNames.for_public_url("https://app.example.com")
HOST = b"Host: app.example.com"


def rules() -> FieldRules:
    return FieldRules(session_cookie=NAMES.session.encode(), is_own_cookie=NAMES.matcher(), own_names=["X-Tenant"])


@pytest.mark.parametrize("case", CORPUS, ids=[case["why"] for case in CORPUS])
def test_hd_01_02_03_04_06_09_only_what_may_pass_passes(case: dict[str, Any]) -> None:
    """Each case of [HH] goes on as the corpus says, or is refused."""
    lines = [HOST, *(line.encode("latin-1") for line in case["lines"])]

    if case.get("upstream") == "refused":
        with pytest.raises(BadRequest):
            rules().read(lines)
    else:
        expected = [line.encode("latin-1") for line in case.get("upstream", case["lines"])]
        assert expected == rules().read(lines).lines


@pytest.mark.parametrize("case", CORPUS, ids=[case["why"] for case in CORPUS])
def test_what_is_remembered_of_a_line_is_what_was_judged(case: dict[str, Any]) -> None:
    """Reading the same lines again, with every line remembered, says the same again."""
    lines = [HOST, *(line.encode("latin-1") for line in case["lines"])]
    again = rules()

    def outcome(by: FieldRules) -> object:
        try:
            return by.read(lines)
        except BadRequest as error:
            return str(error)

    first = outcome(again)
    assert first == outcome(again) == outcome(rules())


def test_what_is_written_is_what_passed() -> None:
    """The block that goes upstream is the lines that pass, each with CRLF, and cookies last."""
    block = rules().read([b"Cookie: a=1", HOST, b"X-A: 1", NAMES.session.encode().join([b"Cookie: ", b"=s; b=2"])])

    assert b"X-A: 1\r\nCookie: a=1\r\nCookie: b=2\r\n" == block.passed
    assert b"s" == block.session_id


def test_a_session_cookie_that_came_twice_is_no_session() -> None:
    """The block says so, for whoever looks at sessions; others needn't care."""
    cookie = NAMES.session.encode()
    block = rules().read([HOST, b"Cookie: %b=a; %b=b" % (cookie, cookie)])

    assert (None, True) == (block.session_id, block.is_session_ambiguous)


@pytest.mark.parametrize(
    ("lines", "framing"),
    [
        ([], (None, False)),
        ([b"Content-Length: 0"], (0, False)),
        ([b"Content-Length: 17"], (17, False)),
        ([b"Content-Length: 9223372036854775807"], ((1 << 63) - 1, False)),
        ([b"Transfer-Encoding: chunked"], (None, True)),
        ([b"transfer-encoding: CHUNKED"], (None, True)),
    ],
)
def test_sm_03_a_body_is_framed_in_one_way(lines: list[bytes], framing: tuple[int | None, bool]) -> None:
    """One plain Content-Length, or exactly ``Transfer-Encoding: chunked``, or neither."""
    block = rules().read([HOST, *lines])

    assert framing == (block.content_length, block.chunked)


@pytest.mark.parametrize(
    "lines",
    [
        [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
        [b"Content-Length: 5", b"Content-Length: 6"],
        [b"Content-Length: 5, 5"],
        [b"Content-Length: +5"],
        [b"Content-Length: -0"],
        [b"Content-Length: 05"],
        [b"Content-Length: 0x5"],
        [b"Content-Length: 5 5"],
        [b"Content-Length: 5_0"],
        [b"Content-Length: "],
        [b"Content-Length: \xb2"],
        [b"Content-Length: 9223372036854775808"],
        [b"Content-Length: 99999999999999999999999"],
        [b"Transfer-Encoding: gzip, chunked"],
        [b"Transfer-Encoding: chunked, gzip"],
        [b"Transfer-Encoding: chunked, chunked"],
        [b"Transfer-Encoding: chunked;x=y"],
        [b"Transfer-Encoding: identity"],
        [b"Transfer-Encoding: "],
        [b'Transfer-Encoding: "chunked"'],
        [b"Transfer-Encoding: \x0bchunked"],
        [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"],
    ],
    ids=repr,
)
def test_sm_03_any_other_framing_is_refused(lines: list[bytes]) -> None:
    """What two readers could frame differently isn't taken."""
    with pytest.raises(BadRequest):
        rules().read([HOST, *lines])


@pytest.mark.parametrize(
    ("lines", "upgrade", "closes", "keeps_alive"),
    [
        ([], b"", False, False),
        ([b"Connection: Upgrade", b"Upgrade: WebSocket"], b"websocket", False, False),
        ([b"Connection: keep-alive, upgrade", b"Upgrade: websocket"], b"websocket", False, True),
        ([b"Upgrade: websocket"], b"", False, False),
        ([b"Connection: Upgrade", b"Upgrade: websocket", b"Upgrade: h2c"], b"", False, False),
        ([b"Connection: close"], b"", True, False),
        ([b"Connection: x, CLOSE"], b"", True, False),
        ([b"Connection: Keep-Alive"], b"", False, True),
    ],
)
def test_what_the_connection_is_asked_to_do(
    lines: list[bytes], upgrade: bytes, closes: bool, keeps_alive: bool
) -> None:
    """An upgrade counts only if Connection names it, and only one."""
    block = rules().read([HOST, *lines])

    assert (upgrade, closes, keeps_alive) == (block.upgrade, block.closes, block.keeps_alive)


@given(st.lists(st.binary(max_size=30), max_size=6))
def test_no_line_is_a_fault_and_nothing_that_passes_can_split(lines: list[bytes]) -> None:
    """Any bytes are lines or refused; what passes holds no control character but the CRLF that ends it."""
    try:
        block = rules().read(lines)
    except BadRequest:
        return
    for line in block.passed.split(b"\r\n"):
        assert not any((byte < 0x20 and byte != 9) or byte == 0x7F for byte in line)


def test_memory_is_bounded() -> None:
    """However many different lines, names and cookies come, no more than so many are remembered."""
    many = rules()
    for number in range(3 * MAX_REMEMBERED):
        many.read([HOST, b"X-%d: 1" % number, b"Cookie: c=%d" % number])

    assert MAX_REMEMBERED >= len(many._remembered)
    assert MAX_REMEMBERED >= len(many._names)
    assert MAX_REMEMBERED >= len(many._cookies)

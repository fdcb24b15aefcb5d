import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.request_stream import RequestStream
from tests.support.raw_cases import RawCase, raw_cases

MAX_LINE = 50_000
PLAIN = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
SIZED = b"POST /a HTTP/1.1\r\ncontent-LENGTH:  5 \r\nHost: x\r\n\r\nhello"
CHUNKED = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n5;a=b\r\nhel\r\n\r\nA\r\n0\r\n\r\n12345\r\n0\r\n\r\n"
TRAILER = b"X-T: 1\r\nX-U: 2\r\n"
TRAILERS = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n" + TRAILER + b"\r\n"
UPGRADE = b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
WHOLE = (
    PLAIN,
    SIZED,
    CHUNKED,
    TRAILERS,
    UPGRADE,
    b"\r\n\r\n" + PLAIN,
    SIZED.replace(b"5 ", b"0 ").removesuffix(b"hello"),
)

MALFORMED = (
    b"GET  /a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /a  HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /a HTTP/1.1 \r\nHost: x\r\n\r\n",
    b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
    b" GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET\t/a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /a HTTP/1.10\r\nHost: x\r\n\r\n",
    b"GET /a\r\n\r\n",
)


def follow(stream: RequestStream, data: bytes, cuts: list[int]) -> list[bytes]:
    """Return all that llhttp would see of *data*, if it came in the pieces that *cuts* make of it."""
    pieces: list[bytes] = []
    last = 0
    for cut in [*sorted(cuts), len(data)]:
        pieces += stream.follow(data[last:cut])
        last = cut
    return pieces


class Heads:
    """What llhttp makes of a connection."""

    def __init__(self) -> None:
        self.begun = 0
        self.complete = 0

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_message_complete(self) -> None:
        self.complete += 1


@given(st.lists(st.sampled_from([each for each in WHOLE if each is not UPGRADE]), max_size=6), st.data())
def test_it_stands_where_llhttp_stands(requests: list[bytes], draw: st.DataObject) -> None:
    """However the network cuts requests, both count the same ones, and both know when they are between two."""
    data = b"".join(requests)
    cuts = draw.draw(st.lists(st.integers(0, len(data)), max_size=6))
    end = draw.draw(st.integers(0, len(data)))
    stream, heads = RequestStream(MAX_LINE), Heads()
    parser = httptools.HttpRequestParser(heads)

    pieces = follow(stream, data[:end], [cut for cut in cuts if cut < end])
    for piece in pieces:
        parser.feed_data(piece)

    if stream.is_between_requests:
        assert heads.begun == heads.complete == stream.heads
    if end == len(data):
        assert data.replace(TRAILER, b"") == b"".join(pieces)
        assert (len(requests), True) == (stream.heads, stream.is_between_requests)


@settings(max_examples=300)
@given(st.sampled_from(WHOLE), st.sampled_from(MALFORMED), st.data())
def test_sm_03_a_request_line_is_read_to_the_letter(before: bytes, bad: bytes, draw: st.DataObject) -> None:
    """Wherever it stands and however it is cut: its parts are a single space apart, or llhttp sees a NUL in it."""
    data = before + bad + PLAIN
    stream = RequestStream(MAX_LINE)
    seen = b"".join(follow(stream, data, draw.draw(st.lists(st.integers(0, len(data)), max_size=5))))
    expected = before.replace(TRAILER, b"") + bad[: bad.find(b"\r\n")]

    assert stream.is_broken
    assert seen in {expected + b"\0", expected + b"\r\0"}  # the line may have been cut in its end


@pytest.mark.parametrize("size", [b"", b" 5", b"5 ", b"0x5", b"-5", b"+5", b"5;a\0b", b"ffffffffffffffff"])
def test_sm_03_so_is_the_size_of_a_chunk(size: bytes) -> None:
    """A hexadecimal number and extensions, and nothing else."""
    stream = RequestStream(MAX_LINE)
    head = CHUNKED[: CHUNKED.find(b"5;")]

    assert [head + size + b"\0"] == list(stream.follow(head + size + b"\r\nhello\r\n0\r\n\r\n"))
    assert not stream.is_between_requests
    assert () == stream.follow(PLAIN)


@pytest.mark.parametrize(
    "fields",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nContent-Length: 5",
        "Transfer-Encoding: gzip, chunked",
        "Content-Length: five",
        "Content-Length:",
    ],
)
def test_sm_01_a_body_whose_framing_nobody_should_guess_ends_the_connection(fields: str) -> None:
    """The parser behind takes some of these, and would go on behind a body that it has framed otherwise."""
    head = f"POST /a HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n".encode()
    stream = RequestStream(MAX_LINE)

    assert [head + b"\0"] == list(stream.follow(head + PLAIN))
    assert () == stream.follow(PLAIN)
    assert stream.is_broken


def test_sm_06_a_piece_ends_where_a_request_does() -> None:
    """Whatever follows is another piece, also when the request has a body: aiohttp forgets what follows an upgrade."""
    with_body = SIZED.replace(b"Host: x", b"Host: x\r\nupgrade: h2c")

    assert (b"",) == RequestStream(MAX_LINE).follow(b"")
    assert [UPGRADE, PLAIN, with_body, SIZED] == RequestStream(MAX_LINE).follow(UPGRADE + PLAIN + with_body + SIZED)


@pytest.mark.parametrize("before", [b"", b"GET /a HTTP/1.1\r\nX: ", CHUNKED[: CHUNKED.find(b";")], TRAILERS[:-4]])
def test_ds_02_a_line_without_an_end_is_not_kept(before: bytes) -> None:
    """What is too long for any parser breaks the connection."""
    stream = RequestStream(MAX_LINE)
    stream.follow(before)
    for _ in range(10):
        stream.follow(b"a" * 1000)
    assert not stream.is_broken

    assert b"".join(stream.follow(b"a" * MAX_LINE)).endswith(b"\0")
    assert () == stream.follow(b"a")


@given(st.lists(st.integers(0, len(TRAILERS)), max_size=6))
def test_sm_03_trailers_end_here(cuts: list[int]) -> None:
    """However they are cut, llhttp sees none of them: aiohttp would take the last for a field of the next request."""
    stream = RequestStream(MAX_LINE)

    assert TRAILERS.replace(TRAILER, b"") == b"".join(follow(stream, TRAILERS, cuts))
    assert stream.is_between_requests


@pytest.mark.parametrize(
    "trailer", [b"no field", b"X-T : 1", b" folded", b"X: \0", b"content-length: 5", b"Transfer-Encoding: x"]
)
def test_sm_03_a_trailer_is_a_field_and_no_framing(trailer: bytes) -> None:
    """Anything else breaks the connection."""
    stream = RequestStream(MAX_LINE)
    begin = TRAILERS[: TRAILERS.find(TRAILER)]

    assert [begin + b"\0"] == list(stream.follow(begin + trailer + b"\r\n\r\n"))
    assert stream.is_broken


def test_many_lines_are_not_too_long() -> None:
    """Fields that come one by one are forgotten one by one, but for those that tell of a body."""
    stream = RequestStream(MAX_LINE)
    for line in (
        b"POST /a HTTP/1.1\r\n",
        b"Content-Length: 5\r\n",
        *[b"X: %b\r\n" % (b"a" * 1000)] * 1000,
        b"\r\nhell",
    ):
        assert [line] == list(stream.follow(line))

    assert not stream.is_between_requests
    assert [b"o", PLAIN] == list(stream.follow(b"o" + PLAIN))
    assert stream.is_between_requests


@pytest.mark.parametrize("case", raw_cases(), ids=lambda case: case.why)
def test_cuts_change_nothing(case: RawCase) -> None:
    """Each case of [SM] that comes byte by byte is what it is at once."""
    send = case.send[:3000]
    at_once, by_bytes = RequestStream(MAX_LINE), RequestStream(MAX_LINE)

    whole = b"".join(at_once.follow(send))
    cut = b"".join(follow(by_bytes, send, list(range(len(send)))))

    # Half of a line's end may have been passed on before it was known to be one.
    assert whole == cut or (at_once.is_broken and whole.removesuffix(b"\0") == cut.removesuffix(b"\r\0"))
    assert (at_once.heads, at_once.is_between_requests) == (by_bytes.heads, by_bytes.is_between_requests)

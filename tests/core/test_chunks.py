"""Chunked bodies, wherever the network cuts them."""

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.chunks import MAX_OVERHEAD_BYTES, ChunkReader, read_only_chunk
from broker.errors import BadRequest

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
LARGE = b"%x\r\n%b\r\n" % (70_000, b"z" * 70_000)

contents = st.lists(st.binary(min_size=1, max_size=40), max_size=5)
extensions = st.sampled_from([b"", b";a", b';a="b c"', b"; a=1;b"])
trailers = st.lists(st.sampled_from([b"X-T: 1", b"etag:x", b"X-Empty:"]), max_size=3)


def read(reader: ChunkReader, data: bytes, cuts: list[int]) -> tuple[bytes, bytes]:
    """Feed *data* in the pieces that *cuts* make of it; return the content and what follows the body."""
    content, rest, last = b"", b"", 0
    for cut in [*sorted(cuts), len(data)]:
        piece, behind = reader.feed(data[last:cut])
        content, rest, last = content + piece, rest + behind, cut
    return content, rest


def framed(chunks: list[bytes], extension: bytes, fields: list[bytes]) -> bytes:
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    return body + b"0%b\r\n" % extension + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


@given(contents, extensions, trailers, st.binary(max_size=20), st.data())
def test_it_gives_the_content_and_what_follows(
    chunks: list[bytes], extension: bytes, fields: list[bytes], behind: bytes, draw: st.DataObject
) -> None:
    """Extensions and trailers are gone, and no byte of what follows is taken."""
    data = framed(chunks, extension, fields) + behind
    reader = ChunkReader()

    got = read(reader, data, draw.draw(st.lists(st.integers(0, len(data)), max_size=6)))

    assert (b"".join(chunks), behind) == got
    assert reader.ended


@given(st.lists(contents, max_size=1), extensions, trailers, st.binary(max_size=20), st.integers(0, 60))
def test_one_chunk_is_read_alike_by_the_short_cut(
    bodies: list[list[bytes]], extension: bytes, fields: list[bytes], behind: bytes, cut: int
) -> None:
    """What the short cut takes, the reader takes for the same; plain bodies of one chunk it takes."""
    chunks = bodies[0] if bodies else []
    data = framed(chunks, extension, fields)
    is_plain = len(chunks) == 1 and not extension and not fields
    for given_data in (data + behind, data[:cut]):
        taken = read_only_chunk(given_data)
        if taken is not None:
            assert ChunkReader().feed(given_data) == taken
        assert (is_plain and given_data.startswith(data)) == (taken is not None)


class Body:
    """What llhttp makes of a body."""

    def __init__(self) -> None:
        self.content = b""
        self.complete = False

    def on_body(self, body: bytes) -> None:
        self.content += body

    def on_message_complete(self) -> None:
        self.complete = True


@given(
    st.lists(st.sampled_from([b"0", b"1", b"a", b"F", b"\r\n", b"\n", b";", b"x", b" ", b"\0", b"X: 1"]), max_size=12)
)
def test_sm_03_it_takes_no_more_than_llhttp(parts: list[bytes]) -> None:
    """Whatever is read as a body is the same body there."""
    data = b"".join(parts)
    reader = ChunkReader()
    try:
        content, behind = reader.feed(data)
    except BadRequest:
        return
    if not reader.ended:
        return
    theirs = Body()
    parser = httptools.HttpRequestParser(theirs)
    parser.feed_data(HEAD + data[: len(data) - len(behind)])

    assert (content, True) == (theirs.content, theirs.complete)


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"x\r\n",
        b" 1\r\na\r\n",
        b"1 \r\na\r\n",
        b"0x1\r\na\r\n",
        b"-1\r\n",
        b"+1\r\na\r\n",
        b"1_0\r\n",
        b"1" * 16 + b"\r\n",
        b"1;a\rb\r\na\r\n",
        b"1;\0\r\na\r\n",
        b"1\r\nab\r\n",
        b"1\r\na\n0\r\n\r\n",
        b"1\r\na\rx\r\n",
        b"0\r\nX A: 1\r\n\r\n",
        b"0\r\n folded\r\n\r\n",
        b"0\r\nContent-Length: 3\r\n\r\n",
        b"0\r\ntransfer-encoding: chunked\r\n\r\n",
        b"1;" + b"a" * MAX_OVERHEAD_BYTES,
        b"0\r\n" + b"X: 1\r\n" * MAX_OVERHEAD_BYTES,
        b"1\r\nab" * 2,
    ],
)
def test_sm_01_what_is_no_chunk_is_refused(data: bytes) -> None:
    """In one read, and byte by byte."""
    with pytest.raises(BadRequest):
        ChunkReader().feed(data)
    with pytest.raises(BadRequest):
        read(ChunkReader(), data, list(range(1, len(data))))


def test_framing_is_counted_from_the_last_content() -> None:
    """A long body may have a lot of it."""
    reader = ChunkReader()

    content, rest = reader.feed((b"1;" + b"e" * 1000 + b"\r\nx\r\n") * 200 + LARGE + b"0\r\n\r\n")

    assert (200 + 70_000, b"") == (len(content), rest)

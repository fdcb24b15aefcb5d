"""Bodies between a connection and whoever sends them on."""

import asyncio

import pytest

from broker.errors import BadRequest
from broker.web.incoming import MAX_WAITING_BYTES, IncomingBody


class Source:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pause_body(self) -> None:
        self.told.append("pause")

    def resume_body(self) -> None:
        self.told.append("resume")


def test_a_sized_body_ends_after_its_length() -> None:
    """What follows isn't part of it."""
    body = IncomingBody(Source(), content_length=5)

    assert (b"", False) == (body.feed(b"he"), body.is_eof())
    assert (b"GET", True) == (body.feed(b"lloGET"), body.is_eof())
    assert [b"hello", b""] == [body.read_nowait(), body.read_nowait()]


def test_a_body_may_be_here_already() -> None:
    """Also one without content."""
    for content in (b"", b"hello"):
        body = IncomingBody.of(content)
        assert (True, content) == (body.is_eof(), body.read_nowait())


def test_a_chunked_body_is_taken_out_of_its_framing() -> None:
    """It ends with its last chunk."""
    body = IncomingBody(Source(), content_length=None)

    assert b"x" == body.feed(b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\nx")
    assert (True, b"abc") == (body.is_whole, body.read_nowait())


async def test_whoever_reads_waits_for_more() -> None:
    """The end is nothing, and stays it."""
    body = IncomingBody(Source(), content_length=4)
    reading = asyncio.ensure_future(body.readany())
    await asyncio.sleep(0)
    body.feed(b"ab")
    assert b"ab" == await reading

    reading = asyncio.ensure_future(body.readany())
    await asyncio.sleep(0)
    body.feed(b"cd")

    assert [b"cd", b"", b""] == [await reading, await body.readany(), await body.readany()]


async def test_a_fault_in_the_framing_is_heard() -> None:
    """Also by whoever waits already; what follows is read by nobody."""
    body = IncomingBody(Source(), content_length=None)
    reading = asyncio.ensure_future(body.readany())
    await asyncio.sleep(0)

    assert b"" == body.feed(b"x\r\nGET /smuggled")
    assert isinstance(body.exception(), BadRequest)
    assert b"" == body.feed(b"GET /smuggled")
    with pytest.raises(BadRequest):
        await reading
    with pytest.raises(BadRequest):
        await body.readany()


def test_ds_02_too_much_pauses_the_caller_until_it_is_taken() -> None:
    """Once each."""
    source = Source()
    body = IncomingBody(source, content_length=1 << 30)
    for _ in range(4):
        body.feed(b"x" * MAX_WAITING_BYTES)
    assert ["pause"] == source.told

    assert 4 * MAX_WAITING_BYTES == len(body.read_nowait())
    assert ["pause", "resume"] == source.told


def test_what_is_discarded_goes_nowhere_and_still_ends() -> None:
    """A connection can be used again after it, unless its end is lost."""
    source = Source()
    body = IncomingBody(source, content_length=3 * MAX_WAITING_BYTES)
    body.feed(b"x" * 2 * MAX_WAITING_BYTES)

    body.discard()

    assert ["pause", "resume"] == source.told
    assert b"next" == body.feed(b"x" * MAX_WAITING_BYTES + b"next")
    assert (True, b"") == (body.is_whole, body.read_nowait())

    broken = IncomingBody(source, content_length=None)
    broken.discard()
    assert b"" == broken.feed(b"no chunk\r\n")
    assert b"" == broken.feed(b"0\r\n\r\n")
    assert not broken.is_whole


def test_sm_01_an_end_that_was_lost_is_never_found_again() -> None:
    """Neither before nor after nobody wants the rest: what looks like the end may be a smuggled one."""
    body = IncomingBody(Source(), content_length=None)
    body.feed(b"no chunk\r\n")

    body.discard()

    assert b"" == body.feed(b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n")
    assert not body.is_whole


def test_a_body_that_was_given_up_is_counted_on() -> None:
    """Whoever waited for it is gone, but it ends where it ends."""
    body = IncomingBody(Source(), content_length=10)
    body.set_exception(TimeoutError())

    assert b"" == body.feed(b"12345")
    body.discard()
    assert (b"GET", True) == (body.feed(b"67890GET"), body.is_whole)

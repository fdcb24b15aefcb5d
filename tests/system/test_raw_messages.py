"""The framing cases of RFC 9112 sections 6 and 7, both ways, through the whole broker."""

import asyncio
import itertools
import socket
import struct
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker_process import BrokerProcess, provider_options
from tests.support.proxying import RawCaller, request
from tests.support.raw_cases import raw_bytes, raw_cases
from tests.support.raw_upstream import OK, RawRequest, RawUpstream, Wire

pytestmark = pytest.mark.system

ANSWERS = tomllib.loads((Path(__file__).parents[1] / "corpus/raw_answers.toml").read_text())["case"]
RESET = struct.pack("ii", 1, 0)


def broker_before(upstream: RawUpstream, directory: Path) -> BrokerProcess:
    return BrokerProcess(
        directory,
        public_url="https://app.example.com",
        providers={"corp": provider_options("http://127.0.0.1:9")},
        routes=[{"path": "/", "upstream": upstream.url, "token": "none", "max_body": "1000000B"}],
    )


async def connect(broker: BrokerProcess) -> RawCaller:
    return RawCaller(*await asyncio.open_connection("127.0.0.1", broker.port, limit=1 << 20))


async def test_sm_01_requests_are_framed_in_one_way(tmp_path: Path) -> None:
    """Each case of [SM], on a connection that served a request before: what the corpus says, and nothing smuggled."""
    async with RawUpstream() as upstream, broker_before(upstream, tmp_path) as broker:
        for case in raw_cases():
            upstream.requests.clear()
            statuses: list[int] = []
            async with await connect(broker) as caller:
                await caller.send(request("/warm"))
                assert 200 == (await caller.answer()).status
                try:
                    await caller.send(case.send)
                    while len(statuses) < len(case.answers):
                        statuses.append((await caller.answer()).status)
                except (asyncio.IncompleteReadError, ConnectionError):
                    statuses.append(0)
                if case.closed:
                    assert await caller.is_closed(), case.why
            seen = [each.target.decode("latin-1") for each in upstream.requests]

            assert case.answers == statuses, case.why
            assert not [target for target in seen if "smuggled" in target], case.why
            assert case.up is None or ["/warm", *case.up] == seen, case.why


async def test_sm_03_a_trailer_is_no_field_of_the_next_request(tmp_path: Path) -> None:
    """On a connection that a proxy shares, it would speak for another user."""
    trailers = (b"X-Evil: 1", b"Host: evil.example", b"Cookie: a=b\r\nX-Evil: 2")
    async with (
        RawUpstream() as upstream,
        broker_before(upstream, tmp_path) as broker,
        await connect(broker) as caller,
    ):
        for trailer, pause_seconds in itertools.product(trailers, (0, 0.02)):
            await caller.send(request("/first", "Transfer-Encoding: chunked", method="POST") + b"1\r\na\r\n0\r\n")
            await asyncio.sleep(pause_seconds)
            await caller.send(trailer + b"\r\n\r\n")
            assert 200 == (await caller.answer()).status
            await caller.send(request("/second"))
            assert 200 == (await caller.answer()).status

    assert [b"/first", b"/second"] * 6 == [each.target for each in upstream.requests]
    assert not [each for each in upstream.requests if b"evil" in each.head.lower() or b"Cookie" in each.head]


async def test_up_03_04_answers_are_framed_in_one_way_or_refused(tmp_path: Path) -> None:
    """Each case of [UR]: the caller gets what the corpus says, knows whether it is all, and the next gets its own."""
    case: dict[str, Any] = {}

    async def script(got: RawRequest, wire: Wire) -> None:
        if not got.target.endswith(b"/case"):
            await wire.send(OK)
            return
        await wire.send(raw_bytes(case["answer"]))
        if case.get("then") == "close":
            wire.writer.close()
        elif case.get("then") == "reset":
            await asyncio.sleep(0.05)  # or it would overtake what was sent
            wire.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            wire.reset()

    async with RawUpstream(script) as upstream, broker_before(upstream, tmp_path) as broker:
        for case in ANSWERS:
            upstream.requests.clear()
            status, body, whole = await ask(broker, case)
            async with await connect(broker) as other:
                await other.send(request("/after"))
                assert b"ok" == (await other.answer()).body, case["why"]

            assert case["status"] == status, case["why"]
            assert case.get("whole", True) == whole, case["why"]
            assert "body" not in case or case["body"].encode() == body, case["why"]
            first, last = upstream.requests[0].connection, upstream.requests[-1].connection
            assert case.get("reused", True) == (first == last), case["why"]


async def ask(broker: BrokerProcess, case: dict[str, Any]) -> tuple[int, bytes, bool]:
    """Return the status and the body that a caller gets, and whether it can take that for all of it."""
    method, version = case.get("method", "GET"), case.get("caller", "1.1")
    async with await connect(broker) as caller:
        await caller.send(request("/case", method=method).replace(b"HTTP/1.1", f"HTTP/{version}".encode(), 1))
        head = await caller.head()
        while head.startswith(b"HTTP/1.1 1"):
            head = await caller.head()
        status, body, whole = int(head[9:12]), bytearray(), True
        try:
            await read_body(caller.reader, head, body, without=method == "HEAD" or status in {204, 304})
        except (asyncio.IncompleteReadError, ConnectionResetError) as error:
            body += getattr(error, "partial", b"")
            whole = False
    return status, bytes(body), whole


async def read_body(reader: asyncio.StreamReader, head: bytes, body: bytearray, *, without: bool) -> None:
    """Add to *body* what comes of it. Raises ``IncompleteReadError`` or ``ConnectionResetError`` if it is cut."""
    lower = head.lower()
    if without:
        return
    if b"\r\ncontent-length: " in lower:
        body += await reader.readexactly(int(lower.partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]))
    elif b"\r\ntransfer-encoding: chunked\r\n" in lower:
        while size := int((await reader.readexactly(1)) + await reader.readuntil(b"\r\n"), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    else:
        while data := await reader.read(1 << 16):
            body += data

"""WebSockets through the whole broker: the echo cases of Autobahn, against a server that is also asked directly."""

import asyncio
import codecs
import itertools
import logging
import ssl
import struct
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory

from broker.web.lingering import LINGER_SECONDS
from tests.support import autobahn
from tests.support.autobahn import EchoCase
from tests.support.broker_process import BrokerProcess, provider_options
from tests.support.certificates import Authority
from tests.support.ports import free_port
from tests.support.raw_upstream import RawRequest, RawUpstream, Wire
from tests.support.waiting import until
from tests.support.websocket_wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    TEXT,
    Frame,
    Heard,
    Pieces,
    Seen,
    Step,
    WebSocketWire,
    closing,
    frame,
    handshake,
    play,
)

pytestmark = pytest.mark.system

QUIET = logging.getLogger("tests.websockets")
QUIET.setLevel(logging.CRITICAL)


async def echo(connection: ServerConnection) -> None:
    """Send each message back. Its text is decoded as its frames come, so that a wrong one is refused at once."""
    while True:
        parts = [part async for part in connection.recv_streaming()]
        await connection.send(type(parts[0])().join(parts))  # type: ignore[arg-type]  # all are text, or all are bytes


def server(
    handler: Callable[[ServerConnection], Awaitable[None]] = echo, **options: Any
) -> AbstractAsyncContextManager[Server]:
    defaults = {"max_size": None, "compression": None, "ping_interval": None, "logger": QUIET}
    return serve(handler, "127.0.0.1", 0, **{**defaults, **options})


def port_of(running: Server) -> int:
    return int(next(iter(running.sockets)).getsockname()[1])


@asynccontextmanager
async def broker_before(directory: Path, port: int, authority: Authority | None = None) -> AsyncIterator[BrokerProcess]:
    """Run a broker before a port; *authority* gives it a certificate, so that it speaks TLS."""
    routes = [{"path": "/", "upstream": f"http://127.0.0.1:{port}", "token": "none"}]
    nobody = provider_options("http://127.0.0.1:9")
    own = free_port()
    settings: dict[str, Any] = {}
    if authority is not None:
        leaf = authority.issue("broker")
        settings["tls"] = {"certificate_file": leaf.certificate_file, "key_file": leaf.key_file}
        settings["public_url"] = f"https://127.0.0.1:{own}"
    async with BrokerProcess(directory, port=own, providers={"corp": nobody}, routes=routes, **settings) as broker:
        yield broker


def code_of(close: Frame) -> int | None:
    return struct.unpack("!H", close.payload[:2])[0] if close.payload else None


def outcome(heard: Heard) -> tuple[list[Frame], bytes, bool]:
    return heard.frames, bytes(heard.rest), heard.ended


@pytest.mark.parametrize(
    "section",
    [
        autobahn.framing,
        autobahn.pings,
        autobahn.reserved_bits,
        autobahn.opcodes,
        autobahn.fragmentation,
        autobahn.utf8,
        autobahn.closes,
        pytest.param(autobahn.limits, marks=pytest.mark.slow),
        autobahn.auto_fragmentation,
    ],
)
async def test_a_server_behind_the_broker_is_the_server_itself(
    section: Callable[[], Iterator[EchoCase]], tmp_path: Path
) -> None:
    """Each case of the section is answered rightly, and with the same bytes whether the broker is between or not."""
    async with server() as running, broker_before(tmp_path, port_of(running)) as broker:
        for case in section():
            direct = await play(port_of(running), case.steps)
            through = await play(broker.port, case.steps)

            *echoes, close = direct.frames
            assert list(case.echoes) == [(each.opcode, each.payload) for each in echoes], case.number
            assert (CLOSE, case.code) == (close.opcode, code_of(close)), case.number
            assert outcome(direct) == outcome(through), case.number


OFFERS = (
    "permessage-deflate",
    "permessage-deflate; client_max_window_bits",
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
    "permessage-deflate; server_max_window_bits=9; client_max_window_bits=9",
    "permessage-deflate; server_max_window_bits=15; client_max_window_bits=15",
    "x-unknown, permessage-deflate; client_no_context_takeover; client_max_window_bits=9",
    "x-unknown",
)
"""Sections 12 and 13: what a client may offer."""


def deflated(messages: Sequence[bytes], *, bits: int, takeover: bool, parts: int) -> list[Step]:
    """Compress messages, each into so many frames (RFC 7692 section 7.2.1)."""
    steps: list[Step] = []
    engine = zlib.compressobj(wbits=-bits)
    for number, message in enumerate(messages, 1):
        if not takeover:
            engine = zlib.compressobj(wbits=-bits)
        data = (engine.compress(message) + engine.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")
        size = len(data) // parts + 1
        for at in range(0, len(data), size):
            last = at + size >= len(data)
            steps.append(
                frame(CONTINUATION if at else BINARY, data[at : at + size], fin=last, rsv=0 if at else 4),
            )
        steps.append(Seen(number))
    return steps


@pytest.mark.parametrize("offer", OFFERS)
async def test_br_03_compression_is_between_the_ends(offer: str, tmp_path: Path) -> None:
    """What is offered and taken passes as it is, and so do compressed frames; without an offer none is added."""
    factories = [ServerPerMessageDeflateFactory(server_max_window_bits=None, client_max_window_bits=None)]
    async with (
        server(extensions=factories) as running,
        broker_before(tmp_path, port_of(running)) as broker,
    ):
        messages = [bytes(range(256)) * (size // 16) for size in (16, 64, 1024, 8192, 8192)]
        steps: list[Step] = [frame(BINARY, message) for message in messages]
        if "deflate" in offer:
            bits = 9 if "client_max_window_bits=9" in offer else 15
            takeover = "client_no_context_takeover" not in offer
            steps = deflated(messages, bits=bits, takeover=takeover, parts=3)
        steps += [Seen(len(messages)), closing()]
        direct = await play(port_of(running), steps, f"Sec-WebSocket-Extensions: {offer}")
        through = await play(broker.port, steps, f"Sec-WebSocket-Extensions: {offer}")

    assert agreed(direct.head) == agreed(through.head)
    assert bool(agreed(through.head)) == ("deflate" in offer)
    assert len(messages) + 1 == len(direct.frames)
    assert {4 if "deflate" in offer else 0} == {each.rsv for each in direct.frames[:-1]}
    assert outcome(direct) == outcome(through)


def agreed(head: bytes) -> list[bytes]:
    lines = (line.partition(b": ") for line in head.split(b"\r\n"))
    return [value for name, _, value in lines if name.lower() == b"sec-websocket-extensions"]


SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


async def refuse_text_at_once(request: RawRequest, wire: Wire) -> None:
    """Take one text, byte by byte, with a ping for each, until one can't be UTF-8."""
    await wire.send(SWITCH)
    key = (await wire.reader.readexactly(6))[2:]
    decoder = codecs.getincrementaldecoder("utf-8")()
    for at in itertools.count():
        (byte,) = await wire.reader.readexactly(1)
        try:
            decoder.decode(bytes([byte ^ key[at % 4]]))
        except UnicodeDecodeError:
            break
        await wire.send(bytes([0x80 | PING, 1, at]))
    await wire.send(bytes([0x80 | CLOSE, 2]) + struct.pack("!H", autobahn.INVALID_DATA))
    wire.writer.close()


async def test_a_frame_is_not_waited_for(tmp_path: Path) -> None:
    """6.4.3 and 6.4.4: each byte of a frame passes as it comes, so that a server can refuse a text in its middle."""
    whole = frame(TEXT, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xf4\x90\x80\x80edited")
    async with RawUpstream(refuse_text_at_once) as upstream, broker_before(tmp_path, upstream.port) as broker:
        wire = await WebSocketWire.open(broker.port)
        await wire.send(whole[:6])
        for at in range(9):  # after F4 there can't be 90
            await wire.send(whole[6 + at : 7 + at])
            await wire.seen(at + 1)
        heard = await wire.end()

    *pings, close = heard.frames
    assert list(range(8)) == [each.payload[0] for each in pings]
    assert (CLOSE, autobahn.INVALID_DATA) == (close.opcode, code_of(close))


async def test_a_server_that_has_enough_is_heard(tmp_path: Path) -> None:
    """It closes in the middle of what it is sent, and the sender, who hasn't stopped, learns why."""
    big = frame(BINARY, bytes(16 << 20))
    async with server(max_size=1 << 20) as running, broker_before(tmp_path, port_of(running)) as broker:
        for _ in range(10):
            direct = await play(port_of(running), [Pieces(big, 1 << 16), closing()])
            through = await play(broker.port, [Pieces(big, 1 << 16), closing()])
            assert [1009] == [code_of(each) for each in direct.frames]
            assert outcome(direct) == outcome(through)


@pytest.mark.parametrize("fields", [(), ("X-Note: a\tb",)], ids=["fast", "slow"])
async def test_a_server_that_has_enough_is_heard_over_tls(tmp_path: Path, fields: tuple[str, ...]) -> None:
    """There the client's bytes can't be refused by half a close: they are read until it has understood."""
    authority = Authority(tmp_path)
    tls = ssl.create_default_context(cafile=authority.ca_file)
    big = frame(BINARY, bytes(16 << 20))
    async with server(max_size=1 << 20) as running, broker_before(tmp_path, port_of(running), authority) as broker:
        for _ in range(10):
            through = await play(broker.port, [Pieces(big, 1 << 16), closing()], *fields, tls=tls)
            assert [1009] == [code_of(each) for each in through.frames]


async def test_over_tls_a_client_that_never_stops_is_left(tmp_path: Path) -> None:
    """Whoever goes on sending for longer than it takes to understand is cut."""
    authority = Authority(tmp_path)
    tls = ssl.create_default_context(cafile=authority.ca_file)
    async with server(max_size=1 << 20) as running, broker_before(tmp_path, port_of(running), authority) as broker:
        wire = await WebSocketWire.open(broker.port, tls=tls)
        await wire.send(frame(BINARY, bytes(2 << 20)))
        await wire.seen(1)
        began_at = time.monotonic()
        while not wire.heard.ended:
            await wire.send(b"x" * 1000)
            await asyncio.sleep(0.01)
        took = time.monotonic() - began_at

    assert [1009] == [code_of(each) for each in wire.heard.frames]
    assert LINGER_SECONDS - 1 < took < LINGER_SECONDS + 5


async def test_what_was_sent_before_a_close_arrives(tmp_path: Path) -> None:
    """Eight MiB and a Close, to a client that begins to read when the server has gone."""

    async def pour(connection: ServerConnection) -> None:
        await connection.send(bytes(8 << 20))
        await connection.close(4000, "enough")

    async with server(pour, close_timeout=1) as running, broker_before(tmp_path, port_of(running)) as broker:
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
        writer.write(handshake(broker.port))
        await asyncio.sleep(2)  # the server waits one second for the client's Close, and goes
        data = await asyncio.wait_for(reader.read(), 20)
        writer.close()

    assert data.endswith(b"\x0f\xa0enough")
    assert 8 << 20 < len(data)


async def test_a_client_that_says_no_more_still_hears(tmp_path: Path) -> None:
    """It closes its half of the connection behind its Close frame, and gets the server's."""
    async with server() as running, broker_before(tmp_path, port_of(running)) as broker:
        heard = []
        for port in (port_of(running), broker.port):
            wire = await WebSocketWire.open(port)
            await wire.send(closing())
            wire.writer.write_eof()
            heard.append(outcome(await wire.end()))

    direct, through = heard
    assert [autobahn.NORMAL] == [code_of(each) for each in direct[0]]
    assert direct == through


@pytest.mark.slow
async def test_a_server_that_never_closes_is_left(tmp_path: Path) -> None:
    """Whoever closed its half of the connection may have gone altogether: a silent server isn't waited for."""

    async def ignore(request: RawRequest, wire: Wire) -> None:
        await wire.send(SWITCH)
        await wire.reader.read()
        await asyncio.sleep(60)

    async with RawUpstream(ignore) as upstream, broker_before(tmp_path, upstream.port) as broker:
        wire = await WebSocketWire.open(broker.port)
        wire.writer.write_eof()
        assert ([], b"", True) == outcome(await asyncio.wait_for(wire.end(), 10))


async def test_a_tunnel_ends_cleanly_over_tls(tmp_path: Path) -> None:
    """TLS has no half of a connection to close: whoever leaves has left, and nothing is said about it in the log."""
    authority = Authority(tmp_path)
    leaf = authority.issue("broker", host="localhost")
    async with server() as running:
        settings: dict[str, Any] = {
            "public_url": "https://localhost",
            "tls": {"certificate_file": leaf.certificate_file, "key_file": leaf.key_file},
            "routes": [{"path": "/", "upstream": f"http://127.0.0.1:{port_of(running)}", "token": "none"}],
        }
        tls = ssl.create_default_context(cafile=authority.ca_file)
        async with BrokerProcess(tmp_path, **settings) as broker, aiohttp.ClientSession() as http:
            for politely in (True, False):
                url, headers = f"wss://localhost:{broker.port}/", {"Host": "localhost", "Origin": "https://localhost"}
                socket = await http.ws_connect(url, headers=headers, ssl=tls, max_msg_size=0)
                await socket.send_bytes(bytes(1 << 20))
                assert bytes(1 << 20) == await socket.receive_bytes(timeout=20)
                if politely:
                    await socket.close()
                else:
                    assert socket._response.connection is not None
                    socket._response.connection.close()
            await until(lambda: not running.connections, what="the end of both tunnels")

    assert [] == [record for record in broker.log() if record.get("logger") == "asyncio"]


async def test_a_server_that_breaks_is_not_a_server_that_closes(tmp_path: Path) -> None:
    """A cut connection is passed on as a cut, without a Close frame."""

    async def cut(request: RawRequest, wire: Wire) -> None:
        await wire.send(SWITCH + b"\x82\x05hel")
        await wire.reader.readexactly(1)
        wire.reset()

    async with RawUpstream(cut) as upstream, broker_before(tmp_path, upstream.port) as broker:
        heard = await play(broker.port, [b"x"])

    assert ([], b"\x82\x05hel", True) == outcome(heard)

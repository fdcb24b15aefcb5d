"""What came of a request to an authorization server, proved on raw sockets."""

import asyncio
import gzip
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.core.client_auth import TlsOptions
from broker.core.secret import Secret
from broker.errors import ConfigError
from broker.services.outbound import (
    MAX_CONNECTIONS,
    MAX_CONTENT_BYTES,
    Answer,
    Exchange,
    NoAnswer,
    NotSent,
    Outbound,
)
from tests.support.certificates import Authority

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def outbound() -> AsyncIterator[Outbound]:
    client = Outbound()
    yield client
    await client.close()


@asynccontextmanager
async def raw_server(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server that does to a connection what *handler* says; yields its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}/token"


async def request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    return head + await reader.readexactly(len(b"grant_type=x"))


async def post(outbound: Outbound, url: str, timeout_seconds: float = 5.0) -> Exchange:
    return await outbound.post(
        url,
        content=b"grant_type=x",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
        timeout_seconds=timeout_seconds,
    )


def answering(answer: bytes) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(answer)
        await writer.drain()

    return handler


async def test_an_answer_is_a_status_fields_and_content(outbound: Outbound) -> None:
    """A whole answer comes back whole, and its fields are found in any case."""
    async with raw_server(answering(b"HTTP/1.1 400 Bad\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\n{}")) as url:
        answer = await post(outbound, url)

    assert isinstance(answer, Answer)
    assert (400, b"{}", "7") == (answer.status, answer.content, answer.headers["retry-after"])


async def test_a_refused_connection_sent_nothing(outbound: Outbound) -> None:
    """Where nobody listens, nothing was sent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    assert isinstance(await post(outbound, f"http://127.0.0.1:{port}/"), NotSent)


async def test_a_name_that_does_not_resolve_sent_nothing() -> None:
    """Without an address, nothing was sent."""
    outbound = Outbound(insecure=True)

    assert isinstance(await post(outbound, "http://nowhere.invalid/"), NotSent)
    await outbound.close()


async def test_a_connection_that_never_stands_sent_nothing(outbound: Outbound) -> None:
    """A deadline that strikes during connect sent nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = server.getsockname()
        # The kernel completes a few handshakes by itself; once its queue is full it drops every further SYN.
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        await asyncio.sleep(0.05)

        outcome = await post(outbound, f"http://127.0.0.1:{address[1]}/", timeout_seconds=0.3)

        for filler in fillers:
            filler.close()
    assert isinstance(outcome, NotSent)


async def test_a_server_without_tls_got_nothing(outbound: Outbound) -> None:
    """A TLS handshake that fails sent nothing of the request."""
    received = bytearray()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.read(1000))
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with raw_server(handler) as url:
        outcome = await post(outbound, url.replace("http://", "https://"))

    assert isinstance(outcome, NotSent)
    assert b"grant_type" not in received


async def test_a_full_pool_sent_nothing(outbound: Outbound) -> None:
    """A request that waits in vain for a free connection was not sent."""
    count = 0
    full = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        if count == MAX_CONNECTIONS:
            full.set()
        await reader.read()

    async with raw_server(handler) as url:
        hanging = [asyncio.ensure_future(post(outbound, url, 30.0)) for _ in range(MAX_CONNECTIONS)]
        await asyncio.wait_for(full.wait(), 10)

        outcome = await post(outbound, url, timeout_seconds=0.2)

        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
    assert isinstance(outcome, NotSent)


async def test_a_silent_server_may_have_processed(outbound: Outbound) -> None:
    """A deadline that strikes after the request was sent leaves it in doubt."""
    received = asyncio.get_running_loop().create_future()

    async def handler(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        received.set_result(await request(reader))
        await reader.read()

    async with raw_server(handler) as url:
        outcome = await post(outbound, url, timeout_seconds=1.0)

    assert isinstance(outcome, NoAnswer)
    assert (await received).endswith(b"grant_type=x")


async def test_a_reset_after_the_request_may_have_been_processed(outbound: Outbound) -> None:
    """A reset once the server has read everything leaves it in doubt."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with raw_server(handler) as url:
        assert isinstance(await post(outbound, url), NoAnswer)


async def test_a_close_before_the_request_is_read_is_in_doubt_too(outbound: Outbound) -> None:
    """Who closes without reading can't be told from who closes after it."""

    async def handler(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        return

    async with raw_server(handler) as url:
        assert isinstance(await post(outbound, url), NoAnswer)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.", b"HTTP/1.1 200 OK\r\nContent-", b"garbage\r\n\r\n"])
async def test_half_a_head_is_no_answer(outbound: Outbound, answer: bytes) -> None:
    """A head that breaks off, or is none, leaves the request in doubt."""
    async with raw_server(answering(answer)) as url:
        assert isinstance(await post(outbound, url), NoAnswer)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
async def test_half_a_body_leaves_the_status(outbound: Outbound, answer: bytes) -> None:
    """Where the content breaks off, the status counts and the content is None: not empty."""
    async with raw_server(answering(answer)) as url:
        outcome = await post(outbound, url)

    assert isinstance(outcome, Answer)
    assert (200, None) == (outcome.status, outcome.content)


async def test_a_stalled_body_leaves_the_status(outbound: Outbound) -> None:
    """A deadline that strikes within the content keeps the status."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        await reader.read()

    async with raw_server(handler) as url:
        outcome = await post(outbound, url, timeout_seconds=1.0)

    assert isinstance(outcome, Answer)
    assert (200, None) == (outcome.status, outcome.content)


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_an_endless_body_is_cut(outbound: Outbound, encoding: str) -> None:
    """Content beyond the bound is given up, packed or not."""
    content = b"x" * (MAX_CONTENT_BYTES * 20)
    if encoding == "gzip":
        content = gzip.compress(content)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(content)}\r\n\r\n".encode()

    async with raw_server(answering(head + content)) as url:
        outcome = await post(outbound, url)

    assert isinstance(outcome, Answer)
    assert outcome.content is None


async def test_up_02_redirects_are_never_followed(outbound: Outbound) -> None:
    """A redirect is an answer like any other: nobody connects to where it points."""
    visited = False

    async def trap(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        nonlocal visited
        visited = True

    async with raw_server(trap) as target:
        for status in (301, 302, 303, 307, 308):
            location = f"HTTP/1.1 {status} X\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
            async with raw_server(answering(location)) as url:
                outcome = await post(outbound, url)
            assert isinstance(outcome, Answer)
            assert status == outcome.status
    assert not visited


async def test_up_01_nothing_is_kept_between_requests(outbound: Outbound) -> None:
    """No cookie and no connection of one request serves another."""
    heads: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await request(reader))
        writer.write(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        await reader.read()

    async with raw_server(handler) as url:
        await post(outbound, url)
        await post(outbound, url)

    assert 2 == len(heads)
    assert all(b"cookie" not in head.lower() for head in heads)


async def test_lg_05_numeric_spellings_of_link_local_addresses_are_refused() -> None:
    """0xa9fea9fe is 169.254.169.254: what a name resolves to is judged too."""
    outbound = Outbound(insecure=True)

    assert isinstance(await post(outbound, "http://0xa9fea9fe/", timeout_seconds=3), NotSent)
    await outbound.close()


@pytest.mark.parametrize("flaw", ["none", "expired", "self-signed", "wrong name", "unknown authority"])
async def test_cr_07_a_server_must_prove_who_it_is(flaw: str, tmp_path: Path) -> None:
    """An expired, self-signed, foreign or misnamed certificate is refused, and nothing is sent."""
    received = bytearray()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await request(reader))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()

    authority = Authority(tmp_path)
    stranger = Authority(tmp_path, "Stranger")
    host = "other.example" if flaw == "wrong name" else "127.0.0.1"
    issuer = stranger if flaw == "unknown authority" else authority
    leaf = issuer.issue("server", host=host, expired=flaw == "expired", self_signed=flaw == "self-signed")
    outbound = Outbound(TlsOptions(ca_file=authority.ca_file))

    async with raw_server(handler, authority.server_context(leaf)) as url:
        outcome = await post(outbound, url)
    await outbound.close()

    if flaw == "none":
        assert isinstance(outcome, Answer)
    else:
        assert isinstance(outcome, NotSent)
        assert b"" == received


async def test_mutual_tls_shows_the_client_certificate(tmp_path: Path) -> None:
    """The configured certificate is presented."""
    authority = Authority(tmp_path)
    server, client = authority.issue("server"), authority.issue("client")
    peers: list[object] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        peers.append(writer.get_extra_info("peercert")["subject"])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()

    outbound = Outbound(
        TlsOptions(ca_file=authority.ca_file, certificate_file=client.certificate_file, key_file=client.key_file)
    )
    async with raw_server(handler, authority.server_context(server, client_certificates=True)) as url:
        assert isinstance(await post(outbound, url), Answer)
    await outbound.close()

    assert [((("commonName", "client"),),)] == peers


@pytest.mark.parametrize(
    "flaw", ["no ca", "empty ca", "no certificate", "foreign key", "wrong password", "no password"]
)
def test_cr_07_tls_options_that_cannot_be_applied_stop_the_start(flaw: str, tmp_path: Path) -> None:
    """A CA, certificate or key that can't be loaded is a configuration error, never silently left out."""
    authority = Authority(tmp_path)
    leaf, other, locked = authority.issue("a"), authority.issue("b"), authority.issue("c", password=b"right")
    (tmp_path / "empty.pem").write_text("")
    options = {
        "no ca": TlsOptions(ca_file=str(tmp_path / "absent.pem")),
        "empty ca": TlsOptions(ca_file=str(tmp_path / "empty.pem")),
        "no certificate": TlsOptions(certificate_file=str(tmp_path / "absent.pem")),
        "foreign key": TlsOptions(certificate_file=leaf.certificate_file, key_file=other.key_file),
        "wrong password": TlsOptions(
            certificate_file=locked.certificate_file, key_file=locked.key_file, key_password=Secret("wrong")
        ),
        "no password": TlsOptions(certificate_file=locked.certificate_file, key_file=locked.key_file),
    }

    with pytest.raises(ConfigError):
        Outbound(options[flaw])


async def test_ft_23_a_request_that_is_late_is_not_sent(outbound: Outbound) -> None:
    """It is asked for with the connection open and nothing written: the process may have stood still on the way."""
    received = bytearray()
    ended = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.read())
        ended.set()

    async with raw_server(handler) as url:
        outcome = await outbound.post(
            url, content=b"grant_type=x", headers={}, timeout_seconds=5.0, is_late=lambda: True
        )
        await asyncio.wait_for(ended.wait(), 5)

    assert isinstance(outcome, NotSent)
    assert b"" == received

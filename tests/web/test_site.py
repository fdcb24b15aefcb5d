"""The sockets that are served on."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from broker.core.listen_tls import ListenTlsOptions
from broker.services.tls import server_context
from broker.web.listening import listening_sockets
from broker.web.site import Site
from tests.support.certificates import Authority

SECONDS = 0.3


@asynccontextmanager
async def served(tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, int]]:
    async def answer(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="here")

    (listening,) = listening_sockets("127.0.0.1", 0, 1)
    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await Site(runner, listening, tls=tls, handshake_seconds=SECONDS).start()
    try:
        yield listening.getsockname()
    finally:
        await runner.cleanup()
        listening.close()


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"])
async def test_ds_01_a_handshake_that_drips_is_cut(tmp_path: Path, sent: bytes) -> None:
    """Who doesn't end the handshake in time loses the connection; who does may be as slow as any other afterwards."""
    authority = Authority(tmp_path)
    leaf = authority.issue("broker", host="localhost")
    tls = server_context(ListenTlsOptions(certificate_file=leaf.certificate_file, key_file=leaf.key_file))
    client = ssl.create_default_context(cafile=authority.ca_file)
    async with served(tls) as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(sent)
        slow, slowly = await asyncio.open_connection(host, port, ssl=client, server_hostname="localhost")
        assert b"" == await asyncio.wait_for(reader.read(), 20)
        writer.close()

        slowly.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"HTTP/1.1 200 OK\r\n" == await slow.readline()
        slowly.close()


async def test_many_may_wait_to_be_accepted() -> None:
    """A burst of callers is not refused by a short queue while the process is busy."""
    async with served() as address:
        with ExitStack() as stack:
            # The event loop accepts nobody meanwhile.
            for _ in range(300):
                stack.enter_context(socket.create_connection(address, timeout=2))

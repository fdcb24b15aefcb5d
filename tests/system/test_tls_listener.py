"""TLS on the broker's own listener: the whole data plane behind it, and certificates that are replaced."""

import asyncio
import hashlib
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.broker_process import BrokerProcess
from tests.support.certificates import Authority
from tests.support.raw_upstream import RawRequest, RawUpstream, Wire
from tests.support.upstream import Upstream
from tests.support.waiting import until_async

pytestmark = pytest.mark.system

BODY = b"0123456789abcdef" * (1 << 16)


async def cut(_got: RawRequest, wire: Wire) -> None:
    """Promise more than is sent."""
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
    wire.reset()


def broker_for(directory: Path, authority: Authority, **settings: Any) -> BrokerProcess:
    leaf = authority.issue("broker", host="localhost")
    tls = {"certificate_file": leaf.certificate_file, "key_file": leaf.key_file}
    return BrokerProcess(directory, public_url="https://localhost", tls=tls, **settings)


async def test_everything_passes_over_tls(tmp_path: Path) -> None:
    """Calls by either path, a large body, and an answer that is cut is seen to be cut."""
    authority = Authority(tmp_path)
    tls = ssl.create_default_context(cafile=authority.ca_file)
    async with Upstream() as upstream, RawUpstream(cut) as cutting:
        routes = [
            {"path": "/public", "upstream": upstream.url, "token": "none"},
            {"path": "/cut", "upstream": cutting.url, "token": "none"},
        ]
        async with (
            broker_for(tmp_path, authority, routes=routes) as broker,
            aiohttp.ClientSession(f"https://localhost:{broker.port}", connector=aiohttp.TCPConnector(ssl=tls)) as http,
        ):
            headers = {"Host": "localhost"}
            statuses = []
            for _ in range(20):
                async with http.get("/public/x", headers=headers) as answer:
                    statuses.append(answer.status)
                    await answer.read()
            async with http.post("/public/upload", headers=headers, data=BODY) as answer:
                statuses.append(answer.status)
                await answer.read()
            with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
                async with http.get("/cut", headers=headers) as answer:
                    await answer.read()
        received = upstream.received

    assert {200} == set(statuses)
    assert hashlib.sha256(BODY).digest() == hashlib.sha256(received[-1].body).digest()
    assert ["https"] == received[-1].header("x-forwarded-proto")


async def test_ds_02_who_still_sends_over_tls_hears_why_it_is_refused(tmp_path: Path) -> None:
    """TLS has no half of a connection to close: the broker reads on until the caller stops."""
    authority = Authority(tmp_path)
    tls = ssl.create_default_context(cafile=authority.ca_file)
    async with Upstream() as upstream:
        route = {"path": "/public", "upstream": upstream.url, "token": "none", "max_body": "1MiB"}
        async with broker_for(tmp_path, authority, routes=[route]) as broker:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", broker.port, ssl=tls, server_hostname="localhost"
            )
            writer.write(b"POST /public/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n")
            for _ in range(20):
                writer.write(b"x" * (64 << 10))
                await writer.drain()
                await asyncio.sleep(0.02)
            answer = await asyncio.wait_for(reader.read(), 10)
            writer.close()

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert [] == upstream.received


async def test_ft_19_a_certificate_that_was_replaced_is_shown_after_a_reload(tmp_path: Path) -> None:
    """New connections see the new one; one that can't be read changes nothing."""
    authority = Authority(tmp_path)
    context = ssl.create_default_context(cafile=authority.ca_file)

    async def shown() -> bytes:
        _, writer = await asyncio.open_connection("127.0.0.1", broker.port, ssl=context, server_hostname="localhost")
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        assert isinstance(certificate, bytes)
        return certificate

    broker = broker_for(tmp_path, authority)
    async with broker:
        first = await shown()
        leaf = authority.issue("broker", host="localhost")
        await broker.reload()

        second = first

        async def is_new() -> bool:
            nonlocal second
            second = await shown()
            return second != first

        await until_async(is_new, seconds=10, what="the new certificate")
        Path(leaf.certificate_file).write_text("none")
        await broker.reload("reload_refused")
        assert second == await shown()
    assert "tls.certificate_file" in broker.log_path.read_text()

"""FT-19: the certificates of those that the broker speaks to expire and are replaced while it runs."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tests.support.broker_process import BrokerProcess, Browser, provider_options
from tests.support.certificates import Authority, Leaf
from tests.support.ports import free_port
from tests.support.waiting import until_async

pytestmark = pytest.mark.system


@asynccontextmanager
async def tls_upstream(port: int, leaf: Leaf) -> AsyncIterator[None]:
    """Serve on *port* with the certificate of *leaf*, and end every connection at the end."""

    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(leaf.certificate_file, leaf.key_file)
    app = web.Application()
    app.router.add_get("/{path:.*}", hello)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    yield
    await runner.cleanup()


async def test_ft_19_a_replaced_certificate_is_used_and_an_expired_one_refused(tmp_path: Path) -> None:
    """New connections see the new certificate at once; one of a new authority, once the broker is told to reload."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new", "Next CA")
    ca_file, port = tmp_path / "ca.pem", free_port()
    ca_file.write_bytes(Path(old.ca_file).read_bytes())
    place = {"urls": [f"https://127.0.0.1:{port}"], "tls": {"ca_file": str(ca_file)}}
    routes = [{"path": "/open", "upstream": place, "token": "none"}]
    statuses = []
    nobody = provider_options("http://127.0.0.1:9")
    async with (
        BrokerProcess(tmp_path, providers={"corp": nobody}, routes=routes) as broker,
        Browser(broker.url) as browser,
    ):

        async def is_served() -> bool:
            return (await browser.get("/open/x")).status == 200

        for leaf in (old.issue("first"), old.issue("second"), old.issue("third", expired=True), new.issue("fourth")):
            async with tls_upstream(port, leaf):
                statuses.append((await browser.get("/open/x")).status)
        async with tls_upstream(port, new.issue("fifth")):
            ca_file.write_bytes(Path(new.ca_file).read_bytes())
            await broker.reload()
            await until_async(is_served, what="the new authority")

    assert [200, 200, 502, 502] == statuses

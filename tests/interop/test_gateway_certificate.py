"""A real nginx that shows a certificate when it asks, in place of a secret."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.interop.test_gateways import Site, site_of
from tests.support.certificates import Authority

pytestmark = [pytest.mark.interop, pytest.mark.timeout(90)]

QUESTION = (
    b"GET /bff/auth HTTP/1.1\r\nHost: localhost:%d\r\nX-Original-Method: GET\r\nX-Original-URI: /public/x\r\n"
    b"Connection: close\r\n\r\n"
)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async for each in site_of("nginx-certificate", tmp_path):
        yield each


async def ask(site: Site, *, certificate: str | None) -> bytes:
    """Ask the broker's listener itself, as one who has *certificate*. Returns the status; empty if TLS was refused."""
    context = ssl.create_default_context(cafile=str(site.gateway.directory / "Test CA.pem"))
    if certificate is not None:
        directory = site.gateway.directory
        context.load_cert_chain(directory / f"{certificate}.pem", directory / f"{certificate}.key")
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", site.gateway.broker.port, ssl=context, server_hostname="localhost"
        )
        writer.write(QUESTION % site.gateway.port)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    except (ConnectionError, ssl.SSLError):
        return b""
    return answer[9:12]


async def test_a_gateway_with_a_certificate_is_given_tokens(site: Site) -> None:
    """Login, calls with a token and logout, without any secret between the two."""
    async with site.gateway.browser() as browser:
        before = await browser.get("/api/items")
        await browser.log_in()
        call = await browser.get("/api/items")
        logout = await browser.request("POST", "/bff/logout")
        after = await browser.get("/api/items")

    assert (401, 200, 401) == (before.status, call.status, after.status)
    assert 200 <= logout.status < 400
    assert 1 == len(site.app.received)
    assert ["alice"] == site.last().header("x-user")


async def test_hd_04_whoever_shows_none_or_another_certificate_learns_nothing(site: Site) -> None:
    """Of this CA with another name: 403. Of another CA: no connection. Callers of the gateway get no further either."""
    authority = Authority(site.gateway.directory, "Other CA")
    authority.issue("foreign", host="gateway.internal")

    assert b"202" == await ask(site, certificate="nginx")
    assert b"403" == await ask(site, certificate=None)
    assert b"403" == await ask(site, certificate="gateway")  # the CA's, for localhost
    assert b"" == await ask(site, certificate="foreign")
    async with site.gateway.browser() as browser:
        await browser.log_in()
        assert 404 == (await browser.get("/bff/auth")).status
        # What nginx has shown in one question is not taken for what it hands on.
        assert 200 == (await browser.get("/api/x")).status
        assert 200 == (await browser.get("/bff/user")).status

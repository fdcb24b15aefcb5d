"""`token-broker demo` as a process: it needs nothing, works, and leaves nothing behind."""

import asyncio
import re
import signal
import socket
from collections.abc import AsyncIterator
from urllib.parse import urljoin

import aiohttp
import pytest

from tests.support.demo_process import DemoProcess
from tests.support.ports import free_port

pytestmark = pytest.mark.system

CSRF = {"X-CSRF": "1"}


@pytest.fixture
async def browser() -> AsyncIterator[aiohttp.ClientSession]:
    """A client with cookies."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


async def log_in(browser: aiohttp.ClientSession, url: str) -> None:
    """Log in as a user does: through the form of the authorization server."""
    async with browser.get(urljoin(url, "/bff/login?returnUrl=/")) as response:
        page, form = await response.text(), response.url
    ticket = re.search(r'name="ticket" value="([0-9a-f]+)"', page)
    assert ticket
    async with browser.post(form.join(form.with_path("/login")), data={"ticket": ticket[1], "username": "ada"}) as done:
        assert 200 == done.status, await done.text()


async def test_a_login_serves_fifty_calls_at_the_moment_of_expiry(browser: aiohttp.ClientSession) -> None:
    """After the only login, calls go on over the token's end: 50 at once get the next generation, all of them."""
    async with DemoProcess() as demo:
        await log_in(browser, demo.url)

        async def call() -> dict[str, object]:
            async with browser.get(urljoin(demo.url, "/api/token"), headers=CSRF) as response:
                assert 200 == response.status, await response.text()
                answer: dict[str, object] = await response.json()
                return answer

        first = await call()
        assert ("ada", 1) == (first["subject"], first["generation"])
        assert "cookie" not in str(first["fields"])
        await asyncio.sleep(float(str(first["expires_in"])) + 0.2)  # the token's own life, not a guess
        assert {2} == {answer["generation"] for answer in await asyncio.gather(*(call() for _ in range(50)))}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("whole_group", [True, False], ids=["to the group", "to the first process"])
async def test_it_stops_cleanly(number: signal.Signals, *, whole_group: bool) -> None:
    """One signal: exit code 0, no traceback, no file left, no port open."""
    async with DemoProcess() as demo:
        code = await demo.stop(number, whole_group=whole_group)
    assert (0, False) == (code, "Traceback" in demo.errors), demo.errors
    assert not demo.config.parent.exists()
    with socket.socket() as probe:
        assert 0 != probe.connect_ex(("127.0.0.1", int(demo.url.rstrip("/").rpartition(":")[2])))


async def test_the_port_can_be_chosen_and_a_taken_one_is_named() -> None:
    """--port is obeyed; a second demo on it says so and ends with 1."""
    port = str(free_port())
    async with DemoProcess("--port", port) as first:
        assert f"http://localhost:{port}/" == first.url
        async with DemoProcess("--port", port) as second:
            assert 1 == await second.exit_code()
        assert port in second.errors


async def test_it_says_that_it_is_not_for_production() -> None:
    """The login page and the log say so."""
    async with DemoProcess() as demo:
        async with aiohttp.ClientSession() as http, http.get(urljoin(demo.url, "/bff/login")) as response:
            assert "not for production" in await response.text()
        await demo.stop(signal.SIGINT)
    assert "not_for_production" in demo.errors

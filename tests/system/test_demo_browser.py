"""
The demo in a real Chromium: what a user sees, and what the browser gets to see.

``DEMO_SCREENSHOT=docs/images/demo.png make browser`` makes the picture of the README anew.
"""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.support.demo_process import DemoProcess
from tests.support.waiting import until_async
from tests.support.wire import Wire

pytestmark = [pytest.mark.browser, pytest.mark.system, pytest.mark.timeout(300)]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TOKEN_SECONDS = 15
PATIENCE_MILLISECONDS = 30_000
"""How long a page may take to come: nothing here is about that."""
SECRETS = re.compile(rb"eyJ[\w-]{8,}|rt_[0-9a-f]{16,}|access_token|refresh_token|id_token")
"""What a JWT, a refresh token and a token response look like."""


@pytest.fixture
async def demo() -> AsyncIterator[DemoProcess]:
    async with DemoProcess() as process:
        yield process


@pytest.fixture
async def wire(demo: DemoProcess) -> AsyncIterator[Wire]:
    """What passes between the browser and the broker."""
    async with Wire(port_of(demo)) as wire:
        yield wire


@pytest.fixture
async def chromium(demo: DemoProcess, wire: Wire) -> AsyncIterator[Browser]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.fail(f"this test needs Chromium on PATH, as one of {', '.join(NAMES)}: apt-get install chromium")
    flags = [
        *FLAGS,
        f"--host-resolver-rules=MAP localhost:{port_of(demo)} 127.0.0.1:{wire.port}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        await browser.close()


def port_of(demo: DemoProcess) -> int:
    port = urlsplit(demo.url).port
    assert port
    return port


def paths(requests: list[str]) -> list[str]:
    """The paths of requests that a context made."""
    return [urlsplit(url).path for url in requests]


async def log_in(page: Page, url: str, name: str = "ada") -> None:
    await page.goto(url)
    await page.click("#log-in")
    await page.fill("#username", name)
    await page.click("#log-in")
    await expect(page.locator("#dashboard")).to_be_visible(timeout=PATIENCE_MILLISECONDS)


async def number(page: Page, name: str) -> int:
    return int((await page.locator(f"#{name}").text_content()) or 0)


async def test_one_login_lasts_over_five_token_lifetimes(
    chromium: Browser, demo: DemoProcess, wire: Wire, tmp_path: Path
) -> None:
    """
    A user logs in once, calls go on over five lifetimes, 50 calls at an expiry cost one refresh, no call fails, no byte
    that the browser gets holds a token, and a logout ends it.
    """
    context = await chromium.new_context(viewport={"width": 1180, "height": 1130}, color_scheme="light")
    requests: list[str] = []
    context.on("request", lambda request: requests.append(request.url))
    page = await context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)

    await log_in(page, demo.url)
    await asyncio.sleep(5 * TOKEN_SECONDS)  # five lifetimes are what is to be shown

    async def has_lived_long() -> bool:
        return 5 <= await number(page, "generation") and 60 <= await number(page, "calls")

    # How many calls fit into them is the machine's speed: each follows the answer to the last.
    await until_async(has_lived_long, seconds=2 * TOKEN_SECONDS, what="the fifth token and the sixtieth call")

    await page.click("#burst")
    await expect(page.locator("#burst-result")).to_have_text(
        "50 of 50 calls answered, 1 refresh", timeout=2 * TOKEN_SECONDS * 1000
    )
    await asyncio.sleep(3)  # some more calls for the picture
    picture = Path(os.environ.get("DEMO_SCREENSHOT") or tmp_path / "demo.png")
    await page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 10_000

    assert 0 == await number(page, "failed")
    assert "none" == await page.locator("#cookies").text_content()
    assert "empty" == await page.locator("#storage").text_content()

    await page.click("#log-out")
    await expect(page.locator("#welcome")).to_be_visible(timeout=PATIENCE_MILLISECONDS)
    await page.goto(demo.url)
    await expect(page.locator("#welcome")).to_be_visible(timeout=PATIENCE_MILLISECONDS)

    assert b"X-CSRF: 1" in wire.sent
    assert wire.received.count(b"\r\n\r\n") > 60
    assert None is SECRETS.search(wire.received)
    assert None is SECRETS.search(wire.sent)
    assert 1 == paths(requests).count("/bff/login")
    # The first question, before the login, and that after the logout are answered 401, which the console calls an error.
    assert [] == [problem for problem in problems if "401" not in problem]
    await context.close()


async def test_a_strict_cookie_makes_no_login_loop(chromium: Browser, demo: DemoProcess) -> None:
    """The session cookie is HttpOnly and SameSite=Strict, and the first page after the login has it all the same."""
    context = await chromium.new_context()
    requests: list[str] = []
    context.on("request", lambda request: requests.append(request.url))
    page = await context.new_page()
    await log_in(page, demo.url)

    cookies = {cookie["name"]: cookie for cookie in await context.cookies(demo.url)}
    session = next(cookie for name, cookie in cookies.items() if "session" in name)
    assert (True, "Strict", "/") == (session["httpOnly"], session["sameSite"], session["path"])
    assert "" == await page.evaluate("document.cookie")
    for path in ("/bff/login", "/authorize", "/bff/callback/demo"):
        assert 1 == paths(requests).count(path), path

    await page.reload()
    await expect(page.locator("#dashboard")).to_be_visible(timeout=PATIENCE_MILLISECONDS)
    await context.close()


async def test_two_tabs_and_two_users_do_not_mix(chromium: Browser, demo: DemoProcess) -> None:
    """Two tabs share a session; another browser has another user."""
    contexts = [await chromium.new_context() for _ in range(2)]
    pages = [await context.new_page() for context in contexts]
    await asyncio.gather(*(log_in(page, demo.url, name) for page, name in zip(pages, ("ada", "bob"), strict=True)))
    second_tab = await contexts[0].new_page()
    await second_tab.goto(demo.url)
    await expect(second_tab.locator("#subject")).to_have_text("Ada", timeout=PATIENCE_MILLISECONDS)
    await expect(pages[1].locator("#subject")).to_have_text("Bob", timeout=PATIENCE_MILLISECONDS)
    for context in contexts:
        await context.close()

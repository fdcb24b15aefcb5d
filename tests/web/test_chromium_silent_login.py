"""What only a real browser can say of silent logins: which cookies go into a frame, and what may be framed."""

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import BrowserContext, Page

from broker.core.session import SameSite
from tests.support.chromium import chromium
from tests.web.conftest import Site
from tests.web.test_chromium import SESSION, tls

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

HOWTO = Path(__file__).parents[2] / "docs/howto/silent-login.md"
(SCRIPT,) = re.findall(r"^```js\n(.*?)^```", HOWTO.read_text(), re.DOTALL | re.MULTILINE)
"""What an application does, as the documentation says."""


async def ask(page: Page) -> Any:
    script = SCRIPT.replace('"/bff/silent-login"', '"/bff/silent-login?provider=corp"')
    return await page.evaluate(f"() => {{ {script}; return silentLogin() }}")


async def application(site: Site, context: BrowserContext, broker: str) -> Page:
    """Log in, forget the session here, and return a page of the application."""
    site.provider.configure(asks_for_login=True)
    page = await context.new_page()
    await page.goto(f"{broker}/bff/login?provider=corp&returnUrl=/app")
    await page.fill("#username", "ada")
    await page.click("#log-in")
    await page.wait_for_url("**/app")
    await context.clear_cookies(name=SESSION)
    return page


async def user(page: Page) -> Any:
    return await page.evaluate("async () => (await fetch('/bff/user', {headers: {'X-CSRF': '1'}})).status")


@pytest.mark.parametrize("same_site", list(SameSite))
async def test_a_frame_logs_in_over_another_site(site: Site, same_site: SameSite, tmp_path: Path) -> None:
    """
    The way leads over another site, which knows the user without a cookie. At its end the browser has the session
    cookie, the page is told, the second time at once, and no page of ours is against its own policy.
    """
    broker = (await site.start(same_site=same_site, tls=tls(tmp_path))).url
    async with chromium() as context:
        page = await application(site, context, broker)
        site.provider.configure(knows_browsers=True)
        assert 401 == await user(page)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)

        first = await ask(page)
        status = await user(page)
        calls = len(site.provider.ledger.calls)
        second = await ask(page)

        assert [True, True] == [first, second]
        assert (200, calls) == (status, len(site.provider.ledger.calls))
        assert [SESSION] == [cookie["name"] for cookie in await context.cookies(broker)]
        assert [] == complaints


async def test_a_provider_whose_cookie_stays_out_of_frames_knows_nobody(site: Site, tmp_path: Path) -> None:
    """The provider is on another site, and its cookie is Lax: the page is told that nobody is logged in, that is all."""
    broker = (await site.start(tls=tls(tmp_path))).url
    async with chromium() as context:
        page = await application(site, context, broker)

        assert await ask(page) is False
        assert 401 == await user(page)
        assert [] == await context.cookies(broker)


async def test_lg_09_another_site_frames_nothing(site: Site, tmp_path: Path) -> None:
    """On another site's page no frame of ours shows anything, begins anything or tells anything."""
    broker = (await site.start(tls=tls(tmp_path))).url
    async with chromium() as context:
        page = await application(site, context, broker)
        site.provider.configure(knows_browsers=True)
        answers: list[tuple[str, int]] = []
        page.on("response", lambda response: answers.append((response.url, response.status)))
        await page.goto(f"{site.provider.url}/style.css")
        messages = await page.evaluate(
            """async (urls) => {
              const messages = []
              addEventListener("message", (event) => messages.push(event.data))
              for (const src of urls) {
                const frame = document.createElement("iframe")
                const loaded = new Promise((resolve) => frame.onload = resolve)
                frame.src = src
                document.body.append(frame)
                await loaded
              }
              return messages
            }""",
            [f"{broker}/bff/silent-login?provider=corp", f"{broker}/bff/callback/corp?state=s&code=c"],
        )

        assert [] == messages
        assert [("silent-login", 403), ("callback/corp", 200)] == [
            (url.partition("?")[0].partition("/bff/")[2], status) for url, status in answers if url.startswith(broker)
        ], "the page that asks once more is not shown, so it doesn't"
        assert [] == await context.cookies(broker)

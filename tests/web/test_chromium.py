"""What only a real browser can say: which cookies it takes and when it sends them."""

import ssl
from pathlib import Path

import pytest
from playwright.async_api import Page

from broker.core.session import SameSite
from tests.support.certificates import Authority
from tests.support.chromium import chromium
from tests.web.conftest import Site

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

SESSION = "__Host-Http-session"


def tls(directory: Path) -> ssl.SSLContext:
    leaf = Authority(directory).issue("broker", host="localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf.certificate_file, leaf.key_file)
    return context


async def shown(page: Page, path: str) -> str:
    """Wait for the application's page, and return which cookies came with it."""
    await page.wait_for_url(f"**{path}")
    return await page.inner_text("body")


@pytest.mark.parametrize("same_site", list(SameSite))
async def test_a_login_over_another_site_ends_in_a_session(site: Site, same_site: SameSite, tmp_path: Path) -> None:
    """
    The authorization server is another site, with a form of its own. The browser takes the prefixed cookies, the first
    page comes with the session, a link on another site goes on with it, and a logout takes it away.
    """
    site.provider.configure(asks_for_login=True)
    broker = (await site.start(same_site=same_site, tls=tls(tmp_path))).url
    async with chromium() as context:
        page = await context.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)

        await page.goto(f"{broker}/bff/login?provider=corp&returnUrl=/app%3Fa%3Db")
        assert page.url.startswith(site.provider.url), "another site"
        await page.fill("#username", "ada")
        await page.click("#log-in")
        body = await shown(page, "/app?a=b")

        cookies = await context.cookies(broker)
        (session,) = [cookie for cookie in cookies if cookie["name"] == SESSION]
        assert (True, True, "/", same_site.capitalize()) == tuple(
            session[key] for key in ("secure", "httpOnly", "path", "sameSite")
        )
        assert f"{SESSION}={session['value']}" in body
        assert [SESSION] == [cookie["name"] for cookie in cookies], "nothing of the login is left"

        calls = len(site.provider.ledger.calls)
        await page.goto(f"{site.provider.url}/style.css")
        await page.evaluate("url => { location.href = url }", f"{broker}/bff/login?provider=corp&returnUrl=/linked")
        linked = await shown(page, "/linked")
        if same_site is SameSite.STRICT:
            assert f"{SESSION}={session['value']}" in linked
            assert calls == len(site.provider.ledger.calls)
        assert SESSION in linked

        await page.goto(f"{broker}/bff/logout")
        await page.click("a")
        await page.wait_for_url(f"{broker}/")
        assert [] == await context.cookies(broker)
        refused = [text for text in complaints if "Failed to load resource" not in text]  # no server has an icon
        assert [] == refused, "no page of ours is against its own policy"


@pytest.mark.parametrize("same_site", list(SameSite))
async def test_br_01_a_link_on_another_site_asks_before_it_logs_out(
    site: Site, same_site: SameSite, tmp_path: Path
) -> None:
    """Whether or not the browser shows the cookie on the way, it still has it, and the user is asked."""
    broker = (await site.start(same_site=same_site, tls=tls(tmp_path))).url
    async with chromium() as context:
        page = await context.new_page()
        await page.goto(f"{broker}/bff/login?provider=corp&returnUrl=/app")
        await shown(page, "/app")

        await page.goto(f"{site.provider.url}/style.css")
        await page.evaluate("url => { location.href = url }", f"{broker}/bff/logout")
        await page.wait_for_selector("text=Log out?")

        assert [SESSION] == [cookie["name"] for cookie in await context.cookies(broker)]

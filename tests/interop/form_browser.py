"""A browser without scripts: it follows redirects, keeps cookies, reads forms and sends them off."""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from tests.support.broker_process import Browser, navigation


@dataclass(slots=True)
class Form:
    """A form of a page: where it goes, and what its fields hold."""

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Page:
    """What a navigation ended with."""

    url: str
    status: int
    text: str

    def __repr__(self) -> str:
        words = re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", self.text, flags=re.DOTALL)
        return f"Page({self.status} {self.url}: {' '.join(words.split())[:600]!r})"

    @property
    def form(self) -> Form:
        """Its first form."""
        reader = _FormReader(self.url)
        reader.feed(self.text)
        assert reader.forms, f"there is no form: {self!r}"
        return reader.forms[0]

    @property
    def has_form(self) -> bool:
        reader = _FormReader(self.url)
        reader.feed(self.text)
        return bool(reader.forms)


class FormBrowser(Browser):
    """Goes through the login and consent pages of real servers."""

    def __init__(self, origin: str, *, trust: ssl.SSLContext | bool = True) -> None:
        """
        Args:
            origin: Of the broker.
            trust: In the certificates of servers.
        """
        super().__init__(origin)
        self._trust = trust

    async def open(self, url: str) -> Page:
        """Go to *url*, through every redirect."""
        async with self.http.get(URL(url, encoded=True), headers=navigation(), ssl=self._trust) as response:
            return await _read(response)

    async def submit(self, page: Page, fields: Mapping[str, str] | None = None) -> Page:
        """Send the first form of *page* with *fields* filled in."""
        form = page.form
        content = {**form.fields, **(fields or {})}
        if form.method == "get":
            return await self.open(str(URL(form.action).update_query(content)))
        async with self.http.post(
            URL(form.action, encoded=True), data=content, headers=navigation(), ssl=self._trust
        ) as response:
            return await _read(response)

    async def begin_login(self, **query: str) -> Page:
        """Return the page that the authorization server shows to whoever logs in."""
        return await self.open(str(URL(f"{self.origin}/bff/login").with_query({"returnUrl": "/", **query})))

    def is_home(self, page: Page) -> bool:
        """Return whether *page* is the one that ends a login."""
        return page.status == 200 and page.url.startswith(f"{self.origin}/bff/return")


async def _read(response: aiohttp.ClientResponse) -> Page:
    return Page(str(response.url), response.status, await response.text(errors="replace"))


class _FormReader(HTMLParser):
    """Finds the forms of a page and the fields that would be sent unchanged."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self._url = url
        self._open: Form | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            action = urljoin(self._url, given.get("action", ""))
            self._open = Form(action, given.get("method", "get").lower())
            self.forms.append(self._open)
        elif tag == "input" and self._open is not None and given.get("name"):
            kind = given.get("type", "text").lower()
            if kind in {"submit", "button", "image"} or (kind in {"checkbox", "radio"} and "checked" not in given):
                return
            self._open.fields[given["name"]] = given.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._open = None

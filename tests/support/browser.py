"""
A browser, as far as cookies, redirects and fetch metadata go.

It enforces what real ones enforce: the cookie prefixes, SameSite over whole chains of redirects, Secure, and Path. It
knows sites by their public origins and finds their servers on loopback, so that tests run with ``https`` origins.

Source: draft-ietf-httpbis-rfc6265bis sections 4.1.3, 5.2, 5.6 and 5.7; W3C Fetch Metadata sections 2.1 to 2.4.
"""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

MAX_HOPS = 20


@dataclass(frozen=True, slots=True)
class Cookie:
    name: str
    value: str
    same_site: str
    secure: bool
    path: str
    http_only: bool


@dataclass(frozen=True, slots=True)
class Page:
    """What a request ended with. ``hops`` are the URLs on the way, the last one included."""

    url: str
    status: int
    headers: tuple[tuple[str, str], ...]
    text: str
    hops: tuple[str, ...] = ()
    set_cookies: tuple[str, ...] = ()

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None

    def json(self) -> Any:
        import json

        return json.loads(self.text)

    @property
    def refresh_url(self) -> str | None:
        """Where a meta refresh goes."""
        match = re.search(r'<meta http-equiv="refresh" content="0;url=([^"]*)">', self.text)
        return html.unescape(match[1]) if match else None

    def may_be_framed_by(self, embedder: str | None) -> bool:
        """Whether a page of *embedder* may show it in a frame."""
        policy = self.header("Content-Security-Policy") or ""
        ancestors = re.search(r"frame-ancestors ([^;]*)", policy)
        return ancestors is None or (ancestors[1].strip() == "'self'" and embedder == origin_of(self.url))

    @property
    def links(self) -> list[str]:
        return [html.unescape(link) for link in re.findall(r'<a href="([^"]*)"', self.text)]


@dataclass(slots=True)
class Browser:
    """
    One browser profile.

    Attributes:
        servers: Where the server of each origin is (``http://127.0.0.1:8080``); other origins are their own servers.
        cookies: By origin and name. Domain cookies don't exist here.
        responses: Every response, in order.
    """

    servers: Mapping[str, str] = field(default_factory=dict)
    cookies: dict[str, dict[str, Cookie]] = field(default_factory=dict)
    responses: list[Page] = field(default_factory=list)
    fetch_metadata: bool = True
    _http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._http is not None
        await self._http.close()

    # --- what a user does

    async def go(
        self,
        url: str,
        *,
        from_origin: str | None = None,
        method: str = "GET",
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        follow: bool = True,
        destination: str = "document",
    ) -> Page:
        """
        Go to a page, through every redirect and meta refresh.

        Args:
            url: Where to.
            from_origin: The site whose page leads there; None for the address bar.
            method: GET, or POST for a form.
            form: Its fields.
            headers: Further headers, which no page could add.
            follow: Whether to go on after the first answer.
            destination: ``document``, or ``iframe`` …
        """
        hops: list[str] = []
        site, embedder = _relation(from_origin, url), from_origin
        for _ in range(MAX_HOPS):
            hops.append(url)
            metadata = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": destination}
            if method == "POST" and from_origin is not None:
                metadata["Origin"] = from_origin
            page = await self._send(
                method, url, {**metadata, **(headers or {})}, form=form, strict_too=site in ("none", "same-origin")
            )
            page = Page(page.url, page.status, page.headers, page.text, tuple(hops), page.set_cookies)
            location = page.header("Location") if 300 <= page.status < 400 else None
            if not follow:
                return page
            if location is not None:
                following = urljoin(url, location)
                site = _worse(site, _relation(origin_of(url), following)) if site != "none" else site
                if site == "none" and origin_of(following) != origin_of(url):
                    site = "cross-site"  # conservative: from here on, another site decides where to
                url, method, form = following, "GET" if page.status == 303 else method, None
            elif destination == "iframe" and not page.may_be_framed_by(embedder):
                return page
            elif page.status == 200 and page.refresh_url is not None:
                following = urljoin(url, page.refresh_url)
                from_origin, site, url = origin_of(url), _relation(origin_of(url), following), following
            else:
                return page
        raise AssertionError(f"a loop: {hops}")

    async def fetch(
        self, url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, page: str | None = None
    ) -> Page:
        """
        Make a call as a script of *page*'s origin does, by default of the same origin, with ``X-CSRF: 1``.

        Redirects aren't followed.
        """
        origin = origin_of(page or url)
        metadata = {"Sec-Fetch-Site": _relation(origin, url), "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
        if method != "GET" or origin != origin_of(url):
            metadata["Origin"] = origin
        ours = {"X-CSRF": "1"} if headers is None else headers
        return await self._send(method, url, {**metadata, **ours}, strict_too=origin == origin_of(url))

    # --- what it does by itself

    async def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        strict_too: bool,
        form: Mapping[str, str] | None = None,
    ) -> Page:
        assert self._http is not None
        origin, parts = origin_of(url), urlsplit(url)
        server = self.servers.get(origin, origin)
        sent = {name: value for name, value in headers.items() if self.fetch_metadata or not name.startswith("Sec-")}
        # Across sites, Lax cookies go with windows that are navigated, and not with frames.
        is_lax = method == "GET" and (headers.get("Sec-Fetch-Mode"), headers.get("Sec-Fetch-Dest")) == (
            "navigate",
            "document",
        )
        cookies = "; ".join(
            f"{cookie.name}={cookie.value}"
            for cookie in self.cookies.get(origin, {}).values()
            if strict_too or (cookie.same_site == "Lax" and is_lax)
        )
        if cookies:
            sent["Cookie"] = cookies
        target = URL(server + (url[len(origin) :].partition("#")[0] or "/"), encoded=True)
        async with self._http.request(
            method, target, headers={"Host": parts.netloc, **sent}, allow_redirects=False, data=form
        ) as response:
            text = (await response.read()).decode("utf-8", "replace")
            lines = tuple(response.headers.getall("Set-Cookie", ()))
            page = Page(
                url,
                response.status,
                tuple((name, value) for name, value in response.headers.items() if name.lower() != "set-cookie"),
                text,
                (url,),
                lines,
            )
        for line in lines:
            self.set_cookie(origin, line)
        self.responses.append(page)
        return page

    def set_cookie(self, origin: str, line: str) -> None:
        """Take a Set-Cookie line. Fails where a browser would drop it in silence."""
        cookie, age = parse_set_cookie(line)
        lowered = cookie.name.lower()
        if lowered.startswith("__host-"):
            assert cookie.secure, line
            assert cookie.path == "/", line
            assert origin.startswith("https:"), line
        if lowered.startswith("__host-http-"):
            assert cookie.http_only, line
        assert not cookie.secure or origin.startswith("https:"), line
        assert len(cookie.name) + len(cookie.value) <= 4096, line
        jar = self.cookies.setdefault(origin, {})
        jar.pop(cookie.name, None)
        if age is None or age > 0:
            jar[cookie.name] = cookie


def parse_set_cookie(line: str) -> tuple[Cookie, int | None]:
    """Return the cookie of a Set-Cookie line, and its Max-Age."""
    pair, *attributes = line.split(";")
    name, _, value = pair.partition("=")
    known = {key.strip().lower(): content for key, _, content in (part.partition("=") for part in attributes)}
    assert "domain" not in known, line
    age = known.get("max-age")
    return (
        Cookie(
            name.strip(),
            value.strip(),
            same_site=known.get("samesite", "Lax"),
            secure="secure" in known,
            path=known.get("path", ""),
            http_only="httponly" in known,
        ),
        None if age is None else int(age),
    )


def origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _relation(origin: str | None, url: str) -> str:
    if origin is None:
        return "none"
    if origin == origin_of(url):
        return "same-origin"
    ours, theirs = urlsplit(origin), urlsplit(url)
    same_site = _site(ours.hostname) == _site(theirs.hostname) and ours.scheme == theirs.scheme
    return "same-site" if same_site else "cross-site"


def _site(host: str | None) -> str:
    return ".".join((host or "").split(".")[-2:])


def _worse(one: str, other: str) -> str:
    order = ["same-origin", "same-site", "cross-site"]
    return max(one, other, key=order.index)

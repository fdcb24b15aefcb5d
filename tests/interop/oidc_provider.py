"""npm oidc-provider as a process of its own, and a browser that gets through its forms."""

import asyncio
import functools
import html
import json
import re
import shutil
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import urljoin

import aiohttp

from tests.support.forge import ec_key, rsa_key
from tests.support.waiting import until

HERE = Path(__file__).parent
_ACTION = re.compile(r'<form[^>]* action="([^"]+)"')
_PROMPT = re.compile(r'name="prompt" value="([a-z_]+)"')
_XSRF = re.compile(r'name="xsrf" value="([^"]+)"')


@functools.cache
def _keys() -> dict[str, Any]:
    """What every server signs with, as a JWK set."""
    keys = ((rsa_key("oidc-provider"), "rsa-1", "RS256"), (ec_key(name="oidc-provider"), "ec-1", "ES256"))
    return {"keys": [{**key.as_dict(private=True), "kid": kid, "alg": alg, "use": "sig"} for key, kid, alg in keys]}


async def run(*command: str) -> None:
    """Run a command to its end, in this folder. Fails with its output."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=HERE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert 0 == process.returncode, output.decode()


class OidcProvider:
    """
    The server.

    Attributes:
        url: Its issuer.
        output: What else it printed.
        events: What it told: ``{"event": "grant", "type": "refresh_token"}`` …
    """

    def __init__(self, clients: list[dict[str, Any]], *, access_token_seconds: int = 5, **options: Any) -> None:
        """
        Args:
            clients: Metadata of the registered clients (RFC 7591).
            access_token_seconds: Life of access tokens.
            options: ``requirePushedAuthorization``, ``requireSignedRequests``, ``requireDpopNonce``, ``tls`` …: see server.mjs.
        """
        self.url = ""
        self.output = ""
        self.events: list[dict[str, Any]] = []
        self._options = {"clients": clients, "accessTokenSeconds": access_token_seconds, "jwks": _keys(), **options}
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        assert shutil.which("node"), "the interoperability tests need node"
        if not (HERE / "node_modules").exists():
            await run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
        self._process = await asyncio.create_subprocess_exec(
            "node",
            "server.mjs",
            cwd=HERE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._options).encode())
        self._process.stdin.close()
        self._reading = asyncio.ensure_future(self._read())
        await until(
            lambda: bool(self.url) or self._reading is None or self._reading.done(), seconds=30, what="its start"
        )
        assert self.url, self.output
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._reading is not None
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.wait()
        await self._reading

    def count(self, **members: Any) -> int:
        """How many events have *members*."""
        return sum(members.items() <= event.items() for event in self.events)

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if not line.startswith(b"{"):
                self.output += line.decode()
                continue
            event = json.loads(line)
            self.events.append(event)
            if event["event"] == "listening":
                self.url = event["url"]


async def log_in(
    browser: aiohttp.ClientSession,
    url: str,
    until_prefix: str,
    *,
    login: str = "alice",
    tls: ssl.SSLContext | None = None,
) -> str:
    """
    Go where a browser goes from *url*, fill in oidc-provider's forms, and stop before *until_prefix*.

    Args:
        browser: Keeps the cookies; it must take those of IP addresses.
        url: Where the login begins.
        until_prefix: How the URL begins at which the login ends; it isn't visited.
        login: Who logs in.
        tls: Trust for the server.

    Returns:
        That URL.
    """
    form: Mapping[str, str] | None = None
    for _ in range(20):
        method = "GET" if form is None else "POST"
        trust: ssl.SSLContext | bool = True if tls is None else tls
        async with browser.request(method, url, data=form, allow_redirects=False, ssl=trust) as response:
            page = await response.text()
            if response.status in {302, 303}:
                url, form = urljoin(url, response.headers["Location"]), None
                if url.startswith(until_prefix):
                    return url
                continue
            assert 200 == response.status, (response.status, re.findall(r"<pre>.*</pre>", page))
        action = _ACTION.search(page)
        assert action is not None, page[:2000]
        url = urljoin(url, html.unescape(action[1]))
        if (xsrf := _XSRF.search(page)) is not None:  # the logout's page
            form = {"xsrf": xsrf[1], "logout": "yes"}
        else:
            prompt = _PROMPT.search(page)
            assert prompt is not None, page[:2000]
            form = {"prompt": prompt[1]} | ({"login": login, "password": "any"} if prompt[1] == "login" else {})
    raise AssertionError(f"no end of redirects: {url}")

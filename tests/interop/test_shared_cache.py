"""A shared cache in front that keeps whatever it may: nginx, with one key for all users."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.support.broker_process import BrokerProcess, Browser, navigation, provider_options
from tests.support.ports import free_port
from tests.support.raw_upstream import RawRequest, RawUpstream, Wire
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.waiting import until_async

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"

pytestmark = pytest.mark.interop

CONFIGURATION = """
daemon off; master_process off; worker_processes 1; pid {directory}/nginx.pid; error_log {directory}/error.log;
events {{ worker_connections 128; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    proxy_cache_path {directory}/cache keys_zone=shared:1m;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{broker};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Connection "";
            proxy_cache shared;
            proxy_cache_key $request_uri;
            proxy_cache_methods GET HEAD;
            add_header X-Cache $upstream_cache_status always;
        }}
    }}
}}
"""
ALLOWS_EVERYTHING = (
    b"Cache-Control: public, max-age=600, s-maxage=600, immutable\r\nExpires: Thu, 01 Jan 2037 00:00:00 GMT\r\n"
    b'X-Accel-Expires: 600\r\nCDN-Cache-Control: max-age=600\r\nSurrogate-Control: max-age=600\r\nETag: "one"\r\n'
)


@asynccontextmanager
async def nginx(directory: Path, *, port: int, broker: int) -> AsyncIterator[None]:
    """Run nginx with a cache in front of a broker."""
    directory.mkdir()
    configuration = directory / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(directory=directory, port=port, broker=broker))
    process = await asyncio.create_subprocess_exec(
        NGINX, "-c", str(configuration), "-p", str(directory), stderr=asyncio.subprocess.DEVNULL
    )

    async def listens() -> bool:
        assert process.returncode is None, (directory / "error.log").read_text()
        try:
            async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/nowhere"):
                return True
        except aiohttp.ClientError:
            return False

    try:
        await until_async(listens, what="nginx")
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def personal(request: RawRequest, wire: Wire) -> None:
    """Answer with the caller's token, and allow everybody to keep that."""
    body = request.head if b"x-status: 304" not in request.head.lower() else b""
    status = (request.fields(b"x-status") or [b"200"])[0]
    cookie = b"Set-Cookie: theme=dark\r\n" if b"set-cookie" in request.target else b""
    head = b"HTTP/1.1 %b Whatever\r\n%b%b" % (status, ALLOWS_EVERYTHING, cookie)
    if b"stream" in request.target:
        await wire.send(b"%bTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (head, len(body), body))
    else:
        await wire.send(b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body))


async def test_br_02_two_users_share_no_byte_through_a_cache(tmp_path: Path) -> None:
    """Neither pages nor streams, errors, redirects or the broker's own answers of Alice are kept for Bob."""
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    paths = [
        "/app/x",
        "/app/set-cookie",
        "/app/stream",
        "/mixed/x",
        "/bff/user",
        "/nowhere",
        "/bff/login",
        "/app/x?y=1",
    ]
    async with RemoteLedgerServer() as provider, RawUpstream(personal) as upstream:
        broker = BrokerProcess(
            tmp_path,
            public_url=origin,
            providers={"corp": provider_options(provider.url, allowed_parameters=["login_hint"])},
            routes=[
                {"path": "/app", "upstream": upstream.url, "token": "user"},
                {"path": "/mixed", "upstream": upstream.url, "token": "user_or_none"},
                {"path": "/public", "upstream": upstream.url, "token": "none"},
            ],
            trusted_proxies=["127.0.0.1/32"],
        )
        async with (
            broker,
            nginx(tmp_path / "nginx", port=port, broker=broker.port),
            Browser(origin) as alice,
            Browser(origin) as bob,
            Browser(origin) as nobody,
        ):
            await alice.log_in(user="alice")
            await bob.log_in(user="bob")
            answers = [
                (path, status, name, await browser.get(path, headers={"X-Status": status}))
                for path in paths
                for status in ("200", "301", "404", "500", "304", "200")
                for name, browser in (("alice", alice), ("bob", bob), ("nobody", nobody))
            ]
            pages = [
                await browser.request("GET", "/app/page", headers=navigation()) for browser in (alice, bob, nobody)
            ]
            public = [await browser.get("/public/x") for browser in (alice, nobody)]

    # The cache works: what needs no session is kept, as the upstream wants it.
    assert ["MISS", "HIT"] == [answer.headers["X-Cache"] for answer in public]
    hits = [(path, status, name) for path, status, name, answer in answers if answer.headers["X-Cache"] != "MISS"]
    assert [] == hits
    assert not any(page.headers["X-Cache"] == "HIT" for page in pages)
    users = {name: json.loads(answer.body) for path, _, name, answer in answers if path == "/bff/user"}
    assert ("alice", "bob") == (users["alice"]["claims"]["sub"], users["bob"]["claims"]["sub"])
    tokens: dict[str, set[bytes]] = {"alice": set(), "bob": set(), "nobody": set()}
    for _, _, name, answer in answers:
        tokens[name].update(line for line in answer.body.split(b"\r\n") if line.startswith(b"Authorization:"))
    assert (1, 1, 0) == tuple(len(tokens[name]) for name in ("alice", "bob", "nobody"))
    assert not tokens["alice"] & tokens["bob"]

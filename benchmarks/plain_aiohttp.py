"""The proxy that one would write in an afternoon, with aiohttp's server and client as their documentation shows them."""

import asyncio
import contextlib
import sys

import aiohttp
from aiohttp import web
from yarl import URL

from benchmarks.data_plane import HOST

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host", "content-length"}
TOKEN = "t" * 700


async def forward(request: web.Request) -> web.StreamResponse:
    if request.headers.get("Upgrade", "").lower() == "websocket":
        return await _socket(request)
    headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
    headers["Authorization"] = f"Bearer {TOKEN}"
    headers["X-Forwarded-For"] = request.remote or ""
    headers["X-Forwarded-Host"] = request.host
    headers["X-Forwarded-Proto"] = "http"
    url = URL(f"http://{HOST}:{sys.argv[2]}{request.raw_path}", encoded=True)
    body = request.content if request.can_read_body else None
    async with request.app[HTTP].request(
        request.method, url, headers=headers, data=body, allow_redirects=False
    ) as answer:
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
        response = web.StreamResponse(status=answer.status, headers=kept)
        if answer.content_length is not None:
            response.content_length = answer.content_length
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response


async def _socket(request: web.Request) -> web.StreamResponse:
    here = web.WebSocketResponse(compress=False)
    await here.prepare(request)
    async with request.app[HTTP].ws_connect(f"http://{HOST}:{sys.argv[3]}/socket") as there:

        async def up() -> None:
            async for message in here:
                await there.send_bytes(message.data)
            await there.close()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(up())
            async for message in there:
                await here.send_bytes(message.data)
            await here.close()
    return here


HTTP = web.AppKey("http", aiohttp.ClientSession)


async def main() -> web.Application:
    app = web.Application(client_max_size=1 << 40)
    app[HTTP] = aiohttp.ClientSession(
        auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(), connector=aiohttp.TCPConnector(limit=0)
    )
    app.router.add_route("*", "/{path:.*}", forward)

    async def close(app: web.Application) -> None:
        await app[HTTP].close()

    app.on_cleanup.append(close)
    return app


if __name__ == "__main__":
    import uvloop

    with contextlib.suppress(KeyboardInterrupt):
        web.run_app(main(), host=HOST, port=int(sys.argv[1]), access_log=None, print=None, loop=uvloop.new_event_loop())

"""The client of the admin API."""

from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from broker.cli.admin_client import AdminClient, CommandRefused, printable, quoted
from broker.config.addresses import ListenAddress
from broker.config.settings import AdminOptions
from broker.core.secret import Secret
from tests.support.ports import free_port


async def answer(request: web.Request) -> web.Response:
    match request.path:
        case "/api/denied":
            return web.json_response({}, status=401)
        case "/api/refused":
            return web.json_response({"title": "no\x1b[31m"}, status=400)
        case "/api/moved":
            return web.Response(status=307, headers={"Location": "/api/echo"})
        case _:
            return web.json_response(
                {
                    "authorization": request.headers["Authorization"],
                    "path": request.raw_path,
                    "a": request.query.get("a"),
                }
            )


@pytest.fixture
async def port() -> AsyncIterator[int]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


def options(port: int, host: str = "127.0.0.1") -> AdminOptions:
    return AdminOptions(listen=ListenAddress(host, port), token=Secret("t" * 32))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
async def test_it_asks_with_the_token_on_this_machine(port: int, host: str) -> None:
    """A listener on all addresses is asked on loopback; ids can't leave their place in the path."""
    async with AdminClient(options(port, host)) as client:
        seen = await client.ask("GET", f"/grants/{quoted('../x?y')}", query={"a": "&"})
    assert {"authorization": f"Bearer {'t' * 32}", "path": "/api/grants/..%2Fx%3Fy?a=%26", "a": "&"} == seen


@pytest.mark.parametrize(
    ("path", "said"),
    [("/denied", "admin.token: the broker that runs has another one"), ("/refused", "no\ufffd[31m"), ("/moved", "307")],
)
async def test_a_refusal_is_a_sentence(port: int, path: str, said: str) -> None:
    """It names the key to look at, or what the broker says, and steers no terminal; redirects are not followed."""
    async with AdminClient(options(port)) as client:
        with pytest.raises(CommandRefused) as refused:
            await client.ask("GET", path)
    assert said in str(refused.value)


async def test_no_broker_is_a_sentence(unused_tcp_port: int) -> None:
    """Where nobody listens, the key that says where is named."""
    async with AdminClient(options(unused_tcp_port)) as client:
        with pytest.raises(CommandRefused, match=r"admin\.listen"):
            await client.ask("GET", "/grants")


def test_no_token_no_api() -> None:
    """Without ``admin.token`` nothing is asked."""
    with pytest.raises(CommandRefused, match=r"^admin\.token: "):
        AdminClient(AdminOptions())


def test_what_is_printed_steers_no_terminal() -> None:
    """Control characters are replaced, nothing is a dash."""
    assert ["-", "-", "a\ufffd", "0"] == [printable(value) for value in (None, "", "a\x9b", 0)]


async def test_a_broker_that_does_not_run_is_told_in_words() -> None:
    """The key that says where it listens is named, and the reason isn't a class of Python."""
    port = free_port()
    async with AdminClient(options(port)) as client:
        with pytest.raises(
            CommandRefused, match=rf"^no broker answers at \S+:{port} \(admin.listen\): connection refused$"
        ):
            await client.ask("GET", "/grants")

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import pytest
from aiohttp import web

from broker.core.forwarded import TrustedProxies
from broker.errors import BadRequest, BrokerError, NoSession, ProviderError, StoreError
from broker.services.clock import SystemClock, SystemRandomness
from broker.services.logs import REQUEST_ID as LOGGED_ID
from broker.web.middleware import REQUEST_ID, SET_COOKIES, Outermost
from broker.web.problems import json_response

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Server:
    url: str
    http: aiohttp.ClientSession
    access_log: list[str]

    async def get(self, path: str = "/", **options: object) -> tuple[aiohttp.ClientResponse, str]:
        async with self.http.get(self.url + path, **options) as response:  # type: ignore[arg-type]
            return response, await response.text()


@asynccontextmanager
async def serving(
    handler: Handler, *, public_url: str = "https://app.example.com", trusted: TrustedProxies | None = None
) -> AsyncIterator[Server]:
    access_log: list[str] = []
    outermost = Outermost(
        public_url=public_url,
        login_url="/bff/login",
        trusted_proxies=trusted or TrustedProxies(),
        clock=SystemClock(),
        randomness=SystemRandomness(),
        access_log=access_log.append,
    )
    app = web.Application(middlewares=[outermost], client_max_size=10)
    app.router.add_get("/{path:.*}", handler, allow_head=False)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as http:
        yield Server(f"http://127.0.0.1:{runner.addresses[0][1]}", http, access_log)
    await runner.cleanup()


def failing(error: Exception) -> Handler:
    async def handler(_request: web.Request) -> web.StreamResponse:
        raise error

    return handler


async def naming(request: web.Request) -> web.StreamResponse:
    return json_response({"key": request[REQUEST_ID], "logged": LOGGED_ID.get()})


async def test_every_request_has_a_name_of_its_own() -> None:
    """Handlers, logs and the answer know it by the same one."""
    async with serving(naming) as server:
        names = []
        for _ in range(3):
            response, text = await server.get()
            names.append(response.headers["X-Request-ID"])
            assert {"key": names[-1], "logged": names[-1]} == json.loads(text)

    assert 3 == len(set(names))


@pytest.mark.parametrize(
    ("given", "taken"), [("abc-1.2_3", True), ("a" * 65, False), ("a b", False), ("<script>", False), ("", False)]
)
async def test_hd_04_only_a_trusted_proxy_names_a_request(given: str, *, taken: bool) -> None:
    """And only by a plain word of bounded length."""
    async with serving(naming, trusted=TrustedProxies(["127.0.0.1"])) as server:
        response, _ = await server.get(headers={"X-Request-ID": given})
        assert taken == (given == response.headers["X-Request-ID"])
    async with serving(naming) as server:
        response, _ = await server.get(headers={"X-Request-ID": given})
        assert given != response.headers["X-Request-ID"]


async def test_an_error_of_the_callers_is_one_line_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """The log says what and why; the caller hears only what."""
    caplog.set_level("INFO")
    async with serving(failing(NoSession("the cookie is old"))) as server:
        response, text = await server.get("/a?code=secret")

    (record,) = [record for record in caplog.records if record.name == "broker.web.middleware"]
    assert ("request_refused", "INFO", None) == (record.getMessage(), record.levelname, record.exc_info)
    assert ("no_session", 401, "the cookie is old", "GET", "/a", "127.0.0.1") == tuple(
        record.__dict__[key] for key in ("code", "status", "detail", "method", "path", "client")
    )
    assert 401 == response.status
    assert "old" not in text


@pytest.mark.parametrize(("fault", "level"), [(ProviderError("refused"), "WARNING"), (StoreError("refused"), "INFO")])
async def test_a_fault_elsewhere_is_a_warning(fault: BrokerError, level: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is worth an operator's look. That the store is lost is told once, and not with each request (SECURITY LK-03)."""
    caplog.set_level(logging.INFO)
    async with serving(failing(fault)) as server:
        response, _ = await server.get()

    assert [level] == [record.levelname for record in caplog.records if record.getMessage() == "request_refused"]
    assert 503 == response.status


async def test_a_fault_of_ours_shows_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    """A 500 problem with the request's id; the traceback is in the log."""
    async with serving(failing(ValueError("password=hunter2"))) as server:
        response, text = await server.get()

    assert (500, "internal_error") == (response.status, json.loads(text)["code"])
    assert "hunter2" not in text + repr(response.headers)
    (record,) = [record for record in caplog.records if record.getMessage() == "request_failed"]
    assert record.exc_info is not None
    assert response.headers["X-Request-ID"] == json.loads(text)["request_id"]


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (web.HTTPNotFound(), 404, "no_route"),
        (web.HTTPForbidden(), 403, "forbidden"),
        (web.HTTPRequestEntityTooLarge(1, 2), 413, "payload_too_large"),
        (web.HTTPBadRequest(text="<b>what came</b>"), 400, "bad_request"),
        (web.HTTPUnprocessableEntity(), 400, "bad_request"),
        (web.HTTPInternalServerError(text="trace"), 500, "internal_error"),
        (BadRequest(), 400, "bad_request"),
        (BrokerError(), 500, "internal_error"),
    ],
    ids=lambda value: getattr(value, "reason", None) or str(value),
)
async def test_aiohttps_own_answers_are_problems_too(answer: Exception, status: int, code: str) -> None:
    """None of its texts reaches a caller."""
    async with serving(failing(answer)) as server:
        response, text = await server.get()

    assert (status, code) == (response.status, json.loads(text)["code"])
    assert "what came" not in text


async def test_a_method_that_no_handler_takes_is_a_405_with_allow() -> None:
    """As the router knows it."""
    async with serving(naming) as server, server.http.post(server.url) as response:
        assert (405, "GET") == (response.status, response.headers["Allow"])


@pytest.mark.parametrize(("public_url", "hsts"), [("https://app.example.com", True), ("http://localhost", False)])
async def test_br_05_hsts_is_said_where_there_is_tls(public_url: str, *, hsts: bool) -> None:
    """On good answers and on errors."""
    for handler in (naming, failing(NoSession())):
        async with serving(handler, public_url=public_url) as server:
            response, _ = await server.get()
            assert hsts == ("Strict-Transport-Security" in response.headers)
            assert "nosniff" == response.headers["X-Content-Type-Options"]


async def test_cookies_go_out_with_errors_too() -> None:
    """What a handler set before it failed isn't lost."""

    async def handler(request: web.Request) -> web.StreamResponse:
        request[SET_COOKIES] = ["a=1", "b=2"]
        raise NoSession

    async with serving(handler) as server:
        response, _ = await server.get()

    assert ["a=1", "b=2"] == response.headers.getall("Set-Cookie")


async def test_an_answer_that_is_not_ours_is_left_alone() -> None:
    """What an upstream answers isn't given the broker's headers."""

    async def handler(_request: web.Request) -> web.StreamResponse:
        return web.Response(text="upstream")

    async with serving(handler) as server:
        response, _ = await server.get()

    assert not {"X-Request-ID", "Content-Security-Policy", "Strict-Transport-Security"} & set(response.headers)


async def test_each_request_is_one_line_of_json_in_the_access_log() -> None:
    """Without its query, whatever it holds; with the client that a trusted proxy names."""
    async with serving(naming, trusted=TrustedProxies(["127.0.0.1"])) as server:
        await server.get('/a"b%22?code=secret', headers={"X-Forwarded-For": "6.6.6.6, 192.0.2.1"})
        await server.get("/", headers={"X-Forwarded-For": "garbage"})

    lines = [json.loads(line) for line in server.access_log]
    assert ["192.0.2.1", "127.0.0.1"] == [line["client"] for line in lines]
    assert ("GET", 200, "request") == tuple(lines[0][key] for key in ("method", "status", "event"))
    assert lines[0]["duration_ms"] >= 0
    assert "secret" not in repr(server.access_log)

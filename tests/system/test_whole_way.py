"""The main job, end to end: a login, calls, expiry, rotation, logout, over processes that nothing here patches."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker_process import Answer, BrokerProcess, Browser, navigation, provider_options
from tests.support.redis_server import RedisServer, running
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.upstream import Upstream
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.system


def settings(provider: RemoteLedgerServer, upstream: Upstream, **changes: Any) -> dict[str, Any]:
    return {
        "providers": {"corp": provider_options(provider.url)},
        "routes": [
            {"path": "/api", "upstream": upstream.url, "strip_prefix": True, "token": "user"},
            {"path": "/public", "upstream": upstream.url, "token": "none"},
            {"path": "/pages", "upstream": upstream.url, "token": "user", "navigation": "allow"},
        ],
        **changes,
    }


async def test_the_main_job(tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream) -> None:
    """A user logs in, calls the API with a token it never sees, and logs out."""
    async with BrokerProcess(tmp_path, **settings(provider, upstream)) as broker, Browser(broker.url) as browser:
        anonymous = await browser.get("/api/items")
        await browser.log_in()
        call = await browser.get("/api/items?a=%2f")
        user = await browser.get("/bff/user")
        logout = await browser.request("POST", "/bff/logout")
        after = await browser.get("/api/items")

    assert (401, "no_session") == (anonymous.status, anonymous.json()["code"])
    assert anonymous.json()["login_url"].startswith("/bff/login")
    assert 200 == call.status
    assert b"/items?a=%2f" == upstream.received[0].target
    assert ("Bearer",) == tuple(value.split()[0] for value in upstream.received[0].header("authorization"))
    assert "alice" == user.json()["claims"]["sub"]
    assert 200 <= logout.status < 400
    assert 401 == after.status
    assert 1 == len(upstream.received)


async def test_a_navigation_is_led_to_the_login_and_back(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """Whoever opens a page without a session ends on that page, logged in."""
    async with BrokerProcess(tmp_path, **settings(provider, upstream)) as broker, Browser(broker.url) as browser:
        async with browser.http.get(f"{broker.url}/pages/a?b=c", headers=navigation()) as response:
            page = await response.text()
        again = await browser.request("GET", "/pages/a?b=c", headers=navigation())

    assert "/pages/a?b=c" in page  # the return page goes on by itself, so that a Strict cookie is sent
    assert 200 == again.status


async def test_nobody_is_led_to_a_login_after_which_the_page_is_refused(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """Whoever opens an address that is for calls is told so, logged in or not, and offered no way back to it."""
    async with BrokerProcess(tmp_path, **settings(provider, upstream)) as broker, Browser(broker.url) as browser:
        async with browser.http.get(f"{broker.url}/api/a", headers=navigation(), allow_redirects=False) as response:
            stranger = Answer(response.status, dict(response.headers), await response.read())
        await browser.log_in()
        async with browser.http.get(f"{broker.url}/api/a", headers=navigation(), allow_redirects=False) as response:
            user = Answer(response.status, dict(response.headers), await response.read())

    assert [401, 403] == [stranger.status, user.status]
    assert b'href="/bff/login"' in stranger.body
    assert b'href="/api/a"' not in stranger.body + user.body


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_tk_01_two_hundred_calls_over_three_workers_cause_one_refresh(
    kind: str, tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream, redis_server: RedisServer
) -> None:
    """All parallel calls on an expired session succeed, and the server sees exactly one refresh."""
    await provider.configure(access_token_seconds=2)
    urls = {"redis": f"redis://127.0.0.1:{redis_server.port}/0", "sqlite": f"sqlite://{tmp_path}/broker.db"}
    installation = settings(provider, upstream, workers=3, store={"url": urls[kind]})
    async with BrokerProcess(tmp_path, **installation) as broker, Browser(broker.url) as browser:
        await browser.log_in()
        await asyncio.sleep(2.1)  # the token's life, on the server's clock
        await provider.configure(access_token_seconds=300)
        answers = await asyncio.gather(*(browser.get(f"/api/{number}") for number in range(200)))
    ledger = await provider.ledger()

    assert {200} == {answer.status for answer in answers}
    assert 1 == ledger.count("refresh_token")
    assert {} == ledger.presented_twice()


async def test_calls_go_on_succeeding_over_five_token_lifetimes(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """No call fails while two-second tokens come and go, and one login is enough."""
    await provider.configure(access_token_seconds=2)
    async with (
        BrokerProcess(tmp_path, **settings(provider, upstream, workers=2)) as broker,
        Browser(broker.url) as browser,
    ):
        await browser.log_in()
        answers: list[Answer] = []
        end = asyncio.get_running_loop().time() + 10.5

        async def has_lived_on() -> bool:
            answers.extend(await asyncio.gather(*(browser.get("/api/x") for _ in range(5))))
            if asyncio.get_running_loop().time() < end:
                return False
            return (await provider.ledger()).count("refresh_token") >= 5

        await until_async(has_lived_on, seconds=60, what="the fifth token")
    ledger = await provider.ledger()

    assert {200} == {answer.status for answer in answers}
    assert 1 == ledger.count("authorization_code")
    assert [] == ledger.families_revoked()
    assert {} == ledger.presented_twice()


async def test_lk_01_no_secret_is_anywhere_but_where_it_belongs(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """Tokens, codes, cookies and the client secret are in no log, metric, answer or URL, at debug level."""
    async with (
        BrokerProcess(tmp_path, **settings(provider, upstream, log={"level": "debug"})) as broker,
        Browser(broker.url) as browser,
    ):
        await browser.log_in()
        upstream.refuse()
        answers = [await browser.get("/api/a"), await browser.get("/bff/user"), await browser.get("/nowhere")]
        bad = await browser.request("GET", "/api/a", headers={"Cookie": "session=canary-cookie; session=canary-two"})
        foreign = await browser.request("GET", "/bff/callback/corp?state=canary-state&code=canary-code")
        cookies = [cookie.value for cookie in browser.http.cookie_jar]
        answers += [bad, foreign, await browser.request("POST", "/bff/logout")]
        metrics = json.dumps(await broker.metrics())
    ledger = await provider.ledger()
    log = broker.log_path.read_text()
    shown = b"".join(answer.body + json.dumps(answer.headers).encode() for answer in answers).decode("latin-1")
    tokens = [issued.token for issued in ledger.issued]
    access = [value.split()[1] for request in upstream.received for value in request.header("authorization")]
    key = broker.settings["keys"][0]["value"]
    secrets = [*tokens, *access, *cookies, key, "canary-cookie", "canary-code", "a client secret"]

    assert tokens
    assert access
    assert cookies
    assert [] == [secret for secret in secrets if secret in log]
    assert [] == [secret for secret in secrets if secret in metrics]
    assert [] == [secret for secret in [*tokens, *access, key] if secret in shown]
    database = b"".join(path.read_bytes() for path in tmp_path.glob("broker.db*"))
    assert [] == [secret for secret in [*secrets, "alice"] if secret.encode() in database]


@pytest.mark.parametrize("framing", ["keep-alive", "keep-alive,\tx"], ids=["fast", "slow"])
async def test_what_fails_on_a_route_is_counted_and_logged_with_it(
    framing: str, tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """An upstream that is down, and a caller who isn't logged in: operators see where."""
    installation = settings(provider, upstream)
    installation["routes"].append({"path": "/dead", "upstream": "http://127.0.0.1:9", "token": "none"})
    async with BrokerProcess(tmp_path, **installation) as broker, Browser(broker.url) as browser:
        browser.headers["Connection"] = framing
        answers = [await browser.get("/dead/a"), await browser.get("/api/a")]

        async def is_counted() -> bool:
            counted = {name for name, value in (await broker.metrics()).items() if value}
            return {
                'proxy_requests_total{route="/dead",status="5xx"}',
                'proxy_requests_total{route="/api",status="4xx"}',
            } <= counted

        await until_async(is_counted, seconds=5, what="both in the metrics")
    lines = [line for line in broker.log() if line["event"] in {"request", "request_refused"} and "route" in line]

    assert [502, 401] == [answer.status for answer in answers]
    assert ["/dead", "/dead", "/api", "/api"] == [line["route"] for line in lines]


async def test_ft_12_sigterm_lets_running_requests_end(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """A request that has begun is answered, and the exit code is 0."""
    async with BrokerProcess(tmp_path, **settings(provider, upstream)) as broker, Browser(broker.url) as browser:
        await browser.log_in()
        call = asyncio.create_task(browser.get("/api/delay/1"))
        await until(lambda: upstream.running == 1, what="the request at the upstream")
        code = await broker.stop(signal.SIGTERM)
        answer = await call

    assert 200 == answer.status
    assert 0 == code


async def test_ft_12_sigterm_cuts_off_no_refresh(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """What the server answers after `drain_timeout` is stored: it has rotated, and nobody could present that again."""
    await provider.configure(access_token_seconds=12)  # due after nine, so the call goes on with the token that lives
    installation = settings(provider, upstream, drain_timeout="0s")

    async def has_rotated() -> bool:
        return (await provider.ledger()).count("refresh_token") == 1

    async with BrokerProcess(tmp_path, **installation) as broker, Browser(broker.url) as browser:
        await browser.log_in()
        await asyncio.sleep(10)
        await provider.configure(latency_seconds=(3.0, 3.0))
        before = await browser.get("/api/items")
        await until_async(has_rotated, seconds=5, what="the rotation, before its answer")
        code = await broker.stop(signal.SIGTERM)
        await broker.start()
        after = await browser.get("/api/items")
    ledger = await provider.ledger()

    assert (200, 0, 200) == (before.status, code, after.status)
    assert 1 == ledger.count("refresh_token")
    assert [] == ledger.families_revoked()


async def test_sessions_survive_a_restart(tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream) -> None:
    """What SQLite holds is there after a kill -9."""
    async with BrokerProcess(tmp_path, **settings(provider, upstream)) as broker, Browser(broker.url) as browser:
        await browser.log_in()
        await broker.kill()
        await broker.start()
        answer = await browser.get("/api/items")

    assert 200 == answer.status
    assert 1 == (await provider.ledger()).count("authorization_code")


async def test_ft_01_a_dead_redis_is_a_503_and_no_logout(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """Known sessions go on, unknown ones get 503 with Retry-After and keep their cookie, anonymous routes serve."""
    redis = RedisServer(tmp_path / "redis")
    installation = settings(provider, upstream, store={"url": f"redis://127.0.0.1:{redis.port}/0", "timeout": "500ms"})
    with running(redis):
        async with BrokerProcess(tmp_path, **installation) as broker, Browser(broker.url) as known:
            await known.log_in()
            assert 200 == (await known.get("/api/a")).status
            redis.pause()
            live = await known.get("/api/a")
            async with Browser(broker.url) as unknown:
                cold = await unknown.get("/api/a", headers={"Cookie": "session=" + "A" * 43})
                public = await unknown.get("/public")
            redis.resume()
            await until_async(broker.is_ready, what="the store's return")
            after = await known.get("/api/a")

    assert 200 == live.status
    assert (503, "store_unavailable") == (cold.status, cold.json()["code"])
    assert "Retry-After" in cold.headers
    assert "Set-Cookie" not in cold.headers
    assert 200 == public.status
    assert 200 == after.status

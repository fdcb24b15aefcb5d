"""Callers without a browser, through the whole broker."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.broker_process import BrokerProcess, Browser, provider_options
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.upstream import Upstream
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.system
ADMIN_TOKEN = "an-admin-token-of-thirty-two-characters"


@pytest.fixture
async def broker(tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream) -> AsyncIterator[BrokerProcess]:
    routes = [
        {"path": "/api", "upstream": upstream.url, "token": "user"},
        {"path": "/open", "upstream": upstream.url, "token": "user_or_none"},
        {"path": "/socket", "upstream": upstream.url, "token": "user"},
        {"path": "/reports", "upstream": upstream.url, "token": {"grant": "nightly"}},
    ]
    made = BrokerProcess(
        tmp_path,
        providers={"corp": provider_options(provider.url)},
        grants={"nightly": {"provider": "corp", "type": "client_credentials", "scope": "reports"}},
        routes=routes,
    )
    made.settings["admin"]["token"] = {"value": ADMIN_TOKEN}
    async with made:
        yield made


async def admin(broker: BrokerProcess, method: str, path: str, document: Any = None, token: str = ADMIN_TOKEN) -> Any:
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, f"{broker.admin_url}/api{path}", json=document, headers=headers) as response,
    ):
        return response.status, await response.json(content_type=None)


async def import_grant(broker: BrokerProcess, provider: RemoteLedgerServer, **attributes: Any) -> dict[str, Any]:
    tokens = await provider.issue("batch")
    status, issued = await admin(
        broker,
        "POST",
        "/grants",
        {"provider": "corp", "subject": "batch", "refresh_token": tokens["refresh_token"], **attributes},
    )
    assert 201 == status, issued
    return dict(issued)


async def call(broker: BrokerProcess, path: str, handle: str | None = None) -> int:
    headers = {} if handle is None else {"Authorization": f"Bearer {handle}"}
    async with aiohttp.ClientSession() as http, http.get(broker.url + path, headers=headers) as response:
        await response.read()
        return response.status


async def test_a_handle_calls_with_the_imported_grants_token(
    broker: BrokerProcess, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """The upstream sees an access token of the grant, and never the handle; parallel first calls refresh once."""
    issued = await import_grant(broker, provider)

    statuses = await asyncio.gather(*(call(broker, "/api/x", issued["handle"]) for _ in range(20)))

    assert {200} == set(statuses)
    assert 1 == (await provider.ledger()).count("refresh_token")
    seen = {value for request in upstream.received for value in request.header("authorization")}
    assert 1 == len(seen)
    assert issued["handle"] not in repr(upstream.received)
    assert issued["handle"] not in broker.log_path.read_text()


async def test_an_import_that_is_repeated_is_the_same_grant(
    broker: BrokerProcess, provider: RemoteLedgerServer
) -> None:
    """Each time with a handle, since nobody may have seen the one before; its refresh token is presented once."""
    tokens = await provider.issue("batch")
    document = {"provider": "corp", "subject": "batch", "refresh_token": tokens["refresh_token"]}

    issued = []
    for _ in range(3):
        status, answer = await admin(broker, "POST", "/grants", document)
        issued.append((status, answer["grant"]))
        assert 200 == await call(broker, "/api/x", answer["handle"])

    assert {(201, issued[0][1])} == set(issued)
    ledger = await provider.ledger()
    assert (1, {}) == (ledger.count("refresh_token"), ledger.presented_twice())


async def test_an_imported_access_token_is_used_until_its_end(
    broker: BrokerProcess, provider: RemoteLedgerServer
) -> None:
    """An instant in any of the ways that backends write it; where the end is past or isn't known, a refresh is first."""
    now = time.time()
    refreshed = {}
    rows: dict[str, dict[str, Any]] = {
        "seconds": {"expires_at": now + 300},
        "milliseconds": {"expires_at": str(int(now + 300) * 1000)},
        "a date": {"expires_at": datetime.fromtimestamp(now + 300, UTC).isoformat()},
        "a duration": {"expires_in": "3600"},
        "nothing": {},
        "a past instant": {"expires_at": now - 300},
        "a past date": {"expires_at": datetime.fromtimestamp(now - 300, UTC).isoformat(), "expires_in": 3600},
    }
    for name, lifetimes in rows.items():
        tokens = await provider.issue(name)
        taken = {member: tokens[member] for member in ("access_token", "refresh_token")}
        document = {"provider": "corp", "subject": name, **taken, **lifetimes}
        _, issued = await admin(broker, "POST", "/grants", document)
        before = (await provider.ledger()).count("refresh_token")
        assert 200 == await call(broker, "/api/x", issued["handle"])
        refreshed[name] = (await provider.ledger()).count("refresh_token") - before

    assert ["nothing", "a past instant", "a past date"] == [name for name, count in refreshed.items() if count]


@pytest.mark.parametrize("what", ["handles", "grants"])
async def test_se_03_a_revocation_cuts_what_a_caller_has_open(
    broker: BrokerProcess, provider: RemoteLedgerServer, what: str
) -> None:
    """That of the handle, and that of the grant: within a second."""
    issued = await import_grant(broker, provider)
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {issued['handle']}"}) as http,
        http.ws_connect(f"{broker.url}/socket") as socket,
    ):
        await socket.send_str("x")
        assert "x" == await socket.receive_str(timeout=10)
        status, _ = await admin(broker, "DELETE", f"/{what}/{issued['id' if what == 'handles' else 'grant']}")
        assert 200 == status
        message = await socket.receive(timeout=1)
    assert message.type in {aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR}


async def test_a_handle_is_bound_rotated_and_revoked(broker: BrokerProcess, provider: RemoteLedgerServer) -> None:
    """Its bounds hold at the proxy; a successor takes over; a revoked one is dead at once."""
    issued = await import_grant(broker, provider, routes=["/api/orders"], networks=["127.0.0.0/8"])

    assert 200 == await call(broker, "/api/orders/1", issued["handle"])
    assert 401 == await call(broker, "/api/orders/1")
    status, rotated = await admin(broker, "POST", f"/handles/{issued['id']}/rotate", {"overlap": 60})
    assert 201 == status
    status, _ = await admin(broker, "DELETE", f"/handles/{issued['id']}")
    assert 200 == status
    assert 401 == await call(broker, "/api/orders/1", issued["handle"])
    assert 200 == await call(broker, "/api/orders/1", rotated["handle"])
    assert 403 == await call(broker, "/api/x", rotated["handle"])


async def test_a_revoked_grant_takes_its_handles_along(broker: BrokerProcess, provider: RemoteLedgerServer) -> None:
    """At the broker and at the authorization server."""
    issued = await import_grant(broker, provider)
    assert 200 == await call(broker, "/api/x", issued["handle"])

    status, answer = await admin(broker, "DELETE", f"/grants/{issued['grant']}")

    assert (200, True) == (status, answer["revoked_at_provider"])
    assert 401 == await call(broker, "/api/x", issued["handle"])
    assert 1 == len((await provider.ledger()).families_revoked(None))


async def test_se_03_after_a_revocation_no_process_names_the_user(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """Within a second a route that takes anybody, and the gateway that asks about it, hear of nobody."""
    route = {"path": "/", "upstream": upstream.url, "token": "user_or_none", "navigation": "allow"}
    made = BrokerProcess(
        tmp_path,
        providers={"corp": provider_options(provider.url)},
        routes=[{**route, "headers": {"set": {"X-User": "{claims.sub}"}}}],
        forward_auth={"gateway": "nginx", "secrets": [{"value": "s" * 43}]},
        workers=2,
    )
    made.settings["admin"]["token"] = {"value": ADMIN_TOKEN}
    asking = {"X-Gateway-Secret": "s" * 43, "X-Original-Method": "GET", "X-Original-URI": "/public"}

    async with made, Browser(made.url) as browser:
        await browser.log_in()

        async def named() -> set[bool]:
            """Whether a user is named, by each of several connections."""
            seen = set()
            for _ in range(6):
                close = {"Connection": "close"}
                assert 200 == (await browser.get("/public", headers=close)).status
                answer = await browser.get("/bff/auth", headers={**asking, **close})
                assert 202 == answer.status
                seen |= {bool(upstream.received[-1].header("x-user")), "X-User" in answer.headers}
            return seen

        assert {True} == await named()
        _, listed = await admin(made, "GET", "/grants?provider=corp&subject=alice")
        status, _ = await admin(made, "DELETE", f"/grants/{listed['grants'][0]['id']}")
        assert 200 == status
        await asyncio.sleep(1)
        assert {False} == await named()


async def test_rt_09_a_handle_stays_with_the_routes_of_its_provider(tmp_path: Path, upstream: Upstream) -> None:
    """It is refused where another provider's tokens go, and isn't issued for nothing but such a place."""
    async with RemoteLedgerServer() as other:
        made = BrokerProcess(
            tmp_path,
            providers={"corp": provider_options(other.url), "other": provider_options(other.url)},
            login={"default_provider": "corp"},
            routes=[
                {"path": f"/{name}", "upstream": upstream.url, "token": "user", "provider": name}
                for name in ("corp", "other")
            ],
        )
        made.settings["admin"]["token"] = {"value": ADMIN_TOKEN}
        async with made:
            tokens = await other.issue("batch")
            document = {"provider": "other", "subject": "batch", "refresh_token": tokens["refresh_token"]}
            refused, problem = await admin(made, "POST", "/grants", {**document, "routes": ["/corp/x"]})
            _, issued = await admin(made, "POST", "/grants", document)
            statuses = [await call(made, path, issued["handle"]) for path in ("/corp/x", "/other/x", "/corp/x")]

    assert (400, True) == (refused, problem["title"].startswith("routes[0]: the route there is for provider corp"))
    assert [403, 403] == [statuses[0], statuses[2]]
    assert {b"/other/x"} == {request.target for request in upstream.received}


async def test_a_standing_grant_gets_its_tokens_by_itself(
    broker: BrokerProcess, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """Nobody logs in; parallel first calls ask once."""
    statuses = await asyncio.gather(*(call(broker, "/reports/daily") for _ in range(10)))

    assert {200} == set(statuses)
    assert 1 == (await provider.ledger()).count("client_credentials")
    assert all(request.header("authorization") for request in upstream.received)


async def test_a_standing_grant_that_is_revoked_begins_anew(
    broker: BrokerProcess, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """The configuration still names it: the operator wanted its tokens to end. Until then callers are told to wait."""
    assert 200 == await call(broker, "/reports/daily")
    _, listed = await admin(broker, "GET", "/grants")

    status, _ = await admin(broker, "DELETE", f"/grants/{listed['grants'][0]['id']}")
    assert 200 == status
    assert 503 == await call(broker, "/reports/daily")

    async def works() -> bool:
        return await call(broker, "/reports/daily") == 200

    await until_async(works, what="the new tokens")
    assert 2 == (await provider.ledger()).count("client_credentials")
    assert 2 == len({request.header("authorization")[0] for request in upstream.received})

    def refused() -> list[str]:
        return [entry["detail"] for entry in broker.log() if entry.get("event") == "request_refused"]

    await until(lambda: bool(refused()), what="the line in the log")
    assert all(detail.startswith("grants.nightly: ") for detail in refused())


async def test_hd_01_a_foreign_credential_beside_a_session_is_dropped(
    broker: BrokerProcess, upstream: Upstream
) -> None:
    """The session's own token goes upstream, and exactly one."""
    async with Browser(broker.url) as browser:
        await browser.log_in()
        answer = await browser.get("/api/x", headers={"Authorization": "Bearer foreign"})

    assert 200 == answer.status
    (authorization,) = upstream.received[-1].header("authorization")
    assert "foreign" not in authorization


async def test_an_unknown_credential_is_refused_even_where_none_is_needed(broker: BrokerProcess) -> None:
    """Whoever shows something wants to be somebody."""
    assert 401 == await call(broker, "/open/x", "tbh_" + "A" * 43)
    assert 401 == await call(broker, "/api/x", "not-a-handle")


async def test_ad_01_the_admin_api_wants_its_token(broker: BrokerProcess) -> None:
    """Another token, none, and a page of a browser are refused; nothing of it is on the public listener."""
    status, _ = await admin(broker, "GET", "/grants", token="another")
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{broker.admin_url}/api/grants") as anonymous:
            pass
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Origin": "https://evil.test"}
        async with http.get(f"{broker.admin_url}/api/grants", headers=headers) as page:
            pass
        async with http.get(f"{broker.url}/api/grants", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}) as public:
            pass
        headers = {"Authorization": "Bearer \udcff\udcfe"}  # the bytes ff fe, which are no UTF-8
        async with http.get(f"{broker.admin_url}/api/grants", headers=headers) as garbage:
            pass

    assert (401, 401, 400, 401, 401) == (status, anonymous.status, page.status, public.status, garbage.status)


@pytest.mark.parametrize(
    ("document", "member"),
    [
        ({}, "provider"),
        ({"provider": "nowhere", "subject": "x"}, "provider"),
        ({"provider": "corp", "subject": "x", "refresh_token": "r", "dpop_key": "{}"}, "dpop_key"),
        ({"provider": "corp", "subject": "x"}, "refresh_token"),
        ({"provider": "corp", "subject": "x", "refresh_token": "r", "expires_in": "soon"}, "expires_in"),
        ({"provider": "corp", "subject": "x", "refresh_token": "r", "expires_at": "2030-01-31"}, "expires_at"),
        ({"provider": "corp", "subject": "x", "refresh_token": "r", "network": []}, "network"),
        ({"provider": "corp", "subject": "x", "refresh_token": "r", "networks": ["everywhere"]}, "networks"),
        ({"provider": "corp", "subject": "x", "refresh_token": "r", "routes": ["api"]}, "routes"),
        ({"grant": "nowhere", "refresh_token": "r"}, "grant"),
        ({"grant": "nightly", "refresh_token": "r"}, "grant: tokens are handed over to type imported"),
        ({"grant": 1, "refresh_token": "r"}, "grant"),
        ({"grant": "nightly"}, "refresh_token"),
        ({"grant": "nightly", "subject": "x", "refresh_token": "r"}, "subject"),
        ({"grant": "nightly", "label": "x", "refresh_token": "r"}, "label"),
    ],
)
async def test_a_wrong_import_names_the_member(broker: BrokerProcess, document: dict[str, Any], member: str) -> None:
    """And stores nothing."""
    status, problem = await admin(broker, "POST", "/grants", document)
    _, listed = await admin(broker, "GET", "/grants")

    assert 400 == status
    assert problem["title"].startswith(member)
    assert ["standing"] == [grant["origin"] for grant in listed["grants"]]

"""
Tokens that are bound to a key (RFC 9449), through the whole broker, at npm oidc-provider.

That server judges the proofs of token requests and of userinfo, and wants nonces for all of them. It is also an upstream
of the broker: nobody here wrote what judges the proofs of ``/me``.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from broker.services.clock import SystemClock
from tests.interop.form_browser import FormBrowser
from tests.interop.installation import calls_at_once
from tests.interop.introspection import Introspection
from tests.interop.oidc_provider import OidcProvider
from tests.interop.test_whole_broker import API_ID, API_SECRET, FORMS, LIFE_SECONDS, Whole, api, configured, registered
from tests.support.broker_process import BrokerProcess
from tests.support.dpop_upstream import DpopUpstream

pytestmark = [pytest.mark.interop, pytest.mark.timeout(60)]

METHOD = "client_secret_basic"


@asynccontextmanager
async def installed(directory: Path) -> AsyncIterator[tuple[Whole, DpopUpstream]]:
    broker = BrokerProcess(directory, workers=2)
    clients = [
        registered(METHOD, broker.url) | {"dpop_bound_access_tokens": True},
        registered(METHOD, broker.url)
        | {"client_id": "nightly", "dpop_bound_access_tokens": True, "grant_types": ["client_credentials"]}
        | {"response_types": [], "redirect_uris": []},
        api(),
    ]
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(
            OidcProvider(clients, access_token_seconds=LIFE_SECONDS, requireDpopNonce=True)
        )
        check = await stack.enter_async_context(
            Introspection(f"{provider.url}/token/introspection", client_id=API_ID, client_secret=API_SECRET)
        )
        upstream = await stack.enter_async_context(DpopUpstream(SystemClock(), check=check))
        upstream.nonce = "n-1"
        corp = {**configured(METHOD, provider.url, None), "dpop": True, "userinfo": True}
        broker.settings |= {
            "providers": {"corp": corp, "service": {**corp, "client_id": "nightly", "scope": ""}},
            "grants": {"nightly": {"provider": "service", "type": "client_credentials"}},
            "routes": [
                {"path": "/api", "upstream": upstream.url, "token": "user", "provider": "corp"},
                {"path": "/me", "upstream": provider.url, "token": "user", "provider": "corp"},
                {"path": "/service", "upstream": upstream.url, "token": {"grant": "nightly"}},
            ],
        }
        await stack.enter_async_context(broker)
        browser = await stack.enter_async_context(FormBrowser(broker.url))
        yield Whole(provider, broker, browser), upstream


async def test_bound_tokens_serve_from_the_login_on(tmp_path: Path) -> None:
    """Login with userinfo, calls to two upstreams that want nonces, an expiry under load: each with proofs, none fails."""
    async with installed(tmp_path) as (whole, upstream):
        page = await whole.browser.open(f"{whole.broker.url}/bff/login?provider=corp")
        for fields in FORMS:
            page = await whole.browser.submit(page, fields)
        assert whole.browser.is_home(page), page
        assert {200} == await calls_at_once(whole.browser, 10)
        me = await whole.browser.get("/me")
        await asyncio.sleep(LIFE_SECONDS + 0.2)
        upstream.nonce = "n-2"
        assert {200} == await calls_at_once(whole.browser, 50)
        again = await whole.browser.get("/me")
        refreshes = whole.refreshes()

    assert ((200, "alice"), (200, "alice")) == ((me.status, me.json()["sub"]), (again.status, again.json()["sub"]))
    assert 1 == refreshes
    assert {"use_dpop_nonce"} == {refusal.partition(":")[0] for refusal in upstream.refusals}
    assert {"use_dpop_nonce"} >= {event.get("error") for event in whole.refusals()}
    assert not any("dpop-nonce" in name.lower() for answer in (me, again) for name in answer.headers)


async def test_a_standing_grant_is_bound_too(tmp_path: Path) -> None:
    """A grant that no browser brought has a key of its own, and its first tokens are bound to it."""
    async with installed(tmp_path) as (whole, upstream):
        answers = [await whole.browser.get(f"/service/{number}") for number in range(3)]

    assert [200, 200, 200] == [answer.status for answer in answers]
    assert 3 == len(upstream.claims)

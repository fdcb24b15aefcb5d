"""Callers without a browser at the gate: what they show, against a cookie that comes along."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from broker.core.callers import CallersOptions
from broker.core.routing import Route
from broker.services.callers import Callers
from broker.services.handles import Handles
from broker.services.keyring import Keyring, new_key
from broker.stores.memory import MemoryBackend, MemoryStore
from tests.support.clock import ManualClock, SeededRandomness
from tests.support.faulty_store import FaultyStore
from tests.support.proxying import ALICE, USER, ProxyUnderTest, request, token
from tests.support.raw_upstream import RawUpstream

pytestmark = pytest.mark.usefixtures("either_way")


@dataclass(slots=True)
class Site:
    upstream: RawUpstream
    store: FaultyStore
    handles: Handles
    proxy: ProxyUnderTest

    async def line(self, **attributes: object) -> str:
        """Return the field by which a caller shows a new handle of the grant ``batch``."""
        credential = await self.handles.issue(self.handles.new("batch", **attributes))
        return f"Authorization: Bearer {credential.reveal()}"

    def tokens(self) -> list[bytes]:
        return [each.fields(b"authorization")[0] for each in self.upstream.requests]


@pytest.fixture
async def site(either_way: None) -> AsyncIterator[Site]:
    clock, randomness = ManualClock(), SeededRandomness()
    store = FaultyStore(MemoryStore(MemoryBackend(clock)))
    await store.start()
    handles = Handles(store, Keyring([new_key(randomness)]), clock, randomness)
    callers = Callers(CallersOptions(), handles=handles, tokens=None, store=store, clock=clock)  # type: ignore[arg-type]
    async with RawUpstream() as upstream:
        proxy = ProxyUnderTest([Route(path="/", upstream=upstream.url, token=USER)], callers=callers)
        proxy.tokens.known["batch"] = [token("batchs-token")]
        async with proxy:
            yield Site(upstream, store, handles, proxy)


async def test_a_handle_is_looked_up_once(site: Site) -> None:
    """Then it is known, and nothing is waited for."""
    line = await site.line()
    for _ in range(3):
        assert 200 == (await site.proxy.send(request("/", line))).status
    assert 1 == site.store.calls["get"]
    assert [b"Bearer batchs-token"] * 3 == site.tokens()


async def test_a_handle_goes_before_the_cookie(site: Site) -> None:
    """The first time, when it is looked up, and when it is known; other credentials go after it (frontends send some)."""
    line = await site.line()
    for _ in range(2):
        assert 200 == (await site.proxy.send(request("/", line, cookie=ALICE))).status
    assert 200 == (await site.proxy.send(request("/", "X-CSRF: 1", "Authorization: Bearer x", cookie=ALICE))).status

    assert [b"Bearer batchs-token"] * 2 + [b"Bearer alices-token"] == site.tokens()


@pytest.mark.parametrize("known", [False, True])
async def test_a_handle_that_may_not_be_used_here_is_refused(site: Site, known: bool) -> None:
    """Whether it is known or not, and whatever cookie comes along."""
    line = await site.line(routes=("/reports",))
    if known:
        assert 200 == (await site.proxy.send(request("/reports/1", line))).status
    got = await site.proxy.send(request("/", line, cookie=ALICE))

    assert (403, "forbidden") == (got.status, got.code)
    assert len(site.upstream.requests) == known


async def test_what_names_nobody_is_refused(site: Site) -> None:
    """A handle that nobody issued, another scheme, another credential."""
    for line in ("Bearer tbh_" + "A" * 43, "Basic YTpi", "Bearer x"):
        got = await site.proxy.send(request("/", f"Authorization: {line}"))
        assert (401, "no_session") == (got.status, got.code)
    assert [] == site.upstream.requests

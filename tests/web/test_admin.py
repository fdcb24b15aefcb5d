from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from broker.errors import StoreError
from broker.stores.memory import MemoryBackend, MemoryStore
from broker.web.admin import Readiness, admin_app
from tests.support.clock import ManualClock


class Store(MemoryStore):
    down = False

    async def ping(self) -> None:
        if self.down:
            raise StoreError("down")


@pytest.fixture
def store() -> Store:
    return Store(MemoryBackend(ManualClock()))


@pytest.fixture
def readiness(store: Store) -> Readiness:
    return Readiness(store)


@pytest.fixture
async def client(readiness: Readiness) -> AsyncIterator[aiohttp.ClientSession]:
    runner = web.AppRunner(admin_app(readiness), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
        yield session
    await runner.cleanup()


async def get(client: aiohttp.ClientSession, path: str, **options: str) -> tuple[int, str]:
    async with client.get(path, headers=options) as response:
        return response.status, await response.text()


async def test_ad_04_health_asks_nobody(client: aiohttp.ClientSession, store: Store) -> None:
    """A store that is down is no reason to restart the broker."""
    store.down = True

    assert (200, '{"status": "ok"}') == await get(client, "/healthz")


async def test_ad_04_readiness_needs_the_store(client: aiohttp.ClientSession, store: Store) -> None:
    """No requests should be sent to a process whose store is down, and the reason is one word."""
    assert (200, '{"status": "ok"}') == await get(client, "/readyz")

    store.down = True

    assert (503, '{"status": "store_unavailable"}') == await get(client, "/readyz")


async def test_ft_12_readiness_is_off_while_draining(client: aiohttp.ClientSession, readiness: Readiness) -> None:
    """A balancer takes the process out before it stops."""
    readiness.draining = True

    assert (503, '{"status": "draining"}') == await get(client, "/readyz")


async def test_ft_22_readiness_is_off_while_load_is_shed(store: Store) -> None:
    """What is refused here, others can serve."""
    is_shedding = False
    readiness = Readiness(store, is_shedding=lambda: is_shedding)
    before = await readiness.reason_against()
    is_shedding = True

    assert before is None
    assert "overloaded" == await readiness.reason_against()


async def test_metrics_are_in_prometheus_text_format(client: aiohttp.ClientSession) -> None:
    """Each metric of the broker is there."""
    status, text = await get(client, "/metrics")

    assert 200 == status
    assert "# TYPE token_refresh_total counter" in text


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9090", "LOCALHOST:9090", "[::1]:9090", "10.0.0.7:9090"])
async def test_ad_01_addresses_lead_to_the_operators_listener(client: aiohttp.ClientSession, host: str) -> None:
    """Nobody was asked where they lead."""
    assert 200 == (await get(client, "/metrics", Host=host))[0]


@pytest.mark.parametrize(
    "host", ["evil.test", "evil.test:9090", "127.0.0.1.evil.test", "localhost.evil.test", "a b", ""]
)
@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/api/grants", "/nowhere"])
async def test_ad_01_a_name_that_leads_to_loopback_is_refused(
    client: aiohttp.ClientSession, host: str, path: str
) -> None:
    """A page of whoever owns the name would read the answer as its own origin's."""
    assert (421, '{"status": "unknown_host"}') == await get(client, path, Host=host)


async def test_the_listener_names_no_software(client: aiohttp.ClientSession) -> None:
    """Neither where something is, nor where nothing is."""
    for path in ("/healthz", "/nowhere"):
        async with client.get(path) as response:
            assert ("token-broker", "nosniff") == (
                response.headers["Server"],
                response.headers["X-Content-Type-Options"],
            )

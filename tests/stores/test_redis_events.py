"""The channel of events: what is heard on it, and for how long it is believed to be heard."""

from collections.abc import AsyncIterator

import pytest

from broker.errors import StoreError
from broker.stores.base import Event, Topic
from broker.stores.listeners import RESYNC
from broker.stores.options import StoreOptions, StoreUrl
from tests.stores.store_contract import KEY, Heard, listening
from tests.stores.test_redis import RedisBacking
from tests.support.redis_server import RedisServer, raw
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import until

CHANNEL = "token-broker:events"


@pytest.fixture
async def proxy(redis_server: RedisServer) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
async def backing(proxy: TcpProxy) -> AsyncIterator[RedisBacking]:
    url = StoreUrl.parse(f"redis://127.0.0.1:{proxy.port}")
    backing = RedisBacking(StoreOptions(url=url, timeout_seconds=1))
    yield backing
    await backing.close()


async def test_no_resync_without_a_gap(backing: RedisBacking) -> None:
    """Who subscribes to a started store has missed nothing, and is not told to forget."""
    heard = await listening(await backing.open())
    await backing.opened[0].publish(Event(Topic.GRANT_ENDED, KEY))
    await heard.gets(Event(Topic.GRANT_ENDED, KEY))
    assert RESYNC not in heard.events


async def test_who_subscribes_before_the_start_is_told_when_it_is_heard(backing: RedisBacking) -> None:
    """What was published between subscribing and the start is not heard, so a RESYNC takes its place."""
    store = await backing.open()
    early = backing.make()
    heard = Heard(early)
    await store.publish(Event(Topic.GRANT_ENDED, KEY))
    await early.start()
    assert [RESYNC] == heard.events


async def test_a_quiet_channel_is_asked_whether_it_is_there(
    redis_server: RedisServer, backing: RedisBacking, proxy: TcpProxy
) -> None:
    """Minutes without an event are no fault: the connection stays, and shows signs of life."""
    heard = await listening(await backing.open())
    accepted, asked = proxy.accepted, pings(redis_server)
    await until(lambda: pings(redis_server) >= asked + 2, what="asking twice")
    assert accepted == proxy.accepted
    assert [] == heard.events


def pings(server: RedisServer) -> int:
    """Return how often *server* was asked whether it is there."""
    text: str = raw(server, "INFO", "commandstats").decode()
    lines = [line for line in text.splitlines() if line.startswith("cmdstat_ping:calls=")]
    return int(lines[0].removeprefix("cmdstat_ping:calls=").partition(",")[0]) if lines else 0


async def test_unknown_messages_are_left_out(redis_server: RedisServer, backing: RedisBacking) -> None:
    """What a newer release publishes, or somebody else, harms nobody."""
    store = await backing.open()
    heard = await listening(store)
    texts = ("", "x", "new_topic 1 k", "resync 0 k", "generation 1 ", "generation x k", "\xff" * 5000, "9" * 5000)
    for text in (*texts, "generation 1 k\nx", f"generation {2**70} k", "[" * 5000):
        redis_server.command("PUBLISH", CHANNEL, text)
    await store.publish(Event(Topic.GENERATION, KEY, 1))
    await heard.gets(Event(Topic.GENERATION, KEY, 1))
    assert [Event(Topic.GENERATION, KEY, 1)] == heard.events


async def test_a_listener_that_fails_leaves_nobody_deaf(
    backing: RedisBacking, caplog: pytest.LogCaptureFixture
) -> None:
    """An event that a listener can't take is logged, and the next one is heard."""
    store = await backing.open()

    def faulty(event: Event) -> None:
        raise ValueError(event)

    store.subscribe(faulty)
    heard = await listening(store)
    for number in (1, 2):
        await store.publish(Event(Topic.GENERATION, KEY, number))
        await heard.gets(Event(Topic.GENERATION, KEY, number))
    assert ["listener_failed"] * 2 == [record.message for record in caplog.records]


async def test_a_start_without_events_is_told(backing: RedisBacking, proxy: TcpProxy) -> None:
    """A store that can't hear events does not pretend to have started."""
    proxy.refuse()
    with pytest.raises(StoreError, match="events can't be heard"):
        await backing.open()

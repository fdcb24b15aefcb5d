"""How well an authorization server is, as a process and its replicas see it."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from prometheus_client import REGISTRY

from broker.core.breaker import THRESHOLD
from broker.core.oauth import TokenOutcome
from broker.services.health import Provider, ProviderHealth
from broker.services.tasks import Tasks
from broker.stores.base import Event, Topic
from broker.stores.memory import MemoryBackend, MemoryStore
from tests.support.clock import ManualClock, SeededRandomness
from tests.support.grants import NOW, answer, failure, grant
from tests.support.scripted_server import ScriptedServer
from tests.support.troubled_store import TroubledStore
from tests.support.waiting import until

FAILURE = failure("transient")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def backend(clock: ManualClock) -> MemoryBackend:
    return MemoryBackend(clock)


async def replica(backend: MemoryBackend, clock: ManualClock, *, max_concurrent: int = 100) -> ProviderHealth:
    store = TroubledStore(MemoryStore(backend))
    await store.start()
    health = ProviderHealth("corp", store, clock, SeededRandomness(), max_concurrent=max_concurrent)
    store.subscribe(health.heard)
    return health


@pytest.fixture
async def health(backend: MemoryBackend, clock: ManualClock) -> ProviderHealth:
    return await replica(backend, clock)


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    tasks = Tasks()
    yield tasks
    await tasks.cancel()


async def fail(health: ProviderHealth, times: int, outcome: TokenOutcome = FAILURE) -> None:
    for _ in range(times):
        await health.observe(outcome)
    await asyncio.sleep(0)  # its own events come back, too


async def test_an_outage_is_told_to_the_replicas_and_so_is_its_end(
    health: ProviderHealth, backend: MemoryBackend, clock: ManualClock
) -> None:
    """What one replica found out, none has to find out again."""
    other = await replica(backend, clock)

    await fail(health, THRESHOLD)
    await until(lambda: other.breaker.is_open(clock.now()))
    clock.advance(1)
    await health.observe(answer())
    await until(lambda: not other.breaker.open_until)

    assert NOW + 1 == other.breaker.recovered_at


async def test_ft_15_a_replica_with_another_clock_rests_as_long(
    health: ProviderHealth, backend: MemoryBackend, clock: ManualClock
) -> None:
    """The rest is told as a duration."""
    behind = ManualClock(NOW - 3600)
    other = await replica(backend, behind)

    await health.observe(failure("transient", retry_after_seconds=10))
    await until(lambda: other.breaker.is_open(behind.now()))
    behind.advance(11.1)

    assert not other.breaker.is_open(behind.now())


async def test_what_is_told_of_other_providers_is_not_heard(health: ProviderHealth) -> None:
    """Each provider has its own breaker."""
    health.heard(Event(Topic.PROVIDER, "other", 9000))
    health.heard(Event(Topic.GENERATION, "corp", 9000))

    assert 0.0 == health.breaker.open_until


async def test_a_store_that_is_down_does_not_hide_an_outage(
    clock: ManualClock, backend: MemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """This process knows it, the others find out by themselves."""
    store = TroubledStore(MemoryStore(backend))
    health = ProviderHealth("corp", store, clock, SeededRandomness())
    store.go_down()

    await fail(health, THRESHOLD)

    assert health.breaker.is_open(clock.now())
    assert "publish_failed" in caplog.text


@pytest.mark.parametrize("kind", ["permanent", "operator"])
async def test_a_refusal_by_name_shows_that_the_server_works(health: ProviderHealth, kind: str) -> None:
    """invalid_grant for one user says nothing against the provider."""
    await fail(health, THRESHOLD - 1)
    await health.observe(failure(kind))
    await fail(health, THRESHOLD - 1)

    assert 0.0 == health.breaker.open_until


async def test_a_provider_that_refuses_the_broker_is_reported_once(
    health: ProviderHealth, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the operator's alarm, and not one for each user."""
    with caplog.at_level(logging.ERROR):
        await fail(health, 3, failure("operator", error="invalid_client"))
        degraded = [health.degraded]
        await health.observe(answer())

    assert [True, False] == [*degraded, health.degraded]
    assert 1 == [record.message for record in caplog.records].count("provider_refuses_the_broker")


async def test_no_more_token_requests_run_at_once_than_allowed(backend: MemoryBackend, clock: ManualClock) -> None:
    """A server that comes back isn't run over."""
    health = await replica(backend, clock, max_concurrent=3)
    running, most = 0, 0

    async def request() -> None:
        nonlocal running, most
        async with health.permit() as permitted:
            assert permitted
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001)
            running -= 1

    await asyncio.gather(*(request() for _ in range(20)))

    assert 3 == most


async def test_ft_07_after_an_outage_one_request_probes_and_the_others_wait_for_what_it_finds(
    health: ProviderHealth, clock: ManualClock, tasks: Tasks
) -> None:
    """No stampede: not before the probe has worked, and none at all if it hasn't."""
    await fail(health, THRESHOLD)
    clock.advance(1)
    outcomes: list[TokenOutcome] = [FAILURE, answer()]
    sent: list[str] = []
    refused: list[str] = []
    gates = [asyncio.Event(), asyncio.Event()]

    async def request(name: str) -> None:
        async with health.permit() as permitted:
            if not permitted:
                refused.append(name)
                return
            sent.append(name)
            if gates:
                gate, outcome = gates.pop(0), outcomes.pop(0)
                await gate.wait()
                await health.observe(outcome)

    first_gate, second_gate = gates
    waiting = [tasks.spawn(request(f"first {number}"), name="first") for number in range(5)]
    await asyncio.sleep(0.01)
    assert ["first 0"] == sent
    first_gate.set()
    await asyncio.gather(*waiting)
    assert 4 == len(refused)  # it rests again: they decide anew

    clock.advance(5)
    waiting = [tasks.spawn(request(f"second {number}"), name="second") for number in range(5)]
    await asyncio.sleep(0.01)
    assert ["first 0", "second 0"] == sent
    second_gate.set()
    await asyncio.gather(*waiting)
    assert 6 == len(sent)


async def test_a_probe_that_is_cancelled_lets_the_next_one_through(
    health: ProviderHealth, clock: ManualClock, tasks: Tasks
) -> None:
    """Nobody waits for a request that isn't there."""
    await fail(health, THRESHOLD)
    clock.advance(1)

    async def hang() -> None:
        async with health.permit():
            await asyncio.sleep(60)

    probe = tasks.spawn(hang(), name="probe")
    await asyncio.sleep(0)
    waiting = tasks.spawn(hang(), name="waiting")
    await asyncio.sleep(0)
    waiting.cancel()
    probe.cancel()
    await asyncio.sleep(0)

    async with asyncio.timeout(10), health.permit() as permitted:
        assert permitted


async def test_each_token_request_is_counted_and_a_failure_logged_with_its_grant(
    health: ProviderHealth, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """By provider and result; the health learns from both."""
    provider = Provider(server=ScriptedServer(clock), health=health)

    def counted() -> list[float]:
        return [
            REGISTRY.get_sample_value("token_refresh_total", {"provider": "corp", "result": result}) or 0.0
            for result in ("success", "transient")
        ]

    before = counted()
    await provider.observe(grant(), failure("transient", status=503, detail="busy"), seconds=0.2)
    assert 1 == health.breaker.failures
    await provider.observe(grant(), answer(), seconds=0.1)

    assert [1.0, 1.0] == [after - former for after, former in zip(counted(), before, strict=True)]
    assert 0 == health.breaker.failures
    (record,) = caplog.records
    assert "token_request_failed" == record.getMessage()
    said = {"grant": grant().id, "generation": 1, "provider": "corp", "kind": "transient", "status": 503}
    assert said.items() <= record.__dict__.items()

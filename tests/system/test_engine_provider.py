"""The engine against a real authorization server over real HTTP, as replicas on one store of each kind."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import pytest
from aiohttp import web

from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.grant import EndReason
from broker.core.outcome import LoginNeeded, Token, TokenResult, Unavailable
from broker.core.provider import EmptyAnswer, Rotation
from broker.services.clock import SystemClock, SystemRandomness
from broker.services.tasks import Tasks
from broker.stores.base import Store
from broker.stores.memory import MemoryStore
from broker.stores.open import open_store
from broker.stores.options import StoreOptions, StoreUrl
from tests.support.authorization_server import LedgerServer, token_set
from tests.support.document_server import DocumentServer, Request
from tests.support.engine import PROVIDER, Engine, LeapingClock, Replica, access_token, authorization_server
from tests.support.kill_driver import COUNTED
from tests.support.kill_points import Counted
from tests.support.redis_server import RedisServer
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.system

LIFE = 300.0
HANG_UPS = 500
ORDERS = Audience(resource="https://orders.example")
BILLS = Audience(audience="bills")
EXCHANGED = Audience(audience="reports", exchange=True)


class Floor:
    """A LedgerServer, and replicas of the engine that speak to it."""

    def __init__(self, directory: Path, make_store: Callable[[Engine], Store], **options: Any) -> None:
        self.clock = LeapingClock()
        self.directory = directory
        self.provider = LedgerServer(
            clock=self.clock, access_token_seconds=LIFE, rotation=Rotation(options.get("rotation", "strict"))
        )
        self.options = options
        self.engine = Engine(directory / "spool", self.clock, SystemRandomness(), {})
        self._make_store = make_store

    async def __aenter__(self) -> Self:
        await self.provider.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.provider.stop()
        await self.engine.close()
        for replica in self.engine.replicas:
            for server in replica.servers.values():
                await server.close()

    async def replica(self) -> Replica:
        server = authorization_server(self.provider.url, clock=self.clock, **self.options)
        return await self.engine.open(store=self._make_store(self.engine), servers={PROVIDER: server})

    async def log_in(self, replica: Replica, subject: str = "alice") -> str:
        tokens = token_set(self.provider.issue(subject), requested_at=self.clock.now())
        return (await replica.adopt(tokens, subject=subject)).id

    def come_due(self) -> None:
        self.clock.advance(LIFE - 40)

    def expire(self) -> None:
        self.clock.advance(LIFE)

    def refreshes(self) -> int:
        return self.provider.ledger.count("refresh_token")

    async def settle(self, replica: Replica, grant_id: str, *, seconds: float = 60.0) -> TokenResult:
        """Ask as a caller does that obeys what it is told, until there is a definite answer."""
        waited = 0.0
        while True:
            result = await replica.broker.token(grant_id)
            if not isinstance(result, Unavailable) or waited > seconds:
                return result
            waited += result.retry_after_seconds
            self.clock.advance(result.retry_after_seconds + 0.01)


StartFloor = Callable[..., Awaitable[Floor]]
ROTATIONS = ["strict", *(pytest.param(name, marks=pytest.mark.slow) for name in ("grace", "none"))]


@pytest.fixture(params=["memory", "sqlite", "redis"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Engine], Store]:
    """A store of each kind, shared by all replicas."""
    kind = request.param

    def make(engine: Engine) -> Store:
        if kind == "memory":
            return MemoryStore(engine.backend)
        if kind == "sqlite":
            url = f"sqlite://{tmp_path}/broker.db"
        else:
            server: RedisServer = request.getfixturevalue("redis_server")
            url = f"redis://127.0.0.1:{server.port}/0"
        return open_store(StoreOptions(url=StoreUrl.parse(url)), SystemClock(), SystemRandomness())

    if kind == "redis":
        request.getfixturevalue("redis_server")
    return make


def on_memory(engine: Engine) -> Store:
    return MemoryStore(engine.backend)


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[StartFloor]:
    """Start floors on memory with options of the provider."""
    floors: list[Floor] = []

    async def start_one(**options: Any) -> Floor:
        floors.append(await Floor(tmp_path / str(len(floors)), on_memory, **options).__aenter__())
        return floors[-1]

    yield start_one
    for floor in floors:
        await floor.__aexit__()


async def call_all(replicas: list[Replica], grant_id: str, count: int, **options: Any) -> set[str]:
    results = await asyncio.gather(
        *(replica.broker.token(grant_id, **options) for replica in replicas for _ in range(count))
    )
    return {access_token(result) for result in results}


# --- single flight


async def test_tk_01_two_hundred_callers_of_three_replicas_cause_one_token_request(
    tmp_path: Path, make_store: Callable[[Engine], Store]
) -> None:
    """Whatever the store, with a server that takes its time; and so again with the next generation."""
    async with Floor(tmp_path, make_store) as floor:
        replicas = [await floor.replica() for _ in range(3)]
        grant_id = await floor.log_in(replicas[0])
        floor.provider.configure(latency_seconds=(0.2, 0.5))
        for generation in range(2, 5):
            floor.expire()
            assert 1 == len(await call_all(replicas, grant_id, 67))
            assert generation - 1 == floor.refreshes()
            assert {generation} == {(await replica.grant(grant_id)).generation for replica in replicas}

        assert {} == floor.provider.ledger.sent_twice()
        assert [] == floor.provider.ledger.families_revoked()


async def test_tk_01_a_lease_outlives_an_answer_that_takes_longer(start: StartFloor) -> None:
    """It is renewed: nobody else asks, and all get the answer."""
    floor = await start(token_endpoint_timeout_seconds=20.0)
    replicas = [await floor.replica() for _ in range(2)]
    grant_id = await floor.log_in(replicas[0])
    floor.provider.configure(latency_seconds=(5.0, 5.0))
    floor.expire()

    assert 1 == len(await call_all(replicas, grant_id, 5))
    assert 1 == floor.refreshes()


async def test_ft_23_a_machine_that_slept_before_it_connected_presents_nothing_that_another_has_presented(
    start: StartFloor,
) -> None:
    """It has written its intent and looks for the token endpoint; another takes over while nothing of it runs."""
    floor = await start()
    asleep, awake = asyncio.Event(), asyncio.Event()

    async def metadata(_request: Request) -> web.Response:
        asleep.set()
        await awake.wait()
        return web.json_response({"issuer": documents.url, "token_endpoint": f"{floor.provider.url}/token"})

    async with DocumentServer() as documents:
        documents.answers["/.well-known/openid-configuration"] = metadata
        two = await floor.replica()
        floor.options |= {"issuer": documents.url, "discovery": True, "token_endpoint": None}
        one = await floor.replica()
        grant_id = await floor.log_in(two)
        floor.expire()
        sleeping = asyncio.ensure_future(one.broker.token(grant_id))
        await asleep.wait()
        floor.clock.advance(25)
        token = access_token(await two.broker.token(grant_id))
        awake.set()

        assert token == access_token(await sleeping)
    assert ({}, []) == (floor.provider.ledger.sent_twice(), floor.provider.ledger.families_revoked())


class Interrupter:
    """Counts the moments at which a refresh waits or goes on, and lets callers hang up at those that it was told."""

    def __init__(self) -> None:
        self.moment = 0
        self.hang_ups: dict[int, list[asyncio.Task[TokenResult]]] = {}

    def make(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        """Make a task, whose moments are counted if it carries a refresh or what follows it."""
        if getattr(coroutine, "__qualname__", "") in COUNTED:
            coroutine = Counted(coroutine, self.count)
        return asyncio.Task(coroutine, loop=loop, **options)

    def count(self) -> None:
        self.moment += 1
        for caller in self.hang_ups.pop(self.moment, ()):
            caller.cancel()


@pytest.mark.slow
async def test_tk_02_callers_that_hang_up_at_any_moment_of_a_refresh_lose_nothing(
    make_store: Callable[[Engine], Store], tmp_path: Path
) -> None:
    """Five hundred refreshes, three callers each, who hang up at random moments that are all there are: it goes on."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    async with Floor(tmp_path, make_store) as floor:
        replicas = [await floor.replica() for _ in range(2)]
        grants = [await floor.log_in(replicas[0], f"user{number}") for number in range(20)]
        interrupter, tasks, hit, reached = Interrupter(), Tasks(), Counter[int](), Counter[int]()
        longest = 0
        asyncio.get_running_loop().set_task_factory(interrupter.make)
        for run in range(HANG_UPS):
            grant_id = grants[run % len(grants)]
            if run % len(grants) == 0:
                floor.expire()
            interrupter.moment = 0
            # One of them is where it was interrupted least; a moment comes to pass in some refreshes only.
            rarest = min(reached, key=lambda moment: hit[moment] / reached[moment], default=1)
            moments = [rarest, *(rng.randrange(1, max(longest, 20) + 1) for _ in range(2))]
            for moment in moments:
                caller = tasks.spawn(rng.choice(replicas).broker.token(grant_id), name="caller")
                interrupter.hang_ups.setdefault(moment, []).append(caller)
            await until(lambda: not len(tasks) and not any(replica.broker._running for replica in replicas))
            longest = max(longest, interrupter.moment)
            hit.update(moment for moment in moments if moment <= interrupter.moment)
            reached.update(range(1, min(interrupter.moment, 30)))
            interrupter.hang_ups.clear()
        asyncio.get_running_loop().set_task_factory(None)

        held = [(await replicas[0].grant(grant_id)).refresh_token for grant_id in grants]
        never = [moment for moment, times in reached.items() if times > HANG_UPS / 20 and not hit[moment]]
        print(f"{HANG_UPS} refreshes, {hit.total()} hang-ups at {len(hit)} moments of at most {longest}")
        assert HANG_UPS == floor.refreshes()
        assert [] == never
        assert [] == floor.provider.ledger.lost_tokens(token.reveal() for token in held if token is not None)
        assert ({}, []) == (floor.provider.ledger.sent_twice(), floor.provider.ledger.families_revoked())
        for grant_id in grants:
            assert isinstance(await floor.settle(replicas[1], grant_id), Token)


# --- the failure table

FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "429 with Retry-After": ("transient", {"status": 429, "headers": {"Retry-After": "2"}}),
    "503 with Retry-After": ("transient", {"status": 503, "headers": {"Retry-After": "1"}}),
    "403 of a firewall": ("transient", {"status": 403, "body": "<html>blocked</html>"}),
    "302 of a captive portal": ("transient", {"status": 302, "headers": {"Location": "https://evil.example/"}}),
    "empty 400": ("transient", {"status": 400}),
    "500": ("in_doubt", {"status": 500, "body": "oops"}),
    "502": ("in_doubt", {"status": 502}),
    "503": ("in_doubt", {"status": 503, "body": "upstream connect error or disconnect/reset before headers"}),
    "504": ("in_doubt", {"status": 504}),
    "HTML in a 200": ("in_doubt", {"status": 200, "body": "<html>welcome</html>"}),
    "empty 200": ("in_doubt", {"status": 200}),
    "no answer": ("in_doubt", {"how": "close"}),
    "reset": ("in_doubt", {"how": "reset"}),
    "hangs": ("in_doubt", {"how": "hang"}),
    "garbage": ("in_doubt", {"how": "garbage"}),
    "truncated": ("in_doubt", {"how": "truncated"}),
    "invalid_client": ("operator", {"status": 401, "body": '{"error": "invalid_client"}'}),
    "invalid_scope": ("operator", {"status": 400, "body": '{"error": "invalid_scope"}'}),
    "invalid_grant": ("permanent", {"status": 400, "body": '{"error": "invalid_grant"}'}),
    "invalid_grant in a 200": ("permanent", {"status": 200, "body": '{"error": "invalid_grant"}'}),
}


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("alive", [True, False], ids=["alive", "dead"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_tk_04_a_request_that_was_not_processed_loses_nothing(
    start: StartFloor, fault: str, alive: bool, rotation: str
) -> None:
    """Only invalid_grant ends a grant; while the access token lives no caller notices; afterwards all is well."""
    kind, rule = FAULTS[fault]
    floor = await start(rotation=rotation, token_endpoint_timeout_seconds=1.0)
    replica = await floor.replica()
    grant_id = await floor.log_in(replica)
    (floor.come_due if alive else floor.expire)()
    floor.provider.fail_next(count=None, when="before", **rule)

    result = await replica.broker.token(grant_id)
    await until(lambda: not replica.broker._running)
    grant = await replica.grant(grant_id)

    if alive:
        assert isinstance(result, Token)
    elif kind == "permanent":
        assert LoginNeeded(EndReason.INVALID_GRANT) == result
    else:
        assert isinstance(result, Unavailable)
        assert result.retry_after_seconds > 0
    assert (kind == "permanent") == (grant.ended is not None)
    assert (kind == "in_doubt") == (grant.intent is not None)
    if kind == "permanent":
        return
    floor.provider.faults.clear()
    floor.expire()
    assert isinstance(await floor.settle(replica, grant_id), Token)
    assert [] == floor.provider.ledger.families_revoked()


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("alive", [True, False], ids=["alive", "dead"])
@pytest.mark.parametrize("fault", [name for name, (kind, _) in FAULTS.items() if kind == "in_doubt"])
async def test_ft_08_an_answer_that_was_lost_after_processing(
    start: StartFloor, fault: str, alive: bool, rotation: str
) -> None:
    """
    With none and grace nobody notices. A strict server's user keeps the access token to its end, and logs in then: the
    family isn't revoked before.
    """
    _, rule = FAULTS[fault]
    floor = await start(rotation=rotation, token_endpoint_timeout_seconds=1.0)
    replica = await floor.replica()
    grant_id = await floor.log_in(replica)
    (floor.come_due if alive else floor.expire)()
    floor.provider.fail_next(when="after", **rule)
    result = await replica.broker.token(grant_id)
    await until(lambda: not replica.broker._running)
    if alive:
        assert isinstance(result, Token)
        assert [] == floor.provider.ledger.families_revoked()

    after = await floor.settle(replica, grant_id)
    if rotation != "strict":
        assert isinstance(after, Token)
        assert [] == floor.provider.ledger.families_revoked()
        return
    if alive:
        assert isinstance(after, Token)
        assert [] == floor.provider.ledger.families_revoked()
        floor.expire()
        after = await floor.settle(replica, grant_id)
    assert LoginNeeded(EndReason.INVALID_GRANT) == after


@pytest.mark.parametrize("rotation", ["strict", "grace", "none"])
async def test_a_server_that_can_not_be_reached_loses_nothing(start: StartFloor, rotation: str) -> None:
    """No connection: nothing was sent, so nothing is in doubt, and it works as soon as the server is back."""
    floor = await start(rotation=rotation)
    replica = await floor.replica()
    grant_id = await floor.log_in(replica)
    floor.expire()
    await floor.provider.stop()

    assert isinstance(await replica.broker.token(grant_id), Unavailable)
    assert (await replica.grant(grant_id)).intent is None
    port = int(floor.provider.url.rsplit(":", 1)[1])
    await floor.provider.start(port=port)
    assert isinstance(await floor.settle(replica, grant_id, seconds=5), Token)
    assert 1 == floor.refreshes()


async def test_a_server_that_names_no_error_is_covered_by_its_quirk(start: StartFloor) -> None:
    """Glewlwyd answers a permanent failure with 400 and nothing else."""
    floor = await start(empty_400=EmptyAnswer.INVALID_GRANT)
    replica = await floor.replica()
    grant_id = await floor.log_in(replica)
    floor.expire()
    floor.provider.fail_next(status=400)

    assert LoginNeeded(EndReason.INVALID_GRANT) == await replica.broker.token(grant_id)


async def test_an_ended_grant_is_remembered(start: StartFloor) -> None:
    """No caller of any replica asks the provider about it again."""
    floor = await start()
    replicas = [await floor.replica() for _ in range(2)]
    grant_id = await floor.log_in(replicas[0])
    floor.provider.revoke_subject("alice")
    floor.expire()

    for _ in range(3):
        for replica in replicas:
            assert isinstance(await replica.broker.token(grant_id), LoginNeeded)
        floor.clock.advance(10)
    assert 1 == floor.refreshes()


# --- outages


@pytest.mark.parametrize(
    "fault", ["503 with Retry-After", "503", *(pytest.param(name, marks=pytest.mark.slow) for name in ("500", "reset"))]
)
async def test_ft_07_after_an_outage_service_returns_within_five_seconds_without_a_stampede(
    start: StartFloor, fault: str
) -> None:
    """Sixty users on two replicas, strict: few requests while it lasts, one for each user when it ends."""
    floor = await start(max_concurrent_token_requests=10)
    replicas = [await floor.replica() for _ in range(2)]
    grants = [await floor.log_in(replicas[0], f"user{number}") for number in range(60)]
    floor.expire()
    floor.provider.fail_next(count=None, **FAULTS[fault][1])
    stop = asyncio.Event()
    served_at: dict[str, float] = {}

    async def call(grant_id: str) -> None:
        while not stop.is_set():
            result = await random.choice(replicas).broker.token(grant_id)
            assert not isinstance(result, LoginNeeded)
            if isinstance(result, Token):
                served_at.setdefault(grant_id, time.monotonic())
                return
            await asyncio.sleep(min(result.retry_after_seconds, 0.5))

    tasks = Tasks()
    callers = [tasks.spawn(call(grant_id), name="caller") for grant_id in grants]
    await asyncio.sleep(4)
    during = floor.refreshes()
    floor.provider.faults.clear()
    ended = time.monotonic()
    async with asyncio.timeout(10):
        await asyncio.gather(*callers)

    print(f"{during} requests during the outage, {floor.refreshes() - during} after it")
    assert max(served_at.values()) - ended < 5
    assert during < 60 * 3
    assert floor.refreshes() - during <= 60 + 2
    assert [] == floor.provider.ledger.families_revoked()


# --- crashes and ends


async def test_tk_02_an_answer_that_was_not_saved_before_a_crash_is_saved_by_the_next_process(
    tmp_path: Path, make_store: Callable[[Engine], Store]
) -> None:
    """From the spool, whatever the store, and although the server is strict."""
    async with Floor(tmp_path, make_store) as floor:
        one = await floor.replica()
        grant_id = await floor.log_in(one)
        floor.expire()
        rule = one.store.trouble("replace", "held", skip=1)
        tasks = Tasks()
        tasks.launch(one.broker.token(grant_id), name="caller")
        await rule.reached.wait()
        await one.crash()
        await tasks.cancel()

        two = await floor.replica()
        await two.broker.recover()

        assert isinstance(await floor.settle(two, grant_id), Token)
        assert 1 == floor.refreshes()
        assert {} == floor.provider.ledger.presented_twice()


async def test_se_07_a_logout_during_a_refresh_revokes_what_comes_after_it(
    tmp_path: Path, make_store: Callable[[Engine], Store]
) -> None:
    """The session stays dead on every replica, and the server is told."""
    async with Floor(tmp_path, make_store) as floor:
        one, two = await floor.replica(), await floor.replica()
        grant_id = await floor.log_in(one)
        floor.provider.configure(latency_seconds=(0.3, 0.3))
        floor.expire()
        tasks = Tasks()
        caller = tasks.spawn(one.broker.token(grant_id), name="caller")
        await until(lambda: floor.refreshes() == 1)
        assert await two.broker.end(grant_id, EndReason.LOGOUT) is not None

        assert isinstance(await caller, LoginNeeded)
        for replica in (one, two):
            assert isinstance(await replica.broker.token(grant_id), LoginNeeded)
        (family,) = floor.provider.ledger.families_of("alice")
        assert family.revoked
        assert [] == floor.provider.ledger.families_revoked("reuse")


# --- an upstream's 401


async def test_up_07_a_server_that_kills_access_tokens_at_rotation_costs_no_caller_an_error(
    start: StartFloor,
) -> None:
    """Calls in flight with the former token get 401 (django-oauth-toolkit): each gets the newer one, at no request."""
    floor = await start()
    floor.provider.configure(kills_access_tokens_at_rotation=True)
    replicas = [await floor.replica() for _ in range(2)]
    grant_id = await floor.log_in(replicas[0])

    async def upstream_call(replica: Replica) -> bool:
        token = await replica.broker.token(grant_id)
        assert isinstance(token, Token)
        await asyncio.sleep(0.005)
        if floor.provider.access_token(token.access_token.reveal()) is not None:
            return True
        again = await replica.broker.token(grant_id, rejected_generation=token.generation)
        assert isinstance(again, Token)
        return floor.provider.access_token(again.access_token.reveal()) is not None

    for rotations in range(1, 4):
        floor.come_due()
        results = await asyncio.gather(*(upstream_call(replica) for replica in replicas for _ in range(20)))
        assert {True} == set(results)
        await until(lambda: all(not replica.broker._running for replica in replicas))
        assert rotations == floor.refreshes()


async def test_up_07_tokens_revoked_at_the_server_are_replaced_by_one_refresh(start: StartFloor) -> None:
    """All who fail on one generation share it, over replicas."""
    floor = await start()
    replicas = [await floor.replica() for _ in range(2)]
    grant_id = await floor.log_in(replicas[0])
    await replicas[1].broker.token(grant_id)
    floor.clock.advance(10)
    floor.provider.revoke_access_tokens("alice")

    fresh = await call_all(replicas, grant_id, 20, rejected_generation=1)

    assert 1 == len(fresh) == floor.refreshes()
    assert floor.provider.access_token(fresh.pop()) is not None


# --- audiences


async def test_rt_09_each_audience_gets_its_own_token_and_the_refresh_token_is_used_serially(
    start: StartFloor,
) -> None:
    """Resource (RFC 8707), audience, and token exchange (RFC 8693), mixed, over two replicas."""
    floor = await start()
    replicas = [await floor.replica() for _ in range(2)]
    grant_id = await floor.log_in(replicas[0])
    floor.provider.configure(latency_seconds=(0.0, 0.02))
    wanted = {DEFAULT_AUDIENCE: "api", ORDERS: "https://orders.example", BILLS: "bills", EXCHANGED: "reports"}
    for _ in range(3):
        floor.expire()
        audiences = [audience for audience in wanted for _ in range(10)]
        results = await asyncio.gather(
            *(random.choice(replicas).broker.token(grant_id, audience) for audience in audiences)
        )
        for audience, result in zip(audiences, results, strict=True):
            record = floor.provider.access_token(access_token(result))
            assert record is not None
            assert (wanted[audience],) == tuple(record.audience)

    assert [] == floor.provider.ledger.overlapping()
    assert {} == floor.provider.ledger.sent_twice()


# --- absent users


async def test_keep_alive_grants_are_claimed_once_by_several_replicas(
    tmp_path: Path, make_store: Callable[[Engine], Store]
) -> None:
    """Whatever the store: each due grant is refreshed once, none twice."""
    async with Floor(tmp_path, make_store, idle_timeout_seconds=1800.0, keep_alive_per_second=500.0) as floor:
        replicas = [await floor.replica() for _ in range(3)]
        grants = [await floor.log_in(replicas[0], f"user{number}") for number in range(20)]
        floor.clock.advance(1000)

        claims = await asyncio.gather(*(replica.keep_alive.scan() for replica in replicas))

        assert (20, 20) == (sum(claims), floor.refreshes())
        assert {2} == {(await replicas[0].grant(grant_id)).generation for grant_id in grants}
        assert {} == floor.provider.ledger.sent_twice()


async def test_tk_02_a_lost_answer_of_an_absent_user_is_settled_by_the_keep_alive(start: StartFloor) -> None:
    """Another replica finds the open intent, within the server's grace."""
    floor = await start(rotation="grace")
    one, two = await floor.replica(), await floor.replica()
    grant_id = await floor.log_in(one)
    floor.expire()
    floor.provider.fail_next("hang", when="after")
    tasks = Tasks()
    tasks.launch(one.broker.token(grant_id), name="caller")
    await until(lambda: bool(floor.provider.ledger.presented))
    await one.crash()
    await tasks.cancel()
    floor.engine.backend.leases.clear()  # its lease has ended
    floor.clock.advance(6)

    async def is_settled() -> bool:
        await two.keep_alive.scan()
        return (await two.grant(grant_id)).generation == 2

    await until_async(is_settled)
    assert [] == floor.provider.ledger.families_revoked()

"""The engine's front: a grant and an audience in, a token out."""

import asyncio
import logging
import random

import pytest

from broker.core.audience import Audience
from broker.core.grant import EndReason, Origin
from broker.core.outcome import Cause, LoginNeeded, Token, Unavailable
from broker.core.provider import Rotation
from broker.services import metrics
from broker.services.refresher import STORE_RETRY_SECONDS
from broker.services.tasks import Tasks
from broker.stores.base import Event, Topic
from tests.services.conftest import StartStage
from tests.support.engine import PROVIDER, Replica, access_token
from tests.support.grants import LIFE, answer
from tests.support.stage import Stage
from tests.support.waiting import until

OTHER = Audience(resource="https://orders.example")


async def token(stage: Stage, replica: Replica | None = None, *, rejected: int | None = None) -> str:
    result = await (replica or stage.one).broker.token(stage.grant_id, rejected_generation=rejected)
    return access_token(result)


async def use_memory(stage: Stage) -> None:
    """Let the first replica know the grant."""
    await stage.one.broker.token(stage.grant_id)
    stage.one.store.calls.clear()


# --- the hot path


async def test_a_live_token_is_served_without_asking_anybody(stage: Stage) -> None:
    """No store, no provider, no task."""
    await use_memory(stage)

    for _ in range(10):
        peeked = stage.one.broker.peek(stage.grant_id)
        assert peeked is not None
        assert "at-1" == peeked.access_token.reveal()
        assert peeked == await stage.one.broker.token(stage.grant_id)

    assert [] == stage.one.store.calls


async def test_what_is_not_known_for_sure_is_not_served_by_a_peek(stage: Stage) -> None:
    """Unknown, stale, due and dead tokens are for token() to judge."""
    peeks = [stage.one.broker.peek("f" * 32), stage.one.broker.peek(stage.grant_id, OTHER)]
    stage.clock.advance(5)
    peeks.append(stage.one.broker.peek(stage.grant_id))  # stale
    stage.clock.advance(LIFE - 35)
    await stage.one.broker.token(stage.grant_id)
    await until(lambda: not stage.one.broker._running)
    stage.expire()
    peeks.append(stage.one.broker.peek(stage.grant_id))  # dead

    assert [None] * 4 == peeks


async def test_what_was_seen_is_read_again_after_the_cache_ttl(stage: Stage) -> None:
    """Once, and then it is fresh again."""
    await use_memory(stage)
    stage.clock.advance(5)
    for _ in range(3):
        await stage.one.broker.token(stage.grant_id)

    assert ["get"] == stage.one.store.calls


async def test_cr_04_a_grant_that_can_not_be_opened_here_needs_no_login(stage: Stage) -> None:
    """A replica with a newer key has written it. It goes on there; here the caller waits, and no other grant does."""
    two = await stage.engine.open()
    bob = await stage.one.adopt(stage.server.login_tokens("bob"), subject="bob")
    await stage.seal_anew()
    nothing = Unavailable(Cause.STORE, STORE_RETRY_SECONDS)

    assert nothing == await two.broker.token(stage.grant_id)
    assert nothing == await stage.refresh(two)
    reads = two.store.calls.count("get")
    assert isinstance(await two.broker.token(bob.id), Token)
    assert reads < two.store.calls.count("get")


async def test_an_unknown_grant_needs_a_login(stage: Stage) -> None:
    """It has expired, or never was."""
    assert LoginNeeded("unknown_grant") == await stage.one.broker.token("f" * 32)


async def test_callers_who_come_all_at_once_share_one_read(stage: Stage) -> None:
    """A page's twenty calls cost one look into the store; each of them may hang up, or hear that it is down."""
    two = await stage.engine.open()
    two.store.calls.clear()
    tasks = Tasks()
    gone = tasks.spawn(two.broker.token(stage.grant_id), name="gone")
    await asyncio.sleep(0)
    gone.cancel()

    assert {"at-1"} == {await each for each in [token(stage, two) for _ in range(20)]}
    assert ["get"] == two.store.calls
    stage.clock.advance(5)
    stage.expire()
    two.store.go_down()
    results = await asyncio.gather(*(two.broker.token(stage.grant_id) for _ in range(20)))
    assert [Unavailable(Cause.STORE, 1.0)] * 20 == results
    assert ["get", "version"] == two.store.calls


# --- one refresh for many


async def test_tk_01_two_hundred_callers_cause_one_token_request(stage: Stage) -> None:
    """They share the task, and its result."""
    stage.expire()

    results = await asyncio.gather(*(stage.one.broker.token(stage.grant_id) for _ in range(200)))

    assert {"at-2"} == {access_token(result) for result in results}
    assert 1 == len(stage.presented())


async def test_tk_01_three_processes_cause_one_token_request(stage: Stage) -> None:
    """One of them asks, the others hear of the generation."""
    replicas = [stage.one, await stage.engine.open(), await stage.engine.open()]
    stage.expire()

    results = await asyncio.gather(*(replica.broker.token(stage.grant_id) for replica in replicas for _ in range(70)))

    assert {"at-2"} == {access_token(result) for result in results}
    assert 1 == len(stage.presented())


@pytest.mark.parametrize("seed", range(20))
async def test_tk_02_callers_that_hang_up_cancel_nothing(stage: Stage, seed: int) -> None:
    """Each is cancelled at some point of the refresh, the last one too; the rotation goes on and is stored."""
    rng = random.Random(seed)
    stage.expire()
    tasks = Tasks()
    callers = [tasks.spawn(stage.one.broker.token(stage.grant_id), name="caller") for _ in range(5)]
    for caller in callers:
        for _ in range(rng.randrange(8)):
            await asyncio.sleep(0)
        caller.cancel()
    await until(lambda: not stage.one.broker._running)

    assert 1 >= len(stage.presented())
    assert "at-2" == await token(stage)
    assert 1 == len(stage.presented())


async def test_a_due_token_is_renewed_behind_the_callers_back(stage: Stage) -> None:
    """Nobody waits for it, and it is asked for once."""
    stage.come_due()
    step = stage.server.hold()

    assert ["at-1"] * 5 == [await token(stage) for _ in range(5)]
    await step.reached.wait()
    peeked = stage.one.broker.peek(stage.grant_id)
    assert peeked is not None  # the hot path goes on meanwhile
    step.release()
    await until(lambda: not stage.one.broker._running)

    assert "at-2" == await token(stage)
    assert 1 == len(stage.presented())


async def test_rt_09_a_token_for_one_audience_is_never_given_to_another(stage: Stage) -> None:
    """Each has its own, however they are mixed."""
    mine, orders = await asyncio.gather(
        stage.one.broker.token(stage.grant_id), stage.one.broker.token(stage.grant_id, OTHER)
    )

    assert ("at-1", f"at-2@{OTHER.resource}") == (access_token(mine), access_token(orders))
    for _ in range(3):
        stage.expire()
        mine, orders = await asyncio.gather(
            stage.one.broker.token(stage.grant_id), stage.one.broker.token(stage.grant_id, OTHER)
        )
        assert "@" not in access_token(mine)
        assert access_token(orders).endswith(f"@{OTHER.resource}")
    assert {} == stage.server.ledger.presented_twice()


# --- the soft window


async def test_ft_07_while_the_token_lives_a_dead_provider_is_not_noticed(stage: Stage) -> None:
    """And it is not asked for each call either, nor the store."""
    stage.come_due()
    stage.server.refuse_always("transient")
    assert "at-1" == await token(stage)
    await until(lambda: not stage.one.broker._running)
    stage.one.store.calls.clear()

    assert ["at-1"] * 50 == [await token(stage) for _ in range(50)]
    assert [] == stage.one.store.calls
    stage.clock.advance(30)
    assert isinstance(await stage.one.broker.token(stage.grant_id), Unavailable)
    stage.server.recover()
    stage.clock.advance(4)
    assert "at-2" == await token(stage)


async def test_ft_01_while_the_token_lives_a_dead_store_is_not_noticed(stage: Stage) -> None:
    """What is known may be stale, but a live token is a live token; then the caller is told to come back."""
    await use_memory(stage)
    stage.one.store.go_down()
    for _ in range(LIFE_STEPS):
        stage.clock.advance(LIFE / LIFE_STEPS - 1)
        assert "at-1" == await token(stage)
    stage.expire()

    assert Unavailable(Cause.STORE, 1.0) == await stage.one.broker.token(stage.grant_id)
    stage.one.store.heal()
    assert "at-2" == await token(stage)


LIFE_STEPS = 20


async def test_ft_02_a_store_that_hangs_is_asked_once_a_second_about_live_tokens(stage: Stage) -> None:
    """Not every caller waits for its deadline."""
    await use_memory(stage)
    stage.clock.advance(5)
    stage.one.store.go_down()

    assert ["at-1"] * 50 == [await token(stage) for _ in range(50)]
    assert 1 == stage.one.store.calls.count("get")
    stage.clock.advance(1)
    assert "at-1" == await token(stage)
    assert 2 == stage.one.store.calls.count("get")


async def test_a_grant_that_is_not_known_is_unavailable_while_the_store_is_down(stage: Stage) -> None:
    """It is no reason to log in again."""
    two = await stage.engine.open()
    two.store.go_down()

    assert Unavailable(Cause.STORE, 1.0) == await two.broker.token(stage.grant_id)


async def test_news_of_a_newer_generation_does_not_take_the_older_one_from_a_store_that_dies(stage: Stage) -> None:
    """The event came, the store went: the older access token lives on."""
    two = await stage.engine.open()
    await two.broker.token(stage.grant_id)
    stage.come_due()
    await stage.refresh()
    await asyncio.sleep(0)
    two.store.go_down()

    assert "at-1" == await token(stage, two)
    two.store.heal()
    stage.clock.advance(1)
    assert "at-2" == await token(stage, two)


async def test_ft_14_a_record_of_a_later_release_is_unavailable_and_nothing_else_is(stage: Stage) -> None:
    """One foreign record is no sign that the store is down."""
    record = await stage.one.vault.read(stage.grant_id)
    assert record is not None
    sealed = stage.one.vault._keyring.seal("grant", record.key, b'{"v": 2}')
    await stage.one.store.replace(record.key, sealed, record.version)
    bob = await stage.one.adopt(stage.server.login_tokens("bob"), subject="bob")
    stage.clock.advance(5)

    assert isinstance(await stage.one.broker.token(stage.grant_id), Token)  # as long as it lives in memory
    stage.expire()
    assert isinstance(await stage.one.broker.token(stage.grant_id), Unavailable)
    assert isinstance(await stage.one.broker.token(bob.id), Token)


# --- an upstream's 401


async def test_up_07_callers_that_fail_on_one_generation_cause_one_refresh(stage: Stage) -> None:
    """All of them get the newer token, those that come late too."""
    stage.clock.advance(100)
    results = await asyncio.gather(*(stage.one.broker.token(stage.grant_id, rejected_generation=1) for _ in range(20)))
    late = await stage.one.broker.token(stage.grant_id, rejected_generation=1)

    assert {"at-2"} == {access_token(result) for result in (*results, late)}
    assert 1 == len(stage.presented())


@pytest.mark.parametrize("age", [2.0, 3.0, 7.9, 8.0, 30.0])
async def test_up_07_so_do_callers_that_fail_on_a_young_token(stage: Stage, age: float) -> None:
    """The first one's refresh is theirs, however young the token is."""
    stage.clock.advance(age)

    results = await asyncio.gather(*(stage.one.broker.token(stage.grant_id, rejected_generation=1) for _ in range(20)))

    assert {"at-2"} == {access_token(result) for result in results}
    assert 1 == len(stage.presented())


async def test_a_token_that_is_refused_before_its_end_is_counted_once(stage: Stage) -> None:
    """However many callers it was refused to; one that is too young to be replaced shows nothing."""

    def refused_early() -> float:
        return metrics.totals(metrics.PROVIDER_BEHAVIOUR, "provider", PROVIDER, by="seen").get("refused_early", 0.0)

    before = refused_early()
    await stage.one.broker.token(stage.grant_id, rejected_generation=1)
    assert before == refused_early()
    stage.clock.advance(100)
    await asyncio.gather(*(stage.one.broker.token(stage.grant_id, rejected_generation=1) for _ in range(20)))
    assert before + 1 == refused_early()
    stage.expire()
    await stage.one.broker.token(stage.grant_id)
    assert before + 1 == refused_early()


async def test_up_07_callers_of_several_processes_that_fail_on_one_generation_cause_one_refresh(stage: Stage) -> None:
    """The second process finds the newer generation under the lease."""
    two = await stage.engine.open()
    await two.broker.token(stage.grant_id)
    stage.clock.advance(4)

    results = await asyncio.gather(
        *(r.broker.token(stage.grant_id, rejected_generation=1) for r in (stage.one, two) for _ in range(5))
    )

    assert {"at-2"} == {access_token(result) for result in results}
    assert 1 == len(stage.presented())


async def test_up_07_an_upstream_that_refuses_every_token_does_not_rotate_them_all(stage: Stage) -> None:
    """A token that was refused at birth is returned again: its 401 is the answer."""
    generation = 1
    for _ in range(60):
        result = await stage.one.broker.token(stage.grant_id, rejected_generation=generation)
        assert isinstance(result, Token)
        generation = result.generation
        stage.clock.advance(0.5)

    assert len(stage.presented()) <= 4


async def test_up_07_a_young_token_that_was_replaced_elsewhere_is_not_sent_again(stage: Stage) -> None:
    """Though nothing was heard of it, and a refused token of that age is worth no refresh."""
    two = await stage.engine.open()
    await two.broker.token(stage.grant_id)
    two.broker._unsubscribe()
    stage.clock.advance(1)
    await stage.refresh(rejected_generation=1)

    assert "at-1" == await token(stage, two)
    assert "at-2" == await token(stage, two, rejected=1)
    assert 1 == len(stage.presented())


async def test_up_07_nor_is_one_whose_grant_has_ended_elsewhere(stage: Stage) -> None:
    """Its caller hears that the login is over, and not the upstream's 401."""
    two = await stage.engine.open()
    await two.broker.token(stage.grant_id)
    two.broker._unsubscribe()
    await stage.one.broker.end(stage.grant_id, EndReason.LOGOUT)

    assert LoginNeeded("logout") == await two.broker.token(stage.grant_id, rejected_generation=1)


async def test_up_07_with_a_store_that_is_down_a_young_token_that_is_refused_is_a_503(stage: Stage) -> None:
    """A 401 would be a logout to many frontends."""
    await use_memory(stage)
    stage.one.store.go_down()

    for _ in range(2):
        result = await stage.one.broker.token(stage.grant_id, rejected_generation=1)
        assert Unavailable(Cause.STORE, 1.0) == result


async def test_up_07_stragglers_of_an_older_generation_get_the_newer_one(stage: Stage) -> None:
    """A server that kills access tokens at rotation costs calls in flight no error, and no further rotation."""
    stage.come_due()
    assert "at-1" == await token(stage)
    await until(lambda: len(stage.presented()) == 1 and not stage.one.broker._running)

    assert ["at-2"] * 5 == [await token(stage, rejected=1) for _ in range(5)]
    assert 1 == len(stage.presented())


async def test_a_rejected_token_and_a_dead_store_make_a_503(stage: Stage) -> None:
    """The refused token is not served again."""
    await use_memory(stage)
    stage.clock.advance(5)
    stage.one.store.go_down()

    for _ in range(2):
        result = await stage.one.broker.token(stage.grant_id, rejected_generation=1)
        assert Unavailable(Cause.STORE, 1.0) == result


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
async def test_ft_15_a_refused_token_is_replaced_whatever_the_clock_did(stage: Stage, jump: float) -> None:
    """A clock that was set back makes tokens look unborn, and the upstream knows better."""
    stage.clock.set_wall_clock(jump)

    assert "at-2" == await token(stage, rejected=1)


# --- hearing of others


async def test_a_newer_generation_is_heard_of(stage: Stage) -> None:
    """Another process' refresh is seen at once, not after the cache's time."""
    two = await stage.engine.open()
    await two.broker.token(stage.grant_id)
    stage.come_due()
    await stage.refresh()
    await asyncio.sleep(0)

    assert two.broker.peek(stage.grant_id) is None
    assert "at-2" == await token(stage, two)


async def test_se_03_an_end_is_heard_of(stage: Stage) -> None:
    """And not undone by a read that was under way."""
    two = await stage.engine.open()
    rule = two.store.trouble("get", "held_answer")
    tasks = Tasks()
    reading = tasks.spawn(two.broker.token(stage.grant_id), name="reading")
    await rule.reached.wait()
    await stage.one.broker.end(stage.grant_id, EndReason.LOGOUT)
    await asyncio.sleep(0)
    rule.released.set()

    assert LoginNeeded("ended") == await reading
    assert isinstance(await two.broker.token(stage.grant_id), LoginNeeded)
    assert two.broker.peek(stage.grant_id) is None


@pytest.mark.parametrize("method", ["version", "get"])
async def test_news_that_overtakes_a_read_is_not_forgotten_over_it(method: str, stage: Stage) -> None:
    """A server may have ended the older token already, so it isn't served once a newer one was heard of."""
    two = await stage.engine.open()
    if method == "version":
        await two.broker.token(stage.grant_id)
    stage.clock.advance(6)  # what is known of it has to be confirmed
    rule = two.store.trouble(method, "held_answer")
    tasks = Tasks()
    reading = tasks.spawn(two.broker.token(stage.grant_id), name="reading")
    await rule.reached.wait()
    await stage.one.broker.token(stage.grant_id, rejected_generation=1)
    await asyncio.sleep(0)
    rule.released.set()

    assert "at-2" == access_token(await reading)
    assert "at-2" == await token(stage, two)


async def test_after_lost_events_everything_is_read_again(stage: Stage) -> None:
    """A store that can't rule out that something was missed says so."""
    await use_memory(stage)

    stage.one.broker._heard(Event(Topic.RESYNC, ""))

    assert stage.one.broker.peek(stage.grant_id) is None
    assert "at-1" == await token(stage)
    assert stage.one.broker.peek(stage.grant_id) is not None


async def test_a_providers_outage_is_heard_of(stage: Stage) -> None:
    """What another process found out is not found out again."""
    two = await stage.engine.open()
    stage.expire()
    stage.server.refuse("transient", retry_after_seconds=5.0)
    await stage.refresh()
    await asyncio.sleep(0)

    assert isinstance(await two.broker.token(stage.grant_id), Unavailable)
    assert 1 == len(stage.presented())
    two.broker._heard(Event(Topic.PROVIDER, "unknown", 1))
    two.broker._heard(Event(Topic.SESSION_ENDED, "session:x"))


# --- grants


async def test_a_grant_is_adopted_and_kept(stage: Stage) -> None:
    """What a login brought is stored, and listed."""
    tokens = answer(5, requested_at=stage.clock.now())

    grant = await stage.one.adopt(tokens, subject="bob", keep_until=stage.clock.now() + 99, origin=Origin.IMPORTED)

    assert grant == await stage.one.broker.grant(grant.id)
    assert (Origin.IMPORTED, tokens.refresh_token) == (grant.origin, grant.refresh_token)
    assert [grant] == await stage.one.broker.grants(PROVIDER, "bob")
    assert [grant] == await stage.one.broker.grants()
    assert await stage.one.broker.grant("f" * 32) is None


async def test_a_grant_lives_as_long_as_it_is_touched(stage: Stage) -> None:
    """Its record ends with its session."""
    grant = await stage.one.adopt(stage.server.login_tokens("bob"), subject="bob", ttl_seconds=100.0)
    stage.clock.advance(90)
    await stage.one.broker.touch(grant.id, 100.0)
    stage.clock.advance(90)
    assert await stage.one.broker.grant(grant.id) is not None
    stage.clock.advance(10)

    assert await stage.one.broker.grant(grant.id) is None


async def test_lk_04_what_becomes_of_a_grant_is_logged_without_a_secret(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """One event per state change, with the grant's id and generation."""
    with caplog.at_level(logging.DEBUG):
        grant = await stage.one.adopt(stage.server.login_tokens("bob"), subject="bob")
        stage.expire()
        stage.server.refuse("transient", error="temporarily_unavailable", status=503)
        await stage.one.broker.token(grant.id)
        stage.expire()
        stage.server.refuse("permanent", error="invalid_grant", status=400)
        await stage.one.broker.token(grant.id)

    events = [(record.message, record.__dict__.get("generation")) for record in caplog.records]
    assert [
        ("grant_created", None),
        ("token_request_failed", 1),
        ("token_refreshed", 2),
        ("token_request_failed", 2),
        ("grant_ended", 2),
    ] == events
    shown = "".join(str(record.__dict__) for record in caplog.records)
    assert not [word for word in ("rt_", "at-") if word in shown]
    assert all(record.__dict__["grant"] == grant.id for record in caplog.records)


# --- the end of the process


async def test_ft_12_a_refresh_that_runs_is_drained(stage: Stage) -> None:
    """SIGTERM in the middle of a rotation: the answer is waited for and stored."""
    stage.expire()
    two = await stage.engine.open()
    step = stage.server.hold()
    tasks = Tasks()
    caller = tasks.spawn(two.broker.token(stage.grant_id), name="caller")
    await step.reached.wait()
    closing = tasks.spawn(two.close(), name="closing")
    await asyncio.sleep(0.01)
    step.release()
    await closing

    assert "at-2" == access_token(await caller)
    assert 2 == (await stage.grant()).generation
    assert [] == list(stage.engine.directory.glob(f"*{two.spool._path.name if two.spool._path else ''}"))


async def test_what_can_not_be_drained_stays_in_the_spool(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """The next start saves it."""
    stage.expire()
    two = await stage.engine.open()
    two.store.trouble("replace", "fails", skip=1, count=None)
    assert "at-2" == await token(stage, two)

    await two.close(timeout_seconds=0.01)
    assert "refreshes_cancelled" in caplog.text
    await stage.one.broker.recover()

    assert 2 == (await stage.grant()).generation


async def test_a_closed_broker_hears_nothing_more(stage: Stage) -> None:
    """Its subscription ends with it."""
    two = await stage.engine.open()
    await two.broker.token(stage.grant_id)
    await two.broker.close(1)
    await stage.one.broker.end(stage.grant_id, EndReason.LOGOUT)
    await asyncio.sleep(0)

    assert two.broker.peek(stage.grant_id) is not None


async def test_a_grace_server_whose_answer_was_lost_serves_the_same_caller(start_stage: StartStage) -> None:
    """The quick second try is within the grace: nobody notices."""
    stage = await start_stage(rotation=Rotation.GRACE)
    stage.expire()
    stage.server.refuse("in_doubt", processed=True)

    assert "at-3" == await token(stage)
    assert [] == stage.server.ledger.families_revoked()

"""One refresh, from the lease to the answer: in the order that loses nothing."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.grant import EndReason, Grant, Origin
from broker.core.oauth import TokenOutcome
from broker.core.outcome import Cause, LoginNeeded, Token, Unavailable
from broker.core.provider import Rotation
from broker.core.secret import Secret
from broker.services.keyring import Keyring
from broker.services.refresher import PATIENCE_SECONDS, QUICK_RETRY_SECONDS, Want
from tests.services.conftest import StartStage
from tests.support.engine import KEY, NEWER_KEY, access_token
from tests.support.grants import LIFE, answer
from tests.support.stage import Stage
from tests.support.waiting import until

OTHER = Audience(resource="https://orders.example")
TRIES = 1 + len(QUICK_RETRY_SECONDS)


# --- the order


async def test_the_intent_is_written_before_the_refresh_token_is_sent(stage: Stage) -> None:
    """While the request runs, the store says who presents what."""
    stage.expire()
    step = stage.server.hold()
    running = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await step.reached.wait()

    open_intent = (await stage.grant()).intent
    step.release()
    await running

    assert open_intent is not None
    assert (stage.clock.now(), False) == (open_intent.started_at, open_intent.carried)
    assert (await stage.grant()).intent is None
    assert ["lease", "get", "replace", "get", "replace", "publish", "lease.release"] == stage.one.store.calls[1:][:7]


async def test_a_refresh_brings_the_next_generation(stage: Stage) -> None:
    """What came is stored, and its caller gets it."""
    stage.expire()

    result = await stage.refresh()

    grant = await stage.grant()
    assert isinstance(result, Token)
    assert (2, 2, result.access_token) == (result.generation, grant.generation, grant.tokens[""].access_token)
    assert {} == stage.server.ledger.presented_twice()
    assert grant.refresh_token is not None
    assert {grant.refresh_token.reveal()} == stage.server.ledger.usable(next(iter(stage.server.families.by_id)))


@pytest.mark.parametrize("trouble", ["fails", "applied"])
async def test_without_a_written_intent_the_refresh_token_is_not_spent(stage: Stage, trouble: str) -> None:
    """And when the store works again, there is no doubt, whether or not it had taken the intent: nothing was sent."""
    stage.expire()
    stage.one.store.trouble("replace", trouble)

    refused = await stage.refresh()

    assert Unavailable(Cause.STORE, 1.0) == refused
    assert [] == stage.presented()
    assert isinstance(await stage.refresh(), Token)
    assert 1 == len(stage.presented())


@pytest.mark.parametrize("method", ["lease", "get"])
async def test_a_store_that_is_down_is_an_answer_not_an_error(stage: Stage, method: str) -> None:
    """The caller is told who is unavailable, and that it should come back."""
    stage.expire()
    stage.one.store.trouble(method, "fails")

    assert Unavailable(Cause.STORE, 1.0) == await stage.refresh()
    assert [] == stage.presented()


async def test_an_unknown_grant_needs_a_login(stage: Stage) -> None:
    """Nothing is asked of any provider."""
    result = await stage.one.broker.refresher.refresh(Want(grant_id="f" * 32))

    assert LoginNeeded("unknown_grant") == result


async def test_a_grant_of_an_unconfigured_provider_needs_a_login(stage: Stage) -> None:
    """The configuration has lost it."""
    found = await stage.stored()
    await stage.one.vault.replace(found, replace(found.grant, provider="gone"), due_at=None)

    assert LoginNeeded("unknown_provider") == await stage.refresh()


# --- between processes


async def test_tk_01_who_finds_the_lease_held_waits_for_the_generation(stage: Stage) -> None:
    """The second process asks nobody, and gets what the first one brought."""
    stage.expire()
    two = await stage.engine.open()
    step = stage.server.hold()
    first = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await step.reached.wait()
    second = two.broker.refresher.start(Want(grant_id=stage.grant_id))
    await until(lambda: two.store.calls.count("lease") >= 2)
    step.release()

    assert access_token(await first) == access_token(await second)
    assert 1 == len(stage.presented())


@pytest.mark.parametrize("rotation", list(Rotation))
@pytest.mark.parametrize(
    ("keys", "other_keys"),
    [([KEY], [KEY, NEWER_KEY]), ([KEY, NEWER_KEY], [NEWER_KEY, KEY]), ([NEWER_KEY, KEY], [NEWER_KEY])],
    ids=["added", "in_front", "removed"],
)
async def test_tk_01_and_cr_04_replicas_between_which_the_keys_change_share_one_refresh(
    tmp_path: Path, keys: list[Secret], other_keys: list[Secret], rotation: Rotation
) -> None:
    """At each step of a rotation of the keys the waiter gets the result, whatever the server does with the token."""
    stage = await Stage(tmp_path, rotation=rotation).start(keyring=Keyring(keys))
    two = await stage.engine.open(keyring=Keyring(other_keys))
    stage.expire()
    step = stage.server.hold()
    first = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await step.reached.wait()
    second = two.broker.refresher.start(Want(grant_id=stage.grant_id))
    await until(lambda: two.store.calls.count("lease") >= 2 or second.done())
    step.release()

    assert access_token(await first) == access_token(await second)
    assert 1 == len(stage.presented())
    await stage.close()


async def test_tk_01_a_waiter_gets_the_live_token_meanwhile(stage: Stage) -> None:
    """While another process refreshes early, nobody waits for it."""
    stage.come_due()
    two = await stage.engine.open()
    step = stage.server.hold()
    first = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await step.reached.wait()

    assert "at-1" == access_token(await stage.refresh(two))
    step.release()
    await first


async def test_tk_01_a_stolen_lease_can_not_overwrite_a_newer_generation(start_stage: StartStage) -> None:
    """The first process lost its lease, the second one brought generation 2; the first one's answer comes too late."""
    stage = await start_stage(rotation=Rotation.GRACE)
    stage.expire()
    two = await stage.engine.open()
    step = stage.server.hold()
    slow = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await step.reached.wait()
    stage.engine.backend.leases.clear()

    fast = await stage.refresh(two)
    step.release()

    assert access_token(fast) == access_token(await slow)
    assert 2 == (await stage.grant()).generation
    assert [] == stage.server.ledger.families_revoked()


async def test_an_answer_that_came_too_late_for_its_audience_ends_nothing(start_stage: StartStage) -> None:
    """Another process refreshed for itself meanwhile: the caller's audience is asked for again, nobody logs in."""
    stage = await start_stage(rotation=Rotation.GRACE)
    stage.expire()
    two = await stage.engine.open()
    step = stage.server.hold()
    slow = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id, audience=OTHER))
    await step.reached.wait()
    stage.engine.backend.leases.clear()

    await stage.refresh(two)
    step.release()

    assert access_token(await slow).endswith(OTHER.resource or "")


async def test_tk_01_a_strict_server_is_not_asked_while_the_owner_may_still_get_its_answer(stage: Stage) -> None:
    """Who gets the lease of a process that stalls waits until its answer can't come any more."""
    stage.expire()
    two = await stage.engine.open()
    step = stage.server.hold()
    slow = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await step.reached.wait()
    stage.engine.backend.leases.clear()

    assert Unavailable(Cause.PROVIDER, 15.0) == await stage.refresh(two)
    step.release()
    assert isinstance(await slow, Token)
    assert 1 == len(stage.presented())


async def test_a_process_that_stood_still_sends_nothing(stage: Stage) -> None:
    """Between its intent and its request others may have taken it for dead, and asked in its place."""
    stage.expire()
    rule = stage.one.store.trouble("replace", "held_answer")
    slow = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await rule.reached.wait()
    stage.clock.advance(5.1)  # more than may pass before a request of ten seconds
    rule.released.set()

    assert isinstance(await slow, Token)
    calls = stage.one.store.calls
    assert 1 == len(stage.presented())
    assert 4 == calls.count("replace")  # intent, its withdrawal, intent, answer


async def test_no_answer_is_waited_for_longer_than_others_believe(start_stage: StartStage) -> None:
    """Whatever else a provider does before it sends, discovery for one, counts."""
    stage = await start_stage(token_endpoint_timeout_seconds=0.1)
    stage.expire()
    stage.server.hold()

    assert isinstance(await stage.refresh(), Unavailable)
    assert (await stage.grant()).intent is not None


async def test_patience_ends(stage: Stage) -> None:
    """A lease that is held for ever costs a caller half a minute, not for ever."""
    stage.expire()
    two = await stage.engine.open()
    lease = await two.vault.lease(stage.grant_id, 10 * PATIENCE_SECONDS)
    assert hasattr(lease, "renew")
    waiting = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await until(lambda: stage.one.store.calls.count("lease") >= 2)
    stage.clock.advance(PATIENCE_SECONDS)

    assert Unavailable(Cause.PROVIDER, 1.0) == await waiting


async def test_a_request_that_would_be_late_is_not_repeated_and_no_doubt_is_made_of_it(
    start_stage: StartStage,
) -> None:
    """With a short deadline there is no time for all quick tries; what surely processed nothing stays settled."""
    stage = await start_stage(token_endpoint_timeout_seconds=2.0)
    stage.expire()
    step = stage.server.hold("transient", processed=False)
    running = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await step.reached.wait()
    stage.clock.advance(1.96)
    step.release()

    assert isinstance(await running, Unavailable)
    assert 1 == len(stage.presented())
    assert (await stage.grant()).intent is None


# --- what failures mean


@pytest.mark.parametrize(
    ("rotation", "kind", "processed", "tries"),
    [
        ("strict", "permanent", False, 1),
        ("strict", "operator", False, 1),
        ("strict", "transient", False, TRIES),
        ("strict", "in_doubt", False, 1),
        ("strict", "in_doubt", True, 1),
        ("grace", "in_doubt", False, TRIES),
        ("grace", "in_doubt", True, TRIES),
        ("none", "in_doubt", True, TRIES),
        ("grace", "transient", False, TRIES),
    ],
)
@pytest.mark.parametrize("alive", [True, False])
async def test_tk_04_what_each_class_of_failure_does(
    start_stage: StartStage, rotation: str, kind: str, processed: bool, tries: int, alive: bool
) -> None:
    """Only invalid_grant ends a grant; a live token serves on; a doubt stays written; nothing is tried in vain."""
    stage = await start_stage(rotation=rotation)
    if alive:
        stage.come_due()
    else:
        stage.expire()
    stage.server.refuse_always(kind, processed=processed)

    result = await stage.refresh()

    grant = await stage.grant()
    match kind:
        case "permanent":
            assert LoginNeeded(EndReason.INVALID_GRANT) == result
        case _ if alive:
            assert "at-1" == access_token(result)
        case "operator":
            assert isinstance(result, Unavailable)
            assert 5 <= result.retry_after_seconds <= 10
        case _:
            assert isinstance(result, Unavailable)
            assert 0 < result.retry_after_seconds <= 0.5
    assert (kind == "permanent") == (grant.ended is not None)
    assert (kind == "in_doubt") == (grant.intent is not None)
    assert (kind != "permanent") == ("" in grant.failures)
    assert tries == len(stage.presented())


async def test_what_fails_in_passing_is_tried_again_before_anybody_is_told(stage: Stage) -> None:
    """Two refusals that processed nothing cost the caller half a second, and then the provider is well again."""
    stage.expire()
    stage.server.refuse("transient", times=2)

    assert isinstance(await stage.refresh(), Token)
    assert 3 == len(stage.presented())
    assert {} == (await stage.grant()).failures
    assert 0 == stage.one.broker.providers["corp"].health.breaker.failures


async def test_retry_after_is_obeyed_and_given(stage: Stage) -> None:
    """No quick try, no other grant's request, and the caller is told."""
    stage.expire()
    stage.server.refuse("transient", retry_after_seconds=7.0)

    first, second = await stage.refresh(), await stage.refresh()

    assert isinstance(first, Unavailable)
    assert isinstance(second, Unavailable)
    assert 7.0 <= first.retry_after_seconds <= second.retry_after_seconds <= 7.7
    assert 1 == len(stage.presented())


async def test_tk_08_a_grant_that_alone_fails_is_not_asked_without_rest(stage: Stage) -> None:
    """Others' successes don't void its backoff."""
    other = await stage.one.adopt(stage.server.login_tokens("bob"), subject="bob")
    stage.expire()
    stage.server.refuse("operator")
    await stage.refresh()
    await stage.one.broker.token(other.id)

    assert isinstance(await stage.refresh(), Unavailable)
    assert 2 == len(stage.presented())


async def test_a_doubt_is_not_settled_by_a_refusal_of_the_same_attempt(start_stage: StartStage) -> None:
    """The first answer was lost, the second time nobody was there: the first may have been processed."""
    stage = await start_stage(rotation=Rotation.GRACE)
    stage.come_due()
    stage.server.refuse("in_doubt", processed=True)
    stage.server.refuse("transient", times=2)

    await stage.refresh()

    grant = await stage.grant()
    assert grant.intent is not None
    stage.clock.advance(29)  # within the grace of the first presentation
    assert isinstance(await stage.refresh(), Token)
    assert [] == stage.server.ledger.families_revoked()


@pytest.mark.parametrize("kind", ["permanent", "operator", "transient"])
async def test_a_claim_by_the_keep_alive_does_not_make_an_answer_late(stage: Stage, kind: str) -> None:
    """Another process writes the record anew while a slow request runs: what comes of it counts all the same."""
    stage.expire()
    step = stage.server.hold(kind, processed=False, retry_after_seconds=1.0)
    running = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await step.reached.wait()
    found = await stage.stored()
    await stage.one.vault.replace(found, found.grant, due_at=stage.clock.now() + 30)
    step.release()
    await running

    grant = await stage.grant()
    assert grant.intent is None
    assert (kind == "permanent") == (grant.ended is not None)
    assert 1 == len(stage.presented())


async def test_invalid_grant_counts_only_for_what_was_presented(start_stage: StartStage) -> None:
    """Another process rotated meanwhile: the refusal speaks of a token that nobody holds any more."""
    stage = await start_stage(rotation=Rotation.GRACE)
    stage.expire()
    two = await stage.engine.open()
    step = stage.server.hold("permanent", processed=False)
    slow = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await step.reached.wait()
    stage.engine.backend.leases.clear()
    newer = await stage.refresh(two)
    step.release()

    assert access_token(newer) == access_token(await slow)
    assert (await stage.grant()).ended is None


@pytest.mark.parametrize("trouble", ["fails", "applied"])
@pytest.mark.parametrize("kind", ["permanent", "operator", "transient", "in_doubt"])
async def test_what_could_not_be_written_down_is_not_forgotten(stage: Stage, kind: str, trouble: str) -> None:
    """The store failed just when the answer came: it is written later, and the refresh token isn't presented for it."""
    stage.expire()
    step = stage.server.hold(kind, processed=False, retry_after_seconds=0.0)
    running = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await step.reached.wait()
    stage.one.store.trouble("replace", trouble)
    step.release()
    assert Unavailable(Cause.STORE, 1.0) == await running

    result = await stage.refresh()

    grant = await stage.grant()
    assert 1 == len(stage.presented())
    assert (kind == "permanent") == (grant.ended is not None) == isinstance(result, LoginNeeded)
    assert (kind == "in_doubt") == (grant.intent is not None)


async def test_only_the_process_that_knows_settles_a_doubt(stage: Stage) -> None:
    """To another one the intent is in doubt: nothing is presented while the answer may come."""
    stage.expire()
    stage.one.store.trouble("replace", "applied")
    await stage.refresh()
    two = await stage.engine.open()

    assert isinstance(await stage.refresh(two), Unavailable)
    assert [] == stage.presented()
    stage.clock.advance(15)
    assert isinstance(await stage.refresh(two), Token)


# --- in doubt


@pytest.mark.parametrize(
    ("rotation", "processed"), [("none", True), ("grace", True), ("grace", False), ("strict", False)]
)
async def test_ft_07_and_ft_08_a_lost_answer_is_asked_for_again_where_nothing_can_be_lost(
    start_stage: StartStage, rotation: str, processed: bool
) -> None:
    """Within a second: the access token is dead, and the process has noted that no answer comes."""
    stage = await start_stage(rotation=rotation)
    stage.expire()
    stage.server.refuse("in_doubt", processed=processed, retry_after_seconds=0.0)
    assert isinstance(await stage.refresh(), Unavailable)
    stage.clock.advance(1)

    assert isinstance(await stage.refresh(), Token)
    assert [] == stage.server.ledger.families_revoked()


async def test_two_processes_never_present_a_doubtful_token_at_once(stage: Stage) -> None:
    """The doubt is old, and one of them is at it again: the other waits until that answer can't come any more."""
    stage.come_due()
    stage.server.refuse("in_doubt")
    await stage.refresh()
    stage.clock.advance(60)
    two = await stage.engine.open()
    step = stage.server.hold()
    slow = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await step.reached.wait()
    stage.engine.backend.leases.clear()

    assert Unavailable(Cause.PROVIDER, 15.0) == await stage.refresh(two)
    step.release()
    assert isinstance(await slow, Token)
    assert [] == stage.server.ledger.families_revoked()


async def test_ft_08_a_strict_server_is_asked_again_only_when_nothing_is_left_to_lose(stage: Stage) -> None:
    """The access token is used up first. Then the answer is definite: the family had rotated, and ends."""
    stage.come_due()
    stage.server.refuse("in_doubt", processed=True)
    for _ in range(5):
        assert "at-1" == access_token(await stage.refresh())
        stage.clock.advance(5)
    assert 1 == len(stage.presented())

    stage.clock.advance(5)
    assert LoginNeeded(EndReason.INVALID_GRANT) == await stage.refresh()
    assert {"reuse"} == {family.revoked for family in stage.server.ledger.families_revoked()}


# --- audiences


async def test_the_use_of_the_refresh_token_is_serial_over_all_audiences(stage: Stage) -> None:
    """Each audience gets its own token, one after the other, each with the refresh token that the last one brought."""
    stage.expire()
    audiences = [DEFAULT_AUDIENCE, OTHER, Audience(audience="b"), Audience(scope="c")]

    results = await asyncio.gather(*(stage.refresh(audience=audience) for audience in audiences))

    assert 4 == len({access_token(result) for result in results})
    assert {} == stage.server.ledger.presented_twice()
    assert 4 == len(stage.presented())
    grant = await stage.grant()
    assert [access_token(result) for result in results] == [
        grant.tokens[audience.key].access_token.reveal() for audience in audiences
    ]


async def test_who_waited_for_a_permit_decides_again(stage: Stage) -> None:
    """The breaker opened while another grant waited for a probe; it doesn't ask in vain."""
    bob = (await stage.one.adopt(stage.server.login_tokens("bob"), subject="bob")).id
    stage.expire()
    await stage.rest_the_provider()
    step = stage.server.hold("transient", processed=False)
    probe = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await step.reached.wait()
    waiting = stage.one.broker.refresher.start(Want(grant_id=bob))
    await until(lambda: stage.one.store.calls.count("lease") >= 2)
    step.release()

    assert isinstance(await probe, Unavailable)
    assert isinstance(await waiting, Unavailable)
    assert 1 == len(stage.presented())


# --- without a refresh token


async def test_a_standing_grant_begins_anew_when_its_refresh_token_has_ended(start_stage: StartStage) -> None:
    """invalid_grant drops the refresh token, and the same caller gets a token that was acquired."""
    stage = await start_stage()
    acquired: list[Grant] = []

    async def acquire(grant: Grant, _audience: Audience) -> TokenOutcome:
        acquired.append(grant)
        return answer(9, requested_at=stage.clock.now(), refresh_token=None)

    replica = await stage.engine.open(acquire=acquire)
    grant = await replica.adopt(stage.server.login_tokens(), origin=Origin.STANDING)
    stage.expire()
    stage.server.refuse("permanent")

    result = await replica.broker.token(grant.id)

    assert "at-9" == access_token(result)
    assert [None] == [each.refresh_token for each in acquired]
    assert (await replica.grant(grant.id)).ended is None


async def test_without_anything_that_acquires_a_standing_grant_waits_for_its_operator(stage: Stage) -> None:
    """It never ends by itself."""
    grant = await stage.one.adopt(stage.server.login_tokens(), origin=Origin.STANDING)
    stage.expire()
    stage.server.refuse("permanent")

    assert isinstance(await stage.one.broker.token(grant.id), Unavailable)
    assert (await stage.one.grant(grant.id)).ended is None


# --- the clock


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
@pytest.mark.parametrize("state", ["alive", "in doubt", "backing off", "provider rests"])
async def test_ft_15_a_clock_that_jumps_an_hour_keeps_nobody_out(stage: Stage, state: str, jump: float) -> None:
    """Within the wait for a lost answer every caller has a token again, whatever was going on."""
    match state:
        case "in doubt":
            stage.expire()
            stage.server.refuse("in_doubt")
            await stage.refresh()
        case "backing off":
            stage.expire()
            stage.server.refuse("operator")
            await stage.refresh()
        case "provider rests":
            stage.expire()
            stage.server.refuse("transient", retry_after_seconds=4.0)
            await stage.refresh()
        case _:
            pass
    stage.clock.set_wall_clock(jump)

    for _ in range(16):
        if isinstance(await stage.refresh(rejected_generation=1), Token):
            break
        stage.clock.advance(1)

    assert isinstance(await stage.refresh(rejected_generation=1), Token)
    assert [] == stage.server.ledger.families_revoked()


async def test_ft_15_a_grace_that_was_over_does_not_begin_again_when_the_clock_is_set_back(
    start_stage: StartStage,
) -> None:
    """By the clock it is yet to come; by the server it is over, and what is presented then ends the family."""
    stage = await start_stage(rotation="grace", rotation_grace_seconds=30.0)
    stage.come_due()
    stage.server.refuse("in_doubt", processed=True, times=TRIES)
    assert isinstance(await stage.refresh(), Token)
    presented = stage.presented()
    stage.clock.advance(60)
    stage.clock.set_wall_clock(-3600)

    assert isinstance(await stage.refresh(), Token)

    assert presented == stage.presented()
    assert [] == stage.server.ledger.families_revoked()


def test_the_life_of_a_token_in_these_tests_is_longer_than_any_wait() -> None:
    """Else "alive" and "dead" would not be what the tests say."""
    assert LIFE > 4 * 15

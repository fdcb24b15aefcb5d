"""Refreshing the grants of absent users, and settling what a crash left in doubt."""

import asyncio
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from broker.core.audience import DEFAULT_AUDIENCE
from broker.core.grant import EndReason, Origin
from broker.core.refresh import begin, succeed
from broker.errors import StoreError
from broker.services.keepalive import BATCH, CLAIM_SECONDS, PROVIDER_SECONDS, UNREADABLE_SECONDS, KeepAlive
from broker.services.keyring import Keyring
from broker.services.refresher import Want
from broker.services.revocations import Revocations
from broker.services.tasks import Tasks
from broker.services.vault import StoredGrant, Vault
from tests.services.conftest import StartStage
from tests.support.clock import SeededRandomness
from tests.support.engine import KEY, NEWER_KEY, PROVIDER, Replica, access_token, ring
from tests.support.grants import LIFE
from tests.support.scripted_server import ScriptedServer
from tests.support.stage import Stage
from tests.support.waiting import until

IDLE = 1800.0


async def idle_stage(start_stage: StartStage, **options: Any) -> Stage:
    return await start_stage(**{"idle_timeout_seconds": IDLE, "keep_alive_per_second": 1000.0, **options})


async def log_in(stage: Stage, count: int, **changes: Any) -> list[str]:
    return [
        (await stage.one.adopt(stage.server.login_tokens(f"user{number}"), subject=f"user{number}", **changes)).id
        for number in range(count)
    ]


async def keep(stage: Stage, seconds: float, *, step: float = 30.0) -> int:
    """Let time pass and every replica scan. Returns how many grants were claimed."""
    claimed = 0
    for _ in range(round(seconds / step)):
        stage.clock.advance(step)
        for replica in stage.engine.replicas:
            claimed += await replica.keep_alive.scan()
    return claimed


async def test_absent_users_stay_logged_in(start_stage: StartStage) -> None:
    """A server's 30-minute idle limit doesn't end an 8-hour session over lunch."""
    stage = await idle_stage(start_stage)
    await log_in(stage, 5)

    await keep(stage, 8 * 3600)

    by_family: dict[str | None, list[float]] = {}
    for presentation in stage.server.ledger.presented:
        by_family.setdefault(presentation.family, []).append(presentation.at)
    gaps = [later - earlier for moments in by_family.values() for earlier, later in pairwise(moments)]
    assert 6 == len(by_family)
    assert 0.39 * IDLE < min(gaps) <= max(gaps) < 0.55 * IDLE
    assert {} == stage.server.ledger.presented_twice()


async def test_a_grant_that_is_due_is_claimed_by_one_replica(start_stage: StartStage) -> None:
    """However many look at once."""
    stage = await idle_stage(start_stage)
    await log_in(stage, 10)
    for _ in range(3):
        await stage.engine.open()
    stage.clock.advance(IDLE / 2)

    claims = await asyncio.gather(*(replica.keep_alive.scan() for replica in stage.engine.replicas))

    assert 11 == sum(claims)
    assert 11 == len(stage.presented())
    assert {} == stage.server.ledger.presented_twice()


async def test_due_times_are_jittered(start_stage: StartStage) -> None:
    """The logins of one morning don't come due in one minute."""
    stage = await idle_stage(start_stage)
    await log_in(stage, 40)
    due = sorted(kept.due_at for kept in stage.engine.backend.records.values() if kept.due_at is not None)

    assert 41 == len(due)
    assert due[-1] - due[0] > 0.05 * IDLE


async def test_a_refresh_by_its_user_puts_the_due_time_off(start_stage: StartStage) -> None:
    """What is used needs no help."""
    stage = await idle_stage(start_stage)
    for _ in range(20):
        stage.expire()
        await stage.refresh()
        assert 0 == await stage.one.keep_alive.scan()


async def test_a_grant_is_not_kept_beyond_its_session_or_its_chain(start_stage: StartStage) -> None:
    """Nobody can use it any more."""
    stage = await idle_stage(start_stage, max_rotation_seconds=3600.0)
    (short,) = await log_in(stage, 1, keep_until=stage.clock.now() + 600)

    await keep(stage, 4 * 3600)

    first, second = stage.server.families.by_id.values()
    counts = Counter(entry.family for entry in stage.server.ledger.presented)
    assert 0 == counts[second.id]
    assert 3 <= counts[first.id] <= 4
    assert (await stage.one.grant(short)).generation == 1


async def test_a_server_without_limits_is_left_alone(stage: Stage) -> None:
    """Where nothing is known to end, nothing is kept alive."""
    await keep(stage, 3600)

    assert [] == stage.presented()


async def test_a_server_that_ends_refresh_tokens_at_a_known_time_needs_no_option(stage: Stage) -> None:
    """refresh_expires_in says it."""
    tokens = replace(stage.server.login_tokens("bob"), refresh_expires_at=stage.clock.now() + 1000)
    bob = await stage.one.adopt(tokens, subject="bob")
    await keep(stage, 510)

    assert 2 == (await stage.one.grant(bob.id)).generation


async def test_refresh_expires_in_0_and_an_idle_limit(start_stage: StartStage) -> None:
    """Keycloak's offline sessions report 0 and are ended when idle: idle_timeout covers it."""
    stage = await idle_stage(start_stage)
    tokens = replace(stage.server.login_tokens("bob"), refresh_expires_at=None)
    bob = await stage.one.adopt(tokens, subject="bob")
    await keep(stage, IDLE)

    assert 2 <= (await stage.one.grant(bob.id)).generation


async def test_the_rate_is_within_the_providers_budget(start_stage: StartStage) -> None:
    """A thousand idle grants don't flood their server."""
    stage = await idle_stage(start_stage, keep_alive_per_second=50.0)
    await log_in(stage, 10)
    stage.clock.advance(IDLE)
    began = asyncio.get_running_loop().time()

    assert 11 == await stage.one.keep_alive.scan()

    assert asyncio.get_running_loop().time() - began > 10 / 50


async def test_what_was_claimed_and_not_settled_is_looked_at_again(start_stage: StartStage) -> None:
    """A provider that is down for a while, or a claimer that dies, costs time and nothing else."""
    stage = await idle_stage(start_stage)
    stage.clock.advance(IDLE / 2)
    stage.server.refuse_always("operator")
    await stage.one.keep_alive.scan()
    assert 1 == (await stage.grant()).generation
    stage.server.recover()

    await keep(stage, 2 * CLAIM_SECONDS)

    assert 2 == (await stage.grant()).generation


async def test_tk_02_what_a_crash_left_in_doubt_is_settled_soon(start_stage: StartStage) -> None:
    """Without the user, within its server's grace."""
    stage = await start_stage(rotation="grace")
    two = await stage.engine.open()
    stage.server.hold()
    _ = two.broker.refresher.start(Want(grant_id=stage.grant_id, rejected_generation=1))
    await until(lambda: len(stage.presented()) == 1)
    await two.crash()
    stage.engine.replicas.remove(two)

    await keep(stage, 6, step=1)

    grant = await stage.grant()
    assert (2, None) == (grant.generation, grant.intent)
    assert [] == stage.server.ledger.families_revoked()


async def test_a_strict_doubt_is_not_presented_before_it_must_be(start_stage: StartStage) -> None:
    """The access token is dead, but nobody has come: only the server's idle limit makes it urgent."""
    stage = await idle_stage(start_stage)
    stored = await stage.one.vault.read(stage.grant_id)
    assert stored is not None
    doubtful = begin(stored.grant, attempt="a", owner="dead", now=stage.clock.now())
    await stage.one.vault.replace(stored, doubtful, due_at=stage.clock.now())

    await keep(stage, IDLE / 2 - 30)
    assert stage.clock.now() > stored.grant.tokens[""].expires_at
    assert [] == stage.presented()
    await keep(stage, 3 * CLAIM_SECONDS)

    assert 1 == len(stage.presented())
    assert 2 == (await stage.grant()).generation


async def test_tk_02_a_host_that_comes_back_late_brings_the_answer_that_it_had(start_stage: StartStage) -> None:
    """Strict, and the access token died meanwhile: the other hosts' keep-alive left the spent refresh token alone."""
    stage = await idle_stage(start_stage)
    elsewhere = stage.engine.directory / "elsewhere"
    lost = await stage.engine.open(directory=elsewhere)
    lost.store.trouble("replace", "fails", skip=1)
    running = lost.broker.refresher.start(Want(grant_id=stage.grant_id, rejected_generation=1))
    await until(lambda: len(lost.spool) == 1, what="the answer")
    await lost.crash()
    stage.engine.replicas.remove(lost)
    assert running.done()

    await keep(stage, 2 * LIFE)
    returned = await stage.engine.open(directory=elsewhere)
    await returned.broker.recover()

    grant = await stage.grant()
    assert (2, None) == (grant.generation, grant.intent)
    assert "at-3" == access_token(await stage.refresh())
    assert {} == stage.server.ledger.presented_twice()
    assert [] == stage.server.ledger.families_revoked()


async def test_an_ended_grant_is_not_due_any_more(start_stage: StartStage) -> None:
    """Whatever due time was left."""
    stage = await idle_stage(start_stage)
    await stage.one.broker.end(stage.grant_id, EndReason.LOGOUT, revoke=False)
    stored = await stage.one.vault.read(stage.grant_id)
    assert stored is not None
    await stage.one.vault.replace(stored, stored.grant, due_at=stage.clock.now())

    assert 1 == await stage.one.keep_alive.scan()
    assert 0 == await stage.one.keep_alive.scan()
    assert [] == await stage.one.vault.due(stage.clock.now() + 10 * IDLE, 10)


async def test_ft_12_the_end_of_the_process_does_not_cut_off_a_rotation(start_stage: StartStage) -> None:
    """The scan is cancelled; the refresh that it began is drained."""
    stage = await idle_stage(start_stage)
    stage.clock.advance(IDLE / 2)
    step = stage.server.hold()
    tasks = Tasks()
    scanning = tasks.spawn(stage.one.keep_alive.scan(), name="scan")
    await step.reached.wait()
    scanning.cancel()
    await asyncio.sleep(0)
    closing = tasks.spawn(stage.one.broker.close(5), name="closing")
    await asyncio.sleep(0.01)
    step.release()
    await closing

    assert 2 == (await stage.grant()).generation


async def test_cr_04_records_that_can_not_be_opened_do_not_hide_the_others(start_stage: StartStage) -> None:
    """A key was removed, or a later release wrote them: they are looked at now and then, and left as they are."""
    stage = await idle_stage(start_stage)
    store, ring = stage.one.store, stage.one.vault._keyring
    for number in range(BATCH + 20):
        key = f"grant:{number:064x}"
        value = b"garbage" if number % 2 else ring.seal("grant", key, b'{"v": 2}')
        await store.create(key, value, ttl_seconds=1e6, due_at=stage.clock.now() - 1)
    stage.clock.advance(IDLE / 2)

    for _ in range(3):
        await stage.one.keep_alive.scan()

    assert 2 == (await stage.grant()).generation
    record = await store.get(f"grant:{1:064x}")
    assert record is not None
    assert b"garbage" == record.value
    stage.clock.advance(2 * UNREADABLE_SECONDS)
    assert len(await stage.one.vault.due(stage.clock.now(), 1000)) >= BATCH + 20


async def test_cr_04_a_record_under_the_name_of_a_removed_key_refreshes_nothing(start_stage: StartStage) -> None:
    """Another record of the grant may have begun since, as that of a standing grant does."""
    stage = await idle_stage(start_stage)
    both, newer = (
        Vault(stage.one.store, Keyring([NEWER_KEY, KEY])),
        await stage.engine.open(keyring=Keyring([NEWER_KEY])),
    )
    found = await both.read(stage.grant_id)
    assert found is not None
    await both.replace(found, found.grant, due_at=stage.clock.now())
    await newer.vault.create(found.grant, ttl_seconds=1e6, due_at=None)
    stage.expire()

    await newer.keep_alive.scan()

    assert [] == stage.presented()


async def test_ds_05_a_slow_provider_does_not_starve_another(start_stage: StartStage) -> None:
    """They are served side by side, and none for longer than its share of a scan."""
    stage = await idle_stage(start_stage)
    await log_in(stage, 3)
    fast = ScriptedServer(stage.clock, name="fast", idle_timeout_seconds=IDLE, keep_alive_per_second=1000.0)
    both: Replica = await stage.engine.open(servers={PROVIDER: stage.server, "fast": fast})
    bob = await both.broker.adopt(
        "fast", fast.login_tokens("bob"), subject="bob", origin=Origin.BROWSER, keep_until=None, ttl_seconds=1e6
    )
    stage.clock.advance(IDLE / 2)
    step = stage.server.hold()
    tasks = Tasks()
    scanning = tasks.spawn(both.keep_alive.scan(), name="scan")
    await step.reached.wait()
    await until(lambda: len(fast.refreshes) == 1)
    stage.clock.advance(PROVIDER_SECONDS)
    step.release()

    assert 2 == await scanning  # one of each: the other three of the slow one are left to the next scan
    assert 2 == (await both.grant(bob.id)).generation


@pytest.mark.parametrize("configured", [True, False])
async def test_ds_05_a_backlog_of_one_provider_does_not_starve_another(
    start_stage: StartStage, configured: bool
) -> None:
    """More are due of it than are looked at, at once: they wait for their turn, and only they."""
    stage = await idle_stage(start_stage, keep_alive_per_second=5.0)
    await log_in(stage, 3 * BATCH)
    stage.clock.advance(1)
    fast = ScriptedServer(stage.clock, name="fast", idle_timeout_seconds=IDLE, keep_alive_per_second=1000.0)
    servers = {PROVIDER: stage.server, "fast": fast} if configured else {"fast": fast}
    both: Replica = await stage.engine.open(servers=servers)
    stage.clock.advance(IDLE / 2)
    bob = await both.broker.adopt(
        "fast", fast.login_tokens("bob"), subject="bob", origin=Origin.BROWSER, keep_until=None, ttl_seconds=1e6
    )
    stage.clock.advance(IDLE / 2)
    step = stage.server.hold()
    tasks = Tasks()
    scanning = tasks.spawn(both.keep_alive.scan(), name="scan")

    await until(lambda: len(fast.refreshes) == 1)
    scanning.cancel()
    step.release()
    await until(lambda: not len(tasks))
    stage.clock.advance(2 * (CLAIM_SECONDS if configured else UNREADABLE_SECONDS))
    waiting = await both.vault.due(stage.clock.now(), 10 * BATCH)
    assert len(waiting) >= 3 * BATCH, "none of them is given up"
    assert 2 == (await both.grant(bob.id)).generation


async def test_a_provider_that_rests_is_passed_over_quickly(start_stage: StartStage) -> None:
    """No budget is spent on requests that aren't made."""
    stage = await idle_stage(start_stage, keep_alive_per_second=0.2)  # one that is spent takes five seconds
    await log_in(stage, 20)
    stage.clock.advance(IDLE / 2)
    stage.server.refuse("transient", retry_after_seconds=60.0)
    began = asyncio.get_running_loop().time()

    assert 21 == await stage.one.keep_alive.scan()

    assert asyncio.get_running_loop().time() - began < 4
    assert 1 == len(stage.presented())


async def test_a_grant_of_a_removed_provider_is_left_alone(start_stage: StartStage) -> None:
    """It comes back with its configuration. Until then it is looked at now and then, and costs nearly nothing."""
    stage = await idle_stage(start_stage)
    poor = await stage.engine.open(servers={"other": stage.server})
    stage.clock.advance(IDLE / 2)

    assert 0 == await poor.keep_alive.scan()
    poor.store.calls.clear()
    stage.clock.advance(UNREADABLE_SECONDS / 2)
    assert 0 == await poor.keep_alive.scan()

    assert ["due"] == poor.store.calls
    assert [] == stage.presented()
    assert 1 == len(await poor.vault.due(stage.clock.now() + UNREADABLE_SECONDS, BATCH))


async def test_a_grant_that_was_refreshed_between_the_look_and_the_claim_is_not_refreshed_again(
    start_stage: StartStage,
) -> None:
    """The claim is a compare-and-set on what was seen."""
    stage = await idle_stage(start_stage)
    stage.clock.advance(IDLE / 2)
    rule = stage.one.store.trouble("replace", "held")
    tasks = Tasks()
    scanning = tasks.spawn(stage.one.keep_alive.scan(), name="scan")
    await rule.reached.wait()
    two = await stage.engine.open()
    await stage.refresh(two, rejected_generation=1)
    rule.released.set()

    assert 0 == await scanning
    assert 1 == len(stage.presented())


async def test_it_runs_until_it_is_cancelled_and_survives_the_store(
    start_stage: StartStage, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that is down is asked again a second later."""
    stage = await idle_stage(start_stage)
    stage.clock.advance(IDLE / 2)
    stage.one.store.trouble("due", "fails")
    tasks = Tasks()
    running = tasks.spawn(stage.one.keep_alive.run(), name="keep-alive")

    await until(lambda: len(stage.presented()) == 1, seconds=5)
    await until(lambda: "store_back" in caplog.text, seconds=5)
    assert 1 == caplog.text.count("store_lost")
    running.cancel()
    await asyncio.wait([running])

    assert running.cancelled()


@pytest.mark.parametrize("fails", [False, True])
async def test_ft_15_what_was_refreshed_while_the_clock_was_ahead_is_kept_alive(
    start_stage: StartStage, caplog: pytest.LogCaptureFixture, fails: bool
) -> None:
    """By its record that is yet to come, and its server would have ended it by the time it is due."""
    stage = await idle_stage(start_stage)
    stage.clock.set_wall_clock(6 * 3600)
    users = await log_in(stage, BATCH + 5)
    await stage.one.keep_alive.scan()
    presented = len(stage.presented())
    stage.clock.advance(60)
    stage.clock.set_wall_clock(-6 * 3600)
    if fails:
        stage.one.store.trouble("due", "fails")
        with pytest.raises(StoreError):
            await stage.one.keep_alive.scan()
        stage.server.refuse("operator", times=len(users))

    await keep(stage, 60)
    assert presented == len(stage.presented())
    await keep(stage, IDLE / 2 + CLAIM_SECONDS)

    assert {True} == {(await stage.one.grant(user)).refreshed_at <= stage.clock.now() for user in users}
    assert {2} == {(await stage.one.grant(user)).generation for user in users}
    assert "clock_set_back" in caplog.text


class _FaultyVault(Vault):
    """Has a fault of ours in it, as often as a test says."""

    faults = 0
    calls = 0

    def _strike(self) -> None:
        self.calls += 1
        if self.calls <= self.faults:
            raise ValueError("a fault of ours")

    async def due(self, before: float, limit: int) -> list[str]:
        self._strike()
        return await super().due(before, limit)


class _FaultyRecords(_FaultyVault):
    async def due(self, before: float, limit: int) -> list[str]:
        return await Vault.due(self, before, limit)

    async def read_key(self, key: str) -> StoredGrant | None:
        self._strike()
        return await super().read_key(key)


class _FaultyRevocations(Revocations):
    async def settle(self, stored: StoredGrant) -> bool:
        raise ValueError("a fault of ours")


@pytest.mark.parametrize("vault_type", [_FaultyVault, _FaultyRecords])
async def test_it_outlives_a_fault_of_ours(
    start_stage: StartStage, caplog: pytest.LogCaptureFixture, vault_type: type[_FaultyVault]
) -> None:
    """It is logged, and what is due is kept alive: that of other grants at once, and the rest later."""
    stage = await idle_stage(start_stage)
    await log_in(stage, 1)
    one = stage.one
    vault = vault_type(one.store, ring())
    vault.faults = 1
    keep_alive = KeepAlive(vault, one.broker.refresher, one.broker.revocations, stage.clock, SeededRandomness())
    stage.clock.advance(IDLE / 2)
    tasks = Tasks()
    running = tasks.spawn(keep_alive.run(), name="keep-alive")

    await until(lambda: len(stage.presented()) >= 1, seconds=5)
    running.cancel()
    await asyncio.wait([running])

    assert running.cancelled()
    assert "keep_alive_failed" in caplog.text
    stage.clock.advance(2 * UNREADABLE_SECONDS)
    await one.keep_alive.scan()
    assert len(stage.presented()) >= 2


async def test_a_fault_of_ours_with_one_grant_costs_the_others_nothing(
    start_stage: StartStage, caplog: pytest.LogCaptureFixture
) -> None:
    """It was claimed, and those behind it are kept alive in the same scan."""
    stage = await idle_stage(start_stage)
    one = stage.one
    revocations = _FaultyRevocations(one.vault, one.servers, stage.clock)
    keep_alive = KeepAlive(one.vault, one.broker.refresher, revocations, stage.clock, SeededRandomness())
    (bob,) = await log_in(stage, 1)
    await one.broker.end(stage.grant_id, EndReason.REVOKED)
    stage.clock.advance(IDLE / 2)

    assert 2 == await keep_alive.scan()
    assert 2 == (await one.grant(bob)).generation
    assert "keep_alive_failed" in caplog.text


async def test_what_counts_as_idle_begins_anew_with_each_refresh(start_stage: StartStage) -> None:
    """The due time follows the last token response."""
    stage = await idle_stage(start_stage)
    stored = await stage.one.vault.read(stage.grant_id)
    assert stored is not None
    assert succeed(stored.grant, DEFAULT_AUDIENCE, stage.server.login_tokens("x")).refreshed_at == stage.clock.now()
    stage.clock.advance(IDLE / 4)
    await stage.refresh(rejected_generation=1)
    (due,) = [kept.due_at for kept in stage.engine.backend.records.values()]

    assert due is not None
    assert 0.4 * IDLE <= due - stage.clock.now() <= 0.5 * IDLE

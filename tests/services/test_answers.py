"""A token response on its way home: on the disk at once, in the store before any check, and never dropped."""

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from broker.core.grant import EndReason, Origin
from broker.core.outcome import Cause, LoginNeeded, Token, Unavailable
from broker.core.provider import Rotation
from broker.core.secret import IdToken
from broker.errors import ProviderError, StoreError
from broker.services.answers import IDENTITY_CHECK_SECONDS, SAVE_RETRY_SECONDS
from broker.services.keyring import Keyring
from broker.services.provider import Identity
from broker.services.refresher import STORE_RETRY_SECONDS, Want
from tests.services.conftest import StartStage
from tests.services.test_spool import full_disk
from tests.support.engine import KEY, NEWER_KEY, Replica, access_token
from tests.support.forge import join
from tests.support.grants import LIFE
from tests.support.stage import Stage
from tests.support.waiting import until, until_async

SAVES = 1 + len(SAVE_RETRY_SECONDS)


async def nothing_lost(stage: Stage) -> None:
    """The store has the family's only usable refresh token, and no family was revoked."""
    grant = await stage.grant()
    assert grant.refresh_token is not None
    assert stage.server.ledger.usable(stage.family()) == {grant.refresh_token.reveal()}
    assert [] == stage.server.ledger.families_revoked()


async def die_before_saving(replica: Replica, *grant_ids: str) -> None:
    """Kill the process after the answers came and before any is saved."""
    rule = replica.store.trouble("replace", "held", skip=len(grant_ids), count=None)
    running = [replica.broker.refresher.start(Want(grant_id=grant_id)) for grant_id in grant_ids]
    await until(lambda: len(replica.spool) == len(running))
    await rule.reached.wait()
    await replica.crash()


async def test_tk_02_an_answer_is_on_the_disk_before_it_is_saved(stage: Stage) -> None:
    """And off it once it is in the store."""
    stage.expire()
    rule = stage.one.store.trouble("replace", "held", skip=1)
    running = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await rule.reached.wait()

    pending = stage.one.spool.pending()
    rule.released.set()
    await running

    assert [(stage.grant_id, 1)] == [(entry.grant_id, entry.chain_length) for entry in pending]
    assert [] == stage.one.spool.pending()
    await nothing_lost(stage)


@pytest.mark.parametrize("trouble", ["fails", "applied"])
@pytest.mark.parametrize("times", range(1, SAVES))
async def test_a_store_that_stumbles_costs_the_caller_nothing(stage: Stage, trouble: str, times: int) -> None:
    """The write is tried again; one that was done and reported as failed is not done twice."""
    stage.expire()
    stage.one.store.trouble("replace", trouble, skip=1, count=times)

    assert "at-2" == access_token(await stage.refresh())
    assert 2 == (await stage.grant()).generation
    assert [] == stage.one.spool.pending()
    await nothing_lost(stage)


@pytest.mark.parametrize("trouble", ["fails", "applied"])
async def test_an_answer_that_can_not_be_saved_serves_from_memory_until_it_can(stage: Stage, trouble: str) -> None:
    """The caller gets its token, and the store gets the answer as soon as it works again."""
    stage.expire()
    stage.one.store.trouble("replace", trouble, skip=1, count=None)

    assert "at-2" == access_token(await stage.refresh())
    stage.clock.advance(60)  # long after what was seen would be stale
    assert "at-2" == access_token(await stage.one.broker.token(stage.grant_id))
    assert 1 == len(stage.one.spool)
    stage.one.store.heal()
    await until(lambda: len(stage.one.spool) == 0)

    assert 1 == len(stage.presented())
    await nothing_lost(stage)


async def test_what_could_not_be_saved_is_saved_by_whoever_asks_first(stage: Stage) -> None:
    """Not at the background's leisure."""
    stage.expire()
    await stage.refresh_unsaved(stage.one)
    stage.one.store.heal()

    assert "at-2" == access_token(await stage.refresh())
    await nothing_lost(stage)


@pytest.mark.parametrize("alive", [True, False])
async def test_tk_02_what_a_killed_process_had_is_saved_at_the_next_start(stage: Stage, alive: bool) -> None:
    """Strict or not, nobody logs in again, and the old refresh token isn't presented."""
    two = await stage.engine.open()
    stage.expire()
    await die_before_saving(two, stage.grant_id)
    if not alive:
        stage.clock.advance(1000)

    restarted = await stage.engine.open()
    await restarted.broker.recover()

    assert ("at-2" if alive else "at-3") == access_token(await stage.refresh(restarted))
    assert [] == restarted.spool.pending()
    assert {} == stage.server.ledger.presented_twice()
    await nothing_lost(stage)


async def test_tk_02_another_process_of_the_host_finds_what_a_killed_one_had(stage: Stage) -> None:
    """Without any restart: before it takes a grant for doubtful, it looks."""
    two = await stage.engine.open()
    stage.expire()
    await die_before_saving(two, stage.grant_id)
    stage.clock.advance(5)  # the dead process' lease

    assert "at-2" == access_token(await stage.refresh())
    assert {} == stage.server.ledger.presented_twice()
    await nothing_lost(stage)


async def test_tk_02_another_process_saves_what_a_living_one_can_not(stage: Stage) -> None:
    """It is cut off from the store; to present the old refresh token would end the family."""
    two = await stage.engine.open()
    stage.expire()
    assert "at-2" == await stage.refresh_unsaved(two)
    stage.clock.advance(LIFE + 60)

    assert isinstance(await stage.refresh(), Token)
    assert {} == stage.server.ledger.presented_twice()
    two.store.heal()
    await until(lambda: len(two.spool) == 0)
    await nothing_lost(stage)


async def test_tk_02_who_takes_over_brings_home_all_of_it(stage: Stage) -> None:
    """Others can't see any more what was taken over: a third process must not take those grants for doubtful."""
    two = await stage.engine.open()
    bob = await two.adopt(stage.server.login_tokens("bob"), subject="bob")
    stage.expire()
    await die_before_saving(two, stage.grant_id, bob.id)
    stage.clock.advance(5)

    assert isinstance(await stage.refresh(), Token)

    async def is_saved() -> bool:
        return (await stage.one.grant(bob.id)).generation == 2

    await until_async(is_saved)
    await until(lambda: len(stage.one.spool) == 0)


async def test_what_was_saved_before_the_crash_is_not_saved_again(stage: Stage) -> None:
    """The entry was only not crossed out yet."""
    two = await stage.engine.open()
    stage.expire()
    rule = two.store.trouble("replace", "held_answer", skip=1)
    _ = two.broker.refresher.start(Want(grant_id=stage.grant_id))
    await rule.reached.wait()
    await two.crash()
    await stage.refresh()

    await stage.one.broker.recover()
    await until(lambda: len(stage.one.spool) == 0)

    assert 2 == (await stage.grant()).generation
    await nothing_lost(stage)


async def test_a_recovery_waits_for_the_store(stage: Stage) -> None:
    """A start beside a store that is down goes on, and saves when it works."""
    two = await stage.engine.open()
    stage.expire()
    await die_before_saving(two, stage.grant_id)
    stage.one.store.go_down()

    await stage.one.broker.recover()
    assert 1 == len(stage.one.spool)
    stage.one.store.heal()
    await until(lambda: len(stage.one.spool) == 0)

    await nothing_lost(stage)


async def test_cr_04_an_answer_for_a_record_that_was_sealed_anew_meanwhile_is_kept(stage: Stage) -> None:
    """A replica with a newer key has claimed the grant. It isn't gone: nothing is revoked, and the caller is served."""
    stage.expire()
    step = stage.server.hold()
    refreshing = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await step.reached.wait()
    await stage.seal_anew()
    step.release()

    assert "at-2" == access_token(await refreshing)
    assert "at-2" == access_token(await stage.one.broker.token(stage.grant_id))
    assert [] == stage.server.revoked
    assert 1 == len(stage.one.spool)


async def test_cr_04_an_answer_that_is_found_for_a_record_sealed_anew_waits_for_a_process_that_has_the_key(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """It doesn't keep those behind it waiting, and whoever comes with the key brings it home."""
    bob = await stage.one.adopt(stage.server.login_tokens("bob"), subject="bob")
    stage.expire()
    two = await stage.engine.open()
    await die_before_saving(two, stage.grant_id, bob.id)
    await stage.seal_anew()

    await stage.one.broker.recover()
    assert Unavailable(Cause.STORE, STORE_RETRY_SECONDS) == await stage.one.broker.token(stage.grant_id)

    assert [stage.grant_id] == [entry.grant_id for entry in stage.one.spool.pending()]
    assert 2 == (await stage.one.grant(bob.id)).generation
    assert [] == stage.server.revoked
    assert "answer_of_an_unreadable_grant" in caplog.text
    stage.one.spool.close()
    three = await stage.engine.open(keyring=Keyring([NEWER_KEY, KEY]))
    await three.broker.recover()
    assert 0 == len(three.spool)
    assert "at-3" == access_token(await three.broker.token(stage.grant_id))
    assert {} == stage.server.ledger.presented_twice()


async def test_an_answer_whose_provider_was_removed_stays_on_the_disk(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """The configuration may come back."""
    two = await stage.engine.open()
    stage.expire()
    await die_before_saving(two, stage.grant_id)

    poor = await stage.engine.open(servers={"other": stage.server})
    await poor.broker.recover()
    assert "answer_without_a_provider" in caplog.text
    await poor.close()
    stage.engine.replicas.remove(poor)
    await stage.one.broker.recover()
    await until(lambda: len(stage.one.spool) == 0)

    await nothing_lost(stage)


async def test_se_07_an_answer_whose_grant_has_ended_meanwhile_is_revoked_at_the_next_start(stage: Stage) -> None:
    """The logout revoked what it knew; the process that had the younger token was dead by then."""
    two = await stage.engine.open()
    stage.expire()
    await die_before_saving(two, stage.grant_id)
    (younger,) = stage.server.ledger.usable(stage.family())
    before = await stage.one.broker.end(stage.grant_id, EndReason.LOGOUT)
    assert before is not None
    assert before.refresh_token is not None
    assert await stage.one.broker.revocations.revoke(stage.grant_id)

    restarted = await stage.engine.open()
    await restarted.broker.recover()
    await until(lambda: len(stage.server.revoked) == 2)

    assert [before.refresh_token.reveal(), younger] == stage.server.revoked
    assert (await stage.grant()).refresh_token is None


@pytest.mark.parametrize("lost", ["the answer", "the intent, too", "two refreshes"])
async def test_tk_02_an_answer_that_a_failover_lost_is_saved_again(
    stage: Stage, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis acknowledged it, and goes on with a replica that lacks it: the spent token isn't presented again."""
    records = stage.engine.backend.records
    stage.expire()
    replica = dict(records)
    step = stage.server.hold()
    refreshing = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await step.reached.wait()
    if lost != "the intent, too":
        replica = dict(records)
    step.release()
    assert "at-2" == access_token(await refreshing)
    if lost == "two refreshes":
        assert "at-3" == access_token(await stage.refresh(rejected_generation=2))
    records.clear()
    records.update(replica)

    generation = 3 if lost == "two refreshes" else 2
    assert isinstance(await stage.refresh(rejected_generation=generation), Token)

    assert {} == stage.server.ledger.presented_twice()
    assert "answer_saved_again" in caplog.text
    await nothing_lost(stage)


# --- logins


async def test_ft_11_a_login_that_was_finished_outlives_its_process(stage: Stage) -> None:
    """It is crossed out before the browser is answered."""
    two = await stage.engine.open()
    entry = two.broker.receive_login("corp", stage.server.login_tokens())
    grant = await two.adopt(entry.answer, login=entry)
    two.broker.finish_login(entry)
    await two.crash()

    await stage.one.broker.recover()

    assert (await stage.one.grant(grant.id)).ended is None
    assert [] == stage.server.revoked


@pytest.mark.parametrize("was_answered", [True, False])
async def test_ft_16_a_login_that_was_answered_outlives_a_full_disk_and_its_process(
    stage: Stage, was_answered: bool
) -> None:
    """There was no room to cross it out: whether a session hangs on it says what the spool couldn't."""
    await stage.one.broker.end(stage.grant_id, EndReason.LOGOUT, revoke=False)

    async def has_session(grant_id: str) -> bool:
        return was_answered and grant_id == grant.id

    two = await stage.engine.open()
    two.broker.receive_login("corp", stage.server.login_tokens("bob"))  # so the file isn't simply emptied
    entry = two.broker.receive_login("corp", stage.server.login_tokens())
    grant = await two.adopt(entry.answer, login=entry)
    with full_disk(after_bytes=two.spool._size + 20):
        two.broker.finish_login(entry)
    await two.crash()

    three = await stage.engine.open(has_session=has_session)
    await three.broker.recover()
    await until(lambda: len(three.spool) == 0)

    assert was_answered is ((await three.grant(grant.id)).ended is None)


async def test_ft_16_a_login_is_not_judged_while_the_store_is_down(stage: Stage) -> None:
    """It waits until it is known whether it was answered."""
    two = await stage.engine.open()
    entry = two.broker.receive_login("corp", stage.server.login_tokens())
    grant = await two.adopt(entry.answer, login=entry)
    await two.crash()
    asked: list[str] = []

    async def has_session(grant_id: str) -> bool:
        asked.append(grant_id)
        if len(asked) == 1:
            raise StoreError("down")
        return True

    three = await stage.engine.open(has_session=has_session)
    await three.broker.recover()
    assert [entry] == three.spool.pending()
    await until(lambda: len(three.spool) == 0)

    assert (await three.grant(grant.id)).ended is None


async def test_a_login_under_way_is_left_to_its_process(stage: Stage) -> None:
    """Nobody takes over what a living process has, nor takes it for the answer to a refresh."""
    two = await stage.engine.open()
    entry = two.broker.receive_login("corp", stage.server.login_tokens())
    grant = await two.adopt(entry.answer, login=entry)
    await stage.one.broker.recover()
    stage.expire()
    stage.server.refuse("in_doubt")
    await stage.one.broker.token(grant.id)
    stage.clock.advance(60)

    await stage.one.broker.token(grant.id)

    assert [entry] == two.spool.pending()
    assert (await stage.one.grant(grant.id)).ended is None
    assert [] == stage.server.revoked


# --- logout meanwhile


async def test_se_07_a_logout_during_a_refresh_stays_a_logout(stage: Stage) -> None:
    """What the server answers then is revoked, and nobody gets it."""
    stage.expire()
    step = stage.server.hold()
    running = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await step.reached.wait()

    await stage.one.broker.end(stage.grant_id, EndReason.LOGOUT)
    step.release()

    assert LoginNeeded("logout") == await running
    grant = await stage.grant()
    assert grant.ended is not None
    assert (None, {}) == (grant.refresh_token, grant.tokens)
    assert [stage.server.ledger.newest(stage.family()).token] == stage.server.revoked
    assert LoginNeeded("logout") == await stage.one.broker.token(stage.grant_id)
    assert [] == stage.one.spool.pending()


async def test_se_07_a_logout_elsewhere_ends_what_is_served_from_memory(stage: Stage) -> None:
    """Even if nothing was heard of it: once the answer can be saved, the grant has ended here too."""
    stage.expire()
    two = await stage.engine.open()
    await stage.refresh_unsaved(stage.one)
    stage.engine.backend.replicas = stage.engine.backend.replicas[1:]  # the first replica hears nothing any more
    await two.broker.end(stage.grant_id, EndReason.LOGOUT)
    assert stage.one.broker.peek(stage.grant_id) is not None

    stage.one.store.heal()
    await until(lambda: len(stage.one.spool) == 0)

    assert stage.one.broker.peek(stage.grant_id) is None
    assert isinstance(await stage.one.broker.token(stage.grant_id), LoginNeeded)
    assert 1 == len(stage.server.revoked)


async def test_a_revocation_that_fails_is_logged(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """It never blocks anything."""
    stage.expire()
    stage.server.revocation_fault = ProviderError("down")
    step = stage.server.hold()
    running = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await step.reached.wait()
    await stage.one.broker.end(stage.grant_id, EndReason.LOGOUT)
    step.release()

    assert LoginNeeded("logout") == await running
    assert "grant_not_revoked" in caplog.text


# --- the id token of a refresh


def identity(subject: str) -> Identity:
    return Identity(issuer="https://idp.example", subject=subject, provider_session=None, claims={"name": "A"})


async def test_jw_04_an_id_token_of_the_same_user_renews_what_is_known_of_it(stage: Stage) -> None:
    """Listeners hear who it is, after the tokens were saved."""
    heard: list[tuple[int, Identity]] = []
    stage.one.broker.on_identified(lambda grant, who: heard.append((grant.generation, who)))
    stage.expire()
    stage.server.id_tokens.append("id-2")
    stage.server.identities["id-2"] = identity("alice")

    await stage.refresh()

    assert [(2, identity("alice"))] == heard


@pytest.mark.parametrize("said", [None, ProviderError("no keys")])
async def test_jw_04_an_id_token_that_can_not_be_believed_is_left_out(stage: Stage, said: ProviderError | None) -> None:
    """The session lives: a bad signature says nothing about the tokens beside it."""
    heard: list[Identity] = []
    stage.one.broker.on_identified(lambda _grant, who: heard.append(who))
    stage.expire()
    stage.server.id_tokens.append("id-2")
    stage.server.identities["id-2"] = said

    assert isinstance(await stage.refresh(), Token)
    assert [] == heard


@pytest.mark.parametrize("store", ["works", "fails at the end", "fails for long"])
async def test_jw_04_a_refresh_that_becomes_anothers_ends_the_grant(
    stage: Stage, store: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody gets that token, here or elsewhere, and it is revoked (OpenID Connect Core section 12.2)."""
    two = await stage.engine.open()
    stage.expire()
    stage.server.id_tokens.append("id-2")
    stage.server.identities["id-2"] = identity("mallory")
    if store != "works":
        stage.one.store.trouble("replace", "fails", skip=2, count=1 if store == "fails at the end" else None)

    with caplog.at_level(logging.ERROR):
        result = await stage.refresh()

    assert LoginNeeded(EndReason.SUBJECT_CHANGED) == result
    assert LoginNeeded(EndReason.SUBJECT_CHANGED) == await stage.one.broker.token(stage.grant_id)
    assert stage.one.broker.peek(stage.grant_id) is None
    assert "subject_changed" in caplog.text
    stage.one.store.heal()

    async def has_ended() -> bool:
        return (await stage.grant()).ended is not None

    await until_async(has_ended)
    assert isinstance(await stage.refresh(two), LoginNeeded)
    assert 1 == len(stage.server.revoked)


@pytest.mark.parametrize("brings_id_token", [False, True])
async def test_jw_04_an_import_is_judged_by_its_id_tokens(stage: Stage, brings_id_token: bool) -> None:
    """What an operator calls its subject may be any word; whom its id tokens name must not change all the same."""

    def says(subject: str) -> str:
        token = join({"alg": "none"}, {"sub": subject})
        stage.server.identities[token] = identity(subject)
        return token

    brought = IdToken(says("248289761001")) if brings_id_token else None
    imported = await stage.one.adopt(
        replace(stage.server.login_tokens(), id_token=brought), subject="batch", origin=Origin.IMPORTED
    )
    outcomes = []
    for subject in ("248289761001", "248289761001", "another"):
        stage.expire()
        stage.server.id_tokens.append(says(subject))
        outcomes.append(await stage.one.broker.token(imported.id))

    assert [Token, Token, LoginNeeded] == [type(outcome) for outcome in outcomes]
    assert LoginNeeded(EndReason.SUBJECT_CHANGED) == outcomes[-1]


@pytest.mark.slow
async def test_keys_that_do_not_come_hold_nobody_up_for_long(stage: Stage) -> None:
    """The check has a deadline, and the tokens are saved before it."""
    stage.expire()
    stage.server.id_tokens.append("id-2")
    stage.server.hang_at_checks.clear()
    running = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))

    async def is_saved() -> bool:
        return (await stage.grant()).generation == 2

    await until_async(is_saved)
    assert not running.done()
    assert isinstance(await asyncio.wait_for(running, 2 * IDENTITY_CHECK_SECONDS), Token)


# --- too late


async def test_a_link_that_is_not_the_last_any_more_replaces_nothing(
    start_stage: StartStage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A process of another host was given a newer token meanwhile, within the server's grace."""
    stage = await start_stage(rotation=Rotation.GRACE)
    stage.expire()
    two = await stage.engine.open(directory=tmp_path / "another host")
    await stage.refresh_unsaved(stage.one)
    stage.engine.backend.leases.clear()
    newer = await stage.refresh(two)

    stage.one.store.heal()
    await until(lambda: len(stage.one.spool) == 0)

    grant = await stage.grant()
    assert (2, access_token(newer)) == (grant.generation, grant.tokens[""].access_token.reveal())
    assert "answer_superseded" in caplog.text


@pytest.mark.parametrize(
    ("sids", "is_revoked"), [((None, None), True), (("s1", "s2"), True), (("s1", "s1"), False)], ids=str
)
async def test_tk_07_an_answer_to_a_chain_that_was_given_up_is_revoked(
    stage: Stage, sids: tuple[str | None, str | None], is_revoked: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Its process was killed, and the grant has begun anew since: nobody else would ever revoke what the disk has."""
    late, present = (None if sid is None else IdToken(join({"alg": "none"}, {"sid": sid})) for sid in sids)
    if late is not None:
        stage.server.id_tokens.append(late.reveal())
    two = await stage.engine.open()
    stage.expire()
    await die_before_saving(two, stage.grant_id)
    token = stage.server.ledger.newest(stage.family()).token
    stored = await stage.one.vault.read(stage.grant_id)
    assert stored is not None
    anew = replace(
        stored.grant,
        refresh_token=stage.server.login_tokens().refresh_token,
        id_token=present,
        chain_length=2,
        first_link=2,
        intent=None,
    )
    await stage.one.vault.replace(stored, anew, due_at=None)

    await stage.one.broker.recover()
    await until(lambda: len(stage.one.spool) == 0)

    assert ([token] if is_revoked else []) == stage.server.revoked
    assert anew == await stage.grant()
    assert token not in caplog.text


async def test_a_record_that_went_back_takes_the_answer_again(stage: Stage) -> None:
    """A failover lost the intent: the answer is still the newest link."""
    stage.expire()
    before = await stage.one.vault.read(stage.grant_id)
    assert before is not None
    await stage.refresh_unsaved(stage.one)
    current = await stage.one.vault.read(stage.grant_id)
    assert current is not None
    stage.one.store.heal()
    await stage.one.vault.replace(current, replace(before.grant), due_at=None)

    await until(lambda: len(stage.one.spool) == 0)

    await nothing_lost(stage)

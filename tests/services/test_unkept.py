"""Answers that nobody may use: ended at their server, beside nobody else's, however long that takes."""

import asyncio
from dataclasses import replace

import pytest

from broker.core.grant import EndReason
from broker.core.oauth import TokenSet
from broker.core.outcome import LoginNeeded
from broker.core.secret import IdToken
from broker.errors import ProviderError, StoreError
from broker.services.refresher import Want
from tests.support.forge import join
from tests.support.stage import Stage
from tests.support.waiting import until

# --- of a grant that is gone


async def die_and_lose_the_grant(stage: Stage) -> str:
    """Kill a process that has an answer in its spool, and empty the store. Returns the answer's refresh token."""
    two = await stage.engine.open()
    stage.expire()
    await stage.refresh_unsaved(two)
    stage.engine.backend.records.clear()
    await two.crash()
    (token,) = stage.server.ledger.usable(stage.family())
    return token


async def test_ft_04_an_answer_whose_record_is_gone_is_revoked(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """The store was restarted empty: one clean re-login, and nothing that stays for ever, here or at the server."""
    token = await die_and_lose_the_grant(stage)

    await stage.one.broker.recover()
    await until(lambda: len(stage.one.spool) == 0)

    assert [token] == stage.server.revoked
    assert "answer_without_a_grant" in caplog.text
    assert token not in caplog.text
    assert LoginNeeded("unknown_grant") == await stage.refresh()
    assert {} == stage.engine.backend.records


async def test_tk_07_an_answer_whose_record_is_gone_waits_for_a_server_that_is_down(stage: Stage) -> None:
    """The store remembers it, and whichever replica keeps grants alive revokes it; the start waits for none of that."""
    token = await die_and_lose_the_grant(stage)
    stage.server.revocation_fault = ProviderError("down")

    await stage.one.broker.recover()
    await until(lambda: len(stage.one.spool) == 0)
    stage.server.revocation_fault = None
    three = await stage.engine.open()
    stage.clock.advance(10)
    assert 1 == await three.keep_alive.scan()

    assert [token] == stage.server.revoked
    assert [] == await three.vault.due(stage.clock.now() + 30 * 86400, 10)


async def test_tk_07_an_answer_whose_record_is_gone_stays_on_the_disk_until_somebody_has_it(stage: Stage) -> None:
    """Neither the server nor the store takes it: the next start goes on with it."""
    token = await die_and_lose_the_grant(stage)
    stage.server.revocation_fault = ProviderError("down")
    three = await stage.engine.open()
    three.store.trouble("create", "fails", count=None)
    await three.broker.recover()
    await until(lambda: "create" in three.store.calls)
    await three.crash()
    stage.server.revocation_fault = None

    await stage.one.broker.recover()
    await until(lambda: len(stage.one.spool) == 0)

    assert [token] == stage.server.revoked


async def test_ft_14_an_answer_of_a_release_that_did_not_say_whose_it_is_is_dropped(stage: Stage) -> None:
    """Without its grant nobody knows where to revoke it."""
    two = await stage.engine.open()
    stage.expire()
    await stage.refresh_unsaved(two)
    (pending,) = two.spool.pending()
    two.spool.append(replace(pending, provider=None))
    stage.engine.backend.records.clear()
    await two.crash()

    await stage.one.broker.recover()
    await until(lambda: len(stage.one.spool) == 0)

    assert [] == stage.server.revoked


async def test_se_07_what_comes_for_a_grant_that_was_deleted_meanwhile_is_revoked(stage: Stage) -> None:
    """Its record ended while the server answered."""
    stage.expire()
    step = stage.server.hold()
    running = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await step.reached.wait()
    assert await stage.one.vault.delete(stage.grant_id)

    step.release()

    assert isinstance(await running, LoginNeeded)
    await until(lambda: len(stage.one.spool) == 0)
    assert [stage.server.ledger.newest(stage.family()).token] == stage.server.revoked


async def test_ft_04_a_user_who_has_come_back_is_not_logged_out_by_what_is_found(stage: Stage) -> None:
    """An answer whose record is gone isn't revoked beside a living grant that may hang on the same session."""
    await die_and_lose_the_grant(stage)
    again = await stage.one.adopt(stage.server.login_tokens())

    await stage.one.broker.recover()
    await until(lambda: len(stage.one.spool) == 0)

    assert [] == stage.server.revoked
    assert (await stage.one.grant(again.id)).ended is None


# --- of a login that came to nothing


def id_token(**claims: str) -> IdToken:
    return IdToken(join({"alg": "none"}, {"sub": "alice", **claims}))


def login_answer(stage: Stage, **claims: str) -> TokenSet:
    """The token response of a login of alice, in the provider's session that *claims* names."""
    return replace(stage.server.login_tokens(), id_token=id_token(**claims))


@pytest.mark.parametrize("adopted", [False, True])
async def test_ft_11_what_a_killed_process_left_of_a_login_is_revoked(stage: Stage, adopted: bool) -> None:
    """Whether its grant was stored or not: no browser was ever given its session."""
    await stage.one.broker.end(stage.grant_id, EndReason.LOGOUT, revoke=False)
    two = await stage.engine.open()
    entry = two.broker.receive_login("corp", login_answer(stage))
    if adopted:
        await two.adopt(entry.answer, login=entry)
    await two.crash()

    await stage.one.broker.recover()
    await until(lambda: len(stage.server.revoked) == 1)

    assert [stage.server.ledger.newest(stage.family(1)).token] == stage.server.revoked
    await until(lambda: len(stage.one.spool) == 0)
    assert [] == [grant for grant in await stage.one.broker.grants("corp", "alice") if grant.ended is None]


async def test_a_login_whose_store_fails_is_revoked_once_it_is_back(stage: Stage) -> None:
    """Its grant may have been stored although the store said it wasn't."""
    stage.one.store.trouble("create", "applied")
    entry = stage.one.broker.receive_login("corp", login_answer(stage, sid="another"))
    await stage.one.broker.end(stage.grant_id, EndReason.LOGOUT, revoke=False)
    with pytest.raises(StoreError):
        await stage.one.adopt(entry.answer, login=entry)
    stage.one.store.go_down()

    stage.one.broker.abandon_login(entry)
    await asyncio.sleep(0.05)
    assert ([entry], []) == (stage.one.spool.pending(), stage.server.revoked)
    stage.one.store.heal()
    await until(lambda: len(stage.one.spool) == 0)
    await until(lambda: len(stage.server.revoked) == 1)

    assert (await stage.one.grant(entry.grant_id)).ended is not None


async def test_tk_07_a_login_that_came_to_nothing_is_revoked_once_its_server_is_back(stage: Stage) -> None:
    """The store remembers it, and whichever replica keeps grants alive revokes it."""
    await stage.one.broker.end(stage.grant_id, EndReason.LOGOUT, revoke=False)
    stage.server.revocation_fault = ProviderError("down")

    stage.one.broker.abandon_login(stage.one.broker.receive_login("corp", login_answer(stage)))
    await until(lambda: len(stage.one.spool) == 0)
    stage.server.revocation_fault = None
    two = await stage.engine.open()
    stage.clock.advance(10)
    await two.keep_alive.scan()

    assert [stage.server.ledger.newest(stage.family(1)).token] == stage.server.revoked


@pytest.mark.parametrize(
    ("mine", "theirs", "is_revoked"),
    [
        ({"sid": "s1"}, {"sid": "s1"}, False),
        ({"sid": "s1"}, {"sid": "s2"}, True),
        ({"sid": "s1"}, {}, False),
        ({}, {}, False),
        ({"sub": "bob"}, {}, True),
    ],
)
@pytest.mark.parametrize("adopted", [False, True])
async def test_a_login_that_came_to_nothing_ends_no_other_of_its_user(
    stage: Stage, mine: dict[str, str], theirs: dict[str, str], is_revoked: bool, adopted: bool
) -> None:
    """Servers end whatever hangs on a session with any refresh token of it that is revoked."""
    other = await stage.one.adopt(login_answer(stage, **theirs))
    await stage.one.broker.end(stage.grant_id, EndReason.LOGOUT, revoke=False)
    entry = stage.one.broker.receive_login("corp", login_answer(stage, **mine))
    if adopted:
        await stage.one.adopt(entry.answer, login=entry, subject=mine.get("sub", "alice"))

    stage.one.broker.abandon_login(entry)
    await until(lambda: len(stage.one.spool) == 0)
    await until(lambda: len(stage.one.broker._tasks) == 0)

    assert is_revoked == (len(stage.server.revoked) == 1)
    assert (await stage.one.grant(other.id)).ended is None
    if adopted:
        grant = await stage.one.grant(entry.grant_id)
        assert (True, None) == (grant.ended is not None, grant.refresh_token)

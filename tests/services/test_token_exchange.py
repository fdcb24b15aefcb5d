"""Tokens of other audiences by exchange: what it needs, what it leaves alone, and what its failures mean."""

from dataclasses import replace

import pytest

from broker.core.audience import Audience
from broker.core.outcome import LoginNeeded, Token, Unavailable
from broker.core.provider import Rotation
from broker.services.refresher import Want
from tests.services.conftest import StartStage
from tests.support.engine import access_token
from tests.support.grants import LIFE
from tests.support.stage import Stage
from tests.support.waiting import until

EXCHANGED = Audience(audience="orders", exchange=True)


async def test_an_exchange_spends_no_refresh_token(stage: Stage) -> None:
    """The grant's own access token is exchanged while it lives."""
    result = await stage.refresh(audience=EXCHANGED)

    assert "at-2@orders" == access_token(result)
    assert [("at-1", EXCHANGED)] == stage.server.exchanges
    assert [] == stage.presented()
    assert 1 == (await stage.grant()).chain_length


async def test_before_an_exchange_the_own_token_is_refreshed(stage: Stage) -> None:
    """A dead token can't be exchanged."""
    stage.expire()

    result = await stage.refresh(audience=EXCHANGED)

    assert "at-3@orders" == access_token(result)
    assert (1, [("at-2", EXCHANGED)]) == (len(stage.presented()), stage.server.exchanges)


async def test_a_grant_in_doubt_can_be_exchanged_while_its_token_lives(stage: Stage) -> None:
    """An exchange can't revoke a family."""
    stage.come_due()
    stage.server.refuse("in_doubt", processed=False)
    await stage.refresh()

    assert isinstance(await stage.refresh(audience=EXCHANGED), Token)
    assert (await stage.grant()).intent is not None


async def test_a_grant_without_a_refresh_token_can_be_exchanged_while_its_token_lives(stage: Stage) -> None:
    """What isn't needed isn't asked for."""
    found = await stage.stored()
    await stage.one.vault.replace(found, replace(found.grant, refresh_token=None), due_at=None)

    assert isinstance(await stage.refresh(audience=EXCHANGED), Token)
    stage.expire()
    assert LoginNeeded("no_refresh_token") == await stage.refresh(audience=EXCHANGED)


async def test_an_exchange_that_fails_backs_off_and_ends_nothing(stage: Stage) -> None:
    """Its failure is its audience's."""
    stage.server.refuse("operator", error="invalid_target")

    first, second = await stage.refresh(audience=EXCHANGED), await stage.refresh(audience=EXCHANGED)

    assert isinstance(first, Unavailable)
    assert isinstance(second, Unavailable)
    assert 1 == len(stage.server.exchanges)
    assert "at-1" == access_token(await stage.refresh())


async def test_exchanges_do_not_pass_by_the_backoff_of_the_refresh(stage: Stage) -> None:
    """Callers of an exchanged audience don't ask the token endpoint for the own token without rest."""
    stage.expire()
    stage.server.refuse_always("operator", error="invalid_client")

    for _ in range(5):
        assert isinstance(await stage.refresh(audience=EXCHANGED), Unavailable)

    assert 1 == len(stage.presented())


async def test_an_exchange_meanwhile_does_not_make_an_answer_late(start_stage: StartStage) -> None:
    """It is no link of the chain: the refresh token that came must not be dropped for it."""
    stage = await start_stage(rotation=Rotation.GRACE)
    stage.come_due()
    two = await stage.engine.open()
    step = stage.server.hold()
    slow = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await step.reached.wait()
    stage.engine.backend.leases.clear()
    await stage.refresh(two, EXCHANGED)
    step.release()
    await slow

    grant = await stage.grant()
    assert grant.refresh_token is not None
    assert stage.server.ledger.usable(next(iter(stage.server.families.by_id))) == {grant.refresh_token.reveal()}


async def test_an_exchange_that_was_overtaken_is_made_again(stage: Stage) -> None:
    """Nothing is lost by it."""
    stage.one.store.trouble("replace", "conflict")

    assert isinstance(await stage.refresh(audience=EXCHANGED), Token)
    assert 2 == len(stage.server.exchanges)


async def test_while_the_provider_rests_nothing_is_exchanged(stage: Stage) -> None:
    """The breaker holds for every token request."""
    stage.server.refuse("transient", retry_after_seconds=9.0)
    await stage.refresh(audience=EXCHANGED)

    assert isinstance(await stage.refresh(audience=EXCHANGED), Unavailable)
    assert 1 == len(stage.server.exchanges)


async def test_an_exchange_that_waited_for_a_permit_is_decided_again(stage: Stage) -> None:
    """The breaker opened while it waited for a probe; it doesn't ask in vain."""
    stage.expire()
    await stage.rest_the_provider()
    bob = (await stage.one.adopt(stage.server.login_tokens("bob"), subject="bob")).id
    step = stage.server.hold("transient", processed=False)
    probe = stage.one.broker.refresher.start(Want(grant_id=stage.grant_id))
    await step.reached.wait()
    waiting = stage.one.broker.refresher.start(Want(grant_id=bob, audience=EXCHANGED))
    await until(lambda: stage.one.store.calls.count("lease") >= 2)
    step.release()

    assert isinstance(await probe, Unavailable)
    assert isinstance(await waiting, Unavailable)
    assert (1, []) == (len(stage.presented()), stage.server.exchanges)


@pytest.mark.parametrize("error", ["invalid_grant", "invalid_token", "invalid_request"])
async def test_an_own_token_that_the_server_has_killed_is_replaced_before_it_is_exchanged(
    stage: Stage, error: str
) -> None:
    """Whatever it calls it: the refresh token is good, so the caller notices nothing."""
    stage.server.killed, stage.server.kills_with = {"at-1"}, error
    stage.clock.advance(30)

    result = await stage.one.broker.token(stage.grant_id, EXCHANGED)

    assert "at-3@orders" == access_token(result)
    assert (1, ["at-1", "at-2"]) == (len(stage.presented()), [token for token, _ in stage.server.exchanges])
    assert {} == (await stage.grant()).failures


async def test_a_server_that_exchanges_no_token_does_not_have_them_all_rotated(stage: Stage) -> None:
    """What is said of a new token isn't for its age: in three lives there are few refreshes more."""
    stage.server.killed = {f"at-{number}" for number in range(100)}

    for _ in range(int(LIFE) * 3 // 10):
        stage.clock.advance(10)
        assert isinstance(await stage.one.broker.token(stage.grant_id, EXCHANGED), Unavailable)

    assert 3 <= len(stage.presented()) <= 8


@pytest.mark.parametrize("error", ["invalid_target", "invalid_client", None])
async def test_another_refusal_is_not_for_the_own_token(stage: Stage, error: str | None) -> None:
    """No refresh token is spent for what it can't mend."""
    stage.server.killed, stage.server.kills_with = {"at-1"}, error
    stage.clock.advance(30)

    assert isinstance(await stage.one.broker.token(stage.grant_id, EXCHANGED), Unavailable)

    assert [] == stage.presented()


async def test_a_killed_own_token_that_can_not_be_refreshed_now_is_refreshed_later(stage: Stage) -> None:
    """The exchange waits as long as the refresh does, and no longer."""
    stage.server.killed = {"at-1"}
    stage.clock.advance(30)
    for _ in range(3):  # a request, and its quick repetitions
        stage.server.refuse("transient", status=503)

    first = await stage.one.broker.token(stage.grant_id, EXCHANGED)
    assert isinstance(first, Unavailable)
    asked = len(stage.server.exchanges)
    assert isinstance(await stage.one.broker.token(stage.grant_id, EXCHANGED), Unavailable)
    assert asked == len(stage.server.exchanges), "nobody is asked meanwhile"
    stage.clock.advance(60)

    assert isinstance(await stage.one.broker.token(stage.grant_id, EXCHANGED), Token)


async def test_a_killed_own_token_without_a_refresh_token_is_the_exchanges_failure(stage: Stage) -> None:
    """Other upstreams may take it until its end."""
    found = await stage.stored()
    await stage.one.vault.replace(found, replace(found.grant, refresh_token=None), due_at=None)
    stage.server.killed = {"at-1"}
    stage.clock.advance(30)

    assert isinstance(await stage.refresh(audience=EXCHANGED), Unavailable)
    assert "at-1" == access_token(await stage.refresh())


async def test_a_refresh_token_in_doubt_is_not_presented_for_an_exchange(stage: Stage) -> None:
    """It may be spent, and the own token still serves others."""
    stage.come_due()
    stage.server.refuse("in_doubt", processed=True)
    await stage.refresh()
    stage.server.killed = {"at-1"}

    assert isinstance(await stage.refresh(audience=EXCHANGED), Unavailable)

    assert 1 == len(stage.presented())
    assert (await stage.grant()).ended is None

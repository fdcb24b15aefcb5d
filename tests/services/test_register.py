"""Where grants stand, written down and told to everybody; and their end."""

import logging
from dataclasses import replace

import pytest

from broker.core.grant import EndReason, Origin
from broker.core.outcome import LoginNeeded
from broker.core.refresh import SETTLE_SECONDS
from broker.core.secret import RefreshToken
from broker.core.upkeep import REVOKE_FOR_SECONDS
from broker.errors import StoreError
from broker.services.handles import FOREVER_SECONDS
from broker.services.known import KnownGrants
from broker.services.news import News
from broker.services.register import Register
from tests.support.clock import SeededRandomness
from tests.support.grants import intent
from tests.support.stage import Stage
from tests.support.waiting import until


async def test_what_is_written_down_says_when_to_look_at_it(stage: Stage) -> None:
    """The keep-alive finds it at the time that its rules give; what was read before can't be replaced any more."""
    options = stage.server.options
    known = KnownGrants({"corp": options}, stage.clock, ttl_seconds=5.0, limit=10)
    register = Register(stage.one.vault, known, News(), stage.clock, SeededRandomness())
    stored = await stage.stored()
    open_intent = replace(stored.grant, intent=intent())

    written = await register.write(stored, open_intent, options=options)

    assert written is not None
    assert (open_intent, open_intent) == (written.grant, await stage.grant())
    assert [] == await stage.one.vault.due(stage.clock.now() + SETTLE_SECONDS - 1, 10)
    assert 1 == len(await stage.one.vault.due(stage.clock.now() + SETTLE_SECONDS, 10))
    assert await register.write(stored, stored.grant, options=options) is None


async def test_se_03_an_end_is_heard_by_every_replica(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """A copied credential is worthless everywhere, at once; the log says so without a secret."""
    two = await stage.engine.open()
    assert two.broker.peek(stage.grant_id) is None
    await two.broker.token(stage.grant_id)
    assert two.broker.peek(stage.grant_id) is not None

    with caplog.at_level(logging.WARNING):
        before = await stage.one.broker.end(stage.grant_id, EndReason.LOGOUT)
    await until(lambda: two.broker.peek(stage.grant_id) is None, seconds=1)

    assert before is not None
    assert before.refresh_token is not None  # for its revocation
    for replica in (stage.one, two):
        assert isinstance(await replica.broker.token(stage.grant_id), LoginNeeded)
    assert [("grant_ended", stage.grant_id, "logout")] == [
        (record.message, record.__dict__["grant"], record.__dict__["reason"]) for record in caplog.records
    ]


@pytest.mark.parametrize("revoked", [True, False])
async def test_an_imported_grant_that_has_ended_is_forgotten_some_day(stage: Stage, revoked: bool) -> None:
    """Operators see it for a day, in which its server is told to forget it; then nothing is left of it."""
    tokens = stage.server.login_tokens("batch")
    grant = await stage.one.adopt(tokens, subject="batch", origin=Origin.IMPORTED, ttl_seconds=FOREVER_SECONDS)
    if revoked:
        await stage.one.broker.end(grant.id, EndReason.REVOKED)
    else:
        stage.expire()
        stage.server.refuse("permanent", error="invalid_grant")
        assert isinstance(await stage.one.broker.token(grant.id), LoginNeeded)

    stage.clock.advance(REVOKE_FOR_SECONDS - 60)
    assert [grant.id] == [listed.id for listed in await stage.one.broker.grants()]
    await stage.one.keep_alive.scan()
    stage.clock.advance(60)

    assert [] == await stage.one.broker.grants()
    assert 1 == len(stage.engine.backend.records)  # alice's
    assert ([tokens.refresh_token] if revoked else []) == [RefreshToken(token) for token in stage.server.revoked]


async def test_what_has_ended_does_not_end_again(stage: Stage) -> None:
    """The first reason stays, and nobody revokes twice."""
    await stage.one.broker.end(stage.grant_id, EndReason.LOGOUT)

    assert await stage.one.broker.end(stage.grant_id, EndReason.REVOKED) is None
    assert await stage.one.broker.end("f" * 32, EndReason.REVOKED) is None
    ended = (await stage.grant()).ended
    assert ended is not None
    assert EndReason.LOGOUT == ended.reason


async def test_an_end_that_was_written_although_the_store_failed_is_told(stage: Stage) -> None:
    """And its caller gets the tokens that must be revoked, since the record has them no more."""
    two = await stage.engine.open()
    await two.broker.token(stage.grant_id)
    stage.one.store.trouble("replace", "applied")

    before = await stage.one.broker.end(stage.grant_id, EndReason.LOGOUT)

    assert before is not None
    assert before.refresh_token is not None
    await until(lambda: two.broker.peek(stage.grant_id) is None, seconds=1)


async def test_an_end_that_failed_once_is_written(stage: Stage) -> None:
    """A store that stumbles costs nothing."""
    stage.one.store.trouble("replace", "fails")

    assert await stage.one.broker.end(stage.grant_id, EndReason.LOGOUT) is not None
    assert (await stage.grant()).ended is not None


async def test_an_end_that_can_not_be_written_is_an_error(stage: Stage) -> None:
    """Whoever logs out is not told that it worked."""
    stage.one.store.go_down()
    with pytest.raises(StoreError):
        await stage.one.broker.end(stage.grant_id, EndReason.LOGOUT)
    stage.one.store.heal()
    stage.one.store.trouble("replace", "fails", count=2)
    with pytest.raises(StoreError):
        await stage.one.broker.end(stage.grant_id, EndReason.LOGOUT)

    assert (await stage.grant()).ended is None


async def test_se_07_an_end_wins_over_whoever_writes_at_the_same_time(stage: Stage) -> None:
    """It is written over whatever is there."""
    stage.one.store.trouble("replace", "conflict", count=3)

    assert await stage.one.broker.end(stage.grant_id, EndReason.LOGOUT) is not None
    assert (await stage.grant()).ended is not None


async def test_an_end_is_told_though_events_can_not_be_published(stage: Stage) -> None:
    """The others read again in time."""
    two = await stage.engine.open()
    await two.broker.token(stage.grant_id)
    stage.one.store.trouble("publish", "fails")

    await stage.one.broker.end(stage.grant_id, EndReason.LOGOUT)
    stage.clock.advance(5)

    assert LoginNeeded("logout") == await two.broker.token(stage.grant_id)

"""Grants that have ended are revoked at their servers, whatever happens on the way."""

import logging
from dataclasses import replace

import pytest

from broker.core.audience import DEFAULT_AUDIENCE
from broker.core.grant import EndReason
from broker.core.refresh import succeed
from broker.core.secret import RefreshToken
from broker.errors import ProviderError
from broker.services.revocations import Revocations
from tests.services.conftest import StartStage
from tests.support.scripted_server import ScriptedServer
from tests.support.stage import Stage

MONTH = 30 * 86400.0


class WithSessions(ScriptedServer):
    """A server that keeps a session of its own beside the refresh tokens, as Mosaic does."""

    session_fault: ProviderError | None = None
    can_revoke = True

    async def revoke(self, token: RefreshToken) -> bool:
        return await super().revoke(token) if self.can_revoke else False

    async def end_provider_session(self, session_id: str) -> bool:
        if self.session_fault is not None:
            raise self.session_fault
        self.revoked.append(session_id)
        return True


async def end(stage: Stage) -> str:
    """End the grant, and return the refresh token that it had."""
    before = await stage.one.broker.end(stage.grant_id, EndReason.LOGOUT)
    assert before is not None
    assert before.refresh_token is not None
    return before.refresh_token.reveal()


async def test_what_ended_is_revoked_once(stage: Stage) -> None:
    """Then its record has no secret any more, and nobody looks at it again."""
    token = await end(stage)

    assert await stage.one.broker.revocations.revoke(stage.grant_id)
    assert not await stage.one.broker.revocations.revoke(stage.grant_id)

    assert [token] == stage.server.revoked
    assert (await stage.grant()).refresh_token is None
    assert [] == await stage.one.vault.due(stage.clock.now() + MONTH, 10)


async def test_what_lives_is_not_revoked(stage: Stage) -> None:
    """Nor what was never there, nor what a store that is down doesn't tell."""
    assert not await stage.one.broker.revocations.revoke(stage.grant_id)
    assert not await stage.one.broker.revocations.revoke("f" * 32)
    stage.one.store.go_down()
    assert not await stage.one.broker.revocations.revoke(stage.grant_id)

    assert [] == stage.server.revoked


async def test_ft_11_what_a_dead_process_left_is_revoked_by_another(stage: Stage) -> None:
    """The end is written, the process is gone: the record says what is still to be done."""
    two = await stage.engine.open()
    token = await end(stage)
    await stage.one.crash()

    assert 0 == await two.keep_alive.scan(), "its own process may be at it"
    stage.clock.advance(10)
    assert 1 == await two.keep_alive.scan()

    assert [token] == stage.server.revoked
    assert [] == await two.vault.due(stage.clock.now() + MONTH, 10)


async def test_tk_07_a_server_that_is_down_is_asked_again_until_it_works(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """Ever more seldom, and the log says so."""
    stage.server.revocation_fault = ProviderError("down")
    token = await end(stage)
    with caplog.at_level(logging.WARNING):
        assert not await stage.one.broker.revocations.revoke(stage.grant_id)
    scans = 0
    for _ in range(3600 // 5):
        stage.clock.advance(5)
        scans += await stage.one.keep_alive.scan()
    stage.server.revocation_fault = None
    stage.clock.advance(2 * 3600)
    await stage.one.keep_alive.scan()

    assert 6 < scans < 20
    assert [token] == stage.server.revoked
    assert "grant_not_revoked" in caplog.text
    assert (await stage.grant()).refresh_token is None


async def test_a_server_that_never_revokes_is_left_alone_after_a_day(stage: Stage) -> None:
    """No secret is kept for what is in vain."""
    stage.server.revocation_fault = ProviderError("refused")
    await end(stage)

    for _ in range(3 * 24 * 4):
        stage.clock.advance(900)
        await stage.one.keep_alive.scan()

    assert [] == await stage.one.vault.due(stage.clock.now() + MONTH, 10)
    assert [] == stage.server.revoked
    assert (await stage.grant()).refresh_token is None


async def test_a_provider_that_is_not_configured_any_more_is_tried_again(stage: Stage) -> None:
    """It may be configured again."""
    await end(stage)

    assert not await Revocations(stage.one.vault, {}, stage.clock).revoke(stage.grant_id)

    assert (await stage.grant()).refresh_token is not None


async def test_a_younger_token_that_came_meanwhile_is_revoked_too(stage: Stage) -> None:
    """What a refresh under way brings after the end is written beside the end; crossing out the old one leaves it."""
    token = await end(stage)
    before = await stage.one.vault.read(stage.grant_id)
    assert before is not None
    late = succeed(before.grant, DEFAULT_AUDIENCE, stage.server.login_tokens())
    await stage.one.vault.replace(before, late, due_at=None)

    assert await stage.one.broker.revocations.settle(before)
    assert late.refresh_token == (await stage.grant()).refresh_token
    assert await stage.one.broker.revocations.revoke(stage.grant_id)

    assert late.refresh_token is not None
    assert [token, late.refresh_token.reveal()] == stage.server.revoked
    assert (await stage.grant()).tokens == {}


async def test_what_was_revoked_is_crossed_out_over_whatever_is_there(stage: Stage) -> None:
    """The keep-alive of another replica may have claimed the record meanwhile."""
    token = await end(stage)
    stored = await stage.one.vault.read(stage.grant_id)
    assert stored is not None
    stage.one.store.trouble("replace", "conflict", count=2)

    assert await stage.one.broker.revocations.settle(stored)

    assert [token] == stage.server.revoked
    assert (await stage.grant()).refresh_token is None


@pytest.mark.parametrize(
    ("can_revoke", "fault", "has_session", "confirmed"),
    [
        (True, None, True, True),
        (False, None, True, True),
        (True, ProviderError("down"), True, False),
        (False, None, False, False),
    ],
)
async def test_only_what_the_server_confirmed_counts_as_revoked(
    start_stage: StartStage, can_revoke: bool, fault: ProviderError | None, has_session: bool, confirmed: bool
) -> None:
    """Its own session is ended too; a server that has no endpoint for either confirms nothing."""
    stage = await start_stage()
    server = WithSessions(stage.clock)
    server.can_revoke, server.session_fault = can_revoke, fault
    await end(stage)
    stored = await stage.one.vault.read(stage.grant_id)
    assert stored is not None
    session = replace(stored.grant, session_id="s-1" if has_session else None)
    await stage.one.vault.replace(stored, session, due_at=None)

    assert confirmed == await Revocations(stage.one.vault, {"corp": server}, stage.clock).revoke(stage.grant_id)

    assert (await stage.grant()).refresh_token is None


async def test_a_token_without_a_grant_is_revoked_at_its_server(stage: Stage) -> None:
    """As after a login that was refused."""
    revocations = stage.one.broker.revocations

    assert await revocations.revoke_token("corp", RefreshToken("rt"))
    assert await revocations.revoke_token("nobody", RefreshToken("rt")) is None

    assert ["rt"] == stage.server.revoked

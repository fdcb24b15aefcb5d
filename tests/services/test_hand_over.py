"""Tokens that are handed over take the place of whatever a configured grant had: none is lost, none stays good."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.grant import EndReason, Grant
from broker.core.oauth import TokenOutcome, TokenSet
from broker.core.outcome import LoginNeeded, Token, Unavailable
from broker.core.secret import AccessToken, IdToken, RefreshToken
from broker.core.standing import GrantType
from broker.errors import BadRequest, ProviderError, StoreError
from broker.services.hand_over import PATIENCE_SECONDS
from broker.services.leases import LEASE_SECONDS
from broker.services.refresher import Want
from broker.services.standing import StandingGrants
from broker.stores.base import Busy, StoreDown
from tests.services.test_standing import Bench, FirstTokensServer, end
from tests.support.engine import Replica, access_token
from tests.support.forge import join
from tests.support.grants import LIFE, failure
from tests.support.waiting import until


class WithSessions(FirstTokensServer):
    """A server that keeps sessions of its own, as Mosaic does."""

    sessions: tuple[str, ...] = ()

    async def authenticate_session(self, session_id: str, audience: Audience) -> TokenOutcome:
        if session_id not in self.sessions:
            return failure("permanent", status=404)
        return replace(self.login_tokens("nightly"), session_id=session_id)

    async def end_provider_session(self, session_id: str) -> bool:
        self.revoked.append(session_id)
        return True


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path, GrantType.IMPORTED, server_type=WithSessions)
    yield bench
    bench.server.recover()
    await bench.close()


@pytest.fixture
async def two(bench: Bench) -> tuple[Replica, Replica]:
    """Two replicas; what is handed over comes to the first."""
    (one, _), (two, _) = await bench.open(), await bench.open()
    return one, two


def standing(bench: Bench) -> StandingGrants:
    return bench.replicas[0][1]


def grant_id(bench: Bench) -> str:
    return standing(bench).ids["nightly"]


async def hand_over(bench: Bench, **changes: Any) -> TokenSet:
    """Somebody logs in elsewhere and hands the tokens over, and every replica hears of it. Returns them."""
    tokens = replace(bench.server.login_tokens("nightly"), **changes)
    await standing(bench).hand_over("nightly", tokens)
    await asyncio.sleep(0)
    return tokens


async def stored(bench: Bench) -> Grant:
    return await bench.replicas[0][0].grant(grant_id(bench))


def family(bench: Bench, number: int) -> str:
    return list(bench.server.families.by_id)[number]


def revealed(tokens: TokenSet) -> str:
    assert tokens.refresh_token is not None
    return tokens.refresh_token.reveal()


async def is_whole(bench: Bench, number: int) -> None:
    """The record has the only usable refresh token of a family."""
    grant = await stored(bench)
    assert grant.refresh_token is not None
    assert {grant.refresh_token.reveal()} == bench.server.ledger.usable(family(bench, number))


async def test_an_empty_one_is_filled_and_lives_like_every_other(bench: Bench, two: tuple[Replica, Replica]) -> None:
    """Callers that were refused a moment ago are served on every replica; the tokens are refreshed and rotate."""
    for replica in two:
        assert isinstance(await replica.broker.token(grant_id(bench)), Unavailable)

    await hand_over(bench)

    for replica in two:
        assert "at-1" == access_token(await replica.broker.token(grant_id(bench)))
    bench.clock.advance(LIFE)
    assert "at-2" == access_token(await two[1].broker.token(grant_id(bench)))
    assert "at-2" == access_token(await two[0].broker.token(grant_id(bench)))
    await is_whole(bench, 0)
    assert [] == bench.server.revoked


async def test_a_refresh_token_alone_is_used_at_once(bench: Bench, two: tuple[Replica, Replica]) -> None:
    """Whoever was refused before it came doesn't wait until what had nothing would have been asked again."""
    assert isinstance(await two[0].broker.token(grant_id(bench)), Unavailable)

    await hand_over(bench, access_token=AccessToken(""), expires_at=bench.clock.now())

    assert "at-2" == access_token(await two[0].broker.token(grant_id(bench)))


async def test_calls_that_carry_the_former_token_end_well(bench: Bench, two: tuple[Replica, Replica]) -> None:
    """It stays good until every replica has had the time to hear of the new one."""
    await hand_over(bench)
    standing(bench)._hand_over._told_within_seconds = 0.2
    began_at = time.monotonic()
    handing = asyncio.create_task(hand_over(bench))
    await until(lambda: two[1].broker.peek(grant_id(bench)) is None, what="the news")
    early = list(bench.server.revoked), time.monotonic() - began_at
    await handing

    assert [] == early[0] or early[1] >= 0.2
    assert 1 == len(bench.server.revoked)
    assert time.monotonic() - began_at >= 0.2


async def test_it_is_kept_alive(tmp_path: Path) -> None:
    """Nobody may call for longer than an unused refresh token lives."""
    bench = Bench(tmp_path, GrantType.IMPORTED, options={"idle_timeout_seconds": 1000.0})
    one, _ = await bench.open()
    await hand_over(bench)

    bench.clock.advance(600)
    await one.keep_alive.scan()

    assert 1 == len(bench.server.refreshes)
    await bench.close()


async def test_what_it_had_is_replaced_and_revoked(
    bench: Bench, two: tuple[Replica, Replica], caplog: pytest.LogCaptureFixture
) -> None:
    """Every replica goes on with the new tokens, none of the old ones stays good, and the log shows neither."""
    caplog.set_level(logging.DEBUG)
    former = await hand_over(bench)
    assert "at-1" == access_token(await two[1].broker.token(grant_id(bench)))

    tokens = await hand_over(bench)

    for replica in two:
        assert "at-2" == access_token(await replica.broker.token(grant_id(bench)))
    assert [revealed(former)] == bench.server.revoked
    await is_whole(bench, 1)
    assert [] == await two[0].vault.due(bench.clock.now() + LIFE, 10)
    assert "standing_grant_handed_over" in caplog.text
    assert not [secret for secret in ("at-1", "at-2", revealed(former), revealed(tokens)) if secret in caplog.text]


async def test_one_that_was_revoked_goes_on_with_what_is_handed_over(
    bench: Bench, two: tuple[Replica, Replica]
) -> None:
    """What it had is over; what comes lives, on the replica that heard of the end, too."""
    await hand_over(bench)
    token = await end(two[0], grant_id(bench))
    assert await two[0].broker.revocations.revoke(grant_id(bench))
    assert LoginNeeded("revoked") == await two[1].broker.token(grant_id(bench))

    await hand_over(bench)

    for replica in two:
        assert "at-2" == access_token(await replica.broker.token(grant_id(bench)))
    assert [token] == bench.server.revoked


async def test_one_that_was_revoked_while_its_server_was_down_is_revoked_all_the_same(
    bench: Bench, two: tuple[Replica, Replica]
) -> None:
    """The record is needed for what comes; another one remembers what is still to be done."""
    await hand_over(bench)
    bench.server.revocation_fault = ProviderError("down")
    token = await end(two[0], grant_id(bench))

    await hand_over(bench)
    bench.server.revocation_fault = None
    bench.clock.advance(30)
    await two[1].keep_alive.scan()

    assert [token] == bench.server.revoked
    await is_whole(bench, 1)


async def test_one_whose_refresh_token_has_ended_goes_on(bench: Bench, two: tuple[Replica, Replica]) -> None:
    """The server refused it: callers get a 503, until other tokens are handed over."""
    await hand_over(bench)
    bench.server.families.revoke(bench.server.families.by_id[family(bench, 0)], "expired")
    bench.clock.advance(LIFE)
    assert isinstance(await two[0].broker.token(grant_id(bench)), Unavailable)

    await hand_over(bench)

    assert isinstance(await two[0].broker.token(grant_id(bench)), Token)
    assert [] == bench.server.revoked


async def test_the_same_refresh_token_again_is_not_revoked(bench: Bench, two: tuple[Replica, Replica]) -> None:
    """Whoever isn't sure whether the first time was enough does it once more."""
    tokens = await hand_over(bench)

    await standing(bench).hand_over("nightly", tokens)
    bench.clock.advance(60)
    await two[1].keep_alive.scan()

    assert [] == bench.server.revoked
    await is_whole(bench, 0)


async def test_done_again_after_a_refresh_it_changes_nothing(bench: Bench, two: tuple[Replica, Replica]) -> None:
    """The operator was told that it isn't known whether it was done. By now what he has is spent: not what it became."""
    tokens = bench.server.login_tokens("nightly")
    two[0].store.trouble("replace", "applied")
    with pytest.raises(StoreError):
        await standing(bench).hand_over("nightly", tokens)
    bench.clock.advance(LIFE)
    assert isinstance(await two[1].broker.token(grant_id(bench)), Token)

    await standing(bench).hand_over("nightly", tokens)
    bench.clock.advance(LIFE)

    assert isinstance(await two[1].broker.token(grant_id(bench)), Token)
    assert {} == bench.server.ledger.presented_twice()
    assert [] == bench.server.revoked
    await is_whole(bench, 0)


@pytest.mark.parametrize("is_named", [True, False], ids=["by this release", "by an older one"])
async def test_done_again_while_an_answer_is_missing_it_changes_nothing(
    bench: Bench, two: tuple[Replica, Replica], is_named: bool
) -> None:
    """A process died with the token presented. The answer is on its disk, and wouldn't be looked for any more."""
    tokens = await hand_over(bench)
    if not is_named:
        found = await two[0].vault.read(grant_id(bench))
        assert found is not None
        assert await two[0].vault.replace(found, replace(found.grant, handed_over=None), due_at=None)
    third, _ = await bench.open()
    bench.clock.advance(LIFE)
    third.store.trouble("replace", "fails", skip=1, count=None)
    assert isinstance(await third.broker.token(grant_id(bench)), Token)
    await third.crash()
    bench.clock.advance(LEASE_SECONDS)

    await standing(bench).hand_over("nightly", tokens)

    assert "at-2" == access_token(await two[1].broker.token(grant_id(bench)))
    assert {} == bench.server.ledger.presented_twice()
    await is_whole(bench, 0)


async def test_what_has_ended_begins_anew_with_the_same_tokens(bench: Bench, two: tuple[Replica, Replica]) -> None:
    """Nothing became of them that could go on."""
    tokens = await hand_over(bench)
    await two[0].broker.end(grant_id(bench), EndReason.REVOKED, revoke=False)

    await standing(bench).hand_over("nightly", tokens)
    await asyncio.sleep(0)

    assert "at-1" == access_token(await two[0].broker.token(grant_id(bench)))
    await is_whole(bench, 0)


@pytest.mark.parametrize(
    ("former", "new", "is_revoked"),
    [
        ({"sid": "s1"}, {"sid": "s1"}, False),
        ({"sid": "s1"}, {"sid": "s2"}, True),
        ({}, {}, True),
        ({"sid": "s1"}, {}, True),
    ],
)
async def test_what_hangs_on_the_same_session_is_not_revoked(
    bench: Bench, two: tuple[Replica, Replica], former: dict[str, str], new: dict[str, str], is_revoked: bool
) -> None:
    """Some servers would end the new tokens with it."""
    first = await hand_over(bench, id_token=IdToken(join({"alg": "none"}, former)))

    await hand_over(bench, id_token=IdToken(join({"alg": "none"}, new)))

    assert ([revealed(first)] if is_revoked else []) == bench.server.revoked


async def test_a_refresh_under_way_is_waited_for_and_replaced(bench: Bench, two: tuple[Replica, Replica]) -> None:
    """What it brings is revoked, and not what is handed over."""
    await hand_over(bench)
    bench.clock.advance(LIFE)
    step = bench.server.hold()
    refreshing = two[1].broker.refresher.start(Want(grant_id=grant_id(bench)))
    await step.reached.wait()

    handing = asyncio.ensure_future(hand_over(bench))
    await until(lambda: two[0].store.calls.count("lease") > 2)
    assert not handing.done()
    step.release()
    assert "at-2" == access_token(await refreshing)
    await handing

    assert [bench.server.ledger.newest(family(bench, 0)).token] == bench.server.revoked
    assert "at-3" == access_token(await two[1].broker.token(grant_id(bench)))
    await is_whole(bench, 1)


async def test_an_answer_that_comes_after_it_is_revoked(bench: Bench, two: tuple[Replica, Replica]) -> None:
    """A process stood still and lost the lease: its answer replaces nothing, and its caller gets the new token."""
    first = await hand_over(bench)
    bench.clock.advance(LIFE)
    step = bench.server.hold()
    refreshing = two[1].broker.refresher.start(Want(grant_id=grant_id(bench)))
    await step.reached.wait()
    bench.clock.advance(LEASE_SECONDS)

    await hand_over(bench)
    step.release()

    assert "at-3" == access_token(await refreshing)
    late = bench.server.ledger.newest(family(bench, 0)).token
    await until(lambda: [revealed(first), late] == bench.server.revoked)
    await until(lambda: len(two[1].spool) == 0)
    await is_whole(bench, 1)


async def test_a_refusal_that_comes_after_it_ends_nothing(bench: Bench, two: tuple[Replica, Replica]) -> None:
    """It is about a refresh token that the grant has no more."""
    await hand_over(bench)
    bench.clock.advance(LIFE)
    step = bench.server.hold("permanent", error="invalid_grant")
    refreshing = two[1].broker.refresher.start(Want(grant_id=grant_id(bench)))
    await step.reached.wait()
    bench.clock.advance(LEASE_SECONDS)

    await hand_over(bench)
    step.release()

    assert isinstance(await refreshing, Token)
    await is_whole(bench, 1)


async def test_who_waits_too_long_is_told_to_come_back(bench: Bench, two: tuple[Replica, Replica]) -> None:
    """A refresh whose server takes its time holds no operator up for ever, and nothing is written."""
    await hand_over(bench)
    lease = await two[1].vault.lease(grant_id(bench), 10 * PATIENCE_SECONDS)
    assert not isinstance(lease, Busy | StoreDown)

    handing = asyncio.ensure_future(hand_over(bench))
    await until(lambda: two[0].store.calls.count("lease") > 2)
    bench.clock.advance(PATIENCE_SECONDS)
    with pytest.raises(ProviderError, match="refreshed"):
        await handing
    await lease.release()

    await is_whole(bench, 0)
    assert [] == bench.server.revoked


@pytest.mark.parametrize(
    ("method", "trouble", "is_written"),
    [
        ("lease", "fails", False),
        ("get", "fails", False),
        ("find", "fails", False),
        ("create", "fails", False),
        ("create", "applied", False),
        ("replace", "fails", False),
        ("replace", "applied", True),
    ],
)
async def test_a_store_that_fails_loses_nothing(
    bench: Bench, two: tuple[Replica, Replica], method: str, trouble: str, is_written: bool
) -> None:
    """The grant goes on with the one or the other, which isn't revoked; done again, the other's end is certain."""
    first = await hand_over(bench)
    second = bench.server.login_tokens("nightly")
    two[0].store.trouble(method, trouble)

    with pytest.raises(StoreError):
        await standing(bench).hand_over("nightly", second)
    for _ in range(3):
        bench.clock.advance(30)
        await two[1].keep_alive.scan()

    assert ([revealed(first)] if is_written else []) == bench.server.revoked
    await is_whole(bench, int(is_written))
    await standing(bench).hand_over("nightly", second)
    bench.clock.advance(1000)
    await two[1].keep_alive.scan()
    assert {revealed(first)} == set(bench.server.revoked)
    await is_whole(bench, 1)


async def test_what_a_failed_attempt_left_does_not_outlive_its_chain(
    bench: Bench, two: tuple[Replica, Replica]
) -> None:
    """The tokens that were to be replaced go on and rotate; what remembers the older link revokes nothing."""
    await hand_over(bench)
    two[0].store.trouble("replace", "fails")
    with pytest.raises(StoreError):
        await hand_over(bench)
    bench.clock.advance(LIFE)
    assert isinstance(await two[1].broker.token(grant_id(bench)), Token)

    for _ in range(20):
        bench.clock.advance(3600)
        await two[1].keep_alive.scan()

    assert [] == bench.server.revoked
    await is_whole(bench, 0)


async def test_a_process_that_dies_after_it_leaves_the_old_ones_to_the_others(
    bench: Bench, two: tuple[Replica, Replica]
) -> None:
    """Or a server that is down does; no operator sees a grant of it."""
    first = await hand_over(bench)
    bench.server.revocation_fault = ProviderError("down")
    await hand_over(bench)

    assert [grant_id(bench)] == [grant.id for grant in await two[0].broker.grants()]
    bench.server.revocation_fault = None
    bench.clock.advance(10)
    await two[1].keep_alive.scan()

    assert [revealed(first)] == bench.server.revoked


async def test_what_comes_back_is_not_revoked_any_more(bench: Bench, two: tuple[Replica, Replica]) -> None:
    """An operator took the wrong file, and takes the right one while the server can't be told yet."""
    right = await hand_over(bench)
    bench.server.revocation_fault = ProviderError("down")
    wrong = await hand_over(bench)
    await standing(bench).hand_over("nightly", right)
    bench.server.revocation_fault = None

    for _ in range(5):
        bench.clock.advance(60)
        await two[1].keep_alive.scan()

    assert [revealed(wrong)] == bench.server.revoked
    await is_whole(bench, 0)


async def test_a_write_that_comes_between_is_read_again(bench: Bench, two: tuple[Replica, Replica]) -> None:
    """Whoever had lost the lease wrote first."""
    first = await hand_over(bench)
    two[0].store.trouble("replace", "conflict")

    await hand_over(bench)

    assert [revealed(first)] == bench.server.revoked
    await is_whole(bench, 1)


async def test_a_record_that_the_store_has_lost_is_made_anew(bench: Bench, two: tuple[Replica, Replica]) -> None:
    """It came back empty, and nobody has looked since."""
    bench.engine.backend.records.clear()

    await hand_over(bench)

    await is_whole(bench, 0)


async def leave_an_answer(bench: Bench, directory: Path) -> str:
    """Kill a process of another host that has an answer on its disk, and empty the store. Returns what it brought."""
    await hand_over(bench)
    for _ in range(3):
        bench.clock.advance(LIFE)
        assert isinstance(await bench.replicas[0][0].broker.token(grant_id(bench)), Token)
    other = await bench.engine.open(directory=directory)
    bench.clock.advance(LIFE)
    other.store.trouble("replace", "fails", skip=1, count=None)
    assert isinstance(await other.broker.refresher.refresh(Want(grant_id=grant_id(bench))), Token)
    await other.crash()
    bench.engine.backend.records.clear()
    bench.clock.advance(60)
    return bench.server.ledger.newest(family(bench, 0)).token


async def test_an_answer_from_before_the_store_was_lost_replaces_nothing(
    bench: Bench, two: tuple[Replica, Replica], tmp_path: Path
) -> None:
    """Its host comes back after other tokens were handed over. Its chain was longer, and it is another: it is revoked."""
    late = await leave_an_answer(bench, tmp_path / "elsewhere")
    await hand_over(bench)

    returned = await bench.engine.open(directory=tmp_path / "elsewhere")
    await returned.broker.recover()
    await until(lambda: len(returned.spool) == 0)

    await is_whole(bench, 1)
    assert [late] == bench.server.revoked
    assert isinstance(await two[1].broker.token(grant_id(bench)), Token)


async def test_an_answer_from_before_the_store_was_lost_fills_what_is_empty(
    bench: Bench, two: tuple[Replica, Replica], tmp_path: Path
) -> None:
    """Nobody has handed anything over yet, and nobody has to."""
    await leave_an_answer(bench, tmp_path / "elsewhere")
    await standing(bench).ensure()

    returned = await bench.engine.open(directory=tmp_path / "elsewhere")
    await returned.broker.recover()
    await until(lambda: len(returned.spool) == 0)

    await is_whole(bench, 0)
    assert [] == bench.server.revoked


async def test_a_record_that_can_not_be_opened_is_left_alone(bench: Bench, two: tuple[Replica, Replica]) -> None:
    """It was sealed with a key that is no longer here: that is said, and not tried for ever."""
    found = await two[0].vault.read(grant_id(bench))
    assert found is not None
    await two[0].store.replace(found.key, b"sealed by nobody", found.version)

    with pytest.raises(StoreError, match="can't be opened"):
        await hand_over(bench)


async def test_only_a_configured_grant_of_type_imported_takes_tokens(tmp_path: Path) -> None:
    """The others get theirs by themselves."""
    bench = Bench(tmp_path, GrantType.CLIENT_CREDENTIALS)
    await bench.open()
    tokens = bench.server.login_tokens("nightly")

    for name, said in (("nightly", "type"), ("unknown", "no such")):
        with pytest.raises(BadRequest, match=f"^grant: .*{said}"):
            await standing(bench).hand_over(name, tokens)
    assert (await stored(bench)).refresh_token is None
    await bench.close()


async def test_the_key_that_they_are_bound_to_comes_along(bench: Bench, two: tuple[Replica, Replica]) -> None:
    """And goes with them (RFC 9449)."""
    tokens = replace(bench.server.login_tokens("nightly"), token_type="DPoP")
    await standing(bench).hand_over("nightly", tokens, dpop_key=RefreshToken("a key"))

    bound = await two[1].broker.token(grant_id(bench))
    await hand_over(bench)
    unbound = await two[1].broker.token(grant_id(bench))

    assert isinstance(bound, Token)
    assert isinstance(unbound, Token)
    assert (RefreshToken("a key"), None) == (bound.dpop_key, unbound.dpop_key)


async def test_a_session_at_the_server_begins_the_next_chain(
    bench: Bench, two: tuple[Replica, Replica], caplog: pytest.LogCaptureFixture
) -> None:
    """As long as it lives there; then callers get a 503, and the log names the grant."""
    assert isinstance(bench.server, WithSessions)
    bench.server.sessions = ("s-1",)
    await hand_over(bench, session_id="s-1", refresh_token=None)
    bench.clock.advance(LIFE)
    assert isinstance(await two[0].broker.token(grant_id(bench)), Token)

    bench.server.sessions = ()
    bench.server.families.revoke(bench.server.families.by_id[family(bench, 1)], "expired")
    bench.clock.advance(LIFE)

    assert isinstance(await two[0].broker.token(grant_id(bench)), Unavailable)
    assert "grants.nightly" in {getattr(record, "look_at", None) for record in caplog.records}
    assert (await stored(bench)).ended is None


@pytest.mark.parametrize(("session", "is_ended"), [("s-1", False), ("s-2", True), (None, True)])
async def test_the_servers_session_ends_unless_it_goes_on(
    bench: Bench, two: tuple[Replica, Replica], session: str | None, is_ended: bool
) -> None:
    """It would bring new tokens for ever."""
    await hand_over(bench, session_id="s-1")

    await hand_over(bench, session_id=session)

    assert is_ended == ("s-1" in bench.server.revoked)
    assert session not in {token for token in bench.server.revoked if token == "s-2"}


async def test_lk_01_a_grant_that_was_filled_shows_no_secret(bench: Bench, two: tuple[Replica, Replica]) -> None:
    """Not by repr, and not by what the vault keeps."""
    tokens = await hand_over(bench)
    outcome = await two[0].broker.token(grant_id(bench), DEFAULT_AUDIENCE)

    shown = repr((tokens, await stored(bench), outcome)) + repr(bench.engine.backend.records)

    assert not [secret for secret in ("at-1", revealed(tokens)) if secret in shown]

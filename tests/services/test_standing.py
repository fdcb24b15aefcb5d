"""Standing grants: they begin by themselves, and anew when they have ended, as long as the configuration names them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.grant import EndReason, Grant
from broker.core.oauth import FailureKind, TokenFailure, TokenOutcome
from broker.core.outcome import LoginNeeded, Token, Unavailable
from broker.core.secret import RefreshToken
from broker.core.standing import GrantType, StandingGrantOptions
from broker.errors import ProviderError, StoreError
from broker.services.keyring import Keyring
from broker.services.leases import LEASE_SECONDS
from broker.services.provider import Identity
from broker.services.refresher import Want
from broker.services.standing import ENSURE_SECONDS, StandingGrants
from broker.services.vault import StoredGrant, Vault
from broker.stores.base import Event, Topic
from tests.support.clock import ManualClock, SeededRandomness
from tests.support.engine import KEY, NEWER_KEY, PROVIDER, Engine, Replica, access_token, ring
from tests.support.grants import NOW, failure
from tests.support.scripted_server import ScriptedServer
from tests.support.waiting import until, until_async


class FirstTokensServer(ScriptedServer):
    """Gives first tokens, with a refresh token, unless a test says why not."""

    refusal: TokenFailure | None = None
    asked = 0

    async def first_tokens(
        self, grant: StandingGrantOptions, audience: Audience, *, dpop_key: RefreshToken | None = None
    ) -> TokenOutcome:
        self.asked += 1
        if grant.type is GrantType.IMPORTED:
            return TokenFailure(kind=FailureKind.OPERATOR, detail="an imported grant must be handed over anew")
        return self.refusal or self.login_tokens("nightly")


@dataclass
class Bench:
    directory: Path
    type: GrantType = GrantType.CLIENT_CREDENTIALS
    clock: ManualClock = field(default_factory=lambda: ManualClock(NOW))
    server_type: Callable[..., FirstTokensServer] = FirstTokensServer
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.server = self.server_type(self.clock, **self.options)
        self.engine = Engine(self.directory, self.clock, SeededRandomness(), {PROVIDER: self.server})
        self.replicas: list[tuple[Replica, StandingGrants]] = []

    async def open(self, keyring: Keyring | None = None) -> tuple[Replica, StandingGrants]:
        async def acquire(grant: Grant, audience: Audience) -> TokenOutcome:
            return await standing.acquire(grant, audience)

        replica = await self.engine.open(acquire=acquire, keyring=keyring)
        options: dict[str, Any] = {"provider": PROVIDER, "type": self.type}
        standing = StandingGrants(
            {"nightly": StandingGrantOptions(**options)},
            servers=self.engine.servers,
            vault=replica.vault,
            store=replica.store,
            clock=self.clock,
            randomness=SeededRandomness(3),
            told_within_seconds=0,
        )
        await standing.ensure()
        self.replicas.append((replica, standing))
        return replica, standing

    async def close(self) -> None:
        for _, standing in self.replicas:
            standing.close()
        await self.engine.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


async def look(standing: StandingGrants) -> None:
    """Make sure that each lives, and let every replica hear of it."""
    await standing.ensure()
    await asyncio.sleep(0)


async def end(replica: Replica, grant_id: str) -> str:
    """End the grant as an operator does. Returns the refresh token that it had."""
    before = await replica.broker.end(grant_id, EndReason.REVOKED)
    assert before is not None
    assert before.refresh_token is not None
    return before.refresh_token.reveal()


async def test_one_that_was_revoked_begins_anew(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """What it had ends here and at the server; the next caller gets new tokens on every replica."""
    (one, standing), (two, _) = await bench.open(), await bench.open()
    grant_id = standing.ids["nightly"]
    assert "at-1" == access_token(await one.broker.token(grant_id))
    assert "at-1" == access_token(await two.broker.token(grant_id))
    token = await end(one, grant_id)
    assert await one.broker.revocations.revoke(grant_id)
    assert LoginNeeded("revoked") == await one.broker.token(grant_id)

    await look(standing)

    assert "at-2" == access_token(await two.broker.token(grant_id))
    assert "at-2" == access_token(await one.broker.token(grant_id))
    assert [token] == bench.server.revoked
    assert 2 == bench.server.asked
    assert "standing_grant_begun_anew" in caplog.text


async def test_what_it_had_is_revoked_even_if_its_server_was_down(bench: Bench) -> None:
    """Another record remembers that, and the grant goes on without it."""
    one, standing = await bench.open()
    grant_id = standing.ids["nightly"]
    await one.broker.token(grant_id)
    bench.server.revocation_fault = ProviderError("down")
    token = await end(one, grant_id)
    assert not await one.broker.revocations.revoke(grant_id)

    await look(standing)
    assert "at-2" == access_token(await one.broker.token(grant_id))
    bench.server.revocation_fault = None
    bench.clock.advance(30)
    await one.keep_alive.scan()

    assert [token] == bench.server.revoked
    assert (await one.grant(grant_id)).ended is None


async def test_it_is_begun_anew_soon_after_its_end(bench: Bench) -> None:
    """Nobody waits for the next look: whoever hears of the end begins it."""
    (one, _), (_, standing) = await bench.open(), await bench.open()
    grant_id = standing.ids["nightly"]
    await one.broker.token(grant_id)
    running = asyncio.ensure_future(standing.run())
    await asyncio.sleep(0)

    await end(one, grant_id)

    async def lives() -> bool:
        return (await one.grant(grant_id)).ended is None

    await until_async(lives, seconds=ENSURE_SECONDS / 2)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


@pytest.mark.parametrize("is_late", [True, False])
async def test_an_end_that_is_heard_late_ends_nothing_that_has_begun_since(bench: Bench, is_late: bool) -> None:
    """Or twice. That of the present tokens does, and so does one whose teller doesn't say what it ended."""
    (one, standing), (two, _) = await bench.open(), await bench.open()
    grant_id = standing.ids["nightly"]
    await one.broker.token(grant_id)
    ended = (await one.grant(grant_id)).generation
    await end(one, grant_id)
    await look(standing)
    assert isinstance(await two.broker.token(grant_id), Token)

    await one.store.publish(Event(Topic.GRANT_ENDED, grant_id, ended if is_late else 0))
    await asyncio.sleep(0)

    assert is_late == isinstance(await two.broker.token(grant_id), Token)


class _FaultyVault(Vault):
    """Has a fault of ours in it, once."""

    has_failed = False

    async def read(self, grant_id: str) -> StoredGrant | None:
        if not self.has_failed:
            self.has_failed = True
            raise ValueError("a fault of ours")
        return await super().read(grant_id)


async def test_looking_after_them_outlives_a_fault_of_ours(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the next one that ends begins anew."""
    one, standing = await bench.open()
    grant_id = standing.ids["nightly"]
    await one.broker.token(grant_id)
    standing._vault = vault = _FaultyVault(one.store, ring())
    running = asyncio.ensure_future(standing.run())
    await asyncio.sleep(0)
    await end(one, grant_id)
    await until(lambda: vault.has_failed)

    async def lives() -> bool:
        return (await one.grant(grant_id)).ended is None

    standing._has_ended.set()
    await until_async(lives, seconds=ENSURE_SECONDS / 2)
    assert "standing_grants_failed" in caplog.text
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_what_a_refresh_under_way_brings_belongs_to_what_has_ended(bench: Bench) -> None:
    """The new beginning waits for the lease, and the late answer is revoked."""
    one, standing = await bench.open()
    grant_id = standing.ids["nightly"]
    await one.broker.token(grant_id)
    bench.clock.advance(3600)
    step = bench.server.hold()
    refreshing = one.broker.refresher.start(Want(grant_id=grant_id))
    await step.reached.wait()
    await end(one, grant_id)

    await standing.ensure()
    assert (await one.grant(grant_id)).ended is not None
    step.release()
    assert LoginNeeded("revoked") == await refreshing
    await look(standing)

    assert [bench.server.ledger.newest(next(iter(bench.server.families.by_id))).token] == bench.server.revoked
    assert "at-3" == access_token(await one.broker.token(grant_id))


async def test_what_comes_after_the_new_beginning_is_revoked(bench: Bench) -> None:
    """A process stood still and lost the lease: what it brings belongs to what has ended, and nobody else knows it."""
    (one, standing), (two, _) = await bench.open(), await bench.open()
    grant_id = standing.ids["nightly"]
    await one.broker.token(grant_id)
    bench.clock.advance(3600)
    step = bench.server.hold()
    refreshing = two.broker.refresher.start(Want(grant_id=grant_id))
    await step.reached.wait()
    token = await end(one, grant_id)
    assert await one.broker.revocations.revoke(grant_id)
    bench.clock.advance(LEASE_SECONDS)

    await look(standing)
    step.release()
    await refreshing

    late = bench.server.ledger.newest(next(iter(bench.server.families.by_id))).token
    await until(lambda: [token, late] == bench.server.revoked)


async def test_a_lease_that_can_not_be_asked_for_is_tried_again(bench: Bench) -> None:
    """The store is down: nothing is written, and the next look finds it."""
    one, standing = await bench.open()
    grant_id = standing.ids["nightly"]
    await one.broker.token(grant_id)
    await end(one, grant_id)
    one.store.trouble("lease", "fails")

    with pytest.raises(StoreError):
        await standing.ensure()
    await standing.ensure()

    assert (await one.grant(grant_id)).ended is None


@pytest.mark.parametrize(
    ("refusal", "look_at"),
    [
        (failure("operator", error="invalid_grant", status=400), "grants.nightly"),
        (failure("operator", error="invalid_client", look_at="providers.corp.client_id"), "providers.corp.client_id"),
        (failure("transient", status=503, retry_after_seconds=20), None),
    ],
)
async def test_one_that_is_refused_backs_off_and_says_which_key(
    bench: Bench, caplog: pytest.LogCaptureFixture, refusal: TokenFailure, look_at: str | None
) -> None:
    """It isn't the end of it: 503 meanwhile, and the log names the grant where no key of the provider explains it."""
    one, standing = await bench.open()
    grant_id = standing.ids["nightly"]
    bench.server.refusal = refusal
    with caplog.at_level(logging.WARNING):
        assert isinstance(await one.broker.token(grant_id), Unavailable)
        assert isinstance(await one.broker.token(grant_id), Unavailable)

    assert 1 == bench.server.asked
    named = [getattr(record, "look_at", None) for record in caplog.records if record.message == "token_request_failed"]
    assert [look_at] == named
    bench.server.refusal = None
    bench.clock.advance(60)
    assert "at-1" == access_token(await one.broker.token(grant_id))


async def test_a_provider_that_refuses_is_not_asked_for_each_that_begins_anew(bench: Bench) -> None:
    """The backoff is that of the grant, and it survives nothing but its end."""
    one, standing = await bench.open()
    grant_id = standing.ids["nightly"]
    await one.broker.token(grant_id)
    await end(one, grant_id)
    bench.server.refusal = failure("operator", error="invalid_client", status=401)
    await look(standing)

    for _ in range(5):
        assert isinstance(await one.broker.token(grant_id), Unavailable)
        await look(standing)

    assert 2 == bench.server.asked


async def test_jw_04_its_id_token_may_name_whom_the_configuration_calls_otherwise(bench: Bench) -> None:
    """Its subject is a name of the configuration, and no id token has said who it was before."""
    one, standing = await bench.open()
    bench.server.id_tokens.append("id-1")
    bench.server.identities["id-1"] = Identity(
        issuer="https://idp.example", subject="svc-4711", provider_session=None, claims={}
    )

    assert "at-1" == access_token(await one.broker.token(standing.ids["nightly"]))

    assert (await one.grant(standing.ids["nightly"])).ended is None


async def test_an_imported_one_that_has_ended_stays_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its tokens must be handed over; until then there is none, and the log says whose."""
    bench = Bench(tmp_path, GrantType.IMPORTED)
    one, standing = await bench.open()
    grant_id = standing.ids["nightly"]
    with caplog.at_level(logging.WARNING):
        assert isinstance(await one.broker.token(grant_id), Unavailable)
    await one.broker.end(grant_id, EndReason.REVOKED)

    await standing.ensure()

    assert LoginNeeded("revoked") == await one.broker.token(grant_id)
    assert "grants.nightly" in {getattr(record, "look_at", None) for record in caplog.records}
    await bench.close()


async def test_cr_04_it_is_the_same_grant_while_the_keys_rotate(bench: Bench) -> None:
    """A new key behind the old one, then in front of it: its tokens stay. Without the old key it begins anew."""
    ids, tokens = [], []
    for keys in ([KEY], [KEY, NEWER_KEY], [NEWER_KEY, KEY], [NEWER_KEY]):
        one, standing = await bench.open(Keyring(keys))
        ids.append(standing.ids["nightly"])
        tokens.append(access_token(await one.broker.token(ids[-1])))
        assert [ids[-1]] == [stored.grant.id for stored in await one.vault.find_unattended()]

    assert 1 == len(set(ids))
    assert ["at-1", "at-1", "at-1", "at-2"] == tokens
    assert 2 == bench.server.asked


async def test_cr_04_tokens_that_are_handed_over_while_the_keys_rotate_stay(tmp_path: Path) -> None:
    """Whichever replica takes them, the next step finds them; without the old key they are handed over anew."""
    bench = Bench(tmp_path, GrantType.IMPORTED)
    await bench.open(Keyring([KEY]))
    for keys in ([KEY, NEWER_KEY], [NEWER_KEY, KEY]):
        _, standing = await bench.open(Keyring(keys))
        await standing.hand_over("nightly", tokens := bench.server.login_tokens("nightly"))
        for replica, other in bench.replicas[-2:]:
            held = await replica.broker.token(other.ids["nightly"])
            assert tokens.access_token.reveal() == access_token(held)

    one, standing = await bench.open(Keyring([NEWER_KEY]))
    assert isinstance(await one.broker.token(standing.ids["nightly"]), Unavailable)
    await standing.hand_over("nightly", tokens := bench.server.login_tokens("nightly"))
    assert tokens.access_token.reveal() == access_token(await one.broker.token(standing.ids["nightly"]))
    await bench.close()


async def test_what_has_no_tokens_and_is_not_configured_acquires_nothing(bench: Bench) -> None:
    """A grant that the configuration doesn't name any more."""
    one, standing = await bench.open()
    before = await one.grant(standing.ids["nightly"])

    outcome = await StandingGrants(
        {},
        servers=bench.engine.servers,
        vault=one.vault,
        store=one.store,
        clock=bench.clock,
        randomness=SeededRandomness(),
    ).acquire(before, DEFAULT_AUDIENCE)

    assert isinstance(outcome, TokenFailure)

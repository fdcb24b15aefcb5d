"""Tokens that somebody else got become grants of their own: one for each refresh token, however often it is done."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from broker.core.grant import EndReason, Grant, Origin
from broker.core.oauth import TokenSet
from broker.core.outcome import Token
from broker.core.secret import Secret
from broker.errors import BadRequest, StoreError
from broker.services.clock import SystemRandomness
from broker.services.handles import Handles
from broker.services.imports import Imports
from broker.services.keyring import Keyring, new_key
from broker.services.vault import Vault
from tests.services.conftest import StartStage
from tests.support.engine import KEY, PROVIDER, ring
from tests.support.stage import Stage
from tests.support.troubled_store import Trouble
from tests.support.waiting import until_async


def imports_of(stage: Stage, keys: Sequence[Secret] = (KEY,)) -> Imports:
    """What a replica takes imports with."""
    return Imports(
        tokens=stage.one.broker,
        servers={PROVIDER: stage.server},
        vault=Vault(stage.one.store, Keyring([*keys, *{KEY}.difference(keys)])),
        keyring=Keyring(keys),
        clock=stage.clock,
        randomness=SystemRandomness(),
        told_within_seconds=0.0,
    )


async def take(stage: Stage, tokens: TokenSet, *, subject: str = "batch", imports: Imports | None = None) -> Grant:
    return await (imports or imports_of(stage)).take(PROVIDER, tokens, subject=subject, dpop_key=None)


async def use_for_an_hour(stage: Stage) -> None:
    for _ in range(60):
        stage.clock.advance(60)
        await stage.one.keep_alive.scan()


async def assert_alive(stage: Stage, grant: Grant) -> None:
    """It is the only one, it has lived on its own refresh tokens, and none was presented twice."""
    assert [grant.id] == [each.id for each in await stage.one.broker.grants()]
    assert isinstance(result := await stage.one.broker.token(grant.id), Token), result
    assert {} == stage.server.ledger.presented_twice()


@pytest.fixture
async def idle(start_stage: StartStage) -> Stage:
    """A server with an idle limit, so that its grants are refreshed without callers."""
    return await start_stage(idle_timeout_seconds=1800.0, keep_alive_per_second=1000.0)


async def test_an_import_is_kept_alive_without_end(idle: Stage) -> None:
    """It belongs to the broker, whether or not anybody calls with it."""
    grant = await take(idle, idle.server.login_tokens("batch"))

    await use_for_an_hour(idle)

    assert (Origin.IMPORTED, "batch", None) == (grant.origin, grant.subject, grant.keep_until)
    await assert_alive(idle, grant)


async def test_an_import_whose_handle_was_not_issued_is_repeated(idle: Stage) -> None:
    """The operator was told 503, and does it again: it is the same grant."""
    handles = Handles(idle.one.store, ring(), idle.clock, SystemRandomness())
    tokens = idle.server.login_tokens("batch")
    idle.one.store.trouble("create", "fails", when=lambda key, *_: key.startswith("handle"))
    first = await take(idle, tokens)
    with pytest.raises(StoreError):
        await handles.issue(handles.new(first.id))

    again = await take(idle, tokens)
    await handles.issue(handles.new(again.id))
    await use_for_an_hour(idle)

    await assert_alive(idle, again)


@pytest.mark.parametrize("trouble", [Trouble.FAILS, Trouble.APPLIED])
async def test_an_import_that_may_have_been_stored_is_repeated(idle: Stage, trouble: Trouble) -> None:
    """Also after it has been kept alive for a while: the tokens that come again are spent by then."""
    tokens = idle.server.login_tokens("batch")
    idle.one.store.trouble("create", trouble)
    with pytest.raises(StoreError):
        await take(idle, tokens)
    idle.one.store.heal()
    await use_for_an_hour(idle)

    grant = await take(idle, tokens)
    await use_for_an_hour(idle)

    await assert_alive(idle, grant)


async def test_imports_at_once_are_one(idle: Stage) -> None:
    """One is stored, and the others find it."""
    tokens = idle.server.login_tokens("batch")

    grants = await asyncio.gather(*(take(idle, tokens) for _ in range(5)))
    await use_for_an_hour(idle)

    assert 1 == len({grant.id for grant in grants})
    await assert_alive(idle, grants[0])


async def test_an_import_whose_record_can_not_be_read_makes_no_other(idle: Stage) -> None:
    """A record under its name that no key here opens: nothing is written over it."""
    tokens = idle.server.login_tokens("batch")
    grant = await take(idle, tokens)
    (stored,) = await idle.one.vault.find_unattended()
    assert await idle.one.store.replace(stored.key, b"of another making", stored.version) is not None

    with pytest.raises(StoreError):
        await take(idle, tokens)

    assert await idle.one.vault.read(grant.id) is None


async def test_cr_04_an_import_is_found_again_while_keys_are_rotated(stage: Stage) -> None:
    """Before, during and after: whichever key made its name."""
    newer = new_key(SystemRandomness())
    tokens, others = stage.server.login_tokens("batch"), stage.server.login_tokens("batch")
    old, new = imports_of(stage), imports_of(stage, [newer, KEY])
    behind = imports_of(stage, [KEY, newer])

    first = [await take(stage, tokens, imports=each) for each in (old, new, behind)]
    second = [await take(stage, others, imports=each) for each in (new, behind, imports_of(stage, [newer]))]

    assert [1, 1] == [len({grant.id for grant in grants}) for grants in (first, second)]


async def test_an_import_that_has_ended_begins_anew(stage: Stage) -> None:
    """What its server said may have been for a mistake of the configuration: the same tokens, the same grant."""
    tokens = stage.server.login_tokens("batch")
    grant = await take(stage, tokens)
    stage.expire()
    stage.server.refuse("permanent", error="invalid_grant", status=400)
    assert not isinstance(await stage.one.broker.token(grant.id), Token)

    again = await take(stage, replace(tokens, expires_at=stage.clock.now()))

    assert grant.id == again.id

    async def is_heard_of() -> bool:
        return isinstance(await stage.one.broker.token(grant.id), Token)

    await until_async(is_heard_of)
    await assert_alive(stage, again)


async def test_an_import_that_was_revoked_and_comes_again_is_not_revoked_later(idle: Stage) -> None:
    """The server was down when it was revoked, and whoever hands it over again wants it to live."""
    tokens = idle.server.login_tokens("batch")
    grant = await take(idle, tokens)
    await idle.one.broker.end(grant.id, EndReason.REVOKED)

    await take(idle, tokens)
    await use_for_an_hour(idle)

    assert [] == idle.server.revoked
    await assert_alive(idle, grant)


async def test_tokens_of_somebody_elses_grant_are_refused(stage: Stage) -> None:
    """The same refresh token can't be two users'."""
    tokens = stage.server.login_tokens("batch")
    grant = await take(stage, tokens)

    with pytest.raises(BadRequest, match=grant.id):
        await take(stage, tokens, subject="another")


async def test_tokens_that_a_standing_grant_has_are_refused(stage: Stage) -> None:
    """It would present them, too."""
    tokens = stage.server.login_tokens("nightly")
    standing = await stage.one.adopt(tokens, subject="nightly", origin=Origin.STANDING)

    with pytest.raises(BadRequest, match=standing.id):
        await take(stage, tokens)
    await imports_of(stage).refuse_if_taken(tokens, but_for=standing.id)

    await stage.one.broker.end(standing.id, EndReason.REVOKED)
    assert Origin.IMPORTED is (await take(stage, tokens)).origin


async def test_nor_those_that_it_has_rotated_since(stage: Stage) -> None:
    """It began with them, and they are spent."""
    tokens = stage.server.login_tokens("nightly")
    standing = await stage.one.adopt(stage.server.login_tokens("nightly"), subject="nightly", origin=Origin.STANDING)
    stored = await stage.one.vault.read(standing.id)
    assert stored is not None
    await imports_of(stage)._hand_over.fill(stored.grant, tokens, dpop_key=None)
    stage.expire()
    assert isinstance(await stage.one.broker.token(standing.id), Token)

    with pytest.raises(BadRequest, match=standing.id):
        await take(stage, tokens)


async def test_tokens_that_were_imported_go_to_no_standing_grant(stage: Stage) -> None:
    """Also after the import has rotated them; not once it has ended, for then nobody presents them any more."""
    tokens = stage.server.login_tokens("batch")
    imports = imports_of(stage)
    await imports.refuse_if_taken(tokens)
    grant = await take(stage, tokens)
    stage.expire()
    assert isinstance(await stage.one.broker.token(grant.id), Token)

    with pytest.raises(BadRequest, match=grant.id):
        await imports.refuse_if_taken(tokens, but_for="another")

    await stage.one.broker.end(grant.id, EndReason.REVOKED)
    await imports.refuse_if_taken(tokens)


async def test_an_import_without_a_refresh_token_is_named_by_its_session(stage: Stage) -> None:
    """What it lives by is the session at its server."""
    tokens = replace(stage.server.login_tokens("batch"), refresh_token=None, session_id="s1")

    one, again = await take(stage, tokens), await take(stage, tokens)
    other = await take(stage, replace(tokens, session_id="s2"))

    assert (one.id, True) == (again.id, one.id != other.id)
    assert one.id not in (ring().lookup_keys("imported-grant", "s1")[0], "s1")

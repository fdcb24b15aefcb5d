import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from broker.core.grant import Grant
from broker.core.login import LoginOptions, LoginTransaction
from broker.core.oauth import FailureKind, TokenFailure, TokenSet
from broker.core.provider import ProviderOptions
from broker.core.secret import AccessToken, IdToken, RefreshToken, Secret
from broker.core.session import Session, SessionOptions
from broker.errors import LoginFailed, ProviderError, StoreError
from broker.services.clock import SystemRandomness
from broker.services.keyring import Keyring, new_key
from broker.services.logins import AuthorizationResponse, BeginSession, Declined, LoggedIn, Logins, Unanswered
from broker.services.outbound import Outbound
from broker.services.provider import AuthorizationRequest, AuthorizationServer, Identity
from broker.services.sessions import Sessions
from broker.services.spool import Spool
from broker.services.tokens import TokenBroker
from broker.services.unanswered import SUSPICIOUS
from broker.services.vault import Vault
from broker.stores.memory import MemoryBackend, MemoryStore
from tests.support.clock import ManualClock
from tests.support.faulty_store import FaultyStore
from tests.support.waiting import until

SITE = "https://app.example.com"
KEY = new_key(SystemRandomness())


class ScriptedServer(AuthorizationServer):
    """An authorization server whose answers a test chooses. What it says on the wire is tested with real ones."""

    def __init__(self, clock: ManualClock) -> None:
        options = ProviderOptions(issuer="https://idp.example.com", client_id="broker")
        super().__init__("corp", options, outbound=Outbound(None), clock=clock, randomness=SystemRandomness())
        self.asked: list[AuthorizationRequest] = []
        self.exchanged: list[Mapping[str, str]] = []
        self.revoked: list[str] = []
        self.answer: TokenSet | TokenFailure = TokenFailure(kind=FailureKind.PERMANENT)
        self.refusal: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.identifying, self.identified = asyncio.Event(), asyncio.Event()
        self.identified.set()

    async def authorization_url(self, request: AuthorizationRequest) -> str:
        self.asked.append(request)
        return "https://idp.example.com/authorize"

    async def check_issuer(self, iss: str | None) -> None:
        if iss not in {None, "https://idp.example.com"}:
            raise LoginFailed("iss")

    async def exchange_code(
        self, *, code: Secret, code_verifier: Secret, redirect_uri: str, dpop_key: RefreshToken | None = None
    ) -> TokenSet | TokenFailure:
        self.exchanged.append({"code": code.reveal(), "verifier": code_verifier.reveal(), "redirect_uri": redirect_uri})
        await self.gate.wait()
        return self.answer

    async def identify(
        self,
        *,
        id_token: IdToken | None,
        access_token: AccessToken,
        nonce: str,
        parameters: Mapping[str, str],
        dpop_key: RefreshToken | None = None,
    ) -> Identity:
        self.identifying.set()
        await self.identified.wait()
        if self.refusal is not None:
            raise self.refusal
        return Identity(issuer="https://idp.example.com", subject="ada", provider_session="s1", claims={"name": "Ada"})

    async def revoke(self, token: RefreshToken) -> bool:
        self.revoked.append(token.reveal())
        return True


async def hang_up(waiting: "asyncio.Future[Any]") -> None:
    """What happens to a handler whose browser is gone."""
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def begin_session(_session: Session) -> bool:
    return True


@dataclass
class Bench:
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        self.backend = MemoryBackend(self.clock)
        self.store = FaultyStore(MemoryStore(self.backend))
        self.server = ScriptedServer(self.clock)
        self.logins = self.process([KEY])

    def process(self, keys: list[Secret]) -> Logins:
        keyring, randomness = Keyring(keys), SystemRandomness()
        self.spool = spool = Spool(None, keyring, randomness)
        spool.open()
        tokens = TokenBroker(
            store=self.store,
            vault=Vault(self.store, keyring),
            spool=spool,
            servers={"corp": self.server},
            clock=self.clock,
            randomness=randomness,
        )
        self.tokens = tokens
        return Logins(
            servers={"corp": self.server},
            tokens=tokens,
            sessions=Sessions(self.store, keyring, SessionOptions(), self.clock, randomness),
            store=self.store,
            options=LoginOptions(),
            public_url=SITE,
            clock=self.clock,
            randomness=randomness,
        )

    async def living_grants(self) -> list[Grant]:
        return [grant for grant in await self.tokens.grants("corp", "ada") if grant.ended is None]

    async def begin(self, **parameters: str) -> LoginTransaction:
        transaction, _ = await self.logins.begin("corp", return_url="/a", parameters=parameters, replaces="session:1")
        return transaction

    def token_set(self) -> TokenSet:
        now = self.clock.now()
        return TokenSet(
            access_token=AccessToken("at"),
            expires_at=now + 60,
            requested_at=now,
            refresh_token=RefreshToken("rt"),
            id_token=IdToken("it"),
        )

    async def complete(
        self, transaction: LoginTransaction, *, begin: BeginSession | None = None, **response: Any
    ) -> LoggedIn | Declined | Unanswered:
        return await self.logins.complete(
            transaction,
            AuthorizationResponse(
                code=Secret(response["code"]) if "code" in response else None,
                error=response.get("error"),
                iss=response.get("iss"),
            ),
            begin or begin_session,
        )


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_lg_01_a_state_is_consumed_once_while_keys_are_rotated(bench: Bench) -> None:
    """Whatever keys its process has: the old one, a new one before it, after it, or in its place."""
    newer = new_key(SystemRandomness())
    processes = [bench.process(keys) for keys in ([KEY], [newer, KEY], [KEY, newer], [newer])]

    for one in processes:
        transaction = await bench.begin()
        await one.consume(transaction)
        for other in processes:
            with pytest.raises(LoginFailed):
                await other.consume(transaction)


async def test_a_state_that_could_not_be_consumed_is_still_good(bench: Bench) -> None:
    """The user reloads the page once the store is back. It is one write, so none can be half done."""
    rotated = bench.process([new_key(SystemRandomness()), KEY])
    transaction = await bench.begin()
    bench.store.down = True
    with pytest.raises(StoreError):
        await rotated.consume(transaction)
    bench.store.down = False

    await rotated.consume(transaction)

    assert 2 == bench.store.calls["create"]


async def test_whoever_comes_back_has_answered_whatever_the_store_does(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that is down says nothing of the redirect URI."""
    for _ in range(SUSPICIOUS + 1):
        transaction = await bench.begin()
        bench.store.down = True
        with pytest.raises(StoreError):
            await bench.logins.consume(transaction)
        bench.store.down = False

    assert "logins_stay_unanswered" not in caplog.text


async def test_the_code_goes_out_with_its_verifier_and_redirect_uri(bench: Bench) -> None:
    """As they were at the beginning, and a grant is kept that follows the session."""
    bench.server.answer = bench.token_set()
    transaction = await bench.begin()

    result = await bench.complete(transaction, code="c1")

    assert isinstance(result, LoggedIn)
    assert [
        {
            "code": "c1",
            "verifier": transaction.code_verifier.reveal(),
            "redirect_uri": f"{SITE}/bff/callback/corp",
        }
    ] == bench.server.exchanged
    grant = await bench.tokens.grant(result.session.grant_id)
    assert grant is not None
    assert result.session.ends_at == grant.keep_until
    assert ("ada", "s1", {"name": "Ada"}) == (
        result.session.subject,
        result.session.provider_session,
        result.session.claims,
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (FailureKind.PERMANENT, LoginFailed),
        (FailureKind.OPERATOR, ProviderError),
        (FailureKind.TRANSIENT, ProviderError),
        (FailureKind.IN_DOUBT, ProviderError),
    ],
)
async def test_a_code_that_brings_no_tokens_is_the_users_or_the_providers_fault(
    bench: Bench, kind: FailureKind, expected: type[Exception]
) -> None:
    """Only a refused code is a failed login; the rest is 503, with when to come again."""
    bench.server.answer = TokenFailure(kind=kind, error="x", retry_after_seconds=7.0)

    with pytest.raises(expected) as refusal:
        await bench.complete(await bench.begin(), code="c1")

    if isinstance(refusal.value, ProviderError):
        assert 7.0 == refusal.value.retry_after_seconds


@pytest.mark.parametrize("refusal", [LoginFailed("nonce"), ProviderError("no keys")])
async def test_tokens_of_somebody_unknown_are_revoked(bench: Bench, refusal: Exception) -> None:
    """Whatever the check failed for, no grant is kept and the refresh token doesn't live on."""
    bench.server.answer, bench.server.refusal = bench.token_set(), refusal

    with pytest.raises(type(refusal)):
        await bench.complete(await bench.begin(), code="c1")

    await until(lambda: ["rt"] == bench.server.revoked)
    assert {} == bench.backend.records


async def test_tokens_that_can_not_be_kept_are_revoked(bench: Bench) -> None:
    """A store that fails leaves nothing behind."""
    bench.server.answer = bench.token_set()
    bench.store.failing.add("create:grant")

    with pytest.raises(StoreError):
        await bench.complete(await bench.begin(), code="c1")

    await until(lambda: ["rt"] == bench.server.revoked)


@pytest.mark.parametrize("refused", [True, False])
async def test_a_browser_that_hangs_up_before_the_answer_leaves_no_family(bench: Bench, refused: bool) -> None:
    """The answer to the code is still dealt with: nobody could use it, so it ends here and at the server."""
    bench.server.answer = bench.token_set()
    bench.server.refusal = LoginFailed("nonce") if refused else None
    bench.server.gate.clear()
    begun: list[Session] = []

    async def begin(session: Session) -> bool:
        begun.append(session)
        return True

    waiting = asyncio.ensure_future(bench.complete(await bench.begin(), begin=begin, code="c1"))
    await until(lambda: bool(bench.server.exchanged))

    await hang_up(waiting)
    bench.server.gate.set()
    await until(lambda: bool(bench.server.revoked))

    assert ["rt"] == bench.server.revoked
    assert [] == begun, "the browser keeps the session that it had"
    assert [] == await bench.living_grants()


async def test_a_browser_that_hangs_up_cuts_no_session_in_half(bench: Bench) -> None:
    """It is stored to its end. Then its grant ends: nobody was given its cookie."""
    bench.server.answer = bench.token_set()
    storing, stored = asyncio.Event(), asyncio.Event()
    ends: list[str] = []

    async def begin(_session: Session) -> bool:
        storing.set()
        await stored.wait()
        ends.append("stored")
        return True

    waiting = asyncio.ensure_future(bench.complete(await bench.begin(), begin=begin, code="c1"))
    await storing.wait()

    await hang_up(waiting)
    assert [] == bench.server.revoked
    stored.set()
    await until(lambda: bool(bench.server.revoked))

    assert ["stored"] == ends
    assert [] == await bench.living_grants()


@pytest.mark.parametrize("fault", [StoreError("down"), RuntimeError("ours")])
async def test_a_session_that_can_not_begin_leaves_no_family(bench: Bench, fault: Exception) -> None:
    """Its grant is there already, and ends here and at the server."""
    bench.server.answer = bench.token_set()

    async def begin(_session: Session) -> bool:
        raise fault

    with pytest.raises(type(fault)):
        await bench.complete(await bench.begin(), begin=begin, code="c1")
    await until(lambda: bool(bench.server.revoked))

    assert ["rt"] == bench.server.revoked
    assert [] == await bench.living_grants()


async def test_a_session_that_may_not_begin_leaves_no_family(bench: Bench) -> None:
    """A silent login of somebody else than the page's user."""
    bench.server.answer = bench.token_set()

    async def begin(_session: Session) -> bool:
        return False

    assert Declined() == await bench.complete(await bench.begin(), begin=begin, code="c1")
    await until(lambda: bool(bench.server.revoked))

    assert [] == await bench.living_grants()


@pytest.mark.parametrize("waits_for", ["identity", "create", "create:after", "session"])
async def test_ft_12_a_process_that_stops_in_the_middle_leaves_no_family(bench: Bench, waits_for: str) -> None:
    """Its time is over before the login is: what has come is revoked before the process ends."""
    bench.server.answer = bench.token_set()
    method, _, after = waits_for.partition(":")
    reached, released = bench.store.hold(method, after=bool(after))
    if waits_for == "identity":
        reached, released = bench.server.identifying, bench.server.identified
        released.clear()

    async def begin(_session: Session) -> bool:
        if waits_for == "session":
            reached.set()
            await released.wait()
        return True

    waiting = asyncio.ensure_future(bench.complete(await bench.begin(), begin=begin, code="c1"))
    await reached.wait()

    await hang_up(waiting)
    await bench.logins.close(timeout_seconds=0.0)
    released.set()
    await bench.tokens.close(timeout_seconds=5.0)

    assert ["rt"] == bench.server.revoked
    assert [] == await bench.living_grants()
    assert 0 == len(bench.spool)


async def test_a_login_that_succeeds_is_crossed_out_before_its_browser_is_answered(bench: Bench) -> None:
    """What is still in the spool then belongs to nobody."""
    bench.server.answer = bench.token_set()
    pending: list[int] = []

    async def begin(_session: Session) -> bool:
        pending.append(len(bench.spool))
        return True

    result = await bench.complete(await bench.begin(), begin=begin, code="c1")

    assert isinstance(result, LoggedIn)
    assert [1] == pending
    assert 0 == len(bench.spool)
    assert [result.session.grant_id] == [grant.id for grant in await bench.living_grants()]
    assert [] == bench.server.revoked


@pytest.mark.parametrize("error", ["login_required", "interaction_required", "consent_required"])
async def test_a_silent_login_may_be_unanswered(bench: Bench, error: str) -> None:
    """Only if it was asked for; else the error is an error."""
    assert isinstance(await bench.complete(await bench.begin(prompt="none"), error=error), Unanswered)
    with pytest.raises(LoginFailed):
        await bench.complete(await bench.begin(), error=error)
    with pytest.raises(LoginFailed):
        await bench.complete(await bench.begin(prompt="none"), error="access_denied")


@pytest.mark.parametrize("response", [{"error": "x", "code": "c"}, {"iss": "https://evil.test", "code": "c"}, {}])
async def test_lg_02_nothing_is_exchanged_that_may_be_foreign(bench: Bench, response: dict[str, Any]) -> None:
    """An error beside a code, another issuer, or no code at all."""
    with pytest.raises(LoginFailed):
        await bench.complete(await bench.begin(), **response)

    assert [] == bench.server.exchanged


async def test_a_grant_that_can_not_be_ended_keeps_its_session(bench: Bench) -> None:
    """Else nobody would find it again."""
    bench.server.answer = bench.token_set()
    result = await bench.complete(await bench.begin(), code="c")
    assert isinstance(result, LoggedIn)
    bench.store.down = True

    with pytest.raises(StoreError):
        await bench.logins.end_grant(result.session.grant_id)


async def test_ft_14_a_grant_of_a_later_release_keeps_nobody_logged_in(bench: Bench) -> None:
    """It can't be read here, and ends with its record."""
    bench.server.answer = bench.token_set()
    result = await bench.complete(await bench.begin(), code="c")
    assert isinstance(result, LoggedIn)
    keyring = Keyring([KEY])
    (key,) = keyring.lookup_keys("grant", result.session.grant_id)
    record = await bench.store.get(key)
    assert record is not None
    await bench.store.replace(key, keyring.seal("grant", key, b'{"v": 99}'), record.version)

    assert await bench.logins.end_grant(result.session.grant_id) is None


async def test_a_grant_that_is_ended_is_revoked_once(bench: Bench) -> None:
    """Also if it is ended twice, each time with its hint; and not at all where that would end another."""
    bench.server.answer = bench.token_set()
    first, second = [
        result.session.grant_id
        for result in [await bench.complete(await bench.begin(), code=code) for code in ("c1", "c2")]
        if isinstance(result, LoggedIn)
    ]

    for grant_id, revoke in (first, True), (first, True), (second, False):
        assert IdToken("it") == await bench.logins.end_grant(grant_id, revoke=revoke)
    await bench.logins.close()

    assert ["rt"] == bench.server.revoked

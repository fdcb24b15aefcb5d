"""The client's own access token: got once, renewed in time, never a reason to end a grant."""

import asyncio

import pytest

from broker.core.oauth import FailureKind, TokenFailure, TokenOutcome, TokenSet
from broker.core.secret import AccessToken
from broker.services.client_token import ClientToken
from tests.support.clock import ManualClock


class Endpoint:
    """Hands out tokens cat-1, cat-2 … or a failure."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.count = 0
        self.failure: TokenFailure | None = None

    async def ask(self) -> TokenOutcome:
        self.count += 1
        await asyncio.sleep(0)
        if self.failure is not None:
            return self.failure
        now = self.clock.now()
        return TokenSet(access_token=AccessToken(f"cat-{self.count}"), expires_at=now + 3600, requested_at=now)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def endpoint(clock: ManualClock) -> Endpoint:
    return Endpoint(clock)


@pytest.fixture
def token(clock: ManualClock, endpoint: Endpoint) -> ClientToken:
    return ClientToken(endpoint.ask, clock=clock, renew_before_expiry_seconds=60)


def number(count: int) -> AccessToken:
    return AccessToken(f"cat-{count}")


async def test_one_request_serves_everybody(token: ClientToken, endpoint: Endpoint) -> None:
    """Fifty callers at once, and all that come later, share one token."""
    assert [number(1)] * 50 == await asyncio.gather(*(token.get() for _ in range(50)))
    assert number(1) == await token.get()
    assert 1 == endpoint.count


async def test_it_is_renewed_before_it_ends(token: ClientToken, clock: ManualClock) -> None:
    """A minute before its end a new one is asked for."""
    await token.get()
    clock.advance(3539)
    assert number(1) == await token.get()
    clock.advance(1)
    assert number(2) == await token.get()


async def test_a_failure_to_renew_is_not_felt_while_the_old_one_lives(
    token: ClientToken, clock: ManualClock, endpoint: Endpoint
) -> None:
    """Inside the leeway the old token goes on serving."""
    await token.get()
    clock.advance(3550)
    endpoint.failure = TokenFailure(kind=FailureKind.TRANSIENT)

    assert number(1) == await token.get()


async def test_a_rejected_token_is_replaced_once(token: ClientToken, endpoint: Endpoint) -> None:
    """Ten callers that saw a 401 with the same token cause one new one."""
    old = await token.get()
    assert isinstance(old, AccessToken)

    for _ in range(10):
        token.reject(old)
        assert number(2) == await token.get()
    assert 2 == endpoint.count


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (FailureKind.PERMANENT, FailureKind.OPERATOR),
        (FailureKind.IN_DOUBT, FailureKind.TRANSIENT),
        (FailureKind.OPERATOR, FailureKind.OPERATOR),
        (FailureKind.TRANSIENT, FailureKind.TRANSIENT),
    ],
)
async def test_its_failures_spare_the_grant(
    token: ClientToken, endpoint: Endpoint, kind: FailureKind, expected: FailureKind
) -> None:
    """No refresh token was presented: nothing is in doubt, and nothing has ended."""
    endpoint.failure = TokenFailure(kind=kind, error="x", status=400)

    outcome = await token.get()

    assert isinstance(outcome, TokenFailure)
    assert (expected, "x", 400) == (outcome.kind, outcome.error, outcome.status)


async def test_a_storm_of_failures_is_one_request_per_second(
    token: ClientToken, clock: ManualClock, endpoint: Endpoint
) -> None:
    """While the endpoint fails, it is asked once per second, and at once again after that."""
    endpoint.failure = TokenFailure(kind=FailureKind.TRANSIENT)
    for _ in range(20):
        assert isinstance(await token.get(), TokenFailure)
    assert 1 == endpoint.count

    clock.advance(1)
    endpoint.failure = None
    assert number(2) == await token.get()


async def test_a_caller_that_hangs_up_takes_nobody_with_it(token: ClientToken, endpoint: Endpoint) -> None:
    """A cancelled caller leaves the request running for the others."""
    callers = [asyncio.ensure_future(token.get()) for _ in range(3)]
    await asyncio.sleep(0)
    callers[0].cancel()

    assert [number(1)] * 2 == await asyncio.gather(*callers[1:])
    assert 1 == endpoint.count
    await token.close()


async def test_a_short_lived_token_is_not_asked_for_at_each_call(clock: ManualClock) -> None:
    """A token that lives shorter than the leeway serves for three quarters of its life."""
    count = 0

    async def ask() -> TokenOutcome:
        nonlocal count
        count += 1
        return TokenSet(access_token=number(count), expires_at=clock.now() + 20, requested_at=clock.now())

    token = ClientToken(ask, clock=clock, renew_before_expiry_seconds=60)
    await token.get()
    clock.advance(14)
    assert number(1) == await token.get()
    clock.advance(1)
    assert number(2) == await token.get()

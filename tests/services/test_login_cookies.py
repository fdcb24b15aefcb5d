"""What browsers keep of login attempts."""

import pytest

from broker.core.login import LoginOptions, LoginTransaction, attempt_of, begin
from broker.services.clock import SystemRandomness
from broker.services.keyring import Keyring, new_key
from broker.services.login_cookies import RETURN_SECONDS, LoginCookies, WayBack
from tests.support.clock import ManualClock

TIMEOUT_SECONDS = LoginOptions().timeout_seconds


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def cookies(clock: ManualClock) -> LoginCookies:
    return LoginCookies(Keyring([new_key(SystemRandomness())]), clock, timeout_seconds=TIMEOUT_SECONDS)


@pytest.fixture
def transaction(clock: ManualClock) -> LoginTransaction:
    secrets = [bytes([number]) * 32 for number in range(3)]
    return begin(secrets, provider="corp", return_url="/", now=clock.now(), parameters={}, replaces=None)


def test_a_transaction_opens_in_its_own_attempt_only(
    cookies: LoginCookies, transaction: LoginTransaction, clock: ManualClock
) -> None:
    """Under another name, altered, too late, or as another kind of cookie it is none."""
    attempt, sealed = attempt_of(transaction.state), cookies.seal(transaction).encode()

    assert transaction == cookies.open(attempt, sealed)
    assert cookies.open("00000000", sealed) is None
    assert cookies.open_return(attempt, sealed) is None
    for value in (sealed[:-1], sealed[:40] + b"A" + sealed[40:], b"", b"\xff", b"=", b"A" * 4000):
        assert cookies.open(attempt, value) is None
    clock.advance(TIMEOUT_SECONDS)
    assert cookies.open(attempt, sealed) is None


def test_the_way_back_is_good_for_a_minute(cookies: LoginCookies, clock: ManualClock) -> None:
    """And is no transaction."""
    way_back = WayBack("/a?b#c", "session:1")
    sealed = cookies.seal_return("01234567", way_back).encode()

    assert way_back == cookies.open_return("01234567", sealed)
    assert cookies.open_return("01234568", sealed) is None
    assert cookies.open("01234567", sealed) is None
    clock.advance(RETURN_SECONDS)
    assert cookies.open_return("01234567", sealed) is None

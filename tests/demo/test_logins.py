"""Browsers, waiting requests and codes are bounded and end."""

import pytest

from broker.demo.clients import Client, OAuthError
from broker.demo.logins import MAX_PENDING, AuthorizationQuery, Logins
from broker.services.clock import SystemRandomness

CLIENT = Client(client_id="c", client_secret=None, redirect_uris=("https://a.example/cb",))
REQUEST = {
    "response_type": "code",
    "client_id": "c",
    "redirect_uri": "https://a.example/cb",
    # RFC 7636 appendix B
    "code_challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
    "code_challenge_method": "S256",
}
FORM = {"redirect_uri": "https://a.example/cb", "code_verifier": "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"}


class StillClock:
    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


def begin() -> tuple[Logins, StillClock, AuthorizationQuery]:
    clock = StillClock()
    logins = Logins(clients={"c": CLIENT}, clock=clock, randomness=SystemRandomness())
    return logins, clock, logins.read(REQUEST)


def test_the_verifier_of_rfc_7636_fits_its_challenge() -> None:
    """The example of appendix B passes; the code is then good for its client."""
    logins, _, query = begin()
    code = logins.find_code(logins.issue_code(query, logins.log_in("ada")[1]))
    assert code is not None
    logins.check_code(code, client=CLIENT, form=FORM)


@pytest.mark.parametrize("seconds", [60, 3600])
def test_a_code_expires(seconds: float) -> None:
    """After a minute a code brings invalid_grant."""
    logins, clock, query = begin()
    code = logins.find_code(logins.issue_code(query, logins.log_in("ada")[1]))
    clock.time += seconds
    assert code is not None
    with pytest.raises(OAuthError, match="not good"):
        logins.check_code(code, client=CLIENT, form=FORM)


def test_old_requests_make_room_for_new_ones() -> None:
    """Whoever begins logins without end costs a bounded memory."""
    logins, _, query = begin()
    first = logins.wait(query)
    tickets = [logins.wait(query) for _ in range(MAX_PENDING)]
    assert logins.resume(first) is None
    assert query == logins.resume(tickets[0])


def test_max_age_asks_for_a_new_login() -> None:
    """A login that is older than ``max_age`` isn't good enough."""
    logins, clock, _ = begin()
    cookie, login = logins.log_in("ada")
    clock.time += 10
    assert login == logins.known(cookie, logins.read({**REQUEST, "max_age": "10"}))
    assert logins.known(cookie, logins.read({**REQUEST, "max_age": "9"})) is None

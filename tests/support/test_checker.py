"""The checker must find what it is there for: a run in which nothing is wrong passes, and each wrong is named."""

from pathlib import Path
from typing import Any

import pytest

from broker.demo.families import Answer, Family, IssuedToken
from tests.support.checker import Call, History, Outage, violations
from tests.support.ledger import Ledger, PresentedToken, TokenCall
from tests.support.upstream import Received


def call(**changes: Any) -> Call:
    plain = {"user": "a", "session": 1, "path": "/api/x", "began": 10.0, "ended": 10.1, "status": 200, "seen_as": "a"}
    return Call(**{**plain, **changes})


def received(*, caller: str, subject: str) -> Received:
    return Received(
        method="GET",
        target=b"/x",
        headers=((b"X-Caller", caller.encode()), (b"Authorization", b"Bearer at_of_somebody")),
        body=b"",
        claims={"sub": subject},
        status=200,
    )


def token_call(number: int, received_at: float, finished_at: float | None) -> TokenCall:
    return TokenCall(
        number=number,
        grant_type="refresh_token",
        client_id=None,
        refresh_token=f"rt_{number}",
        family="f",
        received_at=received_at,
        finished_at=finished_at,
    )


OUTAGE = Outage(began=9.0, ended=12.0)


def test_a_run_in_which_nothing_is_wrong_passes() -> None:
    """Successes, refusals with Retry-After in an outage, and strangers sent away are as they should be."""
    told = call(status=503, has_retry_after=True, seen_as=None)
    stranger = call(user="", session=0, status=401, code="no_session", seen_as=None)
    history = History(calls=[call(), told, stranger])

    assert [] == violations(history, Ledger(), [received(caller="a", subject="a")], outages=[OUTAGE])


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (call(seen_as="b"), "I1"),
        (call(user="", session=0, seen_as=None), "I2"),
        (call(status=401, code="session_ended", seen_as=None), "I5"),
        (call(status=401, seen_as=None), "I7"),
        (call(status=500), "I7"),
        (call(status=503), "I7"),
        (call(status=None), "I7"),
        (call(status=503, has_retry_after=True, began=17.1, ended=17.2), "I7"),
        (call(ended=60.0), "I7"),
    ],
    ids=str,
)
def test_what_a_caller_should_not_have_been_told_is_found(wrong: Call, found: str) -> None:
    """Another's data, an open door, a logout, an error without a word of when to come again, or one too late."""
    assert [found] == [each[:2] for each in violations(History(calls=[wrong]), Ledger(), outages=[OUTAGE])]


def test_an_outage_in_which_connections_break_excuses_that() -> None:
    """And only such a one."""
    outage = Outage(began=9.0, ended=12.0, breaks=True)

    assert [] == violations(History(calls=[call(status=None)]), Ledger(), outages=[outage])


def test_a_dead_session_that_gets_in_is_found() -> None:
    """Whoever was told that the logout is done must not get in any more."""
    history = History(calls=[call()], logged_out={("a", 1): 9.9})

    assert ["I4"] == [each[:2] for each in violations(history, Ledger())]


def test_a_token_at_the_wrong_callers_request_is_found_at_the_upstream() -> None:
    """Whatever the caller was told."""
    assert ["I1"] == [each[:2] for each in violations(History(), Ledger(), [received(caller="a", subject="b")])]


@pytest.mark.parametrize("finished_at", [None, 1.5])
def test_two_refreshes_at_once_are_found(finished_at: float | None) -> None:
    """The second began before the first had ended."""
    ledger = Ledger(calls=[token_call(1, 1.0, finished_at), token_call(2, 1.4, 2.0)])
    ledger.families["f"] = _family(revoked=None)

    assert ["I3"] == [each[:2] for each in violations(History(), ledger)]


def test_a_family_that_was_revoked_for_reuse_is_found() -> None:
    """Unless its user was known to have lost an answer."""
    ledger = Ledger(families={"f": _family(revoked="reuse")})
    ledger.presented.append(
        PresentedToken(token="rt_1", answer=Answer.REUSED, at=1.0, family="f", replacement=None),
    )

    assert ["I5"] == [each[:2] for each in violations(History(), ledger)]
    assert [] == violations(History(), ledger, may_log_in_again={"a"})


def test_a_login_too_many_is_found() -> None:
    """One login lasts for a run."""
    history = History()
    history.logins["a"] = 2

    assert ["I5"] == [each[:2] for each in violations(history, Ledger())]


def test_a_secret_in_the_log_is_found(tmp_path: Path) -> None:
    """Cookies, refresh tokens and access tokens alike."""
    log = tmp_path / "broker.log"
    log.write_text("cookie-value rt_secret at_of_somebody")
    ledger = Ledger()
    ledger.issued.append(IssuedToken(token="rt_secret", family="f", generation=1, issued_at=0.0, expires_at=1.0))
    history = History(secrets={"cookie-value"})
    found = violations(history, ledger, [received(caller="a", subject="a")], log=log)

    assert ["I6"] * 3 == [each[:2] for each in found]


def _family(*, revoked: str | None) -> Family:
    family = Family(id="f", client_id="broker", subject="a", scope="", sid="s", auth_time=0.0)
    family.revoked = revoked
    return family

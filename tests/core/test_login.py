from dataclasses import replace

import pytest

from broker.core import login
from broker.core.login import (
    LoginOptions,
    OpenAttempt,
    UnknownTransaction,
    attempt_of,
    begin,
    decode,
    encode,
    given_up,
    use_of,
)
from broker.core.options import OptionError
from broker.core.secret import Secret

STARTED_AT = 1_800_000_000.0
TRANSACTION = begin(
    [b"s" * 32, b"n" * 32, b"v" * 32],
    provider="corp",
    return_url="/orders?a=b#c",
    now=STARTED_AT,
    parameters={"acr_values": "high"},
)
OPTIONS = LoginOptions(timeout_seconds=600.0, max_parallel=3)


def test_a_transaction_comes_back_as_it_was() -> None:
    """What the cookie carries is the whole attempt."""
    assert TRANSACTION == decode(encode(TRANSACTION))


def test_each_attempt_has_its_own_state_nonce_and_verifier() -> None:
    """They are three independent secrets of 256 bits."""
    assert 43 * 3 == len(TRANSACTION.state + TRANSACTION.nonce + TRANSACTION.code_verifier.reveal())
    assert 3 == len({TRANSACTION.state, TRANSACTION.nonce, TRANSACTION.code_verifier.reveal()})
    assert login.STATE.fullmatch(TRANSACTION.state)


def test_lk_01_a_transaction_shows_no_secret() -> None:
    """Its repr holds neither state, nonce nor verifier."""
    shown = repr(TRANSACTION)

    assert not [word for word in (TRANSACTION.state, TRANSACTION.nonce) if word in shown]
    assert TRANSACTION.code_verifier.reveal() not in shown


def test_the_content_of_another_release_is_refused() -> None:
    """A cookie that a later release sealed is not misread."""
    with pytest.raises(UnknownTransaction):
        decode(encode(TRANSACTION).replace(b"[2,", b"[3,", 1))


@pytest.mark.parametrize(("after", "expired"), [(-60.0, False), (0.0, False), (599.9, False), (600.0, True)])
def test_lg_01_a_transaction_expires(after: float, *, expired: bool) -> None:
    """It ends at its timeout, and not earlier when a clock goes back."""
    assert expired == TRANSACTION.is_expired(now=STARTED_AT + after, timeout_seconds=600.0)


def test_lg_04_parallel_attempts_have_names_of_their_own() -> None:
    """A name is made from the state and doesn't show it."""
    name = attempt_of(TRANSACTION.state)

    assert 8 == len(name)
    assert name not in TRANSACTION.state
    assert name != attempt_of("another")


def test_the_name_of_a_use_shows_no_state() -> None:
    """Each state has its own, which the store keeps and which leads back to nothing."""
    kind, _, name = use_of(TRANSACTION.state).partition(":")

    assert ("state", 64) == (kind, len(name))
    assert TRANSACTION.state not in name
    assert name != use_of("another").partition(":")[2]


def attempt(name: str, age: float | None, size: int = 700) -> OpenAttempt:
    return OpenAttempt(name, size, None if age is None else STARTED_AT - age)


@pytest.mark.parametrize(
    ("why", "attempts", "expected"),
    [
        ("none", [], []),
        ("room enough", [attempt("a", 10), attempt("b", 20)], []),
        ("too many: the oldest goes", [attempt("a", 30), attempt("b", 20), attempt("c", 10)], ["a"]),
        ("far too many", [attempt(str(age), age) for age in (1, 2, 3, 4, 5)], ["3", "4", "5"]),
        ("expired ones go", [attempt("a", 600), attempt("b", 20)], ["a"]),
        ("unreadable ones go", [attempt("a", None), attempt("b", 20), attempt("c", 30)], ["a"]),
        ("big ones go", [attempt("a", 10, 2000), attempt("b", 20, 2000)], ["b"]),
    ],
)
def test_lg_03_what_a_browser_keeps_of_logins_is_bounded(
    why: str, attempts: list[OpenAttempt], expected: list[str]
) -> None:
    """By number, by bytes and by age; the newest stay."""
    assert expected == given_up(attempts, size=700, now=STARTED_AT, options=OPTIONS), why


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("base_path", "bff"),
        ("base_path", "/bff/"),
        ("base_path", "/"),
        ("base_path", "//x"),
        ("timeout_seconds", 1.0),
        ("timeout_seconds", float("nan")),
        ("max_parallel", 0),
        ("return_url", "https://evil.test"),
        ("return_url", "//evil.test"),
        ("logout_url", "home"),
    ],
)
def test_wrong_options_are_refused(key: str, value: object) -> None:
    """Each names its key as the configuration spells it."""
    with pytest.raises(OptionError) as refusal:
        LoginOptions(**{key: value})  # type: ignore[arg-type]

    assert key.removesuffix("_seconds") == refusal.value.key


def test_a_transaction_is_a_value() -> None:
    """Two that hold the same are equal, secrets included."""
    assert TRANSACTION == replace(TRANSACTION, code_verifier=Secret(TRANSACTION.code_verifier.reveal()))
    assert TRANSACTION != replace(TRANSACTION, code_verifier=Secret("x"))

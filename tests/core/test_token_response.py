"""What each answer of a token endpoint means: the table in tests/corpus/token_answers.toml, row by row."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.lifetimes import MAX_LIFETIME_SECONDS
from broker.core.oauth import FailureKind, TokenFailure, TokenSet
from broker.core.provider import EmptyAnswer, ProviderOptions
from broker.core.secret import Secret
from broker.core.token_response import ResponseRules, read_token_response

REQUESTED_AT = 1_800_000_000.0
CASES: list[dict[str, Any]] = tomllib.loads(
    (Path(__file__).parent.parent / "corpus" / "token_answers.toml").read_text("utf-8")
)["case"]
SECRETS = ("access_token", "refresh_token", "id_token")
MEMBERS = (*SECRETS, "token_type", "scope", "session_id")


def rules(options: dict[str, Any]) -> ResponseRules:
    if "empty_400" in options:
        options = {**options, "empty_400": EmptyAnswer(options["empty_400"])}
    if "permanent_errors" in options:
        options = {**options, "permanent_errors": tuple(options["permanent_errors"])}
    return ResponseRules.of(
        ProviderOptions(
            token_endpoint="https://as.example/token",
            revocation_endpoint="https://as.example/revoke",
            client_id="c",
            **options,
        )
    )


def revealed(value: object) -> object:
    return value.reveal() if isinstance(value, Secret) else value


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_tk_04_and_tk_08_each_answer_means_what_the_table_says(case: dict[str, Any]) -> None:
    """Each answer in the corpus is read as its row says."""
    body = case["body"].encode() if "body" in case else None

    outcome = read_token_response(
        status=case["status"],
        body=body,
        requested_at=REQUESTED_AT,
        rules=rules(case.get("options", {})),
        retry_after_seconds=case.get("retry_after"),
    )

    if case["expect"] == "tokens":
        assert isinstance(outcome, TokenSet)
        assert case["expires_in"] == outcome.expires_at - REQUESTED_AT
        refresh_in = outcome.refresh_expires_at and outcome.refresh_expires_at - REQUESTED_AT
        assert case.get("refresh_in") == refresh_in
        for member in MEMBERS:
            if member in case:
                assert case[member] == revealed(getattr(outcome, member))
    else:
        assert isinstance(outcome, TokenFailure)
        assert FailureKind(case["expect"]) is outcome.kind
        assert case["status"] == outcome.status
        if "error" in case:
            assert case["error"] == outcome.error
        assert case.get("detail", "") in outcome.detail


def test_the_corpus_is_large() -> None:
    """The corpus holds at least 50 answers, each under a name of its own."""
    assert 50 <= len(CASES) == len({case["name"] for case in CASES})


def test_retry_after_is_handed_on() -> None:
    """A failure carries Retry-After as it was read."""
    outcome = read_token_response(
        status=503, body=b"", requested_at=REQUESTED_AT, rules=ResponseRules(), retry_after_seconds=7.0
    )

    assert isinstance(outcome, TokenFailure)
    assert 7.0 == outcome.retry_after_seconds


@given(body=st.binary(max_size=200), status=st.integers(200, 599))
def test_no_bytes_break_the_reader(body: bytes, status: int) -> None:
    """Whatever bytes come, the answer is tokens or a classified failure."""
    outcome = read_token_response(status=status, body=body, requested_at=REQUESTED_AT, rules=ResponseRules())

    assert isinstance(outcome, TokenSet | TokenFailure)


@given(
    expires_in=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=2),
        max_leaves=3,
    )
)
def test_jw_07_a_token_always_lives_for_a_sensible_while(expires_in: object) -> None:
    """Whatever expires_in is, the access token neither is over at once nor lives for ever."""
    import json

    body = json.dumps({"access_token": "at", "expires_in": expires_in}).encode()
    outcome = read_token_response(status=200, body=body, requested_at=REQUESTED_AT, rules=ResponseRules())

    assert isinstance(outcome, TokenSet)
    assert 0 < outcome.expires_at - REQUESTED_AT <= MAX_LIFETIME_SECONDS


def test_bottomless_nesting_is_garbage() -> None:
    """100,000 open brackets in a 200 are an answer that is lost, not a crash."""
    outcome = read_token_response(
        status=200, body=b'{"a":' + b"[" * 100_000, requested_at=REQUESTED_AT, rules=ResponseRules()
    )

    assert isinstance(outcome, TokenFailure)
    assert FailureKind.IN_DOUBT is outcome.kind


def test_lk_01_a_failure_shows_no_byte_of_the_body() -> None:
    """What a server writes into its error description reaches no failure."""
    outcome = read_token_response(
        status=400,
        body=b'{"error":"invalid_request","error_description":"canary-1","refresh_token":"canary-2"}',
        requested_at=REQUESTED_AT,
        rules=ResponseRules(),
    )

    assert "canary" not in repr(outcome)


def test_dpop_tokens_are_taken_where_a_key_binds_them() -> None:
    """token_type DPoP is a success where the request carried a proof."""
    outcome = read_token_response(
        status=200,
        body=b'{"access_token":"at","token_type":"dpop","expires_in":60}',
        requested_at=REQUESTED_AT,
        rules=ResponseRules(dpop=True),
    )

    assert isinstance(outcome, TokenSet)
    assert "DPoP" == outcome.token_type

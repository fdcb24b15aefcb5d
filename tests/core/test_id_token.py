"""Claims, judged without keys. The whole corpus runs in tests/services/test_id_tokens.py; here are the edges."""

import contextlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.id_token import (
    ID_TOKEN_TYPES,
    LOGOUT_EVENT,
    LOGOUT_TOKEN_TYPES,
    ClaimsRefused,
    Expected,
    check_access_token_hash,
    check_authentication,
    check_authorization_response,
    check_id_token,
    check_logout_token,
    check_nonce,
    check_type,
)

NOW = 1_800_000_000.0
EXPECTED = Expected(issuer="https://as.example", client_id="client-1", now=NOW, skew_seconds=30.0)
GOOD: dict[str, Any] = {"iss": "https://as.example", "aud": "client-1", "sub": "alice", "iat": NOW, "exp": NOW + 60}
LOGOUT = {**GOOD, "events": {LOGOUT_EVENT: {}}, "jti": "j", "sid": "s"}
CASES: list[dict[str, Any]] = [
    case
    for case in tomllib.loads((Path(__file__).parent.parent / "corpus" / "id_tokens.toml").read_text("utf-8"))["case"]
    if not {"header", "no_header", "sign", "token", "options"} & case.keys()
    and not str(case.get("refused", "")).startswith("the ")
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize(("moved", "taken"), [(-29.0, True), (-30.0, False), (0.0, True)])
def test_expiry_allows_for_the_skew_and_no_more(moved: float, taken: bool) -> None:
    """A token ends at exp plus the skew, exactly."""
    claims = {**GOOD, "iat": NOW - 100, "exp": NOW + moved}

    if taken:
        assert "alice" == check_id_token(claims, EXPECTED)
    else:
        with pytest.raises(ClaimsRefused, match="exp"):
            check_id_token(claims, EXPECTED)


@pytest.mark.parametrize("typ", ["JWT", "jwt", "application/jwt", "id_token+jwt"])
def test_types_of_id_tokens(typ: str) -> None:
    """An id token's type is JWT or its own, as a media type or without its prefix."""
    check_type({"typ": typ}, ID_TOKEN_TYPES)


@pytest.mark.parametrize("typ", ["logout+jwt", "at+jwt", "dpop+jwt", "", None, ["JWT"], "JOSE"])
def test_jw_05_other_types_are_no_id_tokens(typ: object) -> None:
    """Any other type is refused."""
    with pytest.raises(ClaimsRefused, match="typ"):
        check_type({"typ": typ}, ID_TOKEN_TYPES)
    if typ != "logout+jwt":
        with pytest.raises(ClaimsRefused, match="typ"):
            check_type({"typ": typ}, LOGOUT_TOKEN_TYPES)


def claims_of(case: dict[str, Any]) -> dict[str, Any]:
    claims = {**GOOD, "nonce": "n-1", "sid": "s-1", "exp": NOW + 3600, "iat": NOW - 10}
    if case.get("use") == "logout":
        claims = {**claims, "events": {LOGOUT_EVENT: {}}, "jti": "j-1", "exp": NOW + 120}
        del claims["nonce"]
    claims |= {name: filled(value) for name, value in case.get("claims", {}).items()}
    return {name: value for name, value in claims.items() if name not in case.get("no_claims", ())}


def filled(value: Any) -> Any:
    if isinstance(value, list):
        return [filled(item) for item in value]
    if not isinstance(value, str):
        return value
    return value.replace("{issuer}", EXPECTED.issuer).replace("{surrogate}", "\ud800")


def judge(case: dict[str, Any], claims: dict[str, Any]) -> None:
    if case.get("use") == "logout":
        check_logout_token(claims, EXPECTED)
        return
    check_id_token(claims, EXPECTED)
    if case.get("use") != "refreshed":
        check_nonce(claims, "n-1")
        check_access_token_hash(claims, "RS256", "at-1")
        check_authentication(claims, case.get("login", {}).get("parameters", {}), EXPECTED)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_jw_02_the_corpus_is_judged_alike_without_keys(case: dict[str, Any]) -> None:
    """What the corpus says of claims holds for the rules alone."""
    refused = None
    try:
        judge(case, claims_of(case))
    except ClaimsRefused as refusal:
        refused = str(refusal)

    if "refused" in case:
        assert refused is not None
        assert refused.startswith(case["refused"])
    else:
        assert refused is None


def test_an_authorization_response_is_for_this_client_and_now() -> None:
    """JARM: issuer, audience and end are checked; the texts in it are the parameters."""
    good = {"iss": EXPECTED.issuer, "aud": "client-1", "exp": NOW + 60, "code": "c", "state": "s", "n": 7}

    assert {"iss": EXPECTED.issuer, "code": "c", "state": "s"} == check_authorization_response(good, EXPECTED)
    for wrong in ({"iss": "x"}, {"aud": "x"}, {"exp": NOW - 30}, {"exp": None}):
        with pytest.raises(ClaimsRefused):
            check_authorization_response({**good, **wrong}, EXPECTED)


def test_a_nonce_is_compared_whole() -> None:
    """A prefix of the nonce isn't the nonce."""
    check_nonce({"nonce": "n-12"}, "n-12")
    for other in ("n-1", "n-123", "N-12", None, 12):
        with pytest.raises(ClaimsRefused, match="nonce"):
            check_nonce({"nonce": other}, "n-12")


def test_an_access_token_hash_follows_the_algorithm() -> None:
    """RS256 hashes by SHA-256, ES384 by SHA-384, EdDSA by SHA-512; the left half counts."""
    check_access_token_hash(
        {"at_hash": "77QmUPtjPfzWtF2AnpK9RQ"}, "RS256", "jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y"
    )
    with pytest.raises(ClaimsRefused, match="at_hash"):
        check_access_token_hash(
            {"at_hash": "77QmUPtjPfzWtF2AnpK9RQ"}, "ES384", "jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y"
        )


def test_lg_08_a_step_up_is_checked_in_the_token() -> None:
    """What was asked for by max_age and acr_values must be what came."""
    check_authentication({"auth_time": NOW - 50, "acr": "gold"}, {"max_age": "60", "acr_values": "gold"}, EXPECTED)
    with pytest.raises(ClaimsRefused, match="auth_time"):
        check_authentication({"auth_time": NOW - 91, "acr": "gold"}, {"max_age": "60"}, EXPECTED)
    with pytest.raises(ClaimsRefused, match="acr"):
        check_authentication({"auth_time": NOW}, {"acr_values": "gold"}, EXPECTED)


@given(name=st.sampled_from(sorted(GOOD)), value=JSON)
def test_no_claim_of_any_kind_breaks_the_judge(name: str, value: object) -> None:
    """Whatever a claim is, the token is taken or refused."""
    with contextlib.suppress(ClaimsRefused):
        assert check_id_token({**GOOD, name: value}, EXPECTED)


@given(name=st.sampled_from(sorted(LOGOUT)), value=JSON)
def test_no_claim_of_any_kind_breaks_the_judge_of_logouts(name: str, value: object) -> None:
    """Whatever a claim is, the logout token is taken or refused."""
    with contextlib.suppress(ClaimsRefused):
        assert check_logout_token({**LOGOUT, name: value}, EXPECTED).jti

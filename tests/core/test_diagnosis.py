"""What answers tell about the configuration."""

from typing import Any

import pytest

from broker.core.diagnosis import (
    Verdict,
    judge_authorization,
    judge_clock,
    judge_issuer,
    judge_metadata,
    judge_nonsense,
)
from broker.core.oauth import FailureKind, TokenFailure, TokenOutcome, TokenSet
from broker.core.provider import ProviderOptions, PushedAuthorization
from broker.core.secret import AccessToken, Secret

ISSUER = "https://idp.example.com"


def options(**changes: Any) -> ProviderOptions:
    return ProviderOptions(**{"issuer": ISSUER, "client_id": "c", "client_secret": Secret("s"), **changes})


@pytest.mark.parametrize("said", [f"{ISSUER}/", ISSUER.upper(), None, 1])
def test_an_issuer_is_equal_to_the_letter(said: object) -> None:
    """A slash more is another issuer; what would fit is said, where it is a text."""
    finding = judge_issuer({"issuer": said}, options())
    assert (Verdict.ERROR, "issuer") == (finding.verdict, finding.key)
    assert ({"issuer": said} if isinstance(said, str) else {}) == finding.fitting
    assert Verdict.GOOD is judge_issuer({"issuer": ISSUER}, options()).verdict


def test_metadata_without_an_issuer_are_told_as_that() -> None:
    """Whether or not one is configured: they speak for nobody."""
    missing = judge_issuer({}, options())
    assert (Verdict.ERROR, "issuer") == (missing.verdict, missing.key)
    unknown = judge_issuer({}, options(issuer=None, metadata_url=f"{ISSUER}/metadata"))
    assert (Verdict.WARNING, None) == (unknown.verdict, unknown.key)
    for finding in (missing, unknown):
        assert finding.text.startswith("the metadata holds no issuer")
        assert "None" not in finding.text


@pytest.mark.parametrize(
    ("member", "value", "changes", "key", "fitting"),
    [
        (
            "token_endpoint_auth_methods_supported",
            ["private_key_jwt", "client_secret_post"],
            {},
            "token_endpoint_auth_method",
            {"token_endpoint_auth_method": "client_secret_post"},
        ),
        ("token_endpoint_auth_methods_supported", ["private_key_jwt"], {}, "token_endpoint_auth_method", {}),
        (
            "id_token_signing_alg_values_supported",
            ["none", "HS256"],
            {},
            "id_token_algorithms",
            {"id_token_algorithms": ["HS256"]},
        ),
        (
            "require_pushed_authorization_requests",
            True,
            {"pushed_authorization": "never"},
            "pushed_authorization",
            {"pushed_authorization": "auto"},
        ),
        ("scopes_supported", ["openid", "offline_access"], {}, "scope", {"scope": "openid offline_access"}),
    ],
)
def test_what_the_metadata_rules_out_names_its_key(
    member: str, value: object, changes: dict[str, Any], key: str, fitting: dict[str, object]
) -> None:
    """And says what would fit, as far as the configuration has the means."""
    if "pushed_authorization" in changes:
        changes = {"pushed_authorization": PushedAuthorization(changes["pushed_authorization"])}
    (finding,) = [finding for finding in judge_metadata({member: value}, options(**changes)) if finding.key is not None]
    assert (key, fitting) == (finding.key, finding.fitting)


def test_metadata_that_fit_or_say_nothing_blame_no_key() -> None:
    """Silence is no promise, and no refusal."""
    full = {
        "token_endpoint_auth_methods_supported": ["client_secret_basic"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "scopes_supported": ["openid"],
        "require_pushed_authorization_requests": True,
    }
    for document in ({}, full, dict.fromkeys(full, "nonsense")):
        assert {None} == {finding.key for finding in judge_metadata(document, options())}


TOKENS = TokenSet(access_token=AccessToken("a"), expires_at=1, requested_at=0)


def failure(kind: FailureKind, error: str | None = None, status: int | None = 400) -> TokenFailure:
    return TokenFailure(kind=kind, error=error, status=status, detail="why")


@pytest.mark.parametrize(
    ("outcome", "verdict", "key"),
    [
        (failure(FailureKind.PERMANENT, "invalid_grant"), Verdict.GOOD, None),
        (failure(FailureKind.OPERATOR, "invalid_client", 401), Verdict.ERROR, "client_secret"),
        (failure(FailureKind.TRANSIENT, None, 401), Verdict.ERROR, "client_secret"),
        (failure(FailureKind.OPERATOR, "unauthorized_client", 401), Verdict.ERROR, "client_secret"),
        (failure(FailureKind.OPERATOR, "unauthorized_client"), Verdict.WARNING, "client_id"),
        (failure(FailureKind.OPERATOR, "unsupported_grant_type"), Verdict.WARNING, "client_id"),
        (failure(FailureKind.OPERATOR, "invalid_scope"), Verdict.ERROR, "scope"),
        (failure(FailureKind.TRANSIENT, None, None), Verdict.ERROR, "token_endpoint"),
        (failure(FailureKind.TRANSIENT, None, 503), Verdict.WARNING, None),
        (TOKENS, Verdict.WARNING, None),
    ],
)
def test_a_refresh_token_that_never_was_tells_about_the_client(
    outcome: TokenOutcome, verdict: Verdict, key: str | None
) -> None:
    """``invalid_grant`` is good news: the client was believed first."""
    finding = judge_nonsense(outcome, options())
    assert (verdict, key) == (finding.verdict, finding.key)


def test_a_refused_client_may_have_another_id() -> None:
    """A server answers both alike, so both keys are named: a public client has but one."""
    refused = failure(FailureKind.OPERATOR, "invalid_client", 401)
    assert "the server refuses the client: invalid_client; look at client_id, too" == (
        judge_nonsense(refused, options()).text
    )
    public = judge_nonsense(refused, options(client_secret=None))
    assert ("client_id", "the server refuses the client: invalid_client") == (public.key, public.text)


@pytest.mark.parametrize(
    ("sent_at", "received_at", "verdict", "said"),
    [
        (784111777.0, 784111777.5, Verdict.GOOD, "within 1 s"),
        (784111807.0, 784111807.1, Verdict.GOOD, "within 30 s"),
        (784111777.0 - 100, 784111777.0 + 100, Verdict.GOOD, "within 1 s"),
        (784111897.0, 784111897.0, Verdict.ERROR, "119 s ahead of"),
        (784111657.0, 784111657.0, Verdict.ERROR, "120 s behind"),
    ],
)
def test_the_clocks_are_compared(sent_at: float, received_at: float, verdict: Verdict, said: str) -> None:
    """Only what neither the date's own second nor the way can explain counts."""
    finding = judge_clock("Sun, 06 Nov 1994 08:49:37 GMT", sent_at=sent_at, received_at=received_at, options=options())
    assert finding is not None
    assert verdict is finding.verdict
    assert said in finding.text


@pytest.mark.parametrize("date", [None, "", "yesterday", "Sun, 99 Nov 1994 08:49:37 GMT"])
def test_without_a_date_nothing_is_said(date: str | None) -> None:
    """A server needs no clock (RFC 9110 section 6.6.1)."""
    assert judge_clock(date, sent_at=0, received_at=1, options=options()) is None


CALLBACK = "https://app.example.com/bff/callback/corp"


@pytest.mark.parametrize(
    ("status", "location", "verdict", "key"),
    [
        (302, f"{CALLBACK}?error=login_required&state=x", Verdict.GOOD, None),
        (303, f"{CALLBACK}?error=interaction_required", Verdict.GOOD, None),
        (302, f"{CALLBACK}?code=c", Verdict.GOOD, None),
        (302, f"{CALLBACK}?error=invalid_scope", Verdict.ERROR, "scope"),
        (302, f"{CALLBACK}?error=unauthorized_client", Verdict.ERROR, "client_id"),
        (302, f"{CALLBACK}?error=strange", Verdict.ERROR, None),
        (302, f"{CALLBACK}?response=e30.eyJlcnJvciI6ImludmFsaWRfc2NvcGUifQ.", Verdict.ERROR, "scope"),
        (302, f"{CALLBACK}.evil.example/?error=login_required", Verdict.NOTE, None),
        (302, "https://idp.example.com/login", Verdict.NOTE, None),
        (302, None, Verdict.NOTE, None),
        (200, None, Verdict.NOTE, None),
        (400, None, Verdict.ERROR, "redirect_uri"),
        (500, None, Verdict.NOTE, None),
    ],
)
def test_a_login_that_nobody_makes_tells_about_the_redirect_uri(
    status: int, location: str | None, verdict: Verdict, key: str | None
) -> None:
    """Whoever is sent back was believed; whoever isn't may not be (RFC 6749 section 4.1.2.1)."""
    finding = judge_authorization(status, location, redirect_uri=CALLBACK)
    assert (verdict, key) == (finding.verdict, finding.key)

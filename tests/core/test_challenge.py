"""Challenges, and what they ask of the user."""

import pytest

from broker.core.challenge import StepUp, challenges, read_step_up, refuses_proof

ERROR = 'error="insufficient_user_authentication"'


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", []),
        ("Bearer", [("bearer", {})]),
        ("Bearer realm=x", [("bearer", {"realm": "x"})]),
        ('BEARER Error = "a,b" , x="\\"q\\\\"', [("bearer", {"error": "a,b", "x": '"q\\'})]),
        ('Basic realm="simple", , Bearer error=e', [("basic", {"realm": "simple"}), ("bearer", {"error": "e"})]),
        ("Negotiate abc==, Bearer a=b", [("negotiate", {}), ("bearer", {"a": "b"})]),
        ("Basic, Bearer a=b", [("basic", {}), ("bearer", {"a": "b"})]),
        ('Bearer a="1", A="2"', [("bearer", {})]),
        ('Bearer a="unclosed', []),
        ('Bearer a="1" b="2"', []),
        ("=", []),
        ("Bearer " + "a" * 9000, []),
    ],
)
def test_challenges_are_read(value: str, expected: list[object]) -> None:
    """Schemes and parameters are told apart, whatever stands in quotes; what can't be read says nothing."""
    assert expected == list(challenges(value))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # RFC 9470 section 3, figures 1 and 2
        ([f'Bearer {ERROR}, error_description="A different level", acr_values="myACR"'], {"acr_values": "myACR"}),
        ([f'Bearer {ERROR}, error_description="More recent, please", max_age="5"'], {"max_age": "5"}),
        ([f'DPoP algs="ES256", {ERROR}, max_age=0, acr_values="a b"'], {"acr_values": "a b", "max_age": "0"}),
        (['Basic realm="x"', f"bearer {ERROR}"], {}),
        ([f'Bearer {ERROR}, max_age="-1", acr_values="a\x0bb"'], {}),
        ([f'Bearer {ERROR}, acr_values="' + "a" * 513 + '"'], {}),
        ([], None),
        (['Bearer error="invalid_token"'], None),
        ([f"Basic {ERROR}"], None),
        ([f'Bearer realm="Bearer {ERROR[:-1]}'], None),
        ([f'Bearer error_description="x, {ERROR[:5]}=y"'], None),
        ([f"Bearer {ERROR}, {ERROR}"], None),
    ],
)
def test_a_step_up_is_read(values: list[str], expected: dict[str, str] | None) -> None:
    """Only a token's challenge with that error asks for a login; nonsense in it is left out."""
    assert (None if expected is None else StepUp(expected)) == read_step_up(values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (['DPoP error="use_dpop_nonce", error_description="n"'], True),  # RFC 9449 section 9
        (['Bearer, dpop algs="ES256", error=invalid_dpop_proof'], True),
        (['DPoP error="invalid_token"'], False),
        (['Bearer error="use_dpop_nonce"'], False),
        (['DPoP error="use_dpop_nonce'], False),
        ([], False),
    ],
)
def test_a_refused_proof_is_told_from_a_refused_token(values: list[str], expected: bool) -> None:
    """RFC 9449 sections 7.1 and 9: only a challenge of scheme DPoP speaks of proofs."""
    assert expected is refuses_proof(values)

"""The compact form of a JWS, read to the letter."""

import pytest

from broker.core.compact_jws import MAX_TOKEN_BYTES, MalformedToken, read_compact, share_a_session, unverified_claim
from broker.core.secret import IdToken
from tests.support.forge import join

# RFC 7515 appendix A.1
RFC7515_A1 = (
    "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9"
    ".eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
    ".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
)
HEADER, PAYLOAD, SIGNATURE = RFC7515_A1.split(".")


def test_the_rfcs_example_is_read() -> None:
    """RFC 7515 appendix A.1 comes apart into header, claims, signing input and signature."""
    jws = read_compact(RFC7515_A1)

    assert {"typ": "JWT", "alg": "HS256"} == jws.header
    assert "joe" == jws.claims()["iss"]
    assert f"{HEADER}.{PAYLOAD}".encode() == jws.signing_input
    assert 32 == len(jws.signature)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a",
        "..",
        f"{HEADER}.{PAYLOAD}",
        f"{RFC7515_A1}.x",
        f" {RFC7515_A1}",
        f"{RFC7515_A1}\n",
        f"{HEADER}=.{PAYLOAD}.{SIGNATURE}",
        f"{HEADER}.{PAYLOAD}.{SIGNATURE[:-1]}l",  # the same 32 bytes by a forgiving decoder: stray bits
        f"{HEADER}.{PAYLOAD}.{SIGNATURE[:20]}!{SIGNATURE[20:]}",  # urlsafe_b64decode would drop the mark
        f"{HEADER}.{PAYLOAD}.{SIGNATURE.replace('-', '+').replace('_', '/')}",
        f"W10.{PAYLOAD}.{SIGNATURE}",  # a header that is []
        f"{HEADER[:-1]}.{PAYLOAD}.{SIGNATURE}",
        "a" * (MAX_TOKEN_BYTES + 1),
        f"é.{PAYLOAD}.{SIGNATURE}",
    ],
)
def test_jw_01_what_is_not_compact_to_the_letter_is_refused(token: str) -> None:
    """No padding, white space, stray bits, foreign alphabet or missing part gets through."""
    with pytest.raises(MalformedToken):
        read_compact(token)


def test_claims_are_an_object() -> None:
    """A payload that is an array is no set of claims."""
    with pytest.raises(MalformedToken):
        read_compact(f"{HEADER}.W10.{SIGNATURE}").claims()


@pytest.mark.parametrize(("token", "expected"), [(RFC7515_A1, 1300819380), ("opaque", None), ("a.b.c", None)])
def test_a_claim_may_be_peeked_at(token: str, expected: object) -> None:
    """A JWT shows its exp as a hint; anything else shows nothing."""
    assert expected == unverified_claim(token, "exp")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"sid": "a"}, {"sid": "a"}, True),
        ({"sid": "a"}, {"sid": "b"}, False),
        ({"sid": "a"}, {}, False),
        ({}, {}, False),
        (None, None, False),
        (None, {"sid": "a"}, False),
    ],
)
def test_only_a_session_that_both_name_is_shared(
    one: dict[str, object] | None, other: dict[str, object] | None, expected: bool
) -> None:
    """Two tokens that say nothing may be anybody's."""
    tokens = [None if claims is None else IdToken(join({"alg": "none"}, claims)) for claims in (one, other)]
    assert expected == share_a_session(*tokens)

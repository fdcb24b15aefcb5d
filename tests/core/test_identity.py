"""Who may log in by their email address."""

from typing import Any

import pytest

from broker.core.identity import email_refusal

VERIFIED = {"email": "alice@corp.example", "email_verified": True}


@pytest.mark.parametrize(
    ("claims", "domains", "refused"),
    [
        (VERIFIED, (), None),
        (VERIFIED, ("corp.example",), None),
        ({**VERIFIED, "email": "Alice@CORP.example"}, ("Corp.Example",), None),
        ({}, (), None),
        ({"email": "alice@corp.example"}, (), None),
        ({}, ("corp.example",), "missing"),
        ({"email": "alice@corp.example"}, ("corp.example",), "not verified"),
        ({**VERIFIED, "email_verified": False}, ("corp.example",), "not verified"),
        ({**VERIFIED, "email_verified": "false"}, ("corp.example",), "not verified"),
        ({**VERIFIED, "email_verified": "true"}, ("corp.example",), "not verified"),
        ({**VERIFIED, "email_verified": 1}, ("corp.example",), "not verified"),
        ({**VERIFIED, "email": "alice@evil.example"}, ("corp.example",), "domain"),
        ({**VERIFIED, "email": "alice@notcorp.example"}, ("corp.example",), "domain"),
        ({**VERIFIED, "email": "alice@corp.example.evil.example"}, ("corp.example",), "domain"),
        ({**VERIFIED, "email": "alice@sub.corp.example"}, ("corp.example",), "domain"),
        ({**VERIFIED, "email": "alice@evil.example@corp.example"}, (), "unambiguous"),
        ({**VERIFIED, "email": '"alice@evil.example"@corp.example'}, (), "unambiguous"),
        ({**VERIFIED, "email": "alice@corp.example "}, (), "unambiguous"),
        ({**VERIFIED, "email": "alice@corp.example\r\nX: y"}, (), "unambiguous"),
        ({**VERIFIED, "email": "alice@corp.example\x00.evil.example"}, (), "unambiguous"),
        ({**VERIFIED, "email": "älice@cörp.example"}, (), None),
        ({**VERIFIED, "email": "alice@cörp.example"}, ("corp.example",), "domain"),
        ({**VERIFIED, "email": "o'brien@localhost"}, ("localhost",), None),
        ({**VERIFIED, "email": "alice@corp.example,bob@evil.example"}, (), "unambiguous"),
        ({**VERIFIED, "email": "alice\u3000@corp.example"}, (), "unambiguous"),
        ({**VERIFIED, "email": "alice"}, (), "unambiguous"),
        ({**VERIFIED, "email": "@corp.example"}, (), "unambiguous"),
        ({**VERIFIED, "email": ""}, (), "unambiguous"),
        ({**VERIFIED, "email": ["alice@corp.example"]}, (), "unambiguous"),
    ],
)
def test_rt_11_only_a_clear_and_verified_address_opens(
    claims: dict[str, Any], domains: tuple[str, ...], refused: str | None
) -> None:
    """One @, one exact domain, and email_verified as the JSON value true: nothing else logs in."""
    refusal = email_refusal(claims, domains=domains, verified=False)

    if refused is None:
        assert refusal is None
    else:
        assert refusal is not None
        assert refused in refusal


def test_rt_11_a_verified_address_may_be_demanded_of_any_domain() -> None:
    """With require_verified_email an unverified address of any domain is refused."""
    assert email_refusal({"email": "a@b.example", "email_verified": False}, domains=(), verified=True) is not None
    assert email_refusal({"email": "a@b.example", "email_verified": True}, domains=(), verified=True) is None

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.claim_template import MAX_VALUE_BYTES, ClaimTemplate
from broker.core.options import OptionError


def render(text: str, **claims: object) -> bytes | None:
    return ClaimTemplate.parse(text).render(claims)


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("alice", b"alice"),
        ("a@b.example", b"a@b.example"),
        ("Ren\u00e9e", b"Ren%C3%A9e"),
        ("two words", b"two%20words"),
        ("a,b", b"a%2Cb"),
        ("100%", b"100%25"),
        ("a\r\nX-Evil: 1", b"a%0D%0AX-Evil:%201"),
        ("a\x00b", b"a%00b"),
        ("\x7f", b"%7F"),
        (17, b"17"),
        (1.5, b"1.5"),
        (True, b"true"),
        (False, b"false"),
        (["a", "b,c", 3], b"a,b%2Cc,3"),
        ("\ud800", b"?"),
    ],
)
def test_hd_07_a_claim_is_percent_encoded(claim: object, value: bytes) -> None:
    """Only visible ASCII without % and , goes as it is, so no claim can end a line or a list's member."""
    assert value == render("{claims.x}", x=claim)


@pytest.mark.parametrize(
    "claim", [None, "", [], [""], ["a", ""], [["a"]], {"a": 1}, [{"a": 1}], "x" * (MAX_VALUE_BYTES + 1)]
)
def test_hd_02_a_claim_without_a_value_gives_no_field(claim: object) -> None:
    """An upstream that is told nothing can't take an empty field for somebody."""
    assert None is render("{claims.x}", x=claim)


@given(st.text())
def test_hd_07_the_reader_gets_the_claim_back(text: str) -> None:
    """Whatever text a claim holds, percent-decoding gives it back, and nothing in it splits a field."""
    value = render("{claims.x}", x=text)

    if value is None:
        assert not text or len(text) > MAX_VALUE_BYTES / 12
    else:
        assert text == unquote(value.decode("ascii"))
        assert all(0x21 <= byte <= 0x7E and byte != ord(",") for byte in value)


def test_text_and_claims_can_be_mixed() -> None:
    """What stands around a claim goes as it is."""
    assert b"user=a; tenant=t" == render("user={claims.sub}; tenant={claims.org.name}", **{"sub": "a", "org.name": "t"})
    assert None is render("user={claims.sub}; tenant={claims.t}", sub="a")


def test_a_template_without_claims_is_constant() -> None:
    """It is rendered once."""
    assert ClaimTemplate.parse("fixed").is_constant
    assert not ClaimTemplate.parse("a {claims.b}").is_constant


@pytest.mark.parametrize(
    "text", ["{sub}", "{claims.}", "{claims.a b}", "{", "a}", "{{claims.a}}", "a\r\nb", "caf\u00e9", "\x00"]
)
def test_what_is_no_template_is_refused(text: str) -> None:
    """Another placeholder, a lone brace, or what no field value may hold."""
    with pytest.raises(OptionError):
        ClaimTemplate.parse(text)

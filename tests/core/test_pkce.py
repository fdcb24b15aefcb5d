from broker.core.pkce import code_challenge, text_of


def test_the_challenge_of_the_rfc() -> None:
    """The example of RFC 7636 appendix B."""
    assert "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM" == code_challenge(
        "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    )


def test_32_random_bytes_make_43_characters() -> None:
    """The shortest verifier that RFC 7636 section 4.1 allows, without padding."""
    assert "A" * 43 == text_of(bytes(32))
    assert "_" * 42 + "8" == text_of(b"\xff" * 32)

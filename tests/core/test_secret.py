"""Secrets hide themselves."""

import copy
import pickle
import traceback
from dataclasses import dataclass

import pytest

from broker.core.secret import AccessToken, IdToken, RefreshToken, Secret, SessionId
from broker.errors import ProviderError

CANARY = "canary-7f1c"


@dataclass
class Holder:
    secret: Secret


@pytest.mark.parametrize("kind", [Secret, AccessToken, RefreshToken, IdToken, SessionId])
def test_lk_01_nothing_shows_a_secret(kind: type[Secret]) -> None:
    """No way of making a text of it shows its value, and none is empty."""
    secret = kind(CANARY)
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret:>40}",
        repr([secret]),
        repr(Holder(secret)),
    ]

    assert not [text for text in shown if CANARY in text]
    assert all(kind.__name__ in text for text in shown)
    assert CANARY == secret.reveal()


def test_lk_01_a_traceback_with_locals_shows_no_secret() -> None:
    """Error reporters capture local variables."""
    secret = Secret(CANARY)
    try:
        raise ValueError(secret)
    except ValueError as fault:
        shown = "".join(traceback.TracebackException.from_exception(fault, capture_locals=True).format())

    assert CANARY not in shown.replace(f'Secret("{CANARY}")', "")
    assert "Secret(…)" in shown


def test_secrets_can_not_be_pickled() -> None:
    """A pickle would carry the value out."""
    with pytest.raises(TypeError, match="can't be pickled"):
        pickle.dumps(AccessToken(CANARY))


def test_secrets_of_one_type_and_value_are_equal() -> None:
    """An access token is never equal to a refresh token, nor to a text."""
    assert AccessToken("a") == AccessToken("a")
    assert AccessToken("a") != AccessToken("ä")
    assert AccessToken("a") != RefreshToken("a")
    assert AccessToken("a") != "a"
    assert 1 == len({AccessToken("a"), AccessToken("a")})
    assert 2 == len({AccessToken("a"), RefreshToken("a")})


def test_a_copy_is_the_secret_itself() -> None:
    """Copying a value that holds secrets doesn't multiply them."""
    secret = Secret(CANARY)

    assert secret is copy.copy(secret)
    assert secret is copy.deepcopy([secret])[0]


def test_an_access_token_becomes_a_field() -> None:
    """Of its own scheme, and without showing itself."""
    token = AccessToken("t0ken")

    assert b"Authorization: Bearer t0ken\r\n" == token.field("Bearer") == token.field("Bearer")
    assert "t0ken" not in repr(token)


@pytest.mark.parametrize("value", ["a\r\nX: 1", "a\0", "\u00e9", "a\x7f"])
def test_hd_07_a_token_that_no_field_may_hold_is_refused(value: str) -> None:
    """It would end the field, or be read as something else."""
    with pytest.raises(ProviderError, match="no header field") as refused:
        AccessToken(value).field("Bearer")

    assert value not in str(refused.value)

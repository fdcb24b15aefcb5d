"""The options of standing grants."""

from typing import Any

import pytest

from broker.core.options import OptionError
from broker.core.secret import Secret
from broker.core.standing import GrantType, StandingGrantOptions


@pytest.mark.parametrize(
    "options",
    [
        {"type": GrantType.CLIENT_CREDENTIALS},
        {"type": GrantType.IMPORTED, "subject": "svc"},
        {"type": GrantType.JWT_BEARER, "subject": "svc"},
        {"type": GrantType.PASSWORD, "username": "svc", "password": Secret("x")},
    ],
)
def test_each_type_has_what_it_needs(options: dict[str, Any]) -> None:
    """Every type of grant can be configured."""
    assert "corp" == StandingGrantOptions(provider="corp", **options).provider


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"type": GrantType.JWT_BEARER}, "subject"),
        ({"type": GrantType.PASSWORD}, "username"),
        ({"type": GrantType.PASSWORD, "password": Secret("x")}, "username"),
        ({"type": GrantType.PASSWORD, "username": "svc"}, "password"),
        ({"type": GrantType.CLIENT_CREDENTIALS, "username": "svc"}, "username"),
        ({"type": GrantType.IMPORTED, "password": Secret("x")}, "password"),
    ],
)
def test_what_is_missing_or_too_much_is_named(options: dict[str, Any], key: str) -> None:
    """A user's password stands where the grant's type needs it, and nowhere else."""
    with pytest.raises(OptionError) as caught:
        StandingGrantOptions(provider="corp", **options)
    assert key == caught.value.key

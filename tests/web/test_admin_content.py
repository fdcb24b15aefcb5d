"""What is taken from an operator's request, and what is refused."""

from typing import Any

import pytest

from broker.errors import BadRequest
from broker.web.admin_content import Content, handle_attributes, tokens_of
from tests.support.forge import join

NOW = 1_800_000_000.0


def jwt(**claims: Any) -> str:
    return join({"alg": "none"}, claims)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"access_token": "at"}, 0),  # nobody knows: the first use refreshes
        ({"access_token": "at", "expires_in": 300}, 300),
        ({"access_token": "at", "expires_in": "300"}, 300),
        ({"access_token": "at", "expires_in": int(NOW + 300) * 1000}, 300),
        ({"access_token": "at", "expires_at": NOW + 300}, 300),
        ({"access_token": "at", "expires_at": "2027-01-15T08:05:00Z"}, 300),
        ({"access_token": "at", "expires_at": NOW + 300, "expires_in": 3600}, 300),  # the answer was kept for a while
        ({"access_token": "at", "expires_at": NOW - 1, "expires_in": 3600}, 0),
        ({"access_token": jwt(exp=NOW + 300)}, 300),
        ({"access_token": jwt(exp=NOW + 300), "expires_in": 3600}, 300),
        ({"access_token": jwt(exp=NOW - 1), "expires_in": 3600}, 0),
        ({"access_token": jwt(exp="soon"), "expires_in": 3600}, 0),
        ({"expires_in": 3600}, 0),
    ],
)
def test_an_imported_token_lives_until_the_earliest_end_that_is_said(members: dict[str, Any], expected: float) -> None:
    """A token that is taken for longer than it lives costs a call; one that isn't, a refresh."""
    tokens = tokens_of(Content({"refresh_token": "rt", **members}), now=NOW)
    assert NOW + expected == tokens.expires_at


@pytest.mark.parametrize(("said", "expected"), [(None, None), (0, None), (600, NOW + 600), (str(NOW + 9), NOW + 9)])
def test_a_refresh_token_may_have_no_end(said: object, expected: float | None) -> None:
    """Zero is Keycloak's word for an offline token."""
    tokens = tokens_of(Content({"refresh_token": "rt", "refresh_expires_in": said}), now=NOW)
    assert expected == tokens.refresh_expires_at


@pytest.mark.parametrize(
    ("members", "name"),
    [
        ({}, "refresh_token"),
        ({"refresh_token": 1}, "refresh_token"),
        ({"refresh_token": ""}, "refresh_token"),
        ({"refresh_token": "rt", "expires_at": "2027-01-15"}, "expires_at"),
        ({"refresh_token": "rt", "expires_in": -1}, "expires_in"),
        ({"refresh_token": "rt", "expires_in": True}, "expires_in"),
        ({"refresh_token": "rt", "refresh_expires_in": "never"}, "refresh_expires_in"),
    ],
)
def test_a_refusal_names_the_member_and_not_its_value(members: dict[str, Any], name: str) -> None:
    """It may be a secret in the wrong place."""
    with pytest.raises(BadRequest) as refused:
        tokens_of(Content(members), now=NOW)
    assert str(refused.value).startswith(f"{name}: ")


def test_what_nobody_took_is_refused() -> None:
    """A typo must not pass for a bound that holds."""
    content = Content({"network": ["192.0.2.0/24"]})
    assert () == handle_attributes(content)["networks"]
    with pytest.raises(BadRequest, match="network: no such member"):
        content.refuse_others()

"""What is taken from an operator's request, and what is refused."""

from typing import Any

import pytest

from broker.core.routing import Route, TokenChoice, TokenKind
from broker.errors import BadRequest
from broker.web.admin_content import ASKED_BEFORE_SECONDS, Content, handle_attributes, tokens_of
from tests.support.forge import join

NOW = 1_800_000_000.0
ROUTES = [
    Route(path=path, upstream="http://127.0.0.1:1", token=token)
    for path, token in {
        "/api": TokenChoice(TokenKind.USER),
        "/api/public": TokenChoice(TokenKind.NONE),
        "/open": TokenChoice(TokenKind.USER_OR_NONE),
        "/reports": TokenChoice(TokenKind.GRANT, "nightly"),
        "/mixed/api": TokenChoice(TokenKind.USER),
        "/mixed": TokenChoice(TokenKind.NONE),
    }.items()
]
ROUTES += [
    Route(path=path, upstream="http://127.0.0.1:1", token=TokenChoice(TokenKind.USER), provider=provider)
    for path, provider in {"/corp": "corp", "/others": "other", "/both/corp": "corp", "/both/others": "other"}.items()
]


def jwt(**claims: Any) -> str:
    return join({"alg": "none"}, claims)


def test_up_07_tokens_that_are_handed_over_are_not_new() -> None:
    """A new one that is refused isn't replaced, since another would be refused as well."""
    tokens = tokens_of(Content({"access_token": "at", "refresh_token": "rt", "expires_in": 300}), now=NOW)

    assert (NOW - ASKED_BEFORE_SECONDS, NOW + 300) == (tokens.requested_at, tokens.expires_at)


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
    assert () == handle_attributes(content, now=NOW, provider="corp", routes=())["networks"]
    with pytest.raises(BadRequest, match="network: no such member"):
        content.refuse_others()


@pytest.mark.parametrize(
    "path", ["/", "/api", "/API/Orders", "/api/", "/open/x", "/mixed", "/mixed/api", "/corp", "/both"]
)
def test_a_handle_may_be_bound_to_what_takes_one(path: str) -> None:
    """A route whose token is the caller's is there, around it, or below it."""
    content = Content(
        {"routes": [path], "networks": ["192.0.2.0/24", "2001:db8::/32", "192.0.2.1"], "ends_at": NOW + 1}
    )
    assert (path,) == handle_attributes(content, now=NOW, provider="corp", routes=ROUTES)["routes"]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"ends_at": NOW}, "ends_at: expected an instant to come"),
        ({"networks": ["::/0", "10.0.0.1/8"]}, "networks[1]: expected a network without host bits"),
        ({"networks": ["foo"]}, "networks[0]: expected a network without host bits"),
        ({"routes": ["/api", "/nope"]}, "routes[1]: the configuration has no route there"),
        ({"routes": ["/apis"]}, "routes[0]: the configuration has no route there"),
        ({"routes": ["/api/*"]}, "routes[0]: expected a path such as"),
        ({"routes": ["/api?x"]}, "routes[0]: expected a path such as"),
        ({"routes": ["api"]}, "routes[0]: expected a path such as"),
        ({"routes": ["/reports/daily"]}, "routes[0]: the route there takes no handles"),
        ({"routes": ["/api/public/x"]}, "routes[0]: the route there takes no handles"),
        ({"routes": ["/mixed/other"]}, "routes[0]: the route there takes no handles"),
        ({"routes": ["/corp", "/others/x"]}, "routes[1]: the route there is for provider other"),
        ({"routes": ["/both/others"]}, "routes[0]: the route there is for provider other"),
    ],
)
def test_a_handle_that_could_never_be_used_is_refused(members: dict[str, Any], said: str) -> None:
    """Its bearer would find out, by 401 or 403. Which of the values it is, is said by its place, and not shown."""
    with pytest.raises(BadRequest) as refused:
        handle_attributes(Content(members), now=NOW, provider="corp", routes=ROUTES)
    assert str(refused.value).startswith(said)

"""The rules between the parts of a configuration. The corpus of broken configurations has a case for each of them."""

from pathlib import Path

import pytest

from broker.config import ConfigErrors, HostSource, PretendedSource
from tests.config.configs import ENVIRONMENT, settings_of

SOURCE = HostSource(ENVIRONMENT, Path("/nonexistent"))


def problems_of(fragment: str) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        settings_of(fragment, source=SOURCE)
    return [f"{problem.at.line}: {problem.key}" for problem in caught.value.problems]


@pytest.mark.parametrize(
    "path", ["/api/*", "/api/**", "^/api", "/api$", "/(api|web)$", "/api/{id}", "/api[0-9]", "/a|/b", "~ ^/api", ".*"]
)
def test_rt_06_a_pattern_is_no_path(path: str) -> None:
    """A path of another proxy's pattern language is refused: it would match less, or more, than its author thinks."""
    assert ["1: routes[0].path"] == sorted(
        set(problems_of(f"routes: [{{path: '{path}', upstream: 'http://127.0.0.1:1', token: none}}]\n"))
    )


@pytest.mark.parametrize("path", ["/", "/api", "/api.v1", "/a.b/c-d/e_f~", "/api/v1.0"])
def test_rt_06_a_dot_is_a_dot(path: str) -> None:
    """A path is compared as it is, so a dot needs no escape."""
    settings = settings_of(
        f"routes: [{{path: '{path}', upstream: 'http://127.0.0.1:1', token: none}}]\n", source=SOURCE
    )
    assert path == settings.routes[0].path


def test_every_pair_of_routes_that_match_alike_is_told() -> None:
    """Three routes of one path are two problems, and a fourth one of another path is none."""
    route = "{path: %s, upstream: 'http://127.0.0.1:1', token: none}"
    fragment = "routes:\n" + "".join(f"  - {route % path}\n" for path in ("/a", "/a", "/b", "/a"))
    assert ["3: routes[1].path", "5: routes[3].path"] == problems_of(fragment)


def test_a_refused_part_hides_no_other() -> None:
    """What refers to a part that was refused is still checked, by its name."""
    fragment = (
        "providers: {corp: {client_id: 5}, other: {issuer: https://a.example, client_id: x}}\n"
        "grants: {a: {provider: corp, type: client_credentials}, b: {provider: nobody, type: client_credentials}}\n"
        "routes:\n"
        "  - {path: /a, upstream: 5, token: user}\n"
        "  - {path: /b, upstream: 'http://127.0.0.1:1', token: {grant: c}}\n"
        "  - {path: /c, upstream: 'http://127.0.0.1:1', token: {grant: a}}\n"
    )
    assert [
        "1: providers.corp.client_id",
        "2: grants.b.provider",
        "4: routes[0].upstream",
        "5: routes[1].token.grant",
    ] == problems_of(fragment)


@pytest.mark.parametrize(
    ("listen", "admin", "clash"),
    [
        ("127.0.0.1:8080", "127.0.0.1:8080", True),
        ("0.0.0.0:8080", "127.0.0.1:8080", True),
        ("127.0.0.1:8080", "'[::]:8080'", True),
        ("127.0.0.1:8080", "127.0.0.1:9090", False),
        ("127.0.0.1:8080", "127.0.0.2:8080", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
    ],
)
def test_ad_01_the_admin_listener_is_another_one(listen: str, admin: str, clash: bool) -> None:
    """Operators' endpoints never share an address with the public ones."""
    fragment = f"listen: {listen}\nadmin: {{listen: {admin}}}\n"
    if clash:
        assert ["2: admin.listen"] == problems_of(fragment)
    else:
        assert admin == str(settings_of(fragment, source=PretendedSource()).admin.listen)


def test_ad_01_the_default_admin_address_counts_too() -> None:
    """A public listener on the admin listener's default address is refused at its own place."""
    assert ["1: listen"] == problems_of("listen: 127.0.0.1:9090\n")


def test_one_default_login_serves_routes_of_several_providers() -> None:
    """With two providers a route needs no provider where the login has a default one."""
    fragment = (
        "providers: {a: {issuer: https://a.example, client_id: x}, b: {issuer: https://b.example, client_id: x}}\n"
        "grants: {}\n"
        "login: {default_provider: b}\n"
        "routes: [{path: /, upstream: 'http://127.0.0.1:1', token: user}]\n"
    )
    assert settings_of(fragment, source=SOURCE).routes[0].provider is None

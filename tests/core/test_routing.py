from typing import Any

import pytest

from broker.core.audience import Audience
from broker.core.options import OptionError
from broker.core.paths import read_target
from broker.core.routing import (
    HeaderOptions,
    RateLimitOptions,
    Route,
    RouteTable,
    TokenChoice,
    TokenKind,
    reachable,
)
from broker.core.upstream_options import UpstreamOptions
from broker.errors import AmbiguousPath, MethodNotAllowed, NoRoute

ANONYMOUS = TokenChoice(TokenKind.NONE)


def route(path: str, **options: Any) -> Route:
    return Route(**{"path": path, "upstream": "http://127.0.0.1:1", "token": ANONYMOUS, **options})


def table(*routes: Route) -> RouteTable[Route]:
    return RouteTable(((each, each) for each in routes), reserved=("/bff",))


def match(routes: RouteTable[Route], target: str, *, host: str = "h.example", method: str = "GET") -> str:
    found = routes.match(read_target(target.encode(), b""), host, method)
    return found.name + "".join(f" {method}" for method in found.methods)


def test_the_longest_path_wins_then_the_host_then_the_method() -> None:
    """In this order, and a host's own routes at a path hide those for any host."""
    routes = table(
        route("/"),
        route("/api"),
        route("/api", host="h.example", methods=("GET",)),
        route("/api", host="h.example", methods=("POST", "PUT")),
        route("/api/deep/er"),
    )

    assert "/" == match(routes, "/x")
    assert "/api" == match(routes, "/api/x", host="other.example")
    assert "h.example/api GET" == match(routes, "/api/x")
    assert "h.example/api POST PUT" == match(routes, "/api", method="PUT")
    assert "/api/deep/er" == match(routes, "/api/deep/er/x")
    assert "h.example/api GET" == match(routes, "/api/deep/erx")


def test_rt_07_a_known_path_with_another_method_is_405() -> None:
    """The error says which methods are taken, and no shorter path steps in."""
    routes = table(route("/"), route("/api", methods=("GET", "POST")))

    with pytest.raises(MethodNotAllowed) as refused:
        match(routes, "/api/x", method="DELETE")
    assert ("GET", "POST") == refused.value.allow


@pytest.mark.parametrize("method", ["TRACE", "TRACK", "CONNECT"])
def test_rt_07_some_methods_are_for_nobody(method: str) -> None:
    """Not even a route for any method takes them."""
    with pytest.raises(MethodNotAllowed):
        match(table(route("/")), "/", method=method)


def test_rt_04_an_unknown_path_is_404() -> None:
    """Without a route for it, a path leads nowhere."""
    with pytest.raises(NoRoute):
        match(table(route("/api")), "/apix")


@pytest.mark.parametrize("target", ["/bff", "/bff/", "/bff/login", "/bff/admin/x"])
def test_ad_01_reserved_paths_are_not_forwarded(target: str) -> None:
    """The broker's own endpoints never reach an upstream."""
    with pytest.raises(NoRoute):
        match(table(route("/")), target)


@pytest.mark.parametrize("target", ["/BFF/login", "/%62ff/login", "/bff;x/login", "/bff%3f", "/bff./login"])
def test_ad_01_nor_are_other_spellings_of_them(target: str) -> None:
    """A reader that takes a path for one of ours must not get it."""
    with pytest.raises((AmbiguousPath, NoRoute)):
        match(table(route("/")), target)


def test_a_path_far_deeper_than_any_route_is_matched() -> None:
    """Only as much of it as a route can have is looked at."""
    routes = table(route("/"), route("/a/b"))

    assert "/a/b" == match(routes, "/a/b" + "/c" * 3000)
    assert "/" == match(routes, "/a/bb" + "/c" * 3000)


@pytest.mark.parametrize(
    ("second", "key"),
    [
        (route("/api"), "[1].path"),
        (route("/API", methods=("GET",)), "[1].path"),
    ],
)
def test_two_routes_that_match_alike_are_refused(second: Route, key: str) -> None:
    """The error names the second one."""
    with pytest.raises(OptionError) as refused:
        table(route("/api"), second)
    assert key == refused.value.key


def test_two_routes_with_a_method_in_common_are_refused() -> None:
    """Nobody could say which one is meant."""
    with pytest.raises(OptionError) as refused:
        table(route("/api", methods=("GET", "POST")), route("/api", methods=("POST",)))
    assert "[1].methods" == refused.value.key


def test_what_a_path_may_reach_is_the_route_around_it_and_those_below() -> None:
    """As each host sees them: its own route takes the place of that of any host, at the same path."""
    routes = [
        route("/"),
        route("/a", methods=("GET",)),
        route("/a", methods=("POST",)),
        route("/a/b"),
        route("/a", host="h.example"),
        route("/c", host="h.example"),
    ]

    def names(path: str) -> list[str]:
        return sorted(found.name for found in reachable(routes, path))

    assert ["/", "/a", "/a", "/a/b", "h.example/a", "h.example/c"] == names("/")
    assert ["/a", "/a", "/a/b", "h.example/a"] == names("/A/")
    assert ["/a", "/a", "h.example/a"] == names("/a/x")
    assert ["/a/b"] == names("/a/b/x")
    assert ["/", "h.example/c"] == names("/c/x")
    assert [] == reachable(routes[1:], "/d")


def test_the_hosts_of_routes_are_known() -> None:
    """They are served besides the public URL's."""
    assert {"a.example", "b.example"} == table(route("/", host="a.example"), route("/", host="b.example")).hosts


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"path": "api"}, "path"),
        ({"path": ""}, "path"),
        ({"path": "/api/"}, "path"),
        ({"path": "/a//b"}, "path"),
        ({"path": "/a/../b"}, "path"),
        ({"path": "/a%20b"}, "path"),
        ({"path": "/a?b"}, "path"),
        ({"path": "/a b"}, "path"),
        ({"path": "/.*"}, None),
        ({"host": "H.example"}, "host"),
        ({"host": "h.example:443"}, "host"),
        ({"host": "*.example"}, "host"),
        ({"methods": ("get",)}, "methods[0]"),
        ({"methods": ("GET", "TRACE")}, "methods[1]"),
        ({"methods": ("GET", "GET")}, "methods"),
        ({"upstream": "ftp://x"}, "upstream"),
        ({"upstream": "http://orders.internal"}, "upstream"),
        ({"upstream": "http://orders.internal", "insecure": True}, None),
        ({"upstream": "http://10.0.0.1:80"}, "upstream"),
        ({"upstream": "http://[::1]:8080"}, None),
        ({"upstream": "http://localhost:8080"}, None),
        ({"upstream": "unix:/run/app.sock"}, None),
        ({"upstream": ("https://a.internal", "https://b.internal:8443")}, None),
        ({"upstream": ()}, "upstream"),
        ({"upstream": UpstreamOptions(urls=("https://a.internal",), max_connections=5)}, None),
        ({"strip_prefix": True, "rewrite_prefix": "/v2"}, "rewrite_prefix"),
        ({"rewrite_prefix": "v2"}, "rewrite_prefix"),
        ({"rewrite_prefix": "/v2"}, None),
        ({"scope": "orders"}, "token"),
        ({"token": TokenChoice(TokenKind.USER), "scope": "orders"}, None),
        ({"max_replay_body_bytes": 1 << 30}, "max_replay_body"),
        ({"max_replay_body_bytes": -1}, "max_replay_body"),
        ({"max_body_bytes": -1}, "max_body"),
        ({"origins": ("https://a.example", "a.example")}, "origins[1]"),
        ({"origins": ("https://a.example/x",)}, "origins[0]"),
    ],
)
def test_what_a_route_must_be(options: dict[str, Any], key: str | None) -> None:
    """Each mistake is refused with its key; what is right is taken."""
    if key is None:
        route(**{"path": "/a", **options})
    else:
        with pytest.raises(OptionError) as refused:
            route(**{"path": "/a", **options})
        assert key == refused.value.key


def test_a_mistake_inside_the_upstream_names_its_key() -> None:
    """Raised by its own options class, before there is a route."""
    with pytest.raises(OptionError) as refused:
        UpstreamOptions(urls=("https://a.internal/path",))
    assert "urls" == refused.value.key


@pytest.mark.parametrize(
    ("value", "choice"),
    [
        ("none", TokenChoice(TokenKind.NONE)),
        ("user", TokenChoice(TokenKind.USER)),
        ("user_or_none", TokenChoice(TokenKind.USER_OR_NONE)),
        ({"grant": "nightly-report"}, TokenChoice(TokenKind.GRANT, "nightly-report")),
    ],
)
def test_a_token_is_chosen_by_a_word_or_by_a_grants_name(value: object, choice: TokenChoice) -> None:
    """The YAML value becomes a choice."""
    assert choice == TokenChoice.from_option(value)


@pytest.mark.parametrize(
    "value", ["grant", "User", "", None, 1, {"grant": ""}, {"grant": 1}, {"grant": "a", "x": 1}, {}, []]
)
def test_any_other_token_is_refused(value: object) -> None:
    """Among them the word grant without a name."""
    with pytest.raises(OptionError):
        TokenChoice.from_option(value)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"assign": {"Authorization": "x"}}, "set.Authorization"),
        ({"assign": {"cookie": "x"}}, "set.cookie"),
        ({"assign": {"X User": "x"}}, "set.X User"),
        ({"assign": {"X-User": "{sub}"}}, "set.X-User"),
        ({"assign": {"X-User": "a\r\nb"}}, "set.X-User"),
        ({"remove": ("X-A", "X B")}, "remove[1]"),
    ],
)
def test_what_a_route_may_set_and_remove(options: dict[str, Any], key: str) -> None:
    """Names are field names, and not those that the broker makes itself; values are templates."""
    with pytest.raises(OptionError) as refused:
        HeaderOptions(**options)
    assert key == refused.value.key


@pytest.mark.parametrize(
    ("rate", "burst", "key"), [(0, 1, "requests_per_second"), (float("nan"), 1, "requests_per_second"), (1, 0, "burst")]
)
def test_what_a_rate_must_be(rate: float, burst: int, key: str) -> None:
    """Above 0, both of them."""
    with pytest.raises(OptionError) as refused:
        RateLimitOptions(requests_per_second=rate, burst=burst)
    assert key == refused.value.key


def test_rt_09_the_audience_is_made_of_the_routes_words() -> None:
    """Routes with different words have tokens of different audiences."""
    plain = route("/", token=TokenChoice(TokenKind.USER))
    orders = route("/", token=TokenChoice(TokenKind.USER), resource="https://orders.internal")

    assert Audience() == plain.audience
    assert Audience(resource="https://orders.internal") == orders.audience
    assert plain.audience.key != orders.audience.key

import inspect
import json

import pytest
from aiohttp.test_utils import make_mocked_request

from broker import errors
from broker.errors import (
    BrokerError,
    CsrfFailed,
    LoginFailed,
    MethodNotAllowed,
    NoSession,
    ProviderError,
    StoreError,
    TooManyRequests,
    UpstreamTimeout,
)
from broker.web.problems import SECURITY_HEADERS, problem_response

NAVIGATION = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Sec-Fetch-Site": "none"}
CALL = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty", "X-CSRF": "1"}
ALL_ERRORS = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, BrokerError)
]  # fmt: skip


def shown(
    error: BrokerError,
    headers: dict[str, str],
    *,
    path: str = "/orders?a=b",
    method: str = "GET",
    login_url: str | None = "/bff/login",
) -> tuple[int, dict[str, str], str]:
    request = make_mocked_request(method, path, headers=headers)
    response = problem_response(request, error, request_id="r-1", login_url=login_url)
    body = response.body
    assert isinstance(body, bytes)
    return response.status, dict(response.headers), body.decode()


@pytest.mark.parametrize("kind", ALL_ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_is_a_problem_document_to_programs(kind: type[BrokerError]) -> None:
    """Type, title, status, code and request id; and nothing of the error's own text."""
    status, headers, body = shown(kind("the secret detail"), CALL)

    problem = json.loads(body)
    assert kind.status == status == problem["status"]
    assert f"urn:token-broker:problem:{kind.code}" == problem["type"]
    assert (kind.title, kind.code, "r-1") == (problem["title"], problem["code"], problem["request_id"])
    assert ("login_url" in problem) == (status == 401)
    assert "application/problem+json" == headers["Content-Type"]
    assert "secret detail" not in body + repr(headers)


@pytest.mark.parametrize("kind", ALL_ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_is_a_page_to_people(kind: type[BrokerError]) -> None:
    """With a way on; where a login helps, it is the login itself."""
    status, headers, body = shown(kind("the secret detail"), NAVIGATION)

    if kind.status == 401:
        assert (303, "/bff/login?returnUrl=/orders%3Fa%3Db") == (status, headers["Location"])
    else:
        assert kind.status == status
        assert "<a href=" in body
        assert "r-1" in body
    assert "secret detail" not in body + repr(headers)


@pytest.mark.parametrize("kind", ALL_ERRORS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("headers", [CALL, NAVIGATION], ids=["program", "person"])
def test_br_05_every_error_has_the_security_headers(kind: type[BrokerError], headers: dict[str, str]) -> None:
    """nosniff, no frames, no referrer, a policy, and nothing is cached."""
    _, sent, _ = shown(kind(), headers)

    for name, value in SECURITY_HEADERS.items():
        if name == "Content-Security-Policy":
            assert "default-src 'none'" in sent[name]
            assert "frame-ancestors 'none'" in sent[name]
        else:
            assert value == sent[name]


@pytest.mark.parametrize(
    ("headers", "navigation"),
    [
        ({}, False),
        ({"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}, True),
        ({"Accept": "application/json"}, False),
        ({"Accept": "*/*"}, False),
        ({"Accept": "text/html", "X-CSRF": "1"}, False),
        ({"Accept": "text/html", "Sec-Fetch-Mode": "cors"}, False),
        ({"Accept": "*/*", "Sec-Fetch-Mode": "navigate"}, True),
    ],
)
def test_a_browser_that_goes_to_a_page_is_told_from_a_script(headers: dict[str, str], *, navigation: bool) -> None:
    """By fetch metadata; by what it accepts, where there is none."""
    assert (303 if navigation else 401) == shown(NoSession(), headers)[0]


@pytest.mark.parametrize(
    ("why", "method", "headers"),
    [
        ("a frame", "GET", {**NAVIGATION, "Sec-Fetch-Dest": "iframe"}),
        ("prefetching", "GET", {**NAVIGATION, "Sec-Purpose": "prefetch"}),
        ("a form", "POST", NAVIGATION),
    ],
)
def test_nobody_is_taken_to_the_login_who_could_not_come_back(why: str, method: str, headers: dict[str, str]) -> None:
    """They get a page with a link to it."""
    status, sent, body = shown(NoSession(), headers, method=method)

    assert 401 == status, why
    assert "Location" not in sent
    assert '<a href="/bff/login">' in body


@pytest.mark.parametrize(
    "path", ["//evil.test/", "/a/../b", "/\\evil.test", "/bff/user", "/a%2fb", "http://evil.test/"]
)
def test_or_01_a_login_leads_back_only_to_plain_paths(path: str) -> None:
    """Where the user was isn't repeated if readers could take it for something else."""
    status, headers, _ = shown(NoSession(), NAVIGATION, path=path)

    assert (303, "/bff/login") == (status, headers["Location"])


def test_where_nobody_can_log_in_there_is_no_redirect() -> None:
    """401 as a page, without a link to a login."""
    status, headers, body = shown(NoSession(), NAVIGATION, login_url=None)

    assert 401 == status
    assert "Location" not in headers
    assert "login" not in body.partition("<body>")[2].replace("A login is needed", "")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (StoreError(), "5"),
        (ProviderError(retry_after_seconds=2.2), "3"),
        (ProviderError(retry_after_seconds=1e9), "3600"),
        (TooManyRequests(retry_after_seconds=0.4), "1"),
        (CsrfFailed(), None),
    ],
)
def test_who_should_come_again_is_told_when(error: BrokerError, expected: str | None) -> None:
    """In whole seconds, rounded up, bounded; on 429 and 503 only."""
    assert expected == shown(error, CALL)[1].get("Retry-After")
    assert expected == shown(error, NAVIGATION)[1].get("Retry-After")


def test_a_method_that_is_not_allowed_says_which_are() -> None:
    """RFC 9110 section 15.5.6."""
    assert "GET, POST" == shown(MethodNotAllowed(allow=("GET", "POST")), CALL)[1]["Allow"]


@pytest.mark.parametrize(
    ("error", "link"),
    [
        (CsrfFailed(may_go_on=True), '<a href="/orders?a=b">Continue</a>'),
        (CsrfFailed(), '<a href="/">Go to the start page</a>'),
        (LoginFailed(), '<a href="/bff/login">Log in</a>'),
        (StoreError(), '<a href="/orders?a=b">Try again</a>'),
        (UpstreamTimeout(), '<a href="/orders?a=b">Try again</a>'),
        (BrokerError(), '<a href="/">Go to the start page</a>'),
    ],
)
def test_a_page_offers_the_way_that_fits(error: BrokerError, link: str) -> None:
    """Whoever was led here from another site may go on from our own page."""
    assert link in shown(error, NAVIGATION)[2]


def test_br_07_the_page_of_a_failed_callback_repeats_no_code() -> None:
    """Its way on is the login, not the URL that came."""
    _, _, body = shown(StoreError(), NAVIGATION, path="/bff/callback/corp?code=secret&state=x")

    assert "secret" not in body
    assert "/bff/callback" not in body

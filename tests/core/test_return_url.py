import tomllib
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.core.return_url import MAX_LENGTH, is_safe_return_url, with_return_url
from tests.support.whatwg_url import destination

SITE = "https://app.example.com"
CORPUS = [
    (group["verdict"], group["leaves"], value)
    for group in tomllib.loads((Path(__file__).parents[1] / "corpus/return_urls.toml").read_text())["group"]
    for value in group["values"]
]


@pytest.mark.parametrize(("verdict", "leaves", "value"), CORPUS, ids=[ascii(value) for _, _, value in CORPUS])
def test_or_01_each_case_is_judged_as_the_corpus_says(verdict: str, leaves: bool, value: str) -> None:
    """Every value is taken or refused, and none that is taken makes a browser leave the site."""
    assert ("accept" == verdict) == is_safe_return_url(value, base_path="/bff")
    there = destination(value, SITE)
    assert leaves == (there is not None and there.origin != SITE)
    assert not (verdict == "accept" and leaves)


def test_the_corpus_has_both_sides() -> None:
    """More than a hundred and ten cases, of which many would leave the site."""
    assert len(CORPUS) >= 110
    assert sum(leaves for _, leaves, _ in CORPUS) >= 60
    assert sum(verdict == "accept" for verdict, _, _ in CORPUS) >= 30


def test_or_01_a_value_that_fits_no_cookie_is_refused() -> None:
    """The limit is on the whole value."""
    assert is_safe_return_url("/" + "a" * (MAX_LENGTH - 1), base_path="/bff")
    assert not is_safe_return_url("/" + "a" * MAX_LENGTH, base_path="/bff")


def test_the_base_path_may_have_several_segments() -> None:
    """Only the broker's own endpoints are refused, not what is beside them."""
    assert not is_safe_return_url("/auth/v1/login", base_path="/auth/v1")
    assert not is_safe_return_url("/auth/v1", base_path="/auth/v1")
    assert is_safe_return_url("/auth/v2", base_path="/auth/v1")
    assert is_safe_return_url("/auth", base_path="/auth/v1")


_tricky = st.text(alphabet=st.sampled_from("/\\.%2eEfF5cC09aA:@?#;b\t\r\n x\u3000é<>\"'[]{}~-_"), max_size=24)


@given(st.just("/").flatmap(lambda start: _tricky.map(lambda rest: start + rest)) | _tricky | st.text(max_size=20))
@example("/%2e%2e/bff/login")
def test_or_01_a_browser_stays_on_the_site(value: str) -> None:
    """Whatever is taken, a browser stays on our origin, on the path that was judged, and off our own endpoints."""
    if not is_safe_return_url(value, base_path="/bff"):
        return

    there = destination(value, SITE)

    assert there is not None
    assert SITE == there.origin
    assert value.partition("#")[0].partition("?")[0] == there.path
    assert not there.path.lower().startswith(("/bff/", "//"))


@given(st.from_regex(r"/[a-z0-9]{0,8}(/[a-z0-9.~%&=+;:@]{1,8})?(\?[a-z=&]{0,9})?(#[a-z/]{0,9})?", fullmatch=True))
def test_a_login_url_carries_the_return_url_unchanged(value: str) -> None:
    """What a query parser reads of it is what was put in, also behind other parameters."""
    for login_url in ("/bff/login", "/bff/login?acr_values=high"):
        assert [value] == parse_qs(urlsplit(with_return_url(login_url, value)).query)["returnUrl"]

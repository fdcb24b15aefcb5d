import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from broker.core.csrf import judge
from broker.errors import CsrfFailed

OWN = "https://app.example.com"
CORPUS = tomllib.loads((Path(__file__).parents[1] / "corpus/csrf.toml").read_text())["case"]


def passes(
    method: str,
    headers: list[tuple[str, str]],
    *,
    navigation: bool = False,
    websocket: bool = False,
    same_site_ok: bool = False,
) -> bool:
    try:
        judge(
            method=method,
            headers=CIMultiDictProxy(CIMultiDict(headers)),
            own_origin=OWN,
            navigation_allowed=navigation,
            websocket=websocket,
            same_site_ok=same_site_ok,
        )
    except CsrfFailed:
        return False
    return True


@pytest.mark.parametrize("case", CORPUS, ids=[case["why"] for case in CORPUS])
def test_br_01_only_our_own_frontend_passes(case: dict[str, object]) -> None:
    """Each case of the corpus passes or is refused as it says."""
    headers = case.get("headers", [])
    assert isinstance(headers, list)
    options = {key: bool(case.get(key)) for key in ("navigation", "websocket", "same_site_ok")}

    verdict = passes(str(case.get("method", "GET")), [(name, value) for name, value in headers], **options)

    assert ("pass" == case["verdict"]) == verdict


_names = st.sampled_from(["Origin", "X-CSRF", "Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest", "Cookie"])
_values = st.sampled_from([
    OWN, "https://evil.test", "null", "1", "0", "same-origin", "same-site", "cross-site", "none", "navigate", "document",
    "cors", "",
])  # fmt: skip
_headers = st.lists(st.tuples(_names, _values), max_size=6)
_methods = st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])


@given(_methods, _headers, st.booleans(), st.booleans(), st.booleans())
def test_no_foreign_origin_ever_passes(
    method: str, headers: list[tuple[str, str]], navigation: bool, websocket: bool, same_site_ok: bool
) -> None:
    """Whatever else comes with it, a call that names another origin, or a cross-site one, is refused."""
    for foreign in [("Origin", "https://evil.test"), ("Origin", "null"), ("Sec-Fetch-Site", "cross-site")]:
        assert not passes(
            method, [*headers, foreign], navigation=navigation, websocket=websocket, same_site_ok=same_site_ok
        )


@given(st.sampled_from(["POST", "PUT", "PATCH", "DELETE", "OPTIONS"]), _headers, st.booleans(), st.booleans())
def test_no_unsafe_method_passes_without_the_header(
    method: str, headers: list[tuple[str, str]], navigation: bool, same_site_ok: bool
) -> None:
    """Not even on a route that serves pages."""
    without = [(name, value) for name, value in headers if name != "X-CSRF"]

    assert not passes(method, without, navigation=navigation, same_site_ok=same_site_ok)

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import MultiDict

from broker.errors import BadRequest, Forbidden
from broker.web.guards import check_top_level, single_values

DOCUMENT = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.mark.parametrize("headers", [{}, DOCUMENT, {"Accept": "text/html"}])
def test_a_user_who_goes_to_a_page_passes(headers: dict[str, str]) -> None:
    """With fetch metadata and without."""
    check_top_level(make_mocked_request("GET", "/", headers=headers))


@pytest.mark.parametrize(
    "headers",
    [
        {**DOCUMENT, "Sec-Fetch-Dest": "iframe"},
        {**DOCUMENT, "Sec-Fetch-Mode": "cors"},
        {**DOCUMENT, "Sec-Fetch-Mode": "no-cors"},
        {**DOCUMENT, "Sec-Fetch-Dest": ""},
        {**DOCUMENT, "Sec-Purpose": "prefetch;anonymous-client-ip"},
        {"Purpose": "Prefetch"},
    ],
)
def test_lg_09_everything_else_is_refused(headers: dict[str, str]) -> None:
    """Frames, scripts, images, and what comes ahead of the user."""
    with pytest.raises(Forbidden):
        check_top_level(make_mocked_request("GET", "/", headers=headers))


def test_hd_09_a_parameter_comes_once() -> None:
    """Twice is refused, also with the same value or with none."""
    assert {"a": "1", "b": ""} == single_values(MultiDict([("a", "1"), ("b", "")]))
    for twice in ([("a", "1"), ("a", "2")], [("a", ""), ("b", "1"), ("a", "")]):
        with pytest.raises(BadRequest):
            single_values(MultiDict(twice))

import base64
import hashlib
import re

import pytest

from broker.web.pages import PAGE_POLICY, choice_page, continue_page, error_page, log_out_page

NASTY = "/a?q=\"'><script>alert(1)</script>&b=</title>"
PAGES = {
    "continue": continue_page(NASTY),
    "error": error_page(NASTY, NASTY, request_id=NASTY, links={NASTY: NASTY}),
    "choice": choice_page({NASTY: NASTY}),
    "log out": log_out_page(NASTY),
}


@pytest.mark.parametrize("page", list(PAGES.values()), ids=list(PAGES))
def test_br_06_everything_on_a_page_is_escaped(page: str) -> None:
    """No tag, attribute or script comes of what is shown."""
    assert "<script" not in page
    assert 1 == page.count("</title>")
    assert {"html", "head", "meta", "title", "style", "body", "h1", "p", "a", "ul", "li", "small"} >= set(
        re.findall(r"<([a-zA-Z0-9]+)", page)
    )
    for attributes in re.findall(r"<[a-z0-9]+((?: [^<>]*)?)>", page):
        assert re.fullmatch(r'(?: [a-z-]+="[^"<>]*")*', attributes), attributes


@pytest.mark.parametrize("page", list(PAGES.values()), ids=list(PAGES))
def test_br_05_a_page_holds_nothing_that_its_policy_forbids(page: str) -> None:
    """One style, whose hash the policy names; no script, no form, no frame, nothing from elsewhere."""
    (style,) = re.findall(r"<style>(.*?)</style>", page)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()

    assert f"style-src 'sha256-{digest}'" in PAGE_POLICY
    assert "default-src 'none'" in PAGE_POLICY
    assert not re.search(r"<(script|form|iframe|img|link|object|base)\b|\son[a-z]+=|\sstyle=|\ssrc=", page)


def test_the_continue_page_goes_on_without_a_script() -> None:
    """By a refresh of no delay, and a link for whoever has that switched off."""
    page = continue_page("/a?b=1&c=2#d")

    assert '<meta http-equiv="refresh" content="0;url=/a?b=1&amp;c=2#d">' in page
    assert '<a href="/a?b=1&amp;c=2#d">' in page

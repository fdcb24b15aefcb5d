"""The pages of the demo's server escape what they show, and say what they are."""

from broker.demo.login_pages import login_form, refusal

MARKUP = '"><script>alert(1)</script>'


def test_nothing_from_outside_becomes_markup() -> None:
    """Client, hint and error texts are shown as text."""
    form = login_form(MARKUP, client_id=MARKUP, redirect_uri="https://a.example/cb?x", login_hint=MARKUP)
    for page in (form.text, refusal(MARKUP, MARKUP).text):
        assert page is not None
        assert "<script" not in page
        assert "not for production" in page


def test_the_form_may_lead_only_to_the_client() -> None:
    """``form-action`` names the origin of the redirect_uri, since browsers hold redirects of a form against it."""
    form = login_form("t", client_id="c", redirect_uri="http://localhost:4711/bff/callback/demo", login_hint=None)
    assert "form-action 'self' http://localhost:4711;" in form.headers["Content-Security-Policy"]

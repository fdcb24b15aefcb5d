"""Client registration and authentication of the demo's server."""

import base64

import pytest

from broker.core.secret import Secret
from broker.demo.clients import Client, OAuthError, authenticate, is_registered

CLIENTS = {
    "web": Client(client_id="web", client_secret=Secret("p:w d"), redirect_uris=()),
    "spa": Client(client_id="spa", client_secret=None, redirect_uris=()),
}


def basic(credentials: str) -> str:
    return "Basic " + base64.b64encode(credentials.encode()).decode()


@pytest.mark.parametrize(
    ("uri", "registered", "expected"),
    [
        ("https://a.example/cb", "https://a.example/cb", True),
        ("https://a.example/cb/", "https://a.example/cb", False),
        ("https://a.example:8443/cb", "https://a.example/cb", False),
        ("http://localhost:4711/cb", "http://localhost/cb", True),
        ("http://127.0.0.1:4711/cb", "http://127.0.0.1/cb", True),
        ("http://[::1]:4711/cb", "http://[::1]/cb", True),
        ("http://localhost:4711/other", "http://localhost/cb", False),
        ("http://evil@localhost:4711/cb", "http://localhost/cb", False),
        ("http://localhost.evil.test:4711/cb", "http://localhost/cb", False),
        ("https://localhost:4711/cb", "http://localhost/cb", False),
    ],
)
def test_only_registered_redirect_uris_are_good(uri: str, registered: str, *, expected: bool) -> None:
    """They must be equal, but for a loopback's port (RFC 8252 section 7.3)."""
    assert expected is is_registered(uri, [registered])


@pytest.mark.parametrize(
    ("authorization", "form", "expected"),
    [
        (basic("web:p%3Aw+d"), {}, "web"),
        (None, {"client_id": "web", "client_secret": "p:w d"}, "web"),
        (None, {"client_id": "spa"}, "spa"),
    ],
)
def test_a_client_is_known_by_its_secret(authorization: str | None, form: dict[str, str], expected: str) -> None:
    """Basic with form-encoded parts, post, and none for public clients."""
    assert expected == authenticate(CLIENTS, authorization=authorization, form=form).client_id


@pytest.mark.parametrize(
    ("authorization", "form", "error"),
    [
        (basic("web:wrong"), {}, "invalid_client"),
        (basic("web"), {}, "invalid_client"),
        ("Bearer x", {}, "invalid_client"),
        ("Basic !", {}, "invalid_client"),
        (None, {"client_id": "web"}, "invalid_client"),
        (None, {"client_id": "spa", "client_secret": "x"}, "invalid_client"),
        (None, {}, "invalid_client"),
        (basic("web:p%3Aw+d"), {"client_secret": "p:w d"}, "invalid_request"),
    ],
)
def test_a_wrong_client_is_refused(authorization: str | None, form: dict[str, str], error: str) -> None:
    """A wrong secret, a missing one, one too many, and two methods at once."""
    with pytest.raises(OAuthError) as refused:
        authenticate(CLIENTS, authorization=authorization, form=form)
    assert error == refused.value.error

"""The clients of the demo authorization server: registration and authentication (RFC 6749 section 2)."""

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote_plus, urlsplit

from broker.core.secret import Secret

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class OAuthError(Exception):
    """
    A refusal with an ``error`` code (RFC 6749 section 5.2).

    Attributes:
        error: The code.
        status: The HTTP status of a refusal that isn't a redirect.
    """

    def __init__(self, error: str, description: str = "", *, status: int = 400) -> None:
        super().__init__(description or error)
        self.error = error
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """
    A registered client.

    Attributes:
        client_id: Its identifier.
        client_secret: None for a public client.
        redirect_uris: Where authorization responses may go.
        post_logout_redirect_uris: Where the browser may go after a logout.
        backchannel_logout_uri: Where logout tokens are sent, if anywhere.
    """

    client_id: str
    client_secret: Secret | None
    redirect_uris: tuple[str, ...]
    post_logout_redirect_uris: tuple[str, ...] = ()
    backchannel_logout_uri: str | None = None


def is_registered(uri: str, registered: Iterable[str]) -> bool:
    """
    Return whether *uri* is one of *registered*.

    They must be equal, except for the port of a loopback address that is registered without one (RFC 8252
    section 7.3).
    """
    return any(uri == one or _without_loopback_port(uri) == one for one in registered)


def _without_loopback_port(uri: str) -> str | None:
    parts = urlsplit(uri)
    if parts.scheme != "http" or parts.hostname not in _LOOPBACK or "@" in parts.netloc:
        return None
    return parts._replace(netloc=f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname).geturl()


def authenticate(clients: Mapping[str, Client], *, authorization: str | None, form: Mapping[str, str]) -> Client:
    """
    Return the client that makes a token request (RFC 6749 section 2.3.1).

    Args:
        clients: The registered clients by identifier.
        authorization: The Authorization header.
        form: The parameters of the request.

    Raises:
        OAuthError: ``invalid_client``, or ``invalid_request`` if it authenticates in two ways.
    """
    if authorization is None:
        client_id, secret = form.get("client_id", ""), form.get("client_secret")
    else:
        if "client_secret" in form:
            raise OAuthError("invalid_request", "two ways of client authentication")
        client_id, secret = _read_basic(authorization)
    client = clients.get(client_id)
    given = None if secret is None else Secret(secret)
    if client is None or client.client_secret != given:
        raise OAuthError("invalid_client", status=401)
    return client


def _read_basic(authorization: str) -> tuple[str, str]:
    scheme, _, credentials = authorization.partition(" ")
    try:
        client_id, separator, secret = base64.b64decode(credentials, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise OAuthError("invalid_client", status=401) from None
    if scheme.lower() != "basic" or not separator:
        raise OAuthError("invalid_client", status=401)
    return unquote_plus(client_id), unquote_plus(secret)

"""
The browser's side of the demo authorization server: authorization requests, the login form, and logout.

Source: RFC 6749 section 4.1, RFC 7636, RFC 9207, OpenID Connect Core section 3.1.2, RP-Initiated Logout.
"""

import base64
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from broker.demo.clients import Client, OAuthError, is_registered
from broker.demo.families import Family
from broker.services.clock import Clock, Randomness

MAX_PENDING = 1000
"""How many authorization requests, codes and browsers are remembered: a page that reloads can't fill the memory."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationQuery:
    """A checked authorization request (RFC 6749 section 4.1.1)."""

    client_id: str
    redirect_uri: str
    scope: str
    state: str | None
    nonce: str | None
    code_challenge: str
    resources: tuple[str, ...]
    prompt: frozenset[str]
    max_age_seconds: float | None
    login_hint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowserLogin:
    """A user who logged in at this server: the browser's cookie points here."""

    subject: str
    sid: str
    auth_time: float


@dataclass(slots=True, kw_only=True)
class Code:
    """An authorization code that was issued."""

    query: AuthorizationQuery
    login: BrowserLogin
    expires_at: float
    family: Family | None = None


class Logins:
    """Browsers that are logged in, requests that wait for a login, and codes that wait for their client."""

    def __init__(self, *, clients: Mapping[str, Client], clock: Clock, randomness: Randomness) -> None:
        self._clients = clients
        self._clock = clock
        self._randomness = randomness
        self.code_seconds = 60.0
        self._browsers: OrderedDict[str, BrowserLogin] = OrderedDict()
        self._waiting: OrderedDict[str, AuthorizationQuery] = OrderedDict()
        self._codes: OrderedDict[str, Code] = OrderedDict()

    def read(self, parameters: Mapping[str, str], resources: tuple[str, ...] = ()) -> AuthorizationQuery:
        """
        Check an authorization request.

        Raises:
            OAuthError: If the client or its redirect_uri is wrong, so that no redirect may be made.
            RedirectedError: If the request is refused by a redirect.
        """
        client = self._clients.get(parameters.get("client_id", ""))
        if client is None:
            raise OAuthError("invalid_request", "unknown client_id")
        redirect_uri = parameters.get("redirect_uri", "")
        if not is_registered(redirect_uri, client.redirect_uris):
            raise OAuthError("invalid_request", "redirect_uri is not registered")
        query = AuthorizationQuery(
            client_id=client.client_id,
            redirect_uri=redirect_uri,
            scope=parameters.get("scope", ""),
            state=parameters.get("state"),
            nonce=parameters.get("nonce"),
            code_challenge=parameters.get("code_challenge", ""),
            resources=resources,
            prompt=frozenset(parameters.get("prompt", "").split()),
            max_age_seconds=float(parameters["max_age"]) if parameters.get("max_age", "").isdecimal() else None,
            login_hint=parameters.get("login_hint"),
        )
        if parameters.get("response_type") != "code":
            raise RedirectedError(query, "unsupported_response_type")
        if parameters.get("code_challenge_method") != "S256" or len(query.code_challenge) != 43:
            raise RedirectedError(query, "invalid_request", "code_challenge with S256 is required")
        return query

    def known(self, cookie: str, query: AuthorizationQuery) -> BrowserLogin | None:
        """Return the browser's login if it is good enough for *query* (``prompt``, ``max_age``)."""
        login = self._browsers.get(cookie)
        if login is None or "login" in query.prompt:
            return None
        if query.max_age_seconds is not None and self._clock.now() - login.auth_time > query.max_age_seconds:
            return None
        return login

    def wait(self, query: AuthorizationQuery) -> str:
        """Remember *query* until the form is sent. Returns the ticket that the form carries."""
        return self._keep(self._waiting, query)

    def resume(self, ticket: str) -> AuthorizationQuery | None:
        """Return the request that *ticket* stands for, once."""
        return self._waiting.pop(ticket, None)

    def log_in(self, subject: str) -> tuple[str, BrowserLogin]:
        """Log *subject* in. Returns the value of the browser's cookie and the login."""
        login = BrowserLogin(subject=subject, sid=self._secret()[:16], auth_time=self._clock.now())
        return self._keep(self._browsers, login), login

    def log_out(self, cookie: str) -> BrowserLogin | None:
        """End the browser's login and return what it was."""
        return self._browsers.pop(cookie, None)

    def issue_code(self, query: AuthorizationQuery, login: BrowserLogin) -> str:
        """Return an authorization code for *query*."""
        return self._keep(self._codes, Code(query=query, login=login, expires_at=self._clock.now() + self.code_seconds))

    def find_code(self, code: str) -> Code | None:
        """Return the code's record, used or not."""
        return self._codes.get(code)

    def check_code(self, code: Code, *, client: Client, form: Mapping[str, str]) -> None:
        """
        Check that *client* may redeem *code* with *form* (RFC 6749 section 4.1.3, RFC 7636 section 4.6).

        Raises:
            OAuthError: ``invalid_grant``.
        """
        query = code.query
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
        if (
            code.family is not None
            or query.client_id != client.client_id
            or form.get("redirect_uri") != query.redirect_uri
            or self._clock.now() >= code.expires_at
            or not hmac.compare_digest(challenge.rstrip(b"="), query.code_challenge.encode())
        ):
            raise OAuthError("invalid_grant", "the code is not good for this request")

    def _secret(self) -> str:
        return self._randomness.token_bytes(16).hex()

    def _keep(self, kept: OrderedDict[str, T], value: T) -> str:
        key = self._secret()
        kept[key] = value
        if len(kept) > MAX_PENDING:
            kept.popitem(last=False)
        return key


class RedirectedError(OAuthError):
    """A refusal that the browser carries back to the client (RFC 6749 section 4.1.2.1)."""

    def __init__(self, query: AuthorizationQuery, error: str, description: str = "") -> None:
        super().__init__(error, description)
        self.query = query

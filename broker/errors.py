"""
Every error that the broker raises, sorted by whose fault it is.

    BrokerError
    ├── CallerError             the request can't be answered as it is: 4xx
    │   ├── BadRequest              400 bad_request
    │   ├── AmbiguousPath           400 ambiguous_path
    │   ├── LoginFailed             400 login_failed
    │   ├── NoSession               401 no_session
    │   ├── SessionExpired          401 session_expired
    │   ├── StepUpRequired          401 step_up_required
    │   ├── CsrfFailed              403 csrf_failed
    │   ├── Forbidden               403 forbidden
    │   ├── NoRoute                 404 no_route
    │   ├── MethodNotAllowed        405 method_not_allowed
    │   ├── RequestTimeout          408 request_timeout
    │   ├── PayloadTooLarge         413 payload_too_large
    │   ├── UnknownHost             421 unknown_host
    │   └── TooManyRequests         429 too_many_requests
    ├── OperatorError           the installation is wrong
    │   ├── ConfigError             the start is refused
    │   │   └── UnusableCredential      for a certificate or a key
    │   └── KeyringError            no key opens or seals this
    ├── Overloaded              503 overloaded: memory is nearly out
    ├── ProviderError           the authorization server's fault: 503 provider_unavailable
    │   └── ProviderProtocolError   it answered something that its specification forbids
    ├── StoreError              503 store_unavailable
    │   └── StoreMisplaced          at the start, it is refused
    └── UpstreamError           the upstream's fault
        ├── UpstreamUnavailable     502 upstream_unavailable
        ├── UpstreamBusy            503 upstream_busy
        └── UpstreamTimeout         504 upstream_timeout

A ``code`` is public and stable: callers see it as the last part of a problem's ``type`` (RFC 9457), and each has a
heading in the reference. The text of an exception is for the log and never reaches a caller.
Expected outcomes (a login is needed, a lease is busy) are return values, not exceptions.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Self


class BrokerError(Exception):
    """Anything that the broker refuses or fails to do."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "The broker failed"

    login_parameters: Mapping[str, str] = MappingProxyType({})
    """Where a login helps: what its URL must say (``provider``, ``returnUrl``, ``acr_values`` …). Callers see it."""

    def __init__(
        self, detail: str = "", *, retry_after_seconds: float | None = None, look_at: str | None = None
    ) -> None:
        """
        Args:
            detail: A sentence for the log. It must hold no secret and is never shown to a caller.
            retry_after_seconds: When the caller may try again, if that is known.
            look_at: The key of the configuration that may explain it: of the provider's part, or of the whole such as
                ``store.password``.
        """
        super().__init__(detail or self.title)
        self.retry_after_seconds = retry_after_seconds
        self.look_at = look_at


class CallerError(BrokerError):
    """The request can't be answered as it is (RFC 9110 section 15.5)."""

    status = 400
    code = "bad_request"
    title = "The request is malformed"


class BadRequest(CallerError):
    """The request's syntax or its parameters are refused."""


class AmbiguousPath(CallerError):
    """Two readers could take this request target for two different paths."""

    code = "ambiguous_path"
    title = "The path can be read in more than one way"


class LoginFailed(CallerError):
    """A login attempt can't be completed: its answer is foreign, expired, replayed or an error."""

    code = "login_failed"
    title = "The login could not be completed"


class NoSession(CallerError):
    """
    The caller has no live session.

    Attributes:
        leads_back: Whether a user who logs in can go on with the same request: nobody can who went to a page where none
            is served.
    """

    status = 401
    code = "no_session"
    title = "A login is needed"
    leads_back: bool = True


class SessionExpired(CallerError):
    """The session or its grant has ended (RFC 6749 section 5.2, ``invalid_grant``)."""

    status = 401
    code = "session_expired"
    title = "The session has ended"

    def __init__(self, detail: str = "", *, provider: str | None = None) -> None:
        """
        Args:
            detail: A sentence for the log.
            provider: Where the user was logged in, if a login can be asked for there.
        """
        super().__init__(detail)
        if provider is not None:
            self.login_parameters = {"provider": provider}


class StepUpRequired(CallerError):
    """The upstream wants a stronger or newer authentication (RFC 9470)."""

    status = 401
    code = "step_up_required"
    title = "A stronger login is needed"


class CsrfFailed(CallerError):
    """
    A cookie-authenticated call came without proof that our own frontend made it.

    Attributes:
        may_go_on: Whether the same request passes if it comes from a page of our own.
    """

    status = 403
    code = "csrf_failed"
    title = "The call lacks the X-CSRF header or comes from a foreign origin"

    def __init__(self, detail: str = "", *, may_go_on: bool = False) -> None:
        """
        Args:
            detail: A sentence for the log.
            may_go_on: Whether the same request passes if it comes from a page of our own.
        """
        super().__init__(detail)
        self.may_go_on = may_go_on


class Forbidden(CallerError):
    """The caller is known and may not do this."""

    status = 403
    code = "forbidden"
    title = "Not allowed"


class NoRoute(CallerError):
    """No route matches the request."""

    status = 404
    code = "no_route"
    title = "Nothing is here"


class MethodNotAllowed(CallerError):
    """The route doesn't take this method."""

    status = 405
    code = "method_not_allowed"
    title = "The method is not allowed here"

    def __init__(self, detail: str = "", *, allow: tuple[str, ...] = ()) -> None:
        """
        Args:
            detail: A sentence for the log.
            allow: The methods that are taken, for the Allow field (RFC 9110 section 15.5.6).
        """
        super().__init__(detail)
        self.allow = allow


class RequestTimeout(CallerError):
    """The caller took too long to send its request."""

    status = 408
    code = "request_timeout"
    title = "The request took too long to arrive"


class PayloadTooLarge(CallerError):
    """The request's content is larger than the route allows."""

    status = 413
    code = "payload_too_large"
    title = "The request's content is too large"


class UnknownHost(CallerError):
    """The Host header names no host that is served here (RFC 9110 section 15.5.20)."""

    status = 421
    code = "unknown_host"
    title = "This host is not served here"


class TooManyRequests(CallerError):
    """The caller exceeds a rate limit (RFC 6585 section 4)."""

    status = 429
    code = "too_many_requests"
    title = "Too many requests"


class OperatorError(BrokerError):
    """The installation is wrong, and only its operator can mend it."""


class ConfigError(OperatorError):
    """A setting is refused. The start is refused with it."""

    code = "config_error"
    title = "The configuration is refused"


class UnusableCredential(ConfigError):
    """
    A certificate, a key or the password of one can't be used.

    Attributes:
        key: The option at fault: ``key_file``.
        expected: What it should hold, as a phrase.
        found: What it holds instead, as a phrase that quotes nothing of it.
    """

    key = ""
    expected = ""
    found = ""

    @classmethod
    def at(cls, key: str, *, within: str, expected: str, found: str) -> Self:
        """
        Return the error of an option.

        Args:
            key: The option at fault.
            within: Where that option is, as far as its reader knows: ``client_assertion``.
            expected: What it should hold.
            found: What it holds instead.
        """
        error = cls(f"{within}.{key}: expected {expected}, found {found}")
        error.key, error.expected, error.found = key, expected, found
        return error


class KeyringError(OperatorError):
    """A record can't be opened: it was altered, moved, or sealed with a key that is no longer here."""

    code = "sealed_record_refused"
    title = "A sealed record can't be opened"


class Overloaded(BrokerError):
    """Memory is nearly out, so that nothing new is begun."""

    status = 503
    code = "overloaded"
    title = "The broker has too much to do"


class ProviderError(BrokerError):
    """The authorization server is down, slow or refuses the broker itself."""

    status = 503
    code = "provider_unavailable"
    title = "The authorization server is unavailable"


class ProviderProtocolError(ProviderError):
    """The authorization server answered something that its specification forbids."""


class StoreError(BrokerError):
    """The session store is down, slow or refuses writes. No session is lost by it."""

    status = 503
    code = "store_unavailable"
    title = "The session store is unavailable"


class StoreMisplaced(StoreError):
    """There can be no store where the configuration says: no waiting helps, only its operator does."""


class UpstreamError(BrokerError):
    """The upstream API failed."""

    status = 502
    code = "upstream_unavailable"
    title = "The upstream is unavailable"


class UpstreamUnavailable(UpstreamError):
    """No connection, or a broken answer."""


class UpstreamBusy(UpstreamError):
    """All connections to the upstream are in use and the queue for them is full."""

    status = 503
    code = "upstream_busy"
    title = "The upstream is busy"


class UpstreamTimeout(UpstreamError):
    """The upstream did not answer in time."""

    status = 504
    code = "upstream_timeout"
    title = "The upstream did not answer in time"

"""What the answers of an authorization server tell about the configuration, decided without I/O."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import parse_qsl, urlsplit

from broker.core.client_auth import ClientAuthMethod
from broker.core.clocks import ahead_seconds
from broker.core.compact_jws import unverified_claim
from broker.core.oauth import FailureKind, TokenOutcome, TokenSet
from broker.core.provider import ProviderOptions, PushedAuthorization
from broker.core.troubleshooting import key_of_authorization_error, key_to_look_at, refuses_client

REFUSED_GRANT_TYPE = frozenset({"unauthorized_client", "unsupported_grant_type"})
BY_SECRET = (
    ClientAuthMethod.CLIENT_SECRET_BASIC,
    ClientAuthMethod.CLIENT_SECRET_POST,
    ClientAuthMethod.CLIENT_SECRET_JWT,
)


SILENT_ERRORS = frozenset({"login_required", "interaction_required", "consent_required", "account_selection_required"})
"""What ``prompt=none`` is answered where somebody must be asked (OpenID Connect Core section 3.1.2.6)."""


class Verdict(Enum):
    """How a finding is to be taken."""

    GOOD = "good"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """
    One thing that was found.

    Attributes:
        verdict: How it is to be taken.
        text: A sentence, which may hold what the server said: it is printed with care.
        key: The key of the provider to look at; None where the YAML isn't concerned.
        fitting: Keys of the provider with the values that would fit.
    """

    verdict: Verdict
    text: str
    key: str | None = None
    fitting: Mapping[str, object] = field(default_factory=dict)


def judge_issuer(document: Mapping[str, object], options: ProviderOptions) -> Finding:
    """Say whether the metadata speaks for the configured issuer, to the letter (RFC 8414 section 3.3)."""
    said = document.get("issuer")
    if said is None:
        text = "the metadata holds no issuer, which they must (RFC 8414 section 2)"
        if options.issuer is None:
            return Finding(verdict=Verdict.WARNING, text=text)
        text = f"{text}: they can't speak for {options.issuer}"
        return Finding(verdict=Verdict.ERROR, key="issuer", text=text)
    if options.issuer is None or said == options.issuer:
        return Finding(verdict=Verdict.GOOD, text=f"the metadata speaks for {said}")
    return Finding(
        verdict=Verdict.ERROR,
        key="issuer",
        text=f"the metadata speaks for {said}, not for {options.issuer}: they must be equal to the letter",
        fitting={"issuer": said} if isinstance(said, str) else {},
    )


def judge_metadata(document: Mapping[str, object], options: ProviderOptions) -> Iterator[Finding]:
    """Say what the configuration asks for and the server, by its metadata (RFC 8414 section 2), can't do."""
    yield from _judge_client_authentication(document, options)
    algorithms = _texts(document, "id_token_signing_alg_values_supported")
    if algorithms and not set(algorithms) & set(options.id_token_algorithms):
        yield Finding(
            verdict=Verdict.ERROR,
            key="id_token_algorithms",
            text=f"the server signs id tokens by {', '.join(algorithms)} only",
            fitting={"id_token_algorithms": [alg for alg in algorithms if alg != "none"]},
        )
    requires_push = document.get("require_pushed_authorization_requests") is True
    if requires_push and options.pushed_authorization is PushedAuthorization.NEVER:
        yield Finding(
            verdict=Verdict.ERROR,
            key="pushed_authorization",
            text="the server takes pushed authorization requests only",
            fitting={"pushed_authorization": PushedAuthorization.AUTO.value},
        )
    scopes = _texts(document, "scopes_supported")
    if "offline_access" in scopes and "offline_access" not in options.scope.split():
        yield Finding(
            verdict=Verdict.NOTE,
            key="scope",
            text="the server knows the scope offline_access: without it there may be no refresh token",
            fitting={"scope": f"{options.scope} offline_access".strip()},
        )
    for member, text in (
        ("authorization_response_iss_parameter_supported", "iss in authorization responses (RFC 9207)"),
        ("pushed_authorization_request_endpoint", "pushed authorization requests (RFC 9126)"),
        ("backchannel_logout_supported", "back-channel logout"),
    ):
        yield Finding(verdict=Verdict.NOTE, text=f"{'has' if document.get(member) else 'has no'} {text}")


def _judge_client_authentication(document: Mapping[str, object], options: ProviderOptions) -> Iterator[Finding]:
    supported = _texts(document, "token_endpoint_auth_methods_supported")
    method = options.auth_method
    if not supported or method.value in supported or method is ClientAuthMethod.CLIENT_ACCESS_TOKEN:
        return
    fitting = next((other.value for other in BY_SECRET if options.client_secret and other.value in supported), None)
    yield Finding(
        verdict=Verdict.WARNING,
        key="token_endpoint_auth_method",
        text=f"the server says that it takes {', '.join(supported)}, not {method.value}",
        fitting={} if fitting is None else {"token_endpoint_auth_method": fitting},
    )


def judge_nonsense(outcome: TokenOutcome, options: ProviderOptions) -> Finding:
    """
    Say what the answer to a refresh token that never was tells about the client (RFC 6749 section 5.2).

    A server authenticates the client first: ``invalid_grant`` means that it did.
    """
    if isinstance(outcome, TokenSet):
        return Finding(verdict=Verdict.WARNING, text="the server gave tokens for a refresh token that never was")
    said = outcome.error or outcome.detail or f"status {outcome.status}"
    if refuses_client(outcome):
        key = key_to_look_at(outcome, options)
        # A client that isn't known is answered like one with a wrong secret (RFC 6749 section 5.2).
        text = f"the server refuses the client: {said}{'' if key == 'client_id' else '; look at client_id, too'}"
        return Finding(verdict=Verdict.ERROR, key=key, text=text)
    if outcome.kind is FailureKind.PERMANENT:
        return Finding(verdict=Verdict.GOOD, text=f"the server takes the client's {options.auth_method.value}")
    if outcome.error in REFUSED_GRANT_TYPE:
        text = f"the client may not refresh: {said}. Allow it the grant type refresh_token at the server"
        return Finding(verdict=Verdict.WARNING, key="client_id", text=text)
    if outcome.kind is FailureKind.OPERATOR or outcome.status is None:
        text = f"the token endpoint refuses the request: {said}"
        return Finding(verdict=Verdict.ERROR, key=key_to_look_at(outcome, options) or "token_endpoint", text=text)
    return Finding(verdict=Verdict.WARNING, text=f"whether the server takes the client can't be told: {said}")


def judge_authorization(status: int, location: str | None, *, redirect_uri: str) -> Finding:
    """
    Say what the answer to an authorization request with ``prompt=none`` tells, for which nobody is logged in.

    A server that takes the request sends the browser back with ``login_required`` (OpenID Connect Core section
    3.1.2.6); one that doesn't know the client or the redirect URI must not (RFC 6749 section 4.1.2.1).

    Args:
        status: The answer's.
        location: Where it sends the browser.
        redirect_uri: Where the browser should come back.
    """
    if 300 <= status <= 399 and location is not None and location.partition("?")[0] == redirect_uri:
        parameters = dict(parse_qsl(urlsplit(location).query))
        error = parameters.get("error") or unverified_claim(parameters.get("response", ""), "error")
        if error is None or error in SILENT_ERRORS:
            return Finding(verdict=Verdict.GOOD, text=f"the server sends browsers back to {redirect_uri}")
        text = f"the server refuses the authorization request: {str(error)[:64]}"
        return Finding(verdict=Verdict.ERROR, key=key_of_authorization_error(str(error)), text=text)
    if 400 <= status <= 499:
        text = f"the server answers {status} to a login, and sends nobody back: is {redirect_uri} registered there?"
        return Finding(verdict=Verdict.ERROR, key="redirect_uri", text=text)
    text = f"whether the server sends browsers back to {redirect_uri} is seen at a login: register it there"
    return Finding(verdict=Verdict.NOTE, text=text)


def judge_clock(date: str | None, *, sent_at: float, received_at: float, options: ProviderOptions) -> Finding | None:
    """
    Compare this machine's clock with the server's.

    Args:
        date: The answer's ``Date`` field (RFC 9110 section 6.6.1).
        sent_at: Unix seconds, by this machine's clock, when the request was sent.
        received_at: The same when the answer was there.
        options: For what is borne.

    Returns:
        What was found; None where there is no date.
    """
    ahead = ahead_seconds(date, sent_at=sent_at, received_at=received_at)
    if ahead is None:
        return None
    if abs(ahead) <= options.clock_skew_seconds:
        return Finding(verdict=Verdict.GOOD, text=f"the clocks agree within {abs(ahead) + 1:.0f} s")
    direction = "ahead of" if ahead > 0 else "behind"
    return Finding(
        verdict=Verdict.ERROR,
        key="clock_skew",
        text=f"this machine's clock is {abs(ahead):.0f} s {direction} the server's: set it by NTP; "
        f"{options.clock_skew_seconds:.0f} s are borne",
    )


def _texts(document: Mapping[str, object], member: str) -> list[str]:
    value = document.get(member)
    return [each for each in value if isinstance(each, str)][:64] if isinstance(value, list) else []

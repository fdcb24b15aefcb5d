"""
What an answer of a token endpoint means, decided without I/O.

Success is read forgivingly, since a rotated refresh token that is thrown away is a user logged out. Failure is judged
by one table, :func:`classify`, and by the ``error`` member and the status only, never by text.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from broker.core.compact_jws import unverified_claim
from broker.core.json_object import at_path, read_object_forgivingly
from broker.core.lifetimes import instant, numeric_date
from broker.core.oauth import FailureKind, TokenFailure, TokenOutcome, TokenSet
from broker.core.provider import EmptyAnswer, ProviderOptions
from broker.core.secret import AccessToken, IdToken, RefreshToken

MAX_TOKEN_CHARACTERS = 64 * 1024

OPERATOR_WORDS = frozenset(
    {
        "invalid_client",
        "unauthorized_client",
        "invalid_scope",
        "unsupported_grant_type",
        "invalid_request",
        "invalid_target",  # RFC 8707 section 2
        "invalid_dpop_proof",  # RFC 9449 section 5
        "use_dpop_nonce",  # the nonce was sent, and still refused
        "access_denied",
    }
)
"""The broker asks wrongly: only its operator can help."""

BUSY_WORDS = frozenset({"temporarily_unavailable", "slow_down", "authorization_pending"})
"""The request was refused unprocessed: later it may be taken."""

FAULT_WORDS = frozenset({"server_error"})
"""The server broke while it processed the request: it may have rotated already."""

_WORD = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")
_TOKEN = re.compile(r"[\x21-\x7e]+")  # RFC 6749 appendix A.12 without the space, which no header could carry


class Body(Enum):
    """What came where a JSON object was expected."""

    EMPTY = "an empty body"
    GARBAGE = "a body that is no JSON object"
    LOST = "a body that was cut off or too large"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseRules:
    """
    What is particular to one server's answers.

    Attributes:
        members: Paths of members that have other names.
        default_expires_in_seconds: Life of an access token where nothing says it.
        permanent_errors: Errors that end a grant.
        empty_400: What a 400 without a body means.
        dpop: Whether a token of type DPoP can be sent.
        refusals: Statuses that, with a JSON object, are as good as ``invalid_grant``: for APIs that aren't OAuth.
    """

    members: Mapping[str, str] = field(default_factory=dict)
    default_expires_in_seconds: float = 300.0
    permanent_errors: frozenset[str] = frozenset({"invalid_grant"})
    empty_400: EmptyAnswer = EmptyAnswer.TRANSIENT
    dpop: bool = False
    refusals: frozenset[int] = frozenset()

    @classmethod
    def of(cls, options: ProviderOptions) -> "ResponseRules":
        """Return the rules that *options* state."""
        return cls(
            members=options.token_response,
            default_expires_in_seconds=options.default_expires_in_seconds,
            permanent_errors=frozenset({"invalid_grant", *options.permanent_errors}),
            empty_400=options.empty_400,
        )


def read_token_response(
    *,
    status: int,
    body: bytes | None,
    requested_at: float,
    rules: ResponseRules,
    retry_after_seconds: float | None = None,
) -> TokenOutcome:
    """
    Return what the answer of a token endpoint means.

    Args:
        status: The HTTP status.
        body: The content; None if it was cut off or too large.
        requested_at: Unix seconds, read before the request was sent.
        rules: What is particular to this server.
        retry_after_seconds: ``Retry-After``, already read.

    Source: RFC 6749 sections 5.1 and 5.2.
    """
    document = _document(body)
    if isinstance(document, Body):
        error, what = None, document.value
    else:
        error, what = shown_word(_member(document, "error", rules)), "no usable tokens"
        if 200 <= status <= 299:
            tokens = _token_set(document, requested_at, rules)
            if isinstance(tokens, TokenSet):
                return tokens
            if tokens is not None:
                return TokenFailure(kind=FailureKind.OPERATOR, status=status, detail=tokens)
    return TokenFailure(
        kind=classify(
            status,
            error,
            document if isinstance(document, Body) else None,
            rules,
            asks_to_wait=retry_after_seconds is not None,
        ),
        error=error,
        status=status,
        retry_after_seconds=retry_after_seconds,
        detail=f"{status} with error {error}" if error else f"{status} with {what}",
    )


def classify(
    status: int, error: str | None, body: Body | None, rules: ResponseRules, *, asks_to_wait: bool = False
) -> FailureKind:
    """
    Return the class of a failure: the one place where it is decided. The first row that fits counts.

    Args:
        status: The HTTP status.
        error: The ``error`` member.
        body: What came in place of a JSON object; None if one came.
        rules: What is particular to this server.
        asks_to_wait: Whether there is a ``Retry-After``.

    ========================================  =============  =======================================================
    answer                                    class          reason
    ========================================  =============  =======================================================
    ``invalid_grant``, at any status          PERMANENT      RFC 6749 section 5.2; some answer 200 or 403
    400 without a body, by ``empty_400``      PERMANENT      glewlwyd answers so
    a JSON object with one of ``refusals``    PERMANENT      Mosaic's session endpoint isn't OAuth, and names no error
    ``invalid_client`` and its like           OPERATOR       the grant is good, the broker isn't
    ``server_error``, at any status           IN_DOUBT       it broke while it processed the request
    ``temporarily_unavailable`` and its like  TRANSIENT      refused before it was processed
    429; 503 with ``Retry-After``             TRANSIENT      whoever says when to come again hasn't begun
    any other 5xx, a bare 503 among them      IN_DOUBT       a gateway may speak after the server has rotated
    2xx without tokens or a named error       IN_DOUBT       processed, and the tokens are lost
    any other named error                     OPERATOR       definite, and only a human can read it
    3xx, 4xx without an error                 TRANSIENT      a gateway, a firewall, a captive portal
    ========================================  =============  =======================================================
    """
    if error in rules.permanent_errors:
        return FailureKind.PERMANENT
    if status == 400 and body is Body.EMPTY and rules.empty_400 is EmptyAnswer.INVALID_GRANT:
        return FailureKind.PERMANENT
    if status in rules.refusals and body is None and error is None:
        return FailureKind.PERMANENT
    if error in OPERATOR_WORDS:
        return FailureKind.OPERATOR
    if error in FAULT_WORDS:
        return FailureKind.IN_DOUBT
    if error in BUSY_WORDS or status == 429 or (status == 503 and asks_to_wait):
        return FailureKind.TRANSIENT
    if status >= 500:  # Envoy and others answer 503 too when a server dies that has begun
        return FailureKind.IN_DOUBT
    if error is not None:
        return FailureKind.OPERATOR
    return FailureKind.IN_DOUBT if 200 <= status <= 299 else FailureKind.TRANSIENT


def _document(body: bytes | None) -> dict[str, object] | Body:
    if body is None:
        return Body.LOST
    if not body.strip():
        return Body.EMPTY
    document = read_object_forgivingly(body)
    return Body.GARBAGE if document is None else document


def _member(document: dict[str, object], name: str, rules: ResponseRules) -> object:
    return at_path(document, rules.members.get(name, name))


def shown_word(value: object) -> str | None:
    """Return *value* if it is a word, such as the ``error`` of an answer; other text may hold anything."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


def _sendable(value: object) -> str | None:
    """Return an access token that a header can carry."""
    return value if isinstance(value, str) and len(value) <= MAX_TOKEN_CHARACTERS and _TOKEN.fullmatch(value) else None


def _token(value: object) -> str | None:
    """Return a token that only a request's body carries."""
    return value if isinstance(value, str) and 0 < len(value) <= MAX_TOKEN_CHARACTERS and value.isprintable() else None


def _token_set(document: dict[str, object], requested_at: float, rules: ResponseRules) -> TokenSet | str | None:
    """Return the tokens; a phrase if they can't be used by configuration; None if there are none."""
    access_token = _sendable(_member(document, "access_token", rules))
    if access_token is None:
        return None
    given_type = _member(document, "token_type", rules)
    token_type = _token_type(given_type, rules)
    if token_type is None:
        return f"token_type {shown_word(given_type) or 'of no sensible name'} can't be sent"
    refresh_token = _token(_member(document, "refresh_token", rules))
    id_token = _token(_member(document, "id_token", rules))
    return TokenSet(
        access_token=AccessToken(access_token),
        token_type=token_type,
        expires_at=_expires_at(document, access_token, requested_at, rules),
        requested_at=requested_at,
        refresh_token=None if refresh_token is None else RefreshToken(refresh_token),
        refresh_expires_at=instant(_member(document, "refresh_expires_in", rules), requested_at),
        id_token=None if id_token is None else IdToken(id_token),
        scope=_scope(_member(document, "scope", rules)),
        session_id=_session(document, rules),
    )


def _token_type(value: object, rules: ResponseRules) -> str | None:
    """Return the scheme to send the token with (RFC 6749 section 7.1: compared without regard to case)."""
    if value is None or value == "":
        return "Bearer"
    match value.lower() if isinstance(value, str) else None:
        case "bearer":
            return "Bearer"
        case "dpop" if rules.dpop:
            return "DPoP"
        case _:
            return None


def _expires_at(document: dict[str, object], access_token: str, requested_at: float, rules: ResponseRules) -> float:
    """Return the end of the access token: from ``expires_in``, ``expires_at``, the JWT's ``exp``, or the default."""
    for name in ("expires_in", "expires_at"):
        if (moment := instant(_member(document, name, rules), requested_at)) is not None:
            return moment
    moment = numeric_date(unverified_claim(access_token, "exp"), requested_at)
    return requested_at + rules.default_expires_in_seconds if moment is None else moment


def _scope(value: object) -> str | None:
    """Return the granted scope; some servers send a list."""
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        value = " ".join(value)
    return value if isinstance(value, str) and len(value) <= MAX_TOKEN_CHARACTERS and value.isprintable() else None


def _session(document: dict[str, object], rules: ResponseRules) -> str | None:
    """Return the provider's session: Mosaic's ``session_id``, else Keycloak's ``session_state``."""
    for value in (_member(document, "session_id", rules), document.get("session_state")):
        if isinstance(value, str) and 0 < len(value) <= 512 and value.isprintable():
            return value
    return None

"""
The refresh machine: when a token is used, when a refresh token is presented, and what an answer does to a grant.

Everything here is a value or a rule. The order in which the rules are carried out, and what is written down before and
after the token request, is services.refresher and, for exchanges, services.token_exchange.

The state of a grant for one audience:

    state      the access token               the refresh token
    ─────────  ─────────────────────────────  ──────────────────────────────────────────────────────
    FRESH      may be sent                    no need
    DUE        may be sent, inside the leeway may be presented, nobody has to wait for it
    EXPIRED    is dead, absent or refused     must be presented before the caller can go on
    IN_DOUBT   dead or alive                  was presented, and the answer isn't known
    ENDED      must not be used               is worthless

For an audience whose tokens come by exchange (RFC 8693), a grant isn't in doubt while it has a token to exchange.

What is decided is :data:`TABLE`. The reference prints it, and :func:`decide` is tested against it row by row.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.breaker import LONGEST_RETRY_AFTER_SECONDS, Breaker
from broker.core.grant import Ended, EndReason, Failure, Grant, HeldToken, Intent, Origin
from broker.core.oauth import FailureKind, TokenFailure, TokenSet
from broker.core.provider import ProviderOptions, Rotation

SKEW_SECONDS = 5.0
"""A token is not sent in its last seconds: it must still be valid when the upstream looks at it."""
SKEW_SHARE = 0.1
"""…but not more than this share of its life, for servers whose tokens live for seconds."""
LEEWAY_SHARE = 0.25
"""``refresh_before_expiry`` is at most this share of a token's life: else short tokens would always be due."""
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 4.0
"""The provider's return should be noticed within five seconds; its breaker bounds the load meanwhile."""
OPERATOR_BACKOFF_SECONDS = 10.0
LONGEST_OPERATOR_BACKOFF_SECONDS = 30.0
SETTLE_SECONDS = 5.0
"""An open intent is looked at again after this: its owner's lease has ended by then, if nobody renews it."""
ANSWER_SHARE = 1.5
"""An answer comes within this many deadlines of a token request, or never: its owner gives up by then."""


class State(StrEnum):
    """The state of a grant for one audience; see the module."""

    FRESH = "fresh"
    DUE = "due"
    EXPIRED = "expired"
    IN_DOUBT = "in_doubt"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Use:
    """Send this token."""

    token: HeldToken


@dataclass(frozen=True, slots=True)
class UseAndRefresh:
    """Send this token, and refresh without letting the caller wait."""

    token: HeldToken


@dataclass(frozen=True, slots=True)
class Refresh:
    """Ask the token endpoint, under the grant's lease."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be sent, and asking now would harm or be in vain. *retry_at* is in Unix seconds."""

    retry_at: float


@dataclass(frozen=True, slots=True)
class LogIn:
    """Only the user can help."""

    reason: str


Decision = Use | UseAndRefresh | Refresh | Wait | LogIn


@dataclass(frozen=True, slots=True)
class Row:
    """One row of :data:`TABLE`: what is decided in *state* under *condition*, in words."""

    state: State
    condition: str
    decision: str


TABLE = (
    Row(State.ENDED, "always", "login"),
    Row(State.FRESH, "always", "use"),
    Row(State.DUE, "backing off", "use"),
    Row(State.DUE, "nothing to present", "use"),
    Row(State.DUE, "otherwise", "use, and present behind its back"),
    Row(State.EXPIRED, "nothing to present", "login"),
    Row(State.EXPIRED, "backing off", "unavailable until then"),
    Row(State.EXPIRED, "otherwise", "present"),
    Row(State.IN_DOUBT, "no lease held, alive", "use: somebody may still be at it"),
    Row(State.IN_DOUBT, "no lease held, dead", "ask for the lease"),
    Row(State.IN_DOUBT, "the server takes it again, alive", "as DUE"),
    Row(State.IN_DOUBT, "the server takes it again, dead", "as EXPIRED"),
    Row(State.IN_DOUBT, "strict or past the grace, alive", "use"),
    Row(State.IN_DOUBT, "strict or past the grace, dead, nobody needs it", "unavailable: the answer may be found"),
    Row(State.IN_DOUBT, "strict or past the grace, dead, the answer may come", "unavailable until it can't"),
    Row(State.IN_DOUBT, "strict or past the grace, dead, else", "as EXPIRED: nothing is left to lose"),
)
"""
When a refresh token is presented, and what its caller gets meanwhile.

Alive: an access token may be sent. Backing off: the last request failed a moment ago, or the provider is given a rest.
The server takes it again: ``rotation: none``, ``grace`` in time, or nothing to lose because there's no refresh token.
"""


def held_token(grant: Grant, audience: Audience, *, now: float, rejected_generation: int | None) -> HeldToken | None:
    """Return the token of *audience* if it may be sent at *now* and no upstream has refused it."""
    token = grant.tokens.get(audience.key)
    if token is None or token.generation == rejected_generation or now >= usable_until(token):
        return None
    return token


def usable_until(token: HeldToken) -> float:
    """Return the Unix seconds from which *token* isn't sent any more."""
    return token.expires_at - min(SKEW_SECONDS, SKEW_SHARE * (token.expires_at - token.issued_at))


def due_from(token: HeldToken, options: ProviderOptions) -> float:
    """Return the Unix seconds from which *token* is renewed behind the callers' backs."""
    life = token.expires_at - token.issued_at
    return token.expires_at - max(min(options.refresh_before_expiry_seconds, LEEWAY_SHARE * life), SKEW_SHARE * life)


def can_present(grant: Grant, options: ProviderOptions) -> bool:
    """Return whether there is anything to ask the token endpoint with."""
    return grant.refresh_token is not None or can_acquire(grant, options)


def can_acquire(grant: Grant, options: ProviderOptions) -> bool:
    """
    Return whether new tokens can be had without the refresh token and without the user.

    A standing grant begins anew; a server with session authentication (Mosaic) exchanges its own session.
    """
    return grant.origin is Origin.STANDING or (grant.session_id is not None and options.session_endpoint is not None)


def subject_token(grant: Grant, *, now: float) -> HeldToken | None:
    """Return the grant's own token, if it can be exchanged for others at *now* (RFC 8693 section 2.1)."""
    return held_token(grant, DEFAULT_AUDIENCE, now=now, rejected_generation=None)


def can_exchange(grant: Grant, audience: Audience, *, now: float) -> bool:
    """Return whether a token of *audience* can be had for the grant's own one. It spends no refresh token."""
    return audience.exchange and subject_token(grant, now=now) is not None


def takes_again(grant: Grant, options: ProviderOptions, *, now: float) -> bool:
    """Return whether the server answers a refresh token that it may have answered before."""
    if grant.intent is None or grant.refresh_token is None or options.rotation is Rotation.NONE:
        return True
    # An intent from the future was written before our clock was set back, who knows how long ago.
    in_time = abs(now - grant.intent.started_at) < options.rotation_grace_seconds
    return options.rotation is Rotation.GRACE and in_time


def assess(
    grant: Grant, audience: Audience, options: ProviderOptions, *, now: float, rejected_generation: int | None = None
) -> State:
    """Return the state of *grant* for *audience* at *now* (Unix seconds)."""
    if grant.ended is not None:
        return State.ENDED
    if grant.intent is not None and not can_exchange(grant, audience, now=now):
        return State.IN_DOUBT
    token = held_token(grant, audience, now=now, rejected_generation=rejected_generation)
    if token is None:
        return State.EXPIRED
    return State.DUE if now >= due_from(token, options) else State.FRESH


def decide(
    grant: Grant,
    audience: Audience,
    options: ProviderOptions,
    *,
    now: float,
    breaker: Breaker,
    under_lease: bool,
    rejected_generation: int | None = None,
    urgent: bool = True,
) -> Decision:
    """
    Return what to do for a caller that wants a token of *audience*.

    Args:
        grant: As it was last read.
        audience: For whom.
        options: Of its provider.
        now: Unix seconds.
        breaker: Its provider's health.
        under_lease: Whether the grant's lease is held, and *grant* was read under it.
        rejected_generation: The generation of a token that an upstream has just answered with 401.
        urgent: Whether somebody needs the token. Else a strict server isn't presented with what may be spent: a host
            that is down may come back with the answer on its disk.
    """
    token = held_token(grant, audience, now=now, rejected_generation=rejected_generation)
    match assess(grant, audience, options, now=now, rejected_generation=rejected_generation):
        case State.ENDED:
            assert grant.ended is not None
            return LogIn(grant.ended.reason)
        case State.FRESH:
            assert token is not None
            return Use(token)
        case State.DUE | State.EXPIRED:
            return _present(grant, audience, options, token, now=now, breaker=breaker)
        case State.IN_DOUBT:
            if not under_lease:
                return Use(token) if token is not None else Refresh()
            if takes_again(grant, options, now=now):
                return _present(grant, audience, options, token, now=now, breaker=breaker)
            if not urgent and token is None:
                return Wait(now + SETTLE_SECONDS)
            return _last_resort(grant, audience, options, token, now=now, breaker=breaker)


def _present(
    grant: Grant, audience: Audience, options: ProviderOptions, token: HeldToken | None, *, now: float, breaker: Breaker
) -> Decision:
    """The rows DUE and EXPIRED of the table."""
    retry_at = backing_off_until(grant, audience, now=now, breaker=breaker)
    can_ask = can_present(grant, options) or can_exchange(grant, audience, now=now)
    if token is not None:
        return UseAndRefresh(token) if can_ask and retry_at is None else Use(token)
    if not can_ask:
        return LogIn("no_refresh_token")
    return Refresh() if retry_at is None else Wait(retry_at)


def _last_resort(
    grant: Grant, audience: Audience, options: ProviderOptions, token: HeldToken | None, *, now: float, breaker: Breaker
) -> Decision:
    """The last three rows: presenting again may end the family, so the access token is used up first."""
    assert grant.intent is not None
    if token is not None:
        return Use(token)
    # Its owner, cut off from the store, may still be waiting for the answer. An intent from the near future was written
    # by a clock that is ahead of ours; one from the far future, before ours was set back.
    patience = answer_seconds(options)
    if grant.intent.awaited and abs(now - grant.intent.presented_at) < patience:
        return Wait(grant.intent.presented_at + patience)
    return _present(grant, audience, options, None, now=now, breaker=breaker)


def answer_seconds(options: ProviderOptions) -> float:
    """Return how long after an intent its owner may still be given the answer, all waiting and repeating included."""
    return ANSWER_SHARE * options.token_endpoint_timeout_seconds


def backing_off_until(grant: Grant, audience: Audience, *, now: float, breaker: Breaker) -> float | None:
    """Return the Unix seconds before which the token endpoint isn't asked for *audience*; None if it may be asked."""
    if breaker.is_open(now):
        return breaker.open_until
    failure = grant.failures.get(audience.key)
    if failure is None or now >= failure.retry_at or now < failure.at:  # before it: the clock was set back
        return None
    if failure.kind is not FailureKind.OPERATOR and breaker.recovered_at > failure.at:
        return None
    return failure.retry_at


def begin(grant: Grant, *, attempt: str, owner: str, now: float) -> Grant:
    """Return *grant* with the intent to present its refresh token. It is written down before the request is sent."""
    first = grant.intent
    intent = Intent(
        attempt=attempt,
        owner=owner,
        started_at=now if first is None else first.started_at,
        presented_at=now,
        carried=first is not None,
    )
    return replace(grant, intent=intent)


def withdraw(grant: Grant) -> Grant:
    """Return *grant* after nothing was sent under its open intent. An earlier doubt stays."""
    is_doubtful = grant.intent is not None and grant.intent.carried
    return replace(grant, intent=_given_up(grant) if is_doubtful else None)


def _given_up(grant: Grant) -> Intent | None:
    """Nobody waits for an answer any more; what became of the presentation isn't known."""
    return None if grant.intent is None else replace(grant.intent, awaited=False)


def doubt(grant: Grant) -> Grant:
    """Return *grant* after the answer to its open intent was lost: no later refusal settles the intent any more."""
    assert grant.intent is not None
    return replace(grant, intent=replace(grant.intent, carried=True))


def succeed(grant: Grant, audience: Audience, answer: TokenSet) -> Grant:
    """
    Return *grant* after a token response, one generation later.

    A response without ``refresh_token``, ``id_token``, ``scope`` or session keeps the former one (RFC 6749 section 6).
    A token exchange spends no refresh token and settles no intent. What comes after the grant's end is only revoked.
    """
    if grant.ended is not None:
        return replace(grant, refresh_token=answer.refresh_token or grant.refresh_token)
    generation = grant.generation + 1
    held = HeldToken.of(answer, generation=generation)
    alive = {key: token for key, token in grant.tokens.items() if token.expires_at > answer.requested_at or key == ""}
    failures = {key: failure for key, failure in grant.failures.items() if key != audience.key}
    after = replace(grant, generation=generation, tokens={**alive, audience.key: held}, failures=failures)
    if audience.exchange:
        return after
    return replace(
        after,
        chain_length=grant.chain_length + 1,
        intent=None,
        refreshed_at=answer.requested_at,
        refresh_token=answer.refresh_token or grant.refresh_token,
        refresh_expires_at=_refresh_expiry(grant, answer),
        id_token=answer.id_token or grant.id_token,
        scope=grant.scope if answer.scope is None or audience.key else answer.scope,
        session_id=answer.session_id or grant.session_id,
    )


def _refresh_expiry(grant: Grant, answer: TokenSet) -> float | None:
    if answer.refresh_expires_at is not None:
        return answer.refresh_expires_at
    # The same token goes on with the same end; a new one has an end that isn't known.
    return grant.refresh_expires_at if answer.refresh_token in {None, grant.refresh_token} else None


def fail(
    grant: Grant, audience: Audience, options: ProviderOptions, failure: TokenFailure, *, now: float, jitter: float
) -> Grant:
    """
    Return *grant* after a token request that brought no tokens.

    Where new tokens can be acquired otherwise, the end of the refresh token isn't the end of the grant: it is dropped.

    Args:
        grant: With the intent of the request that failed.
        audience: For whom it was.
        options: Of its provider.
        failure: What came.
        now: Unix seconds.
        jitter: Between 0 and 1.
    """
    permanent = failure.kind is FailureKind.PERMANENT and not audience.exchange
    if permanent and grant.refresh_token is not None and can_acquire(grant, options):
        return replace(grant, refresh_token=None, refresh_expires_at=None, intent=None)
    if permanent and grant.origin is not Origin.STANDING:
        return end(grant, EndReason.INVALID_GRANT, now=now)
    former = grant.failures.get(audience.key)
    count = former.count + 1 if former is not None else 1
    retry_at = now + backoff_seconds(failure, count=count, jitter=jitter)
    noted = Failure(kind=failure.kind, count=count, at=now, retry_at=retry_at, error=failure.error)
    after = replace(grant, failures={**grant.failures, audience.key: noted})
    if audience.exchange or grant.intent is None:
        return after
    is_doubtful = failure.kind is FailureKind.IN_DOUBT or grant.intent.carried
    return replace(after, intent=_given_up(grant) if is_doubtful else None)


def backoff_seconds(failure: TokenFailure, *, count: int, jitter: float) -> float:
    """Return how long a grant rests after its *count*-th failure in a row: exponential, jittered, ``Retry-After``."""
    first, longest = FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS
    if failure.kind in {FailureKind.OPERATOR, FailureKind.PERMANENT}:
        first, longest = OPERATOR_BACKOFF_SECONDS, LONGEST_OPERATOR_BACKOFF_SECONDS
    rest = min(first * 2.0 ** min(count - 1, 10), longest) * (0.5 + 0.5 * jitter)
    asked = min(failure.retry_after_seconds or 0.0, LONGEST_RETRY_AFTER_SECONDS)
    return max(rest, asked)


def end(grant: Grant, reason: EndReason, *, now: float, revoke: bool = False) -> Grant:
    """
    Return *grant* ended, without its credentials. What is left remembers the end on every replica.

    The id token stays where a browser brought the grant and it names its user: the session may outlive the grant, and
    logs out with that as ``id_token_hint``. The record lives no longer than the session would have.

    Args:
        grant: While it lived.
        reason: Why it ends.
        now: Unix seconds.
        revoke: Whether its refresh token is to be revoked. It stays in the record until it is.
    """
    has_hint = grant.origin is Origin.BROWSER and reason is not EndReason.SUBJECT_CHANGED
    return replace(
        grant,
        refresh_token=grant.refresh_token if revoke else None,
        tokens={},
        id_token=grant.id_token if has_hint else None,
        intent=None,
        failures={},
        ended=Ended(reason=reason, at=now),
    )

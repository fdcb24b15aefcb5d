"""The refresh machine: its table, row by row; what answers do; and what holds in every interleaving."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.core import refresh
from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.breaker import LONGEST_RETRY_AFTER_SECONDS, Breaker, failed, succeeded
from broker.core.grant import EndReason, Failure, Grant, Origin, decode, encode
from broker.core.oauth import FailureKind
from broker.core.provider import ProviderOptions, Rotation
from broker.core.refresh import (
    TABLE,
    Decision,
    LogIn,
    Refresh,
    Row,
    State,
    Use,
    UseAndRefresh,
    Wait,
    assess,
    begin,
    can_acquire,
    can_present,
    decide,
    doubt,
    due_from,
    end,
    fail,
    succeed,
    takes_again,
    usable_until,
)
from broker.core.secret import IdToken, RefreshToken
from tests.support.grants import LIFE, NOW, answer, failure, grant, held, intent, provider_options

OTHER = Audience(resource="https://orders.example")
EXCHANGED = Audience(audience="orders", exchange=True)
CLOSED = Breaker()
STRICT = provider_options()
DUE = NOW + LIFE - 30
DEAD = NOW + LIFE


def resting(until: float) -> Breaker:
    return Breaker(failures=5, opened_at=NOW, open_until=until)


def failing(kind: FailureKind = FailureKind.TRANSIENT, *, at: float, retry_at: float) -> dict[str, Failure]:
    return {"": Failure(kind=kind, count=1, at=at, retry_at=retry_at)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A grant in a state under a condition, and what is decided for it."""

    expected: Decision | Callable[[Grant], Decision]
    grant: Grant
    now: float = NOW
    options: ProviderOptions = STRICT
    breaker: Breaker = CLOSED
    under_lease: bool = True
    rejected_generation: int | None = None
    urgent: bool = True


def use(grant: Grant) -> Decision:
    return Use(grant.tokens[""])


def use_and_refresh(grant: Grant) -> Decision:
    return UseAndRefresh(grant.tokens[""])


LATER = DEAD + 100
IN_DOUBT = grant(intent=intent())
LATE_DOUBT = grant(intent=intent(started_at=DEAD))
GRACE = provider_options(rotation=Rotation.GRACE, rotation_grace_seconds=1000.0)
SHORT_GRACE = provider_options(rotation=Rotation.GRACE, rotation_grace_seconds=30.0)
NONE = provider_options(rotation=Rotation.NONE)

CASES: dict[tuple[State, str], list[Case]] = {
    (State.ENDED, "always"): [
        Case(expected=LogIn("logout"), grant=end(grant(), EndReason.LOGOUT, now=NOW)),
        Case(expected=LogIn("invalid_grant"), grant=end(IN_DOUBT, EndReason.INVALID_GRANT, now=NOW), under_lease=False),
    ],
    (State.FRESH, "always"): [
        Case(expected=use, grant=grant()),
        Case(expected=use, grant=grant(), under_lease=False),
        Case(expected=use, grant=grant(refresh_token=None), breaker=resting(NOW + 9)),
        Case(expected=use, grant=grant(), rejected_generation=0),
    ],
    (State.DUE, "backing off"): [
        Case(expected=use, grant=grant(), now=DUE, breaker=replace(resting(DUE + 9), opened_at=DUE)),
        Case(expected=use, grant=grant(failures=failing(at=DUE - 1, retry_at=DUE + 1)), now=DUE),
    ],
    (State.DUE, "nothing to present"): [Case(expected=use, grant=grant(refresh_token=None), now=DUE)],
    (State.DUE, "otherwise"): [
        Case(expected=use_and_refresh, grant=grant(), now=DUE),
        Case(expected=use_and_refresh, grant=grant(), now=DUE, under_lease=False),
        Case(expected=use_and_refresh, grant=grant(failures=failing(at=DUE - 2, retry_at=DUE)), now=DUE),
        Case(expected=use_and_refresh, grant=grant(refresh_token=None, origin=Origin.STANDING), now=DUE),
    ],
    (State.EXPIRED, "nothing to present"): [
        Case(expected=LogIn("no_refresh_token"), grant=grant(refresh_token=None), now=DEAD),
        Case(expected=LogIn("no_refresh_token"), grant=grant(refresh_token=None), rejected_generation=1),
    ],
    (State.EXPIRED, "backing off"): [
        Case(expected=Wait(DEAD + 9), grant=grant(), now=DEAD, breaker=resting(DEAD + 9)),
        Case(expected=Wait(DEAD + 1), grant=grant(failures=failing(at=DEAD - 1, retry_at=DEAD + 1)), now=DEAD),
        Case(
            expected=Wait(DEAD + 1),
            grant=grant(failures=failing(FailureKind.OPERATOR, at=DEAD - 1, retry_at=DEAD + 1)),
            now=DEAD,
            breaker=Breaker(recovered_at=DEAD),  # a server that works again is still configured wrongly
        ),
    ],
    (State.EXPIRED, "otherwise"): [
        Case(expected=Refresh(), grant=grant(), now=DEAD),
        Case(expected=Refresh(), grant=grant(), now=DEAD, under_lease=False),
        Case(expected=Refresh(), grant=grant(), rejected_generation=1),
        Case(expected=Refresh(), grant=grant(tokens={})),
        Case(expected=Refresh(), grant=grant(tokens={"other": held()})),
        Case(
            expected=Refresh(),
            grant=grant(failures=failing(at=DEAD - 1, retry_at=DEAD + 1)),
            now=DEAD,
            breaker=Breaker(recovered_at=DEAD),  # the outage in which it failed is over
        ),
    ],
    (State.IN_DOUBT, "no lease held, alive"): [
        Case(expected=use, grant=IN_DOUBT, under_lease=False),
        Case(expected=use, grant=IN_DOUBT, options=NONE, under_lease=False, now=DUE),
    ],
    (State.IN_DOUBT, "no lease held, dead"): [
        Case(expected=Refresh(), grant=IN_DOUBT, under_lease=False, now=DEAD),
        Case(expected=Refresh(), grant=IN_DOUBT, under_lease=False, now=DEAD, breaker=resting(DEAD + 9)),
    ],
    (State.IN_DOUBT, "the server takes it again, alive"): [
        Case(expected=use_and_refresh, grant=IN_DOUBT, options=NONE),
        Case(expected=use_and_refresh, grant=IN_DOUBT, options=GRACE),
        Case(expected=use, grant=IN_DOUBT, options=GRACE, breaker=resting(NOW + 9)),
        Case(expected=use_and_refresh, grant=replace(IN_DOUBT, refresh_token=None, origin=Origin.STANDING)),
    ],
    (State.IN_DOUBT, "the server takes it again, dead"): [
        Case(expected=Refresh(), grant=IN_DOUBT, options=NONE, now=DEAD),
        Case(expected=Refresh(), grant=IN_DOUBT, options=GRACE, now=DEAD),
        Case(expected=Wait(DEAD + 9), grant=IN_DOUBT, options=GRACE, now=DEAD, breaker=resting(DEAD + 9)),
        Case(expected=LogIn("no_refresh_token"), grant=replace(IN_DOUBT, refresh_token=None), options=NONE, now=DEAD),
    ],
    (State.IN_DOUBT, "strict or past the grace, alive"): [
        Case(expected=use, grant=IN_DOUBT),
        Case(expected=use, grant=IN_DOUBT, now=DUE),
        Case(expected=use, grant=IN_DOUBT, options=SHORT_GRACE, now=NOW + 30),
        Case(expected=use, grant=IN_DOUBT, urgent=False),
    ],
    (State.IN_DOUBT, "strict or past the grace, dead, nobody needs it"): [
        Case(expected=Wait(DEAD + 5), grant=IN_DOUBT, now=DEAD, urgent=False),
        Case(expected=Wait(LATER + 5), grant=IN_DOUBT, options=SHORT_GRACE, now=LATER, urgent=False),
    ],
    (State.IN_DOUBT, "strict or past the grace, dead, the answer may come"): [
        Case(expected=Wait(DEAD + 15), grant=LATE_DOUBT, now=DEAD),
        Case(expected=Wait(DEAD + 15), grant=LATE_DOUBT, now=DEAD + 14.9),
        Case(expected=Wait(NOW + 15), grant=IN_DOUBT, rejected_generation=1),
        Case(expected=Wait(DEAD + 15), grant=LATE_DOUBT, now=DEAD - 4, rejected_generation=1),  # its clock is ahead
        Case(
            expected=Wait(DEAD + 15),
            grant=grant(intent=intent(presented_at=DEAD, carried=True)),
            now=DEAD,  # the doubt is old, and somebody is at it again
        ),
    ],
    (State.IN_DOUBT, "strict or past the grace, dead, else"): [
        Case(expected=Refresh(), grant=IN_DOUBT, now=DEAD),
        Case(expected=Refresh(), grant=LATE_DOUBT, now=DEAD + 15),
        Case(expected=Refresh(), grant=grant(intent=intent(started_at=DEAD, awaited=False)), now=DEAD),
        Case(expected=Refresh(), grant=IN_DOUBT, options=SHORT_GRACE, now=DEAD),
        Case(expected=Wait(DEAD + 9), grant=IN_DOUBT, now=DEAD, breaker=resting(DEAD + 9)),
        Case(
            expected=Refresh(),
            grant=grant(intent=intent(started_at=LATER + 3600), tokens={}),
            now=LATER,  # the clock was set back since
        ),
    ],
}


@pytest.mark.parametrize(
    ("row", "case"),
    [
        pytest.param(row, case, id=f"{row.state}: {row.condition} ({number})")
        for row in TABLE
        for number, case in enumerate(CASES[row.state, row.condition], 1)
    ],
)
def test_the_table_and_decide_agree(row: Row, case: Case) -> None:
    """Each row of the table is what decide does."""
    state = assess(
        case.grant, DEFAULT_AUDIENCE, case.options, now=case.now, rejected_generation=case.rejected_generation
    )
    decision = decide(
        case.grant,
        DEFAULT_AUDIENCE,
        case.options,
        now=case.now,
        breaker=case.breaker,
        under_lease=case.under_lease,
        rejected_generation=case.rejected_generation,
        urgent=case.urgent,
    )

    assert row.state is state
    assert (case.expected(case.grant) if callable(case.expected) else case.expected) == decision


def test_every_row_of_the_table_has_cases() -> None:
    """No row is only prose, and no case is of a row that isn't printed."""
    assert {(row.state, row.condition) for row in TABLE} == set(CASES)
    assert all(CASES.values())
    assert ":data:`TABLE`" in (refresh.__doc__ or "")


@pytest.mark.parametrize(
    ("life", "leeway", "usable", "due"),
    [
        (300.0, 60.0, 295.0, 240.0),
        (300.0, 200.0, 295.0, 225.0),  # at most a quarter of its life
        (300.0, 0.0, 295.0, 270.0),  # and never less than a tenth: it is due before it is dead
        (10.0, 60.0, 9.0, 7.5),
        (1.0, 60.0, 0.9, 0.75),
    ],
)
def test_tk_08_short_tokens_are_neither_always_due_nor_never_sent(
    life: float, leeway: float, usable: float, due: float
) -> None:
    """The leeway and the skew shrink with the token's life."""
    token = held(life=life)
    options = provider_options(refresh_before_expiry_seconds=leeway)

    assert NOW + usable == pytest.approx(usable_until(token))
    assert NOW + due == pytest.approx(due_from(token, options))


def test_a_standing_grant_and_a_provider_session_need_no_refresh_token() -> None:
    """There is something to ask with as long as tokens can be acquired anew."""
    mosaic = provider_options(session_endpoint="http://127.0.0.1:9/session")
    bare = grant(refresh_token=None)

    assert can_acquire(replace(bare, origin=Origin.STANDING), STRICT)
    assert can_acquire(replace(bare, session_id="s"), mosaic)
    assert not can_acquire(replace(bare, session_id="s"), STRICT)
    assert not can_present(bare, STRICT)
    assert can_present(grant(), STRICT)


def test_an_intent_remembers_the_first_presentation() -> None:
    """Presenting again doesn't make the doubt younger, and carries it."""
    first = begin(grant(), attempt="a1", owner="p1", now=NOW)
    second = begin(first, attempt="a2", owner="p2", now=NOW + 40)

    assert intent(started_at=NOW) == first.intent
    assert intent(attempt="a2", owner="p2", presented_at=NOW + 40, carried=True) == second.intent


def test_a_success_replaces_tokens_and_settles_the_intent() -> None:
    """What came is kept, what didn't come stays as it was (RFC 6749 section 6)."""
    before = begin(
        grant(id_token=IdToken("id-1"), session_id="s1", scope="a b", refresh_expires_at=NOW + 9),
        attempt="a",
        owner="p",
        now=NOW,
    )

    full = succeed(before, DEFAULT_AUDIENCE, answer(2, id_token=IdToken("id-2"), session_id="s2", scope="a"))
    bare = succeed(before, DEFAULT_AUDIENCE, answer(2, refresh_token=None))

    assert (2, 2, RefreshToken("rt-2"), IdToken("id-2"), "s2", "a", None) == (
        full.generation,
        full.chain_length,
        full.refresh_token,
        full.id_token,
        full.session_id,
        full.scope,
        full.intent,
    )
    assert full.refresh_expires_at is None  # a new token's end isn't the old one's
    assert (RefreshToken("rt-1"), IdToken("id-1"), "s1", "a b", NOW + 9) == (
        bare.refresh_token,
        bare.id_token,
        bare.session_id,
        bare.scope,
        bare.refresh_expires_at,
    )
    assert 2 == full.tokens[""].generation


def test_a_success_for_one_audience_leaves_the_others_their_tokens() -> None:
    """A token of one audience is never put in another's place, and dead ones are dropped."""
    before = grant(tokens={"": held(), "dead": held(life=1), "alive": held(life=9000)}, scope="a b")

    after = succeed(before, OTHER, answer(2, requested_at=NOW + 100, scope="narrow"))

    assert {"", "alive", OTHER.key} == set(after.tokens)
    assert held() == after.tokens[""]
    assert "a b" == after.scope
    assert RefreshToken("rt-2") == after.refresh_token


def test_a_token_exchange_spends_no_refresh_token_and_settles_no_intent() -> None:
    """An exchange brings an access token and nothing else."""
    before = begin(grant(), attempt="a", owner="p", now=NOW)

    after = succeed(before, EXCHANGED, answer(2))

    assert (before.intent, before.refresh_token, 1, 2) == (
        after.intent,
        after.refresh_token,
        after.chain_length,
        after.generation,
    )


@pytest.mark.parametrize("kind", [FailureKind.TRANSIENT, FailureKind.OPERATOR])
def test_an_answer_that_surely_processed_nothing_settles_the_intent(kind: FailureKind) -> None:
    """The refresh token wasn't spent, so there is no doubt."""
    before = begin(grant(), attempt="a", owner="p", now=NOW)

    after = fail(before, DEFAULT_AUDIENCE, STRICT, failure(kind, error="e"), now=NOW, jitter=0.5)

    assert after.intent is None
    assert (kind, 1, NOW, "e") == (
        after.failures[""].kind,
        after.failures[""].count,
        after.failures[""].at,
        after.failures[""].error,
    )


@pytest.mark.parametrize("kind", [FailureKind.TRANSIENT, FailureKind.OPERATOR, FailureKind.IN_DOUBT])
def test_a_doubt_is_not_settled_by_a_later_refusal(kind: FailureKind) -> None:
    """An earlier presentation may have been processed all the same: by another process, or in the same attempt."""
    lost = fail(
        begin(grant(), attempt="a1", owner="p", now=NOW),
        DEFAULT_AUDIENCE,
        STRICT,
        failure("in_doubt"),
        now=NOW,
        jitter=0.5,
    )
    again = begin(lost, attempt="a2", owner="p", now=NOW + 1)
    repeated = doubt(begin(grant(), attempt="a1", owner="p", now=NOW))

    for before in (again, repeated):
        after = fail(before, DEFAULT_AUDIENCE, STRICT, failure(kind), now=NOW + 2, jitter=0.5)
        assert after.intent is not None
        assert (NOW, False) == (after.intent.started_at, after.intent.awaited)


def test_invalid_grant_ends_a_grant_and_forgets_its_secrets() -> None:
    """Nothing of worth is left in the record, but who it was and why it ended."""
    before = replace(IN_DOUBT, id_token=IdToken("it"))
    after = fail(before, DEFAULT_AUDIENCE, STRICT, failure("permanent"), now=NOW, jitter=0.5)

    assert after.ended is not None
    assert (EndReason.INVALID_GRANT, NOW) == (after.ended.reason, after.ended.at)
    assert (None, {}, None, {}) == (after.refresh_token, after.tokens, after.intent, after.failures)


@pytest.mark.parametrize(
    ("origin", "reason", "is_kept"),
    [
        (Origin.BROWSER, EndReason.INVALID_GRANT, True),
        (Origin.BROWSER, EndReason.LOGOUT, True),
        (Origin.BROWSER, EndReason.SUBJECT_CHANGED, False),
        (Origin.IMPORTED, EndReason.REVOKED, False),
        (Origin.STANDING, EndReason.CHAIN_END, False),
    ],
)
def test_the_id_token_outlives_the_grant_where_a_session_may_still_log_out_with_it(
    origin: Origin, reason: EndReason, *, is_kept: bool
) -> None:
    """No other grant has a session, and another user's id token is no hint."""
    after = end(grant(origin=origin, id_token=IdToken("it")), reason, now=NOW)

    assert (IdToken("it") if is_kept else None) == after.id_token


def test_invalid_grant_for_an_exchange_ends_nothing() -> None:
    """It speaks of the access token that was exchanged."""
    after = fail(grant(), EXCHANGED, STRICT, failure("permanent"), now=NOW, jitter=0.5)

    assert after.ended is None
    assert {EXCHANGED.key} == set(after.failures)


def test_a_grant_that_can_acquire_tokens_outlives_its_refresh_token() -> None:
    """The refresh token is dropped, the grant goes on; without one the refusal is only noted."""
    standing = begin(grant(origin=Origin.STANDING), attempt="a", owner="p", now=NOW)

    dropped = fail(standing, DEFAULT_AUDIENCE, STRICT, failure("permanent"), now=NOW, jitter=0.5)
    refused = fail(dropped, DEFAULT_AUDIENCE, STRICT, failure("permanent"), now=NOW, jitter=0.5)

    assert (None, None, None) == (dropped.refresh_token, dropped.intent, dropped.ended)
    assert (None, 1) == (refused.ended, refused.failures[""].count)


@pytest.mark.parametrize(
    ("kind", "count", "jitter", "retry_after", "expected"),
    [
        ("transient", 1, 0.0, None, 0.25),
        ("transient", 1, 1.0, None, 0.5),
        ("transient", 3, 1.0, None, 2.0),
        ("in_doubt", 40, 1.0, None, 4.0),
        ("operator", 1, 1.0, None, 10.0),
        ("operator", 9, 1.0, None, 30.0),
        ("permanent", 1, 1.0, None, 10.0),
        ("transient", 1, 1.0, 7.0, 7.0),
        ("transient", 1, 1.0, 0.0, 0.5),
        ("transient", 1, 1.0, 86400.0, LONGEST_RETRY_AFTER_SECONDS),
    ],
)
def test_backing_off_grows_with_jitter_and_obeys_retry_after(
    kind: str, count: int, jitter: float, retry_after: float | None, expected: float
) -> None:
    """The rest is exponential, bounded, and never shorter than what the server asked for."""
    rest = refresh.backoff_seconds(failure(kind, retry_after_seconds=retry_after), count=count, jitter=jitter)

    assert expected == rest


def test_a_rejected_token_of_another_generation_is_no_news() -> None:
    """Stragglers that failed with an older token get the newer one."""
    after = succeed(grant(), DEFAULT_AUDIENCE, answer(2))

    decision = decide(
        after, DEFAULT_AUDIENCE, STRICT, now=NOW, breaker=CLOSED, under_lease=False, rejected_generation=1
    )

    assert Use(after.tokens[""]) == decision


# --- every interleaving, in virtual time

AUDIENCES = (DEFAULT_AUDIENCE, OTHER, EXCHANGED)


class GrantMachine(RuleBasedStateMachine):
    """
    Processes that hold the lease or have lost it do what the rules allow with one grant, while the clock jumps.

    The record is written by compare-and-set, as the vault does; so *grant* is what is stored, and a process that was
    overtaken reads again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.grant = grant()
        self.breaker = CLOSED
        self.options = STRICT
        self.received = 1
        self.attempts = 0
        self.longest_wait = 0.0

    @initialize(rotation=st.sampled_from(Rotation), standing=st.booleans())
    def choose(self, rotation: Rotation, standing: bool) -> None:
        self.options = provider_options(
            rotation=rotation, rotation_grace_seconds=30.0, idle_timeout_seconds=1800.0, max_rotation_seconds=86400.0
        )
        self.grant = grant(origin=Origin.STANDING if standing else Origin.BROWSER)

    @rule(seconds=st.floats(0, 400))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds

    @rule(hours=st.sampled_from([-1, 1]))
    def set_the_clock(self, hours: int) -> None:
        self.now += 3600 * hours

    @rule(retry_after=st.none() | st.floats(0, 90000), jitter=st.floats(0, 1))
    def another_grant_fails(self, retry_after: float | None, jitter: float) -> None:
        self.breaker = failed(self.breaker, now=self.now, retry_after_seconds=retry_after, jitter=jitter)

    @rule()
    def another_grant_succeeds(self) -> None:
        self.breaker = succeeded(self.breaker, now=self.now)

    @precondition(lambda self: self.grant.ended is None)
    @rule()
    def crash_after_the_intent(self) -> None:
        self.attempts += 1
        self.grant = begin(self.grant, attempt=f"a{self.attempts}", owner="p", now=self.now)
        assert self.grant.intent is not None

    @precondition(lambda self: self.grant.ended is None and self.grant.intent is not None)
    @rule(audience=st.sampled_from(AUDIENCES), with_refresh_token=st.booleans(), life=st.floats(1, 4000))
    def an_answer_is_saved(self, audience: Audience, with_refresh_token: bool, life: float) -> None:
        before, self.received = self.grant, self.received + 1
        token = RefreshToken(f"rt-{self.received}") if with_refresh_token else None
        self.grant = succeed(
            before, audience, answer(self.received, requested_at=self.now, life=life, refresh_token=token)
        )
        assert before.generation + 1 == self.grant.generation
        assert self.grant.generation == self.grant.tokens[audience.key].generation
        if audience.exchange:
            assert (before.refresh_token, before.intent) == (self.grant.refresh_token, self.grant.intent)
        else:
            assert (token or before.refresh_token) == self.grant.refresh_token
            assert before.chain_length + 1 == self.grant.chain_length
            assert self.grant.intent is None

    @precondition(lambda self: self.grant.ended is None and self.grant.intent is not None)
    @rule(
        audience=st.sampled_from(AUDIENCES),
        kind=st.sampled_from(FailureKind),
        retry_after=st.none() | st.floats(0, 90000),
        jitter=st.floats(0, 1),
    )
    def a_failure_is_noted(
        self, audience: Audience, kind: FailureKind, retry_after: float | None, jitter: float
    ) -> None:
        before = self.grant
        what = failure(kind, retry_after_seconds=retry_after)
        self.grant = fail(before, audience, self.options, what, now=self.now, jitter=jitter)
        assert before.generation == self.grant.generation
        assert before.intent is not None
        if (
            audience.exchange
            or kind is FailureKind.IN_DOUBT
            or (before.intent.carried and kind is not FailureKind.PERMANENT)
        ):
            assert self.grant.intent is not None
            assert before.intent.started_at == self.grant.intent.started_at
            assert audience.exchange == self.grant.intent.awaited or not before.intent.awaited
        if kind is not FailureKind.PERMANENT or audience.exchange:
            assert before.refresh_token == self.grant.refresh_token
            assert before.tokens == self.grant.tokens
        elif before.origin is Origin.BROWSER:
            assert self.grant.ended is not None

    @precondition(lambda self: self.grant.ended is None)
    @rule()
    def log_out(self) -> None:
        self.grant = end(self.grant, EndReason.LOGOUT, now=self.now)

    @invariant()
    def what_is_stored_is_what_is_read(self) -> None:
        assert self.grant == decode(encode(self.grant))

    @invariant()
    def an_ended_grant_holds_nothing(self) -> None:
        if self.grant.ended is not None:
            assert (None, {}, None) == (self.grant.refresh_token, self.grant.tokens, self.grant.intent)

    @invariant()
    def every_decision_is_sound(self) -> None:
        for audience in AUDIENCES:
            for under_lease in (False, True):
                for rejected in (None, self.grant.generation):
                    self._check(audience, under_lease=under_lease, rejected=rejected)

    def _check(self, audience: Audience, *, under_lease: bool, rejected: int | None) -> None:
        decision = decide(
            self.grant,
            audience,
            self.options,
            now=self.now,
            breaker=self.breaker,
            under_lease=under_lease,
            rejected_generation=rejected,
        )
        match decision:
            case Use(token) | UseAndRefresh(token):
                assert self.now < token.expires_at
                assert rejected != token.generation
                assert self.grant.tokens[audience.key] is token
            case Refresh():
                assert can_present(self.grant, self.options) or not under_lease
            case Wait(retry_at):
                # Whatever the clock did, nobody waits longer than for the longest Retry-After or for a lost answer.
                assert 0 < retry_at - self.now <= 1.1 * LONGEST_RETRY_AFTER_SECONDS
            case LogIn():
                assert self.grant.ended is not None or not can_present(self.grant, self.options)
        if self.grant.ended is not None:
            assert isinstance(decision, LogIn)
        strict_doubt = under_lease and not takes_again(self.grant, self.options, now=self.now)
        if strict_doubt and refresh.held_token(self.grant, audience, now=self.now, rejected_generation=rejected):
            assert isinstance(decision, Use)  # presenting again may end the family: not while something works


GrantMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestEveryInterleaving = GrantMachine.TestCase

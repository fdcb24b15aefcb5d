"""
The refresh protocol as a model: processes, a store, a lease, spools, a network and an authorization server.

What is decided and written are the real rules of core.refresh. What the model adds is everything that can happen
between them: a process dies or stands still, a lease is lost, a store fails before or after it has done what it was
asked, a request or an answer is lost. Each fault can strike at each step; how many strike in one run is bounded.

Time goes in leaps to the moments at which the rules change their mind. It stands still while a process has something to
do, unless that process is paused. A request is processed before its client gives up, or never. A host whose only
process died with an answer on its disk is started again before the access token dies.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from broker.core.audience import DEFAULT_AUDIENCE
from broker.core.breaker import Breaker
from broker.core.grant import EndReason, Grant, encode
from broker.core.oauth import FailureKind, TokenFailure, TokenSet
from broker.core.provider import ProviderOptions, Rotation
from broker.core.refresh import (
    Decision,
    LogIn,
    Refresh,
    Use,
    UseAndRefresh,
    Wait,
    answer_seconds,
    begin,
    decide,
    doubt,
    end,
    fail,
    held_token,
    succeed,
    takes_again,
    withdraw,
)
from broker.core.secret import AccessToken, RefreshToken
from tests.support.grants import LIFE, grant, held, provider_options

TIMEOUT = 10.0
GRACE = 100.0
DEAD_FROM = 55.0
MOMENTS = (0.0, 16.0, 20.0, 56.0, 72.0, 90.0)
"""
The first access token is due at 0 and dead at 55. An intent of 0 is too old to send under at 5 and can't be answered any
more at 15. The grace is longer than all of it: once it is over, the rules are those of a strict server. At the last
moment no fault strikes any more.
"""

NOBODY = -1
KINDS_OF_LIVES = 3
"""Lives and attempts are told apart from the one before and the one before that, so that there are finitely many."""


class Proc(NamedTuple):
    """
    One process.

    Attributes:
        at: Where it is: idle, leased, intending, sending, awaiting, noting, saving or dead.
        seen: The grant as it read or wrote it.
        is_current: Whether nobody has written since.
        attempt: The name of its attempt.
        began: The moment at which it began it.
        result: What came: the number of a refresh token, or the kind of a failure.
        doubted: Whether an earlier answer of this attempt was lost.
        unwritten: An attempt, its result that couldn't be written ("unsent": nothing was sent under it), and its moment.
        paused: Whether it stands still.
        life: Tells its lives apart.
        attempts: Tells its attempts apart.
    """

    at: str = "idle"
    seen: int = -1
    is_current: bool = False
    attempt: str = ""
    began: int = 0
    result: int | str | None = None
    doubted: bool = False
    unwritten: tuple[str, str, int] | None = None
    paused: bool = False
    life: int = 0
    attempts: int = 0


class Request(NamedTuple):
    """A request on its way to the server, or its answer on the way back."""

    proc: int
    life: int
    attempt: str
    token: int
    reply: int | str | None = None


class Entry(NamedTuple):
    """A spooled answer: whose file it is in, which attempt it answers, of which chain length, and what it brings."""

    owner: int
    life: int
    attempt: str
    chain_length: int
    token: int


class State(NamedTuple):
    """
    Attributes:
        now: Index of the moment.
        stored: The grant in the store.
        holder: Who holds the lease; None for nobody, NOBODY for one who died.
        procs: The processes.
        spool: What is on the disks.
        network: What is under way.
        spent: By number of refresh token, the moment at which it was first used; None while it is unspent.
        revoked: Whether the family has been revoked for reuse.
        lost: The refresh tokens whose answer was lost on the wire, or with its process before it was read.
        faults: How many faults may yet strike.
        logouts: How many logouts may yet happen.
        mistake: What happened that must never happen; "" if nothing did.
    """

    now: int
    stored: int
    holder: int | None
    procs: tuple[Proc, ...]
    spool: frozenset[Entry]
    network: frozenset[Request]
    spent: tuple[int | None, ...]
    revoked: bool
    lost: frozenset[int]
    faults: int
    logouts: int
    mistake: str


class RefreshModel:
    """The steps of the protocol, and what must hold in every state."""

    def __init__(self, rotation: Rotation, *, hosts: tuple[int, ...], faults: int, logouts: int = 0) -> None:
        """
        Args:
            rotation: What the server does.
            hosts: By process, the host on which it runs. Processes of one host see each other's spools.
            faults: How many faults strike in one run at most.
            logouts: How many logouts.
        """
        self.options: ProviderOptions = provider_options(
            rotation=rotation, rotation_grace_seconds=GRACE, token_endpoint_timeout_seconds=TIMEOUT
        )
        self.hosts = hosts
        self.faults = faults
        self.logouts = logouts
        self._grants: list[Grant] = []
        self._numbers: dict[bytes, int] = {}
        # Rules are pure: each question is asked once.
        self.decide = cache(self._decide)
        self.begin = cache(self._begin)
        self.fail = cache(self._fail)
        self.succeed = cache(self._succeed)

    # --- grants by number, so that states are small

    def number(self, grant: Grant) -> int:
        key = encode(grant)
        if key not in self._numbers:
            self._numbers[key] = len(self._grants)
            self._grants.append(grant)
        return self._numbers[key]

    def grant(self, number: int) -> Grant:
        return self._grants[number]

    def _decide(self, stored: int, now: int, under_lease: bool) -> Decision:
        return decide(
            self.grant(stored),
            DEFAULT_AUDIENCE,
            self.options,
            now=MOMENTS[now],
            breaker=Breaker(),
            under_lease=under_lease,
        )

    def _begin(self, stored: int, attempt: str, now: int) -> int:
        return self.number(begin(self.grant(stored), attempt=attempt, owner="", now=MOMENTS[now]))

    def _fail(self, stored: int, kind: str, doubted: bool, now: int) -> int:
        """What *kind* makes of the grant; "unsent": nothing was sent under its intent."""
        before = self.grant(stored)
        if kind == "unsent":
            return self.number(withdraw(before))
        before = doubt(before) if doubted else before
        failure = TokenFailure(kind=FailureKind(kind))
        return self.number(fail(before, DEFAULT_AUDIENCE, self.options, failure, now=MOMENTS[now], jitter=0.0))

    def _succeed(self, stored: int, token: int, now: int) -> int:
        answer = TokenSet(
            access_token=AccessToken(f"at-{token}"),
            expires_at=MOMENTS[now] + LIFE,
            requested_at=MOMENTS[now],
            refresh_token=RefreshToken(f"rt-{token}"),
        )
        return self.number(succeed(self.grant(stored), DEFAULT_AUDIENCE, answer))

    # --- where it begins

    def initial(self) -> State:
        first = grant(
            refresh_token=RefreshToken("rt-0"),
            tokens={"": held(issued_at=60.0 - LIFE, token="at-0")},
            refreshed_at=60.0 - LIFE,
            chain_started_at=60.0 - LIFE,
        )
        return State(
            now=0,
            stored=self.number(first),
            holder=None,
            procs=tuple(Proc() for _ in self.hosts),
            spool=frozenset(),
            network=frozenset(),
            spent=(None,),
            revoked=False,
            lost=frozenset(),
            faults=self.faults,
            logouts=self.logouts,
            mistake="",
        )

    # --- what can happen

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """Everything, faults included."""
        yield from self.regular(state)
        if state.faults and state.now + 1 < len(MOMENTS):
            faulty = state._replace(faults=state.faults - 1)
            for index, proc in enumerate(state.procs):
                yield from self._faults_of(faulty, index, proc)
            for request in state.network:
                yield from self._faults_on_the_way(faulty, request)
            if self._time_may_pass(state) and self._is_too_slow(state):
                yield f"FAULT the server is slow: it is {MOMENTS[state.now + 1]:g}", self._pass_time(faulty)

    def regular(self, state: State) -> Iterator[tuple[str, State]]:
        """What happens when nothing goes wrong, the most urgent first."""
        for request in sorted(state.network, key=repr):
            yield from self._travel(state, request)
        for index, proc in enumerate(state.procs):
            if not proc.paused:
                yield from self._act(state, index, proc)
        for index, proc in enumerate(state.procs):
            if proc.paused:
                yield f"p{index} goes on", _with(state, index, proc._replace(paused=False))
            if proc.at == "dead":
                yield f"p{index} restarts", self._restart(state, index, proc)
        for index, proc in enumerate(state.procs):
            if proc.at == "idle" and not proc.paused and state.holder is None:
                leased = _with(state._replace(holder=index), index, proc._replace(at="leased"))
                yield f"p{index} takes the lease", leased
        if state.logouts:
            after = self.number(end(self.grant(state.stored), EndReason.LOGOUT, now=MOMENTS[state.now]))
            if self.grant(state.stored).ended is None:
                yield "logout", _written(state, after)._replace(logouts=state.logouts - 1)
        if self._time_may_pass(state) and not self._is_too_slow(state):
            yield f"it is {MOMENTS[state.now + 1]:g}", self._pass_time(state)

    def _act(self, state: State, index: int, proc: Proc) -> Iterator[tuple[str, State]]:
        match proc.at:
            case "leased":
                yield self._look(state, index, proc)
            case "intending":
                yield f"p{index} writes its intent", self._intend(state, index, proc)
            case "sending":
                yield self._send(state, index, proc)
            case "noting":
                yield f"p{index} notes {proc.result}", self._note(state, index, proc)
                if self._may_repeat(state, proc):
                    again = proc._replace(at="sending", doubted=proc.doubted or proc.result == "in_doubt", result=None)
                    yield f"p{index} sends again", _with(state, index, again)
            case "saving":
                yield f"p{index} saves rt-{proc.result}", self._save(state, index, proc)
            case _:
                pass

    def _look(self, state: State, index: int, proc: Proc) -> tuple[str, State]:
        """Read under the lease, settle what is known of an open intent, decide."""
        before = self.grant(state.stored)
        if before.intent is not None:
            if proc.unwritten is not None and before.intent.attempt == proc.unwritten[0]:
                _, kind, moment = proc.unwritten
                after = self.fail(state.stored, kind, False, moment)
                return f"p{index} settles {kind}", _with(_written(state, after), index, proc._replace(unwritten=None))
            entry = next((entry for entry in state.spool if self._is_orphan(state, index, entry)), None)
            if entry is not None:
                return f"p{index} recovers rt-{entry.token}", self._bring_home(state, entry)
        match self.decide(state.stored, state.now, True):
            case Refresh() | UseAndRefresh():
                intending = proc._replace(
                    at="intending", seen=state.stored, is_current=True, began=state.now, doubted=False
                )
                return f"p{index} decides to present", _with(state, index, intending)
            case Use() | Wait() | LogIn():
                return f"p{index} has nothing to do", self._leave(state, index, proc._replace(at="idle"))

    def _is_orphan(self, state: State, index: int, entry: Entry) -> bool:
        """Whether *index* may take the entry: its own, or a dead process' of its host."""
        if entry.owner == index:
            return state.procs[index].at != "saving"
        owner = state.procs[entry.owner]
        is_dead = owner.at == "dead" or owner.life != entry.life
        return is_dead and self.hosts[entry.owner] == self.hosts[index]

    def _intend(self, state: State, index: int, proc: Proc) -> State:
        if not proc.is_current:
            return self._leave(state, index, proc._replace(at="idle"))
        attempt = _next_attempt(index, proc)
        intended = self.begin(proc.seen, attempt, state.now)
        sending = proc._replace(at="sending", seen=intended, attempt=attempt, attempts=_next(proc.attempts))
        return _with(_written(state, intended), index, sending)

    def _send(self, state: State, index: int, proc: Proc) -> tuple[str, State]:
        latest = MOMENTS[proc.began] + answer_seconds(self.options) - TIMEOUT
        if MOMENTS[state.now] > latest:
            if proc.doubted:
                late = proc._replace(at="noting", result="in_doubt")
                return f"p{index} is too late to send again", _with(state, index, late)
            late = proc._replace(at="noting", result="unsent")
            return f"p{index} is too late to send", _with(state, index, late)
        token = self.grant(proc.seen).refresh_token
        assert token is not None
        request = Request(index, proc.life, proc.attempt, int(token.reveal().removeprefix("rt-")))
        sent = state._replace(network=state.network | {request}, mistake=self._mistake_in_sending(state, proc))
        return f"p{index} sends rt-{request.token}", _with(sent, index, proc._replace(at="awaiting"))

    def _mistake_in_sending(self, state: State, proc: Proc) -> str:
        """A refresh token may be presented under a committed intent only, and a doubtful one only at the end."""
        written = self.grant(proc.seen).intent
        if written is None or written.attempt != proc.attempt:
            return "a refresh token is presented without a committed intent"
        if written.carried and self.options.rotation is Rotation.STRICT:
            alive = held_token(
                self.grant(proc.seen), DEFAULT_AUDIENCE, now=MOMENTS[proc.began], rejected_generation=None
            )
            if alive is not None:
                return "a doubtful refresh token is presented while the access token lives"
        return state.mistake

    def _may_repeat(self, state: State, proc: Proc) -> bool:
        latest = MOMENTS[proc.began] + answer_seconds(self.options) - TIMEOUT
        if MOMENTS[state.now] > latest:
            return False
        again = takes_again(self.grant(proc.seen), self.options, now=MOMENTS[state.now])
        return proc.result == "transient" or (proc.result == "in_doubt" and again)

    def _note(self, state: State, index: int, proc: Proc) -> State:
        """Write down what came, as long as the intent is the open one."""
        open_intent = self.grant(state.stored).intent
        if open_intent is not None and open_intent.attempt == proc.attempt:
            state = _written(state, self.fail(state.stored, str(proc.result), proc.doubted, state.now))
        return self._leave(state, index, proc._replace(at="idle", result=None, doubted=False))

    def _save(self, state: State, index: int, proc: Proc) -> State:
        entry = next(entry for entry in state.spool if (entry.owner, entry.life) == (index, proc.life))
        return self._leave(self._bring_home(state, entry), index, proc._replace(at="idle", result=None, doubted=False))

    def _bring_home(self, state: State, entry: Entry) -> State:
        """Write an answer into the grant, unless it comes too late, and cross it out."""
        stored = self.grant(state.stored)
        state = state._replace(spool=state.spool - {entry})
        if stored.ended is not None:
            return state._replace(lost=state.lost | {entry.token})  # revoked
        if stored.chain_length > entry.chain_length:
            return state._replace(lost=state.lost | {entry.token}) if self.options.rotation is Rotation.GRACE else state
        return _written(state, self.succeed(state.stored, entry.token, state.now))

    def _leave(self, state: State, index: int, proc: Proc) -> State:
        holder = None if state.holder == index else state.holder
        return _with(
            state._replace(holder=holder), index, proc._replace(seen=-1, is_current=False, attempt="", began=0)
        )

    def _restart(self, state: State, index: int, proc: Proc) -> State:
        """A process comes back, and saves what it finds on its disk."""
        state = _with(state, index, Proc(life=proc.life))
        for entry in sorted(state.spool, key=repr):
            if self._is_orphan(state, index, entry):
                state = self._bring_home(state, entry)
        return state

    # --- the server and the way to it

    def _travel(self, state: State, request: Request) -> Iterator[tuple[str, State]]:
        if request.reply is None:
            yield f"the server takes rt-{request.token}", self._process(state, request)
        else:
            yield f"p{request.proc} hears {request.reply}", self._deliver(state, request)

    def _process(self, state: State, request: Request, reply: str | None = None) -> State:
        """The server judges as demo.families does. *reply*: comes in place of its answer."""
        state = state._replace(network=state.network - {request})
        spent_at = state.spent[request.token]
        rotation, now = self.options.rotation, MOMENTS[state.now]
        if state.revoked:
            return self._reply(state, request, reply or "permanent")
        if rotation is Rotation.NONE:
            return self._reply(state, request, reply or request.token)
        if spent_at is not None and not (rotation is Rotation.GRACE and now - MOMENTS[spent_at] <= GRACE):
            early = now < DEAD_FROM and rotation is Rotation.STRICT
            mistake = "a family was revoked while its access token lived" if early else state.mistake
            return self._reply(state._replace(revoked=True, mistake=mistake), request, reply or "permanent")
        spent = list(state.spent)
        spent[request.token] = state.now if spent_at is None else spent_at
        brought = len(spent)
        state = state._replace(spent=(*spent, None))
        if reply is not None:
            state = state._replace(lost=state.lost | {brought})
        return self._reply(state, request, reply or brought)

    def _reply(self, state: State, request: Request, reply: int | str) -> State:
        return state._replace(network=state.network | {request._replace(reply=reply)})

    def _deliver(self, state: State, request: Request) -> State:
        state = state._replace(network=state.network - {request})
        proc = state.procs[request.proc]
        is_awaited = self._is_awaited(state, request)
        if isinstance(request.reply, str):
            noting = proc._replace(at="noting", result=request.reply)
            return _with(state, request.proc, noting) if is_awaited else state
        assert request.reply is not None
        if not is_awaited:
            return self._lose(state, request.reply)
        # Read and spooled in one step of the event loop.
        chain_length = self.grant(proc.seen).chain_length
        entry = Entry(request.proc, proc.life, proc.attempt, chain_length, request.reply)
        saving = proc._replace(at="saving", result=request.reply)
        return _with(state._replace(spool=state.spool | {entry}), request.proc, saving)

    def _lose(self, state: State, token: int) -> State:
        return state if self.options.rotation is Rotation.NONE else state._replace(lost=state.lost | {token})

    # --- time

    def _time_may_pass(self, state: State) -> bool:
        busy = {"leased", "intending", "sending", "noting", "saving"}
        if state.now + 1 == len(MOMENTS) or any(p.at in busy and not p.paused for p in state.procs):
            return False
        if state.now + 2 == len(MOMENTS) and (
            state.network or any(p.paused or p.at not in {"idle", "dead"} for p in state.procs)
        ):
            return False  # whatever goes wrong has gone wrong before the last moment
        if MOMENTS[state.now + 1] > DEAD_FROM and any(self._is_stranded(state, entry) for entry in state.spool):
            return False
        # The keep-alive looks at an open intent within seconds, wherever it can be settled at once.
        alive = any(proc.at == "idle" and not proc.paused for proc in state.procs)
        open_intent = self.grant(state.stored).intent
        if not alive or state.holder is not None or open_intent is None:
            return True
        return MOMENTS[state.now] < open_intent.started_at + 6 or not self._can_settle(state)

    def _is_stranded(self, state: State, entry: Entry) -> bool:
        """Whether an answer is on the disk of a host on which nobody lives."""
        host = self.hosts[entry.owner]
        return all(proc.at == "dead" for proc, at in zip(state.procs, self.hosts, strict=True) if at == host)

    def _can_settle(self, state: State) -> bool:
        if isinstance(self.decide(state.stored, state.now, True), Refresh | UseAndRefresh):
            return True
        idle = [index for index, proc in enumerate(state.procs) if proc.at == "idle" and not proc.paused]
        return any(self._is_orphan(state, index, entry) for index in idle for entry in state.spool)

    def _pass_time(self, state: State) -> State:
        later = state._replace(now=state.now + 1)
        if later.holder is not None and (later.holder == NOBODY or later.procs[later.holder].paused):
            later = later._replace(holder=None)  # nobody renews it
        for index, proc in enumerate(later.procs):
            if self._gives_up(later, proc):
                later = _with(later, index, proc._replace(at="noting", result="in_doubt"))
        # A connection that its client has closed brings nobody anything any more.
        gone = {each for each in later.network if not self._is_awaited(later, each)}
        return later._replace(network=later.network - gone, lost=self._lost_answers(later))

    def _is_too_slow(self, state: State) -> bool:
        """Whether somebody gives up at the next moment."""
        return any(self._gives_up(state._replace(now=state.now + 1), proc) for proc in state.procs)

    def _gives_up(self, later: State, proc: Proc) -> bool:
        return proc.at == "awaiting" and MOMENTS[later.now] - MOMENTS[proc.began] >= TIMEOUT

    # --- faults

    def _faults_of(self, state: State, index: int, proc: Proc) -> Iterator[tuple[str, State]]:
        name = f"FAULT p{index}"
        if proc.at != "dead":
            dead = Proc(at="dead", life=_next(proc.life))
            holder = NOBODY if state.holder == index else state.holder
            yield f"{name} is killed while {proc.at}", _with(state._replace(holder=holder), index, dead)
        if state.holder == index and proc.at != "dead":
            yield f"{name} loses its lease", state._replace(holder=None)
        if proc.at in {"sending", "intending"} and not proc.paused:
            yield f"{name} stands still", _with(state, index, proc._replace(paused=True))
        match proc.at:
            case "leased":
                yield f"{name} can't read", self._leave(state, index, proc._replace(at="idle"))
            case "intending":
                attempt = _next_attempt(index, proc)
                unwritten = proc._replace(
                    at="idle", unwritten=(attempt, "unsent", state.now), attempts=_next(proc.attempts)
                )
                yield f"{name} can't write its intent", self._leave(state, index, unwritten)
                if proc.is_current:
                    done = self._intend(state, index, proc)
                    yield f"{name}'s intent is written, and reported as not", self._leave(done, index, unwritten)
            case "noting":
                unwritten = proc._replace(
                    at="idle", unwritten=(proc.attempt, self._noted(proc), state.now), result=None
                )
                yield f"{name} can't note {proc.result}", self._leave(state, index, unwritten)
                done = self._note(state, index, proc)
                after = done.procs[index]._replace(unwritten=unwritten.unwritten)
                yield f"{name}'s note is written, and reported as not", _with(done, index, after)
            case "saving":
                holder = None if state.holder == index else state.holder
                yield f"{name} can't save, and goes on later", state._replace(holder=holder)
                entry = next(each for each in state.spool if (each.owner, each.life) == (index, proc.life))
                saved = self._bring_home(state, entry)
                yield (
                    f"{name}'s save is done, and reported as not",
                    saved._replace(spool=saved.spool | {entry}, holder=holder, lost=state.lost),
                )
            case _:
                pass

    def _noted(self, proc: Proc) -> str:
        """A refusal after a doubt leaves the doubt."""
        return "in_doubt" if proc.doubted and proc.result != "permanent" else str(proc.result)

    def _faults_on_the_way(self, state: State, request: Request) -> Iterator[tuple[str, State]]:
        if request.reply is not None:
            return
        gone = state._replace(network=state.network - {request})
        yield "FAULT the server refuses unprocessed", self._reply(gone, request, "transient")
        yield "FAULT the request is lost", self._reply(gone, request, "in_doubt")
        yield "FAULT the answer is lost", self._process(state, request, "in_doubt")

    # --- what must hold

    def check(self, state: State) -> str | None:
        """Return what is wrong with *state*, or None."""
        if state.mistake:
            return state.mistake
        if (lost := self._lost_tokens(state)) and not state.revoked:
            return f"rt-{min(lost)} was issued, and nobody has it"
        if state.revoked and self.options.rotation is not Rotation.STRICT:
            return "a family was revoked although the server takes a refresh token again"
        if state.revoked and not self._lost_answers(state):
            return "a family was revoked although no answer was lost"
        return None

    def _lost_answers(self, state: State) -> frozenset[int]:
        """The refresh tokens whose answer was lost, or comes when nobody waits for it any more."""
        late = {
            request.reply
            for request in state.network
            if isinstance(request.reply, int) and not self._is_awaited(state, request)
        }
        return state.lost if self.options.rotation is Rotation.NONE else state.lost | late

    def _is_awaited(self, state: State, request: Request) -> bool:
        proc = state.procs[request.proc]
        return (proc.at, proc.life, proc.attempt) == ("awaiting", request.life, request.attempt)

    def _lost_tokens(self, state: State) -> set[int]:
        unspent = {number for number, spent_at in enumerate(state.spent) if spent_at is None}
        on_the_way = {request.reply for request in state.network}
        spooled = {entry.token for entry in state.spool}
        stored = self.grant(state.stored)
        if stored.ended is not None:
            return set()
        assert stored.refresh_token is not None
        kept = {int(stored.refresh_token.reveal().removeprefix("rt-"))}
        return unspent - kept - spooled - state.lost - {each for each in on_the_way if isinstance(each, int)}

    # --- when faults stop

    def next_step(self, state: State) -> tuple[str, State] | None:
        """What happens next without faults: messages first, then work, then whoever must come back, then time."""
        if state.network == frozenset() and self._is_settled(state):
            return None
        quiet = state._replace(logouts=0)
        for name, after in self.regular(quiet):
            if after != quiet and not (quiet.holder is None and self._takes_in_vain(after)):
                return name, after
        return None

    def _is_settled(self, state: State) -> bool:
        if any(proc.at != "idle" or proc.paused for proc in state.procs) or state.spool:
            return False
        stored = self.grant(state.stored)
        return stored.ended is not None or (
            stored.intent is None and isinstance(self.decide(state.stored, state.now, False), Use)
        )

    def _takes_in_vain(self, after: State) -> bool:
        """Whether somebody took the lease only to find nothing to do: time must pass."""
        if after.holder is None or after.holder == NOBODY:
            return False
        name, _ = self._look(after, after.holder, after.procs[after.holder])
        return "nothing to do" in name

    def check_end(self, state: State) -> str | None:
        """Return what is wrong with where it ends, or None."""
        stored = self.grant(state.stored)
        if stored.ended is None:
            if isinstance(self.decide(state.stored, state.now, False), Use | UseAndRefresh):
                return None
            return "nobody gets a token, and nobody knows why"
        if stored.ended.reason is EndReason.LOGOUT:
            return None
        if not state.lost:
            return "a user must log in again although no answer was lost"
        if self.options.rotation is not Rotation.STRICT:
            return "a user must log in again although the server would have taken the refresh token again"
        return None


def _with(state: State, index: int, proc: Proc) -> State:
    procs: Any = (*state.procs[:index], proc, *state.procs[index + 1 :])
    return state._replace(procs=procs)


def _written(state: State, stored: int) -> State:
    """Write the grant: what others have seen is not current any more."""
    procs = tuple(proc._replace(is_current=False) for proc in state.procs)
    return state._replace(stored=stored, procs=procs)


def _next(number: int) -> int:
    return (number + 1) % KINDS_OF_LIVES


def _next_attempt(index: int, proc: Proc) -> str:
    return f"{index}.{proc.life}.{_next(proc.attempts)}"

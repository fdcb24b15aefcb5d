"""
A model check of the refresh protocol: two processes, one grant, every order, and every two faults at every step.

Both processes refresh for callers and for the keep-alive alike. See tests/support/refresh_model.py for what is
modelled, and for what "lost on the wire" means.
"""

from dataclasses import replace

import pytest

from broker.core.provider import Rotation
from tests.support.explorer import Violation, check_recovery, explore
from tests.support.refresh_model import RefreshModel, State

ONE_HOST = (0, 0)
TWO_HOSTS = (0, 1)


def run(model: RefreshModel) -> int:
    explored = explore([model.initial()], model.steps, check=model.check)
    check_recovery(explored, model.next_step, check=model.check_end)
    return len(explored.came_from)


@pytest.mark.slow
@pytest.mark.parametrize("rotation", Rotation)
@pytest.mark.parametrize("hosts", [ONE_HOST, TWO_HOSTS])
def test_tk_02_no_two_faults_lose_a_refresh_token_or_a_family(rotation: Rotation, hosts: tuple[int, ...]) -> None:
    """
    No refresh token is presented without a committed intent; none that was issued is lost unless its answer was lost on
    the wire; strict: none in doubt is presented while the access token lives; and from every state service returns.
    """
    states = run(RefreshModel(rotation, hosts=hosts, faults=2))

    print(f"rotation {rotation}, hosts {hosts}: {states} states")
    assert states > 50_000


@pytest.mark.parametrize("rotation", Rotation)
@pytest.mark.parametrize("hosts", [ONE_HOST, TWO_HOSTS])
def test_tk_02_no_fault_loses_a_refresh_token_or_a_family(rotation: Rotation, hosts: tuple[int, ...]) -> None:
    """The same with one fault."""
    assert run(RefreshModel(rotation, hosts=hosts, faults=1)) > 1_000


@pytest.mark.parametrize("rotation", Rotation)
def test_se_07_no_fault_undoes_a_logout(rotation: Rotation) -> None:
    """The user logs out at any step of a refresh: the grant stays ended, and service goes on without it."""
    model = RefreshModel(rotation, hosts=ONE_HOST, faults=1, logouts=1)

    def check(state: State) -> str | None:
        if state.logouts == 0 and model.grant(state.stored).ended is None:
            return "a logged-out grant came back"
        return model.check(state)

    explored = explore([model.initial()], model.steps, check=check)
    check_recovery(explored, model.next_step, check=model.check_end)


class Careless(RefreshModel):
    """A broker that presents whatever it has, as soon as it finds a token due: no doubt is remembered."""

    def _begin(self, stored: int, attempt: str, now: int) -> int:
        return super()._begin(self.number(replace(self.grant(stored), intent=None)), attempt, now)

    def _fail(self, stored: int, kind: str, doubted: bool, now: int) -> int:
        return self.number(replace(self.grant(super()._fail(stored, kind, doubted, now)), intent=None))


class Forgetful(RefreshModel):
    """A broker without a spool."""

    def _restart(self, state: State, index: int, proc: object) -> State:
        kept = frozenset(entry for entry in state.spool if entry.owner != index)
        return super()._restart(state._replace(spool=kept), index, state.procs[index])


@pytest.mark.parametrize("broker", [Careless, Forgetful])
def test_the_model_finds_what_worse_brokers_lose(broker: type[RefreshModel]) -> None:
    """A check that can't fail proves nothing: without its doubts or its spool, the same protocol fails."""
    with pytest.raises(Violation) as found:
        run(broker(Rotation.STRICT, hosts=TWO_HOSTS, faults=1))

    assert found.value.way

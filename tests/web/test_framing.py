"""Raw requests against a running proxy, on fresh connections and on such that the fast path has used."""

import asyncio

import pytest

from broker.core.routing import Route
from tests.support.proxying import ANONYMOUS, ProxyUnderTest, RawCaller, request
from tests.support.raw_cases import RawCase, raw_cases
from tests.support.raw_upstream import RawUpstream

CASES = raw_cases()


def test_the_corpus_is_large_enough() -> None:
    """At least a hundred cases, each once."""
    assert 100 <= len(CASES)
    assert len(CASES) == len({case.why for case in CASES}) == len({case.send for case in CASES})


async def play(case: RawCase, caller: RawCaller) -> list[int]:
    """Send the case; return the statuses of its answers, and of one more request if the connection lives on."""
    statuses: list[int] = []
    try:
        await caller.send(case.send)
        while len(statuses) < len(case.answers):
            statuses.append((await caller.answer()).status)
        if not case.closed:
            await caller.send(request("/after"))
            statuses.append((await caller.answer()).status)
    except (asyncio.IncompleteReadError, ConnectionError):
        statuses.append(0)
    return statuses


@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "warm"])
@pytest.mark.parametrize("case", CASES, ids=[case.why for case in CASES])
async def test_sm_01_what_reaches_the_upstream(case: RawCase, warm: bool) -> None:
    """Each case of [SM]: what the corpus says is answered and goes up, and nothing else; errors close the connection."""
    async with RawUpstream() as upstream:
        route = Route(path="/", upstream=upstream.url, token=ANONYMOUS, max_body_bytes=1_000_000)
        async with ProxyUnderTest([route], fast=warm) as proxy, await proxy.connect() as caller:
            if warm:
                for _ in range(2):
                    await caller.send(request("/warm"))
                    assert 200 == (await caller.answer()).status
            statuses = await play(case, caller)
            if case.closed:
                assert await caller.is_closed()

    assert (case.answers if case.closed else [*case.answers, 200]) == statuses
    seen = [each.target.decode("latin-1") for each in upstream.requests]
    assert not [target for target in seen if "smuggled" in target]
    if case.up is not None:
        expected = [*(["/warm"] * 2 if warm else []), *case.up, *([] if case.closed else ["/after"])]
        assert expected == seen

"""FT-22: a broker whose memory is nearly out, filled by bodies that are kept until their calls are answered."""

import asyncio
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest

from tests.support.broker_process import Answer, BrokerProcess, Browser, provider_options
from tests.support.control_group import ControlGroup
from tests.support.raw_upstream import OK, RawRequest, RawUpstream, Wire
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.upstream import Upstream
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.system

LIMIT = 128 << 20
GROUP_LIMIT = 256 << 20
"""For a supervisor, the admin listener and one process that serves."""
BODY = bytes(1 << 20)
BLOCK = bytes(256 << 10)


class LimitedBroker(BrokerProcess):
    """
    A broker with little memory.

    Attributes:
        limit: How much, in bytes.
    """

    limit = LIMIT

    def used_bytes(self) -> int:
        """What counts against the limit."""
        return self.resident_bytes()

    async def readiness(self) -> tuple[int, str]:
        async with aiohttp.ClientSession() as http, http.get(f"{self.admin_url}/readyz") as response:
            return response.status, (await response.json())["status"]

    def resident_bytes(self) -> int:
        """The largest resident set of its processes."""
        status = (Path(f"/proc/{pid}/status").read_text() for pid in self.worker_pids())
        return max(int(found[1]) << 10 for each in status if (found := re.search(r"VmRSS:\s+(\d+) kB", each)))

    def events(self) -> list[str]:
        return [record["event"] for record in self.log() if record["event"].startswith("load_is_")]


class Uploads:
    """
    Calls with a body, which the broker keeps since it may be needed again, at an upstream that takes its time.

    It also has a stream without end.
    """

    def __init__(self) -> None:
        self.upstream = RawUpstream(self._script)
        self.calls: list[asyncio.Task[Answer]] = []
        self._may_answer = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.upstream.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for call in self.calls:
            call.cancel()
        await asyncio.gather(*self.calls, return_exceptions=True)
        await self.upstream.__aexit__(*exc_info)

    async def _script(self, request: RawRequest, wire: Wire) -> None:
        if request.target == b"/open/stream":
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 40))
            try:
                while True:
                    await wire.send(BLOCK)
            except BaseException:
                wire.reset()  # else the rest would still wait to be sent when the test is over
                raise
        await self._may_answer.wait()
        await wire.send(OK)

    @property
    def routes(self) -> list[dict[str, Any]]:
        return [
            {"path": "/kept", "upstream": self.upstream.url, "token": "user", "max_replay_body": "1MiB"},
            {"path": "/open", "upstream": self.upstream.url, "token": "none"},
        ]

    async def fill(self, broker: LimitedBroker, browser: Browser) -> None:
        """Call, and more slowly near the limit, until no more calls are wanted."""
        while await broker.readiness() == (200, "ok"):
            assert len(self.calls) < 500, "so many, and there is still room"
            is_near = broker.used_bytes() > 0.75 * broker.limit
            self.calls += [
                asyncio.create_task(browser.request("POST", "/kept/x", data=BODY)) for _ in range(1 if is_near else 4)
            ]
            await until(lambda: len(self.upstream.requests) + self._ended() >= len(self.calls), seconds=20)
            await asyncio.sleep(0.1 if is_near else 0)
        await until(lambda: "load_is_shed" in broker.events(), what="the line in the log")

    def _ended(self) -> int:
        return sum(call.done() for call in self.calls)

    async def answer(self) -> Counter[int]:
        """Let the upstream answer. Returns how many of the calls had which status."""
        self._may_answer.set()
        return Counter([(await call).status for call in self.calls])


def limited_broker(
    directory: Path, provider: RemoteLedgerServer, uploads: Uploads, *routes: dict[str, Any], **settings: Any
) -> LimitedBroker:
    corp = provider_options(provider.url, allowed_parameters=["login_hint"], token_endpoint_timeout="30s")
    return LimitedBroker(
        directory,
        providers={"corp": corp},
        routes=[*uploads.routes, *routes],
        limits={"max_memory": f"{LIMIT >> 20}MiB"},
        **settings,
    )


async def test_ft_22_load_is_shed_before_memory_runs_out_and_no_login_is_lost(
    tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream
) -> None:
    """New requests get 503, the process lives within its limit, all that was begun ends well, and then all is as before."""
    api = {"path": "/api", "upstream": upstream.url, "strip_prefix": True, "token": "user"}
    async with (
        Uploads() as uploads,
        limited_broker(tmp_path, provider, uploads, api) as broker,
        Browser(broker.url) as alice,
        Browser(broker.url) as bob,
        Browser(broker.url) as carol,
    ):
        worker = broker.worker_pid
        await carol.log_in(user="carol")
        await provider.configure(access_token_seconds=1)
        await alice.log_in(user="alice")
        await bob.log_in(user="bob")
        await asyncio.sleep(1.5)  # these two tokens end
        await provider.configure(access_token_seconds=300)
        await provider.fail_next("wait", grant_type="refresh_token")
        under_way = asyncio.create_task(alice.get("/api/orders"))

        async def is_asked() -> bool:
            return (await provider.ledger()).count("refresh_token") == 1

        await until_async(is_asked, what="the token request")
        async with carol.http.get(f"{broker.url}/open/stream") as stream:
            assert 200 == stream.status
            await uploads.fill(broker, carol)
            assert not under_way.done(), "the server has answered before it was told to"

            refused = await bob.get("/api/orders")
            measured = await broker.metrics()
            assert (503, "overloaded") == (refused.status, refused.json()["code"])
            assert 1 <= int(refused.headers["Retry-After"]) <= 60
            assert (503, "overloaded") == await broker.readiness()
            assert await broker.is_alive()
            # Who is logged in is still said, on the connections that there are.
            assert "bob" == (await bob.get("/bff/user")).json()["claims"]["sub"]
            await _flow(stream, 32 << 20)
            await provider.clear_faults()
            answered = await under_way
            renewed_for_bob = (await provider.ledger()).count("refresh_token") - 1
            highest = broker.resident_bytes()
        kept = await uploads.answer()
        await until_async(broker.is_ready, seconds=15, what="a broker that takes load again")
        after = [await each.get("/api/orders") for each in (alice, bob, carol)]
        assert worker == broker.worker_pid
        await until(lambda: "load_is_taken_again" in broker.events(), what="the line in the log")
        events = broker.events()
    ledger = await provider.ledger()

    print(f"\n{kept} of 1 MiB; then {highest / LIMIT:.1%} of the limit")
    assert LIMIT > highest
    assert 200 == answered.status
    assert {200} <= set(kept) <= {200, 503}
    assert kept[503] <= 1
    assert measured["load_shedding"] >= 1
    assert 0.85 <= measured["memory_used_ratio"] < 1
    assert measured['requests_refused_total{code="overloaded"}'] >= 1
    assert 0 == renewed_for_bob, "the refused request cost a refresh"
    assert [(200, "alice"), (200, "bob"), (200, "carol")] == [(each.status, each.json()["sub"]) for each in after]
    assert ("load_is_shed", "load_is_taken_again") == (events[0], events[-1])
    assert 1 == events.count("load_is_taken_again")
    assert 3 == ledger.count("authorization_code"), "somebody was logged out"
    assert {} == ledger.presented_twice()


class GroupedBroker(LimitedBroker):
    """A broker in a control group."""

    def __init__(self, group: ControlGroup, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, command=(*group.command, sys.executable, "-m", "broker"), **settings)
        self._group = group

    limit = GROUP_LIMIT

    def used_bytes(self) -> int:
        return self._group.used_bytes()


@pytest.mark.slow
async def test_ft_22_the_kernel_kills_nothing_in_a_limited_control_group(
    tmp_path: Path, provider: RemoteLedgerServer
) -> None:
    """The container's limit is seen, and all that was begun ends well: on a real group, without a setting."""
    corp = provider_options(provider.url, allowed_parameters=["login_hint"])
    with ControlGroup(GROUP_LIMIT) as group:
        async with (
            Uploads() as uploads,
            GroupedBroker(group, tmp_path, providers={"corp": corp}, routes=uploads.routes) as broker,
            Browser(broker.url) as carol,
        ):
            worker = broker.worker_pid
            await carol.log_in(user="carol")
            await uploads.fill(broker, carol)
            highest = group.used_bytes()
            assert (503, "overloaded") == await broker.readiness()
            assert 503 == (await carol.get("/open/x")).status
            shed = next(line for line in broker.log() if line["event"] == "load_is_shed")
            kept = await uploads.answer()
            await until_async(broker.is_ready, seconds=15, what="a broker that takes load again")
            await until(lambda: "load_is_taken_again" in broker.events(), what="the line in the log")
            assert "carol" == (await carol.get("/bff/user")).json()["claims"]["sub"]
            assert worker == broker.worker_pid
        kills = group.kills()

    print(f"\n{kept} of 1 MiB; then {highest / GROUP_LIMIT:.1%} of the limit; {shed}")
    assert 0 == kills
    assert GROUP_LIMIT == shed["limit_bytes"]
    assert {200} <= set(kept) <= {200, 503}
    assert kept[503] <= 1


async def _flow(stream: aiohttp.ClientResponse, count: int) -> None:
    """Read on: more bytes than all buffers between here and the upstream hold."""
    while count > 0:
        data = await asyncio.wait_for(stream.content.read(1 << 20), 10)
        assert data
        count -= len(data)


async def test_ft_22_one_worker_that_is_full_makes_the_installation_unready(
    tmp_path: Path, provider: RemoteLedgerServer
) -> None:
    """The admin listener is a process of its own, with little to do, and says what it hears of the others."""
    async with (
        Uploads() as uploads,
        limited_broker(tmp_path, provider, uploads, workers=2) as broker,
        Browser(broker.url) as carol,
    ):
        await carol.log_in(user="carol")
        await uploads.fill(broker, carol)
        assert (503, "overloaded") == await broker.readiness()
        assert await broker.is_alive()
        await uploads.answer()
        await until_async(broker.is_ready, seconds=15, what="a broker that takes load again")
        await until(lambda: "load_is_taken_again" in broker.events(), what="the line in the log")

"""Callers that are slow, many, or gone."""

import asyncio
import itertools
import json
import resource
import time
from collections.abc import Callable

import pytest

from broker.core.limit_options import LimitOptions
from broker.core.routing import Route
from broker.web.connection import Watch
from tests.support.proxying import ANONYMOUS, ProxyUnderTest, RawCaller, Way, request
from tests.support.raw_upstream import OK, RawRequest, RawUpstream, Wire
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("either_way")


def proxied(
    upstream: RawUpstream, *, fast: bool | None = None, max_body_bytes: int = 100 << 20, **limits: float
) -> ProxyUnderTest:
    route = Route(path="/", upstream=upstream.url, token=ANONYMOUS, max_body_bytes=max_body_bytes)
    return ProxyUnderTest([route], fast=Way.fast if fast is None else fast, limits=LimitOptions(**limits))  # type: ignore[arg-type]


async def test_ds_01_a_head_that_drips_is_cut() -> None:
    """It is answered with 408, however steadily it drips."""
    async with (
        RawUpstream() as upstream,
        proxied(upstream, header_timeout_seconds=0.5) as proxy,
        await proxy.connect() as caller,
    ):
        began = time.monotonic()
        try:
            for byte in request("/slow", "X-Long: " + "x" * 500):
                await caller.send(bytes([byte]))
                for pause in (0.02, 0, 0):  # an answer of this moment is read first: a byte more, and a reset takes it
                    await asyncio.sleep(pause)
                if caller.reader._buffer:  # type: ignore[attr-defined]
                    break
        except ConnectionError:
            pass
        head = await caller.head()
        assert await caller.is_closed()

    assert head.startswith(b"HTTP/1.1 408 ")
    assert 10 > time.monotonic() - began
    assert [] == upstream.requests


async def test_ds_01_a_body_that_stops_is_cut() -> None:
    """It is answered with 408, and the upstream's connection is given up."""
    async with (
        RawUpstream() as upstream,
        proxied(upstream, body_timeout_seconds=0.5) as proxy,
        await proxy.connect() as caller,
    ):
        await caller.send(request("/x", "Content-Length: 100", method="POST") + b"half")
        got = await caller.answer()
        assert await caller.is_closed()

    assert (408, "request_timeout") == (got.status, got.code)
    assert not upstream.requests or b"" == upstream.requests[0].body


REFUSED = {
    "a field that is too long": (request("/x", "X: " + "a" * (128 << 10)), {400, 431}),
    "a malformed head": (request("/x", "no field"), {400}),
    "a body that is too large": (request("/x", "Content-Length: 5000000", method="POST"), {413}),
    "a body framed twice": (request("/x", "Content-Length: 5", "Transfer-Encoding: chunked", method="POST"), {400}),
}


LONGEST = 1024
SIZED: dict[str, Callable[[int], bytes]] = {
    "field": lambda size: request("/x", "X-Long: " + "a" * size),
    "target": lambda size: request("/" + "a" * (size - 1)),
}


@pytest.mark.parametrize("sized", SIZED.values(), ids=SIZED)
async def test_ds_02_a_limit_on_fields_holds_for_the_target_and_each_field(sized: Callable[[int], bytes]) -> None:
    """To the byte, also for what is much smaller than a head may be."""
    async with RawUpstream() as upstream, proxied(upstream, max_header_field_bytes=LONGEST) as proxy:
        statuses = []
        for size in (LONGEST - 10, LONGEST, LONGEST + 1, 8 * LONGEST):
            async with await proxy.connect() as caller:
                await caller.send(request("/before"))
                assert 200 == (await caller.answer()).status
                await caller.send(sized(size))
                statuses.append((await caller.answer()).status)

    assert [200, 200, 400, 400] == statuses


async def go_on_sending(caller: RawCaller, *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await caller.send(b"x" * (64 << 10))
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(("sent", "statuses"), REFUSED.values(), ids=REFUSED)
async def test_ds_02_who_still_sends_hears_why_it_is_refused(sent: bytes, statuses: set[int]) -> None:
    """What comes after the answer is read and thrown away: a reset would take the answer away."""
    async with (
        RawUpstream() as upstream,
        proxied(upstream, max_body_bytes=1 << 20) as proxy,
        await proxy.connect() as caller,
    ):
        await caller.send(sent)
        await go_on_sending(caller, seconds=0.2)
        got = await caller.answer()
        assert await caller.is_closed()

    assert got.status in statuses
    assert [] == upstream.requests


async def test_ds_02_a_refused_caller_that_goes_on_sending_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its time, and no more."""
    monkeypatch.setattr("broker.web.lingering.LINGER_SECONDS", 0.3)
    async with RawUpstream() as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        await caller.send(request("/x", "no field"))
        with pytest.raises(ConnectionError):
            await go_on_sending(caller, seconds=5)


async def test_ds_05_a_small_body_that_drips_holds_no_upstream_connection() -> None:
    """Nothing goes up before all of it has come; then it goes up with its head."""
    async with RawUpstream() as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        await caller.send(request("/x", "Content-Length: 4", method="POST") + b"dr")
        await asyncio.sleep(0.05)
        assert 0 == upstream.connections
        await caller.send(b"ip")
        assert 200 == (await caller.answer()).status

    assert [b"drip"] == [each.body for each in upstream.requests]


async def test_ds_01_a_caller_that_takes_nothing_is_cut() -> None:
    """Its connection is reset, and so is the upstream's."""

    async def flood(got: RawRequest, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            await wire.send(b"x" * 65536)

    async with (
        RawUpstream(flood) as upstream,
        proxied(upstream, reader_timeout_seconds=0.5) as proxy,
        await proxy.connect() as caller,
    ):
        caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await caller.send(request("/"))
        assert proxy._runner is not None
        server = proxy._runner.server
        assert server is not None
        await until(lambda: len(server.connections) == 1)
        await until(lambda: not server.connections, seconds=10)
        await until(lambda: not upstream._tasks)


async def long_wait(proxy: ProxyUnderTest, slow: list[RawCaller]) -> float:
    """Return the third longest of fifty answers' times, while each of *slow* drips: the machine may stop once or twice."""
    waits = []
    async with await proxy.connect() as caller:
        for _ in range(50):
            for each in slow:
                each.writer.write(b"x")
            began = time.monotonic()
            await caller.send(request("/"))
            assert 200 == (await caller.answer()).status
            waits.append(time.monotonic() - began)
    return sorted(waits)[-3]


async def test_ds_01_slow_callers_slow_nobody_down() -> None:
    """With three hundred that drip, another caller waits no more than 250 ms longer than it would without them."""
    async with RawUpstream() as upstream, proxied(upstream) as proxy:
        alone = await long_wait(proxy, [])
        slow = [await proxy.connect() for _ in range(300)]
        for caller in slow:
            await caller.send(b"GET /slow HTTP/1.1\r\nHost: app.exam")
        among_them = await long_wait(proxy, slow)
        for each in slow:
            each.writer.close()

    assert alone + 0.25 > among_them


async def test_ds_03_a_flood_of_pipelined_requests_is_answered_in_order() -> None:
    """Two thousand in one go: all are answered, and memory stays where it was."""
    count = 2000
    async with RawUpstream() as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        sending = asyncio.ensure_future(caller.send(request("/") * count))
        statuses = [(await caller.answer()).status for _ in range(count)]
        await sending

    assert [200] * count == statuses


async def test_ds_03_a_flood_of_tiny_chunks_is_taken_in_its_time() -> None:
    """Fifty thousand chunks of one byte arrive whole, and the loop goes on serving others."""
    count = 50_000
    async with RawUpstream() as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        head = request("/x", "Transfer-Encoding: chunked", method="POST")
        sending = asyncio.ensure_future(caller.send(head + b"1\r\nx\r\n" * count + b"0\r\n\r\n"))
        began = time.monotonic()
        assert 200 == (await proxy.send(request("/other"))).status
        waited = time.monotonic() - began
        assert 200 == (await caller.answer()).status
        await sending

    assert count == len(next(each.body for each in upstream.requests if each.target == b"/x"))
    assert 3 > waited


@pytest.mark.parametrize("chunked", [False, True])
async def test_up_08_memory_is_flat_under_a_large_answer(chunked: bool) -> None:
    """Of 96 MiB that go down to a caller that reads slowly, the last 64 make the process grow by less than 10 MiB."""
    size, warm = 96 << 20, 32 << 20
    piece = b"x" * 65536

    async def flood(got: RawRequest, wire: Wire) -> None:
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
        await wire.send(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % framing)
        for _ in range(size >> 16):
            await wire.send(b"10000\r\n%b\r\n" % piece if chunked else piece)
        if chunked:
            await wire.send(b"0\r\n\r\n")

    async with RawUpstream(flood) as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        await caller.send(request("/"))
        await caller.head()
        received = before = 0
        while received < size:
            data = await caller.reader.read(1 << 20)
            received += len(data)
            if not before and received > warm:  # the test's own buffers are filled by now
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if received % (8 << 20) < len(data):
                await asyncio.sleep(0.05)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    assert 10 << 10 > grown  # KiB


async def test_memory_is_flat_under_a_large_upload() -> None:
    """64 MiB go up to an upstream that reads slowly; what isn't taken stays with the caller."""
    size = 64 << 20
    taken = 0

    async def sink(got: RawRequest, wire: Wire) -> None:
        nonlocal taken
        while taken < size:
            taken += len(await wire.reader.read(1 << 18))
            if taken % (8 << 20) < 1 << 18:
                await asyncio.sleep(0.02)
        await wire.send(OK)

    async with (
        RawUpstream(sink, read_body=False) as upstream,
        proxied(upstream) as proxy,
        await proxy.connect() as caller,
    ):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await caller.send(request("/", f"Content-Length: {size}", method="PUT"))
        for _ in range(size >> 16):
            await caller.send(b"x" * 65536)
        got = await caller.answer()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    assert (200, size) == (got.status, taken)
    assert 16 << 10 > grown


async def test_connections_are_capped() -> None:
    """One more than may be is closed at once; when others leave there is room again."""
    async with RawUpstream() as upstream, proxied(upstream, max_connections=3) as proxy:
        callers = [await proxy.connect() for _ in range(3)]
        for each in callers:
            await each.send(request("/"))
            assert 200 == (await each.answer()).status
        async with await proxy.connect() as one_more:
            assert await one_more.is_closed()
        callers[0].writer.close()
        await callers[0].writer.wait_closed()
        assert proxy._runner is not None
        server = proxy._runner.server
        assert server is not None
        await until(lambda: len(server.connections) == 2, what="the end of the first")
        assert 200 == (await proxy.send(request("/"))).status
        for each in callers[1:]:
            each.writer.close()


async def test_an_idle_connection_is_closed_in_the_end() -> None:
    """On the fast path as on the slow one."""
    for fast in (True, False):
        async with (
            RawUpstream() as upstream,
            proxied(upstream, fast=fast, keepalive_timeout_seconds=1.0) as proxy,
            await proxy.connect() as caller,
        ):
            for _ in range(2):
                await caller.send(request("/"))
                assert 200 == (await caller.answer()).status
            assert await caller.is_closed()


async def test_lk_03_a_malformed_request_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Without a traceback, and without a byte of it."""
    caplog.set_level("INFO", logger="broker")
    async with RawUpstream() as upstream, proxied(upstream) as proxy:
        got = await proxy.send(b"GET /canary HTTP/1.1\r\nHost: app.example.com\r\nX canary: 1\r\n\r\n")

    records = [record for record in caplog.records if record.name.startswith(("broker", "aiohttp"))]
    assert (400, [b"close"]) == (got.status, got.fields(b"connection"))
    assert b"canary" not in got.body
    assert ["malformed_request"] == [record.getMessage() for record in records]
    assert not any(record.exc_info for record in records)
    assert "canary" not in caplog.text


async def test_nothing_is_watched_that_is_not_slow() -> None:
    """The timer stops when no connection waits for anything."""
    async with RawUpstream() as upstream, proxied(upstream) as proxy:
        assert 200 == (await proxy.send(request("/", method="POST", body=b"x"))).status
        assert proxy._runner is not None
        connection = proxy._runner.server() if proxy._runner.server is not None else None
        assert connection is not None
        watch = connection._watch  # type: ignore[attr-defined]
        assert isinstance(watch, Watch)
        await until(lambda: watch._timer is None, seconds=5)


@pytest.mark.parametrize(("sent", "status"), [(b"", 0), (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", 200)])
@pytest.mark.parametrize("body", ["", "Content-Length: 100000"])
async def test_a_caller_that_leaves_is_logged(sent: bytes, status: int, body: str) -> None:
    """With the status of the answer that it had a part of, whether a task serves it or not."""
    lines: list[str] = []

    async def script(got: RawRequest, wire: Wire) -> None:
        await wire.send(sent)
        await wire.reader.read()

    async with RawUpstream(script, read_body=False) as upstream:
        routes = [Route(path="/api", upstream=upstream.url, token=ANONYMOUS)]
        async with ProxyUnderTest(routes, access_log=lines.append) as proxy:
            async with await proxy.connect() as caller:
                await caller.send(request("/api/x", *filter(None, [body]), method="POST"))
                await until(lambda: bool(upstream.requests))
                if sent:
                    await caller.head()
            await until(lambda: bool(lines))

    (line,) = map(json.loads, lines)
    assert ("/api/x", "/api", status) == (line["path"], line["route"], line["status"])


async def test_a_connection_that_is_added_while_it_is_looked_at_is_looked_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What ends a slow head may have to wait for the rest of an answer; that starts no second timer."""
    monkeypatch.setattr("broker.web.connection.WATCH_SECONDS", 0.05)
    looked_at: list[float] = []

    class Leaving:
        def check(self, now: float) -> bool:
            looked_at.append(now)
            watch.add(self)  # type: ignore[arg-type]
            return len(looked_at) < 8

    watch = Watch(LimitOptions())
    watch.add(Leaving())  # type: ignore[arg-type]
    await until(lambda: len(looked_at) >= 8)

    assert all(later - earlier > 0.04 for earlier, later in itertools.pairwise(looked_at))


async def test_a_connection_that_is_added_while_another_is_looked_at_is_kept() -> None:
    """Nobody is forgotten."""

    class Adding:
        def __init__(self, added: object) -> None:
            self.added = added

        def check(self, now: float) -> bool:
            if self.added is not None:
                watch.add(self.added)  # type: ignore[arg-type]
            return False

    watch = Watch(LimitOptions())
    added = Adding(None)
    watch.add(Adding(added))  # type: ignore[arg-type]
    watch._look()

    assert 1 == len(watch._watched)
    assert None is not watch._timer

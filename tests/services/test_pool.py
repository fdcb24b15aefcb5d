"""The pool, against real upstreams on loopback."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.core.client_auth import TlsOptions
from broker.core.upstream_options import Balance, TimeoutOptions, UpstreamOptions
from broker.errors import ConfigError, UpstreamBusy, UpstreamTimeout, UpstreamUnavailable
from broker.services import pool as pool_module
from broker.services.pool import UpstreamPool, UpstreamPools
from tests.support.certificates import Authority
from tests.support.loops import on_both_loops
from tests.support.ports import free_port
from tests.support.raw_upstream import OK, RawRequest, RawUpstream, Wire, answering
from tests.support.receiver import Recorder, exchange_for
from tests.support.waiting import until


@asynccontextmanager
async def pooled(*upstreams: RawUpstream, **options: Any) -> AsyncIterator[UpstreamPool]:
    pools = UpstreamPools([UpstreamOptions(urls=tuple(each.url for each in upstreams), **options)])
    try:
        yield next(iter(pools.values()))
    finally:
        await pools.close()


async def ask(pool: UpstreamPool, *, method: str = "GET", timeouts: TimeoutOptions | None = None) -> Recorder:
    recorder = Recorder()
    await pool.start(exchange_for(recorder, method=method, timeouts=timeouts))
    await recorder.wait()
    return recorder


class Gate:
    """A script that answers only when it is told to."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, got: RawRequest, wire: Wire) -> None:
        await self.open.wait()
        await wire.send(OK)


async def test_ds_05_connections_are_capped_and_requests_queue() -> None:
    """Ten requests over two connections: all are served, in turn, and never on a third one."""
    gate = Gate()
    async with RawUpstream(gate) as upstream, pooled(upstream, max_connections=2) as pool:
        asking = [asyncio.ensure_future(ask(pool)) for _ in range(10)]
        await until(lambda: len(upstream.requests) == 2)
        gate.open.set()
        answers = await asyncio.gather(*asking)

    assert [b"ok"] * 10 == [answer.body for answer in answers]
    assert 2 == upstream.connections


async def test_ds_05_a_full_queue_is_said_so_at_once() -> None:
    """One more than may wait is refused with 503, and those who wait are served."""
    gate = Gate()
    async with RawUpstream(gate) as upstream, pooled(upstream, max_connections=1, max_waiting=2) as pool:
        asking = [asyncio.ensure_future(ask(pool)) for _ in range(3)]
        await until(lambda: pool.hosts[0].load == 3)
        with pytest.raises(UpstreamBusy):
            await ask(pool)
        gate.open.set()
        assert [b"ok"] * 3 == [answer.body for answer in await asyncio.gather(*asking)]


async def test_ds_05_one_who_gives_up_waiting_holds_nobody_up() -> None:
    """A cancelled waiter's turn goes to the next one, also if it was its turn already."""
    gate = Gate()
    async with RawUpstream(gate) as upstream, pooled(upstream, max_connections=1) as pool:
        asking = [asyncio.ensure_future(ask(pool)) for _ in range(5)]
        await until(lambda: pool.hosts[0].load == 5)
        asking[1].cancel()
        gate.open.set()
        await until(lambda: len(upstream.requests) >= 2)
        asking[2].cancel()
        answers = await asyncio.gather(*asking, return_exceptions=True)

    assert [asyncio.CancelledError] * len([each for each in answers if isinstance(each, BaseException)]) == [
        type(each) for each in answers if isinstance(each, BaseException)
    ]
    assert isinstance(answers[4], Recorder)
    assert b"ok" == answers[4].body


async def test_waiting_for_a_connection_has_an_end() -> None:
    """As long as a connection may take to come about."""
    async with RawUpstream(Gate()) as upstream, pooled(upstream, max_connections=1) as pool:
        await pool.start(exchange_for(Recorder()))
        with pytest.raises(UpstreamTimeout):
            await ask(pool, timeouts=TimeoutOptions(connect_seconds=0.2))
        assert 1 == pool.hosts[0].load


async def test_ds_05_a_dead_upstream_starves_no_other() -> None:
    """One upstream's full queue is its own."""
    async with RawUpstream(Gate()) as dead, RawUpstream() as live:
        pools = UpstreamPools(
            UpstreamOptions(urls=(each.url,), max_connections=1, max_waiting=0) for each in (dead, live)
        )
        first, second = pools.values()
        await first.start(exchange_for(Recorder()))
        with pytest.raises(UpstreamBusy):
            await ask(first)
        assert b"ok" == (await ask(second)).body
        await pools.close()


async def test_the_connection_that_was_used_last_is_used_next() -> None:
    """So that the others can idle out."""
    async with RawUpstream() as upstream, pooled(upstream) as pool:
        for _ in range(5):
            await ask(pool)

    assert {0} == {each.connection for each in upstream.requests}


async def test_idle_connections_are_few_and_not_for_ever() -> None:
    """More than may idle are closed when they are done; the others when they have idled too long."""
    gate = Gate()
    async with (
        RawUpstream(gate) as upstream,
        pooled(upstream, max_idle_connections=1, keepalive_timeout_seconds=1.0) as pool,
    ):
        asking = [asyncio.ensure_future(ask(pool)) for _ in range(3)]
        await until(lambda: len(upstream.requests) == 3)
        gate.open.set()
        await asyncio.gather(*asking)
        await until(lambda: len(pool.hosts[0].connections) == 1)
        await until(lambda: not pool.hosts[0].connections)


async def test_a_connection_retires(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is old it isn't used again, so that a change of the DNS comes through."""
    monkeypatch.setattr(pool_module, "MAX_AGE_SECONDS", 0.0)
    async with RawUpstream() as upstream, pooled(upstream) as pool:
        for _ in range(3):
            assert b"ok" == (await ask(pool)).body

    assert 3 == upstream.connections


async def test_round_robin_takes_turns() -> None:
    """Each of three hosts gets a third."""
    async with AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(RawUpstream()) for _ in range(3)]
        pool = await stack.enter_async_context(pooled(*upstreams))
        for _ in range(9):
            await ask(pool)

    assert [3, 3, 3] == [len(each.requests) for each in upstreams]


async def test_least_connections_avoids_the_busy_one() -> None:
    """A host that is slow to answer gets nothing more while another one is idle."""
    async with (
        RawUpstream(Gate()) as slow,
        RawUpstream() as quick,
        pooled(slow, quick, balance=Balance.LEAST_CONNECTIONS) as pool,
    ):
        waiting: list[Recorder] = []
        while not slow.requests:
            waiting.append(Recorder())
            await pool.start(exchange_for(waiting[-1]))
            await asyncio.sleep(0.01)
        before = len(quick.requests)
        for _ in range(5):
            assert b"ok" == (await ask(pool)).body

    assert (1, 5) == (len(slow.requests), len(quick.requests) - before)


async def test_a_host_that_takes_no_connection_is_passed_over_and_rests() -> None:
    """Every request is served by the other host; after some failures the dead one isn't even tried, for a while."""
    async with RawUpstream(port=free_port()) as dead, RawUpstream() as live:
        await dead.stop()
        async with pooled(dead, live, max_failures=2, rest_seconds=2.0) as pool:
            for _ in range(6):
                assert b"ok" == (await ask(pool, method="POST")).body
            assert pool.hosts[0].resting_until > asyncio.get_running_loop().time()
            async with RawUpstream(port=dead.port) as back:
                await until(lambda: pool.hosts[0].resting_until < asyncio.get_running_loop().time())
                for _ in range(4):
                    assert b"ok" == (await ask(pool)).body
                assert back.requests


async def test_when_all_hosts_rest_all_are_tried() -> None:
    """The last hope is better than none."""
    async with (
        RawUpstream() as first,
        RawUpstream() as second,
        pooled(first, second, max_failures=1, rest_seconds=60) as pool,
    ):
        for host in pool.hosts:
            host.failed()
        assert b"ok" == (await ask(pool)).body


async def test_a_dead_upstream_is_unavailable() -> None:
    """Without a host that takes a connection there is no answer."""
    async with RawUpstream() as upstream:
        await upstream.stop()
        async with pooled(upstream) as pool:
            with pytest.raises(UpstreamUnavailable):
                await ask(pool)


@contextmanager
def swallowing() -> Iterator[str]:
    """A host whose backlog is full: connections to it neither come about nor are refused."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            held = stack.enter_context(socket.socket())
            held.setblocking(False)
            held.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_a_host_that_never_takes_a_connection_times_out() -> None:
    """A full backlog looks like that."""
    with swallowing() as url:
        pools = UpstreamPools([UpstreamOptions(urls=(url,))])
        with pytest.raises(UpstreamTimeout):
            await ask(next(iter(pools.values())), timeouts=TimeoutOptions(connect_seconds=0.3))
        await pools.close()


@on_both_loops
async def test_a_host_that_swallows_connections_is_passed_over_and_rests() -> None:
    """It has its share of the time, so that another one is tried within it; after some failures it gets a rest."""
    with swallowing() as url:
        async with RawUpstream() as live:
            pools = UpstreamPools([UpstreamOptions(urls=(url, live.url), max_failures=2, rest_seconds=60)])
            pool = next(iter(pools.values()))
            for _ in range(4):
                answer = await ask(pool, method="POST", timeouts=TimeoutOptions(connect_seconds=0.4))
                assert b"ok" == answer.body
            rests = [host.resting_until > pool.loop.time() for host in pool.hosts]
            await pools.close()

    assert [True, False] == rests


@on_both_loops
async def test_a_caller_that_leaves_is_no_failure_of_the_host() -> None:
    """Whoever has no patience must not have a host rested that takes its time."""
    with swallowing() as url:
        pools = UpstreamPools([UpstreamOptions(urls=(url,), max_failures=1)])
        pool = next(iter(pools.values()))
        asking = asyncio.ensure_future(ask(pool))
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await pools.close()

    assert (0.0, 0) == (pool.hosts[0].resting_until, pool.hosts[0].load)


TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"
TIMED_OUT_AND_CLOSED = TIMED_OUT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize(
    ("method", "answers", "status"),
    [
        ("GET", [OK, TIMED_OUT_AND_CLOSED, OK], 200),
        ("GET", [OK, TIMED_OUT_AND_CLOSED, TIMED_OUT_AND_CLOSED], 408),
        ("GET", [OK, TIMED_OUT], 408),
        ("POST", [OK, TIMED_OUT_AND_CLOSED], 408),
    ],
)
async def test_a_408_on_an_idle_connection_is_its_end(method: str, answers: list[bytes], status: int) -> None:
    """It crossed the request, which may be repeated on a new connection, once (RFC 9110 section 15.5.9)."""
    left = list(answers)

    async def script(got: RawRequest, wire: Wire) -> None:
        await wire.send(left.pop(0))

    async with RawUpstream(script) as upstream, pooled(upstream) as pool:
        await ask(pool)
        recorder = await ask(pool, method=method)

    assert recorder.head is not None
    assert (status, None, []) == (recorder.head.status, recorder.error, left)
    assert len(answers) - 1 == upstream.connections


async def test_a_408_on_a_new_connection_is_an_answer() -> None:
    """It is about this request, and no other."""
    async with RawUpstream(answering(TIMED_OUT_AND_CLOSED)) as upstream, pooled(upstream) as pool:
        recorder = await ask(pool)

    assert recorder.head is not None
    assert (408, 1) == (recorder.head.status, len(upstream.requests))


async def dying_once(method: str, *, answer_first: bytes = b"") -> tuple[Recorder, RawUpstream]:
    """Ask on a connection that dies instead of answering its second request."""

    async def script(got: RawRequest, wire: Wire) -> None:
        if len(upstream.requests) == 2:
            if answer_first:
                await wire.send(answer_first)
            wire.reset() if not answer_first else wire.writer.close()
        else:
            await wire.send(OK)

    async with RawUpstream(script) as upstream, pooled(upstream) as pool:
        await ask(pool)
        recorder = await ask(pool, method=method)
    return recorder, upstream


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
async def test_an_idempotent_request_survives_a_dead_idle_connection(method: str) -> None:
    """It was closed while the request was on its way: once more, on a new connection (RFC 9112 section 9.3.1)."""
    recorder, upstream = await dying_once(method)

    assert None is recorder.error
    assert (3, 2) == (len(upstream.requests), upstream.connections)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_another_request_is_not_repeated(method: str) -> None:
    """The upstream may have done it already."""
    recorder, upstream = await dying_once(method)

    assert isinstance(recorder.error, UpstreamUnavailable)
    assert 2 == len(upstream.requests)


async def test_nothing_is_repeated_after_a_byte_of_an_answer() -> None:
    """Once the upstream has begun to speak, it has heard the request."""
    recorder, upstream = await dying_once("GET", answer_first=b"HTTP/1.1 2")

    assert isinstance(recorder.error, UpstreamUnavailable)
    assert 2 == len(upstream.requests)


async def test_a_request_is_repeated_once() -> None:
    """A host that kills every connection isn't asked for ever; a fresh connection's death isn't an idle one's."""

    async def script(got: RawRequest, wire: Wire) -> None:
        if len(upstream.requests) == 1:
            await wire.send(OK)
        else:
            wire.reset()

    async with RawUpstream(script) as upstream, pooled(upstream) as pool:
        await ask(pool)
        recorder = await ask(pool)

    assert isinstance(recorder.error, UpstreamUnavailable)
    assert 3 == len(upstream.requests)


@on_both_loops
async def test_se_03_a_repeated_request_must_be_current_when_it_is_sent() -> None:
    """It may wait for another connection, and lose its leave meanwhile: then it isn't sent."""
    gate = asyncio.Event()

    async def script(got: RawRequest, wire: Wire) -> None:
        if got.target == b"/dies":
            await gate.wait()
            gate.clear()
            wire.reset()
            return
        if got.target == b"/waits":
            await gate.wait()
        await wire.send(OK)

    async with RawUpstream(script) as upstream, pooled(upstream, max_connections=1) as pool:
        await ask(pool)
        dies, waits = Recorder(), Recorder()
        await pool.start(exchange_for(dies, target="/dies"))
        waiting = asyncio.ensure_future(pool.start(exchange_for(waits, target="/waits")))
        await until(lambda: len(upstream.requests) == 2)
        gate.set()
        await until(lambda: len(upstream.requests) == 3)
        dies.current = False
        gate.set()
        await asyncio.wait_for(dies.outdated.wait(), 10)
        assert await waiting
        await waits.wait()
        assert b"ok" == (await ask(pool)).body

    assert [b"/", b"/dies", b"/waits", b"/"] == [each.target for each in upstream.requests]


async def test_a_repeated_request_that_finds_nobody_fails() -> None:
    """The receiver hears of it."""

    async def script(got: RawRequest, wire: Wire) -> None:
        if len(upstream.requests) == 2:
            assert upstream._server is not None
            upstream._server.close()
            wire.reset()
        else:
            await wire.send(OK)

    async with RawUpstream(script) as upstream, pooled(upstream) as pool:
        await ask(pool)
        recorder = await ask(pool)

    assert isinstance(recorder.error, UpstreamUnavailable)


async def test_a_unix_socket_is_an_upstream(tmp_path: Path) -> None:
    """Spelled unix:/path."""
    async with RawUpstream(unix_path=str(tmp_path / "up.sock")) as upstream, pooled(upstream) as pool:
        assert b"ok" == (await ask(pool)).body
        assert b"localhost" == pool.authority


async def test_routes_with_equal_options_share_a_pool() -> None:
    """So that the caps hold for both."""
    same = UpstreamOptions(urls=("http://127.0.0.1:1",))
    pools = UpstreamPools(
        [same, UpstreamOptions(urls=("http://127.0.0.1:1",)), UpstreamOptions(urls=("http://127.0.0.1:2",))]
    )

    assert 2 == len(pools)
    assert pools[same] is pools[UpstreamOptions(urls=("http://127.0.0.1:1",))]
    await pools.close()


async def test_closing_ends_what_is_under_way() -> None:
    """Its receiver hears that it failed, and nobody waits any more."""
    async with RawUpstream(Gate()) as upstream:
        pools = UpstreamPools([UpstreamOptions(urls=(upstream.url,))])
        recorder = Recorder()
        await next(iter(pools.values())).start(exchange_for(recorder))
        await pools.close()
        await recorder.wait()

    assert isinstance(recorder.error, UpstreamUnavailable)


# --- TLS


def server_context(authority: Authority, *, name: str, client_ca: str | None = None) -> ssl.SSLContext:
    leaf = authority.issue(name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf.certificate_file, leaf.key_file)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context


async def test_tls_asks_for_a_name_and_checks_it(tmp_path: Path) -> None:
    """With the CA and the name of the certificate, the answer comes."""
    authority = Authority(tmp_path)
    asked: list[str | None] = []
    context = server_context(authority, name="orders.internal")
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    async with (
        RawUpstream(answering(OK), tls=context) as upstream,
        pooled(upstream, tls=TlsOptions(ca_file=str(authority.ca_file)), sni="orders.internal") as pool,
    ):
        assert b"ok" == (await ask(pool)).body

    assert ["orders.internal"] == asked


async def test_cr_07_a_wrong_certificate_is_refused(tmp_path: Path) -> None:
    """Of another authority, or for another name: no connection, and no byte of the request."""
    (tmp_path / "other").mkdir()
    authority, other = Authority(tmp_path), Authority(tmp_path / "other")
    for context, ca_file, sni in (
        (server_context(authority, name="orders.internal"), other.ca_file, "orders.internal"),
        (server_context(authority, name="orders.internal"), authority.ca_file, "evil.internal"),
    ):
        async with (
            RawUpstream(tls=context) as upstream,
            pooled(upstream, tls=TlsOptions(ca_file=str(ca_file)), sni=sni) as pool,
        ):
            with pytest.raises(UpstreamUnavailable):
                await ask(pool)
        assert [] == upstream.requests


async def test_a_client_certificate_is_presented(tmp_path: Path) -> None:
    """To an upstream that demands one."""
    authority = Authority(tmp_path)
    client = authority.issue("broker")
    context = server_context(authority, name="orders.internal", client_ca=str(authority.ca_file))
    tls = TlsOptions(ca_file=str(authority.ca_file), certificate_file=client.certificate_file, key_file=client.key_file)
    async with (
        RawUpstream(tls=context) as upstream,
        pooled(upstream, tls=tls, sni="orders.internal") as pool,
    ):
        assert b"ok" == (await ask(pool)).body


@on_both_loops
async def test_up_04_over_tls_an_end_must_be_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An answer that ends with its connection is whole after a closure alert alone (RFC 9112 section 9.8)."""
    authority = Authority(tmp_path)

    async def script(got: RawRequest, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await asyncio.sleep(0.05)
        if got.target == b"/cut":
            wire.reset()  # it has nothing unread: the end looks like any other to TCP
        else:
            wire.writer.close()

    async with (
        RawUpstream(script, tls=server_context(authority, name="orders.internal")) as upstream,
        pooled(upstream, tls=TlsOptions(ca_file=str(authority.ca_file)), sni="orders.internal") as pool,
    ):
        whole, cut = await ask(pool), Recorder()
        await pool.start(exchange_for(cut, target="/cut"))
        await cut.wait()

    assert (None, b"half") == (whole.error, whole.body)
    assert isinstance(cut.error, UpstreamUnavailable)
    assert ["upstream_cut_off"] == [
        record.getMessage() for record in caplog.records if record.name.startswith("broker")
    ]


@pytest.mark.parametrize("tls", [TlsOptions(ca_file="/nonexistent"), TlsOptions(certificate_file="/nonexistent")])
async def test_cr_07_a_file_that_cant_be_read_stops_the_start(tls: TlsOptions) -> None:
    """An option that can't be applied isn't left out."""
    with pytest.raises(ConfigError):
        UpstreamPools([UpstreamOptions(urls=("https://orders.internal",), tls=tls)])

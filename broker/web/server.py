"""One process that serves, from its settings to a clean end after a signal."""

import asyncio
import gc
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ssl import SSLContext
from typing import Any

from aiohttp import web

from broker.config.settings import LogFormat, Settings
from broker.core.limit_options import LimitOptions
from broker.errors import OperatorError
from broker.services import logs
from broker.services.tls import server_context
from broker.web.reloads import Reloads
from broker.web.site import Site
from broker.web.workers import GENTLY

SUPERVISOR_CHECK_SECONDS = 1.0
"""How soon a worker notices that its supervisor was killed."""
IMPATIENT_SECONDS = 0.5
"""
A signal counts as the second one this long after the first. systemd sends one to each process, and the supervisor
forwards its own.
"""
LINGER_SECONDS = 5.0
"""How long a process that was replaced waits for callers that keep a connection, so that their next answer ends it."""

log = logging.getLogger(__name__)


def refused(reason: str) -> int:
    """Say why the start is refused, and return the exit code."""
    print(f"token-broker: {reason}", file=sys.stderr)  # noqa: T201 - before there is a log
    return 1


@dataclass(frozen=True, slots=True)
class Supervision:
    """
    What a process knows of its supervisor.

    Attributes:
        pid: Its process.
        ready: Tells it that this process serves.
        reloads: What came of those that it was asked for.
    """

    pid: int
    ready: Callable[[], None]
    reloads: Reloads


def serve(
    settings: Settings,
    *,
    public: Sequence[socket.socket],
    admin: Sequence[socket.socket],
    supervision: Supervision | None = None,
) -> int | str:
    """
    Serve on the given sockets in this process, until a signal or the supervisor's end.

    Returns:
        The exit code, or why the start is refused.
    """
    writer = logs.set_up(level=settings.log.level, as_json=settings.log.format is LogFormat.JSON)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_serve(settings, writer, public, admin, supervision))
    finally:
        writer.close()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


async def _serve(
    settings: Settings,
    writer: logs.LineWriter,
    public: Sequence[socket.socket],
    admin: Sequence[socket.socket],
    supervision: Supervision | None,
) -> int | str:
    stopping = _Stopping(None if supervision is None else supervision.pid)
    runners: list[web.BaseRunner] = []
    reloads = None if supervision is None else supervision.reloads
    try:
        from broker.web.app import Installation  # prometheus_client opens its files when it is imported

        installation = Installation(settings, access_log=_access_log(settings, writer))
        for notice in settings.warnings:
            log.warning("configuration_notice", extra={"notice": str(notice)})
        if is_compiling():
            log.warning("experimental_compiler", extra={"look_at": "PYTHON_JIT"})
        await installation.start()
        if public:
            tls = None if settings.tls is None else server_context(settings.tls)
            runners.append(await _listen(installation.public_runner(), public, settings.limits, tls))
        if admin:
            runners.append(await _listen(installation.admin_runner(reloads), admin, settings.limits))
    except OperatorError as error:
        return str(error)
    except OSError as fault:  # what stands in the way is the machine's state, which a traceback wouldn't explain
        return f"the start failed: {fault}"
    settle()
    log.info("started", extra={"public_url": str(settings.public_url), "listen": _names(*public, *admin)})
    if supervision is not None:
        supervision.ready()
    await stopping.wait()
    log.info("stopping", extra={"drain_seconds": settings.drain_timeout_seconds})
    installation.readiness.draining = True
    drained = asyncio.gather(*(_end(runner, gently=stopping.gently) for runner in runners))
    if not await stopping.again_before(drained):
        log.warning("stopped_at_once")
        return 1
    await installation.close()
    log.info("stopped")
    return 0


def _access_log(settings: Settings, writer: logs.LineWriter) -> Callable[[str], None] | None:
    """Return what takes the access lines, which are composed as JSON, the cheapest form."""
    if not settings.log.access:
        return None
    return writer.write if settings.log.format is LogFormat.JSON else lambda line: writer.write(logs.as_text(line))


def is_compiling() -> bool:
    """Whether Python's experimental compiler is on. That of 3.15.0 lets correct code fail in the store's calls."""
    compiler = getattr(sys, "_jit", None)
    return compiler is not None and bool(compiler.is_enabled())


def settle() -> None:
    """
    Spare the garbage collector what stays as long as the process: modules, classes, the installation.

    A full collection would visit all of it each time, and stop every request for more than ten milliseconds.
    """
    gc.collect()  # whatever is garbage at this moment would stay, too
    gc.freeze()


async def _listen(
    runner: web.BaseRunner, sockets: Sequence[socket.socket], limits: LimitOptions, tls: SSLContext | None = None
) -> web.BaseRunner:
    await runner.setup()
    for each in sockets:
        await Site(runner, each, tls=tls, handshake_seconds=limits.header_timeout_seconds).start()
    return runner


async def _end(runner: web.BaseRunner, *, gently: bool) -> None:
    from broker.web.connections import ProxyRunner

    if isinstance(runner, ProxyRunner):
        await runner.drain(linger_seconds=LINGER_SECONDS if gently else 0.0)
    await runner.cleanup()


def _names(*sockets: socket.socket) -> list[str]:
    return sorted({"{}:{}".format(*each.getsockname()[:2]) for each in sockets})


class _Stopping:
    """Tells of stop signals: the first asks for a clean end, the second for an end."""

    def __init__(self, supervisor: int | None) -> None:
        self.gently = False
        self._first = asyncio.Event()
        self._second = asyncio.Event()
        self._supervisor = supervisor
        self._impatient_at = math.inf
        self._loop = loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        loop.add_signal_handler(GENTLY, self._stop_gently)
        if supervisor is None:
            loop.add_signal_handler(signal.SIGINT, self._stop)
            loop.add_signal_handler(signal.SIGHUP, partial(log.info, "sighup_ignored"))

    def _stop(self) -> None:
        now = self._loop.time()
        if now >= self._impatient_at:
            self._second.set()
        self._impatient_at = min(self._impatient_at, now + IMPATIENT_SECONDS)
        self._first.set()

    def _stop_gently(self) -> None:
        self.gently = True
        self._first.set()

    async def wait(self) -> None:
        """Return at the first signal, or when the supervisor is gone."""
        while not self._first.is_set() and self._supervisor in (None, os.getppid()):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._first.wait(), SUPERVISOR_CHECK_SECONDS)
        self._first.set()

    async def again_before(self, ending: "asyncio.Future[list[None]]") -> bool:
        """Wait for *ending*. Returns False if a second signal came before it."""
        second = asyncio.get_running_loop().create_task(self._second.wait(), name="second-signal")
        both: set[asyncio.Future[Any]] = {ending, second}
        done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        second.cancel()
        # Of what is given up nothing is left to be told: the event loop cancels it, and asyncio would log that.
        ending.add_done_callback(lambda given_up: given_up.cancelled() or given_up.exception())
        return ending in done

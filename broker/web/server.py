"""From settings to listening sockets, and from a signal to a clean end."""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from aiohttp import web

from broker.config.settings import LogFormat, Settings
from broker.errors import OperatorError
from broker.services import logs
from broker.web import workers
from broker.web.floors import check_libraries

SUPERVISOR_CHECK_SECONDS = 1.0
"""How soon a worker notices that its supervisor was killed."""

log = logging.getLogger(__name__)


def run(settings: Settings) -> int:
    """
    Serve until SIGTERM or SIGINT.

    Returns:
        The exit code: 0 after a clean end, 1 if the start was refused.
    """
    try:
        check_libraries()
        sockets = workers.listening_sockets(settings.listen.host, settings.listen.port, settings.workers)
        admin = workers.listening_sockets(settings.admin.listen.host, settings.admin.listen.port, 1)[0]
    except OperatorError as error:
        print(f"token-broker: {error}", file=sys.stderr)  # noqa: T201 - before there is a log
        return 1
    except OSError as error:
        print(f"token-broker: can't listen: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 1
    if settings.workers == 1:
        return serve(settings, public=sockets[0], admin=admin)
    logging.basicConfig(level=logging.INFO, handlers=[_plain_handler()])
    supervised = partial(serve, settings, supervisor=os.getpid())
    processes: list[workers.Process] = [partial(supervised, public=each, admin=None) for each in sockets]
    with workers.shared_metrics():
        return workers.Supervisor([*processes, partial(supervised, public=None, admin=admin)]).run()


def _plain_handler() -> logging.Handler:
    """The supervisor's log: no thread, since it forks."""
    handler = logging.StreamHandler()
    handler.setFormatter(logs.JsonFormatter())
    return handler


def serve(
    settings: Settings, *, public: socket.socket | None, admin: socket.socket | None, supervisor: int | None = None
) -> int:
    """Serve on the given sockets in this process, until a signal or the *supervisor*'s end. Returns the exit code."""
    writer = logs.set_up(level=settings.log.level, as_json=settings.log.format is LogFormat.JSON)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_serve(settings, writer, public, admin, supervisor))
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
    public: socket.socket | None,
    admin: socket.socket | None,
    supervisor: int | None,
) -> int:
    from broker.web.app import Installation

    installation = Installation(settings, access_log=writer.write if settings.log.access else None)
    stopping = _Stopping(supervisor)
    for notice in settings.warnings:
        log.warning("configuration_notice", extra={"notice": str(notice)})
    await installation.start()
    runners = []
    if public is not None:
        runners.append(await _listen(installation.public_runner(), public))
    if admin is not None:
        runners.append(await _listen(installation.admin_runner(), admin))
    settle()
    log.info("started", extra={"public_url": str(settings.public_url), "listen": _names(public, admin)})
    await stopping.wait()
    log.info("stopping", extra={"drain_seconds": settings.drain_timeout_seconds})
    installation.readiness.draining = True
    drained = asyncio.gather(*(runner.cleanup() for runner in runners))
    if not await stopping.again_before(drained):
        log.warning("stopped_at_once")
        return 1
    await installation.close(settings.drain_timeout_seconds)
    log.info("stopped")
    return 0


def settle() -> None:
    """
    Spare the garbage collector what stays as long as the process: modules, classes, the installation.

    A full collection would visit all of it each time, and stop every request for more than ten milliseconds.
    """
    gc.collect()  # whatever is garbage at this moment would stay, too
    gc.freeze()


async def _listen(runner: web.BaseRunner, on: socket.socket) -> web.BaseRunner:
    await runner.setup()
    await web.SockSite(runner, on).start()
    return runner


def _names(*sockets: socket.socket | None) -> list[str]:
    return ["{}:{}".format(*each.getsockname()[:2]) for each in sockets if each is not None]


class _Stopping:
    """Tells of stop signals: the first asks for a clean end, the second for an end."""

    def __init__(self, supervisor: int | None) -> None:
        self._first = asyncio.Event()
        self._second = asyncio.Event()
        self._supervisor = supervisor
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        # A reload would have to be a restart: a SIGHUP from a terminal that closes must not be one.
        loop.add_signal_handler(signal.SIGHUP, partial(log.info, "sighup_ignored"))

    def _stop(self) -> None:
        (self._second if self._first.is_set() else self._first).set()

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
        return ending in done

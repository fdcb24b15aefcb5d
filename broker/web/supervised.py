"""From a configuration to processes, and from the next one to the next."""

import logging
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial

from broker.config.problems import ConfigErrors
from broker.config.settings import LogFormat, Settings
from broker.errors import ConfigError, OperatorError
from broker.services import logs
from broker.web.floors import check_libraries
from broker.web.listening import Listeners, Wanted
from broker.web.reloads import Reloads
from broker.web.server import Supervision, refused, serve
from broker.web.shared_metrics import VARIABLE, SharedMetrics
from broker.web.workers import Plan, Process, Supervisor

MAX_PROBLEMS = 10
"""How many mistakes of a configuration are logged."""

log = logging.getLogger(__name__)


def run(settings: Settings, reread: Callable[[], Settings]) -> int:
    """
    Serve until SIGTERM or SIGINT.

    Args:
        settings: The configuration.
        reread: Reads it again, after a SIGHUP. Raises ``ConfigErrors``.

    Returns:
        The exit code: 0 after a clean end, 1 if the start was refused.
    """
    metrics, reloads = SharedMetrics(), Reloads()
    installed = _Installed(metrics, reloads)
    try:
        check_libraries()
        plan = installed.plan(settings)
    except OperatorError as error:
        return refused(str(error))
    logging.basicConfig(level=logging.INFO, handlers=[installed.log_handler])
    try:
        renew = partial(installed.renew, reread)
        supervisor = Supervisor(plan, renew=renew, forget=metrics.forget, reloaded=reloads.note)
        code = supervisor.run()
    finally:
        metrics.close()
    return refused(supervisor.refusal) if supervisor.refusal else code


class _Installed:
    """
    Turns configurations into processes, on sockets that stay where their addresses do.

    Attributes:
        log_handler: The supervisor's log, in the form of those processes' logs: no thread, since it forks.
    """

    def __init__(self, metrics: SharedMetrics, reloads: Reloads) -> None:
        self._metrics = metrics
        self._reloads = reloads
        self._listeners = Listeners()
        self._wanted: Wanted = {}
        self.log_handler = logging.StreamHandler()

    def plan(self, settings: Settings) -> Plan:
        """
        Return what is to run by *settings*.

        Raises:
            ConfigError: If an address can't be bound.
        """
        wanted = {
            "listen": ((settings.listen.host, settings.listen.port), settings.workers),
            "admin.listen": ((settings.admin.listen.host, settings.admin.listen.port), 1),
        }
        sockets = self._listeners.open(wanted)
        if not self._wanted:
            self._adopt(settings, wanted)
        return Plan(
            processes=self._processes(settings, sockets["listen"], sockets["admin.listen"]),
            drain_seconds=settings.end_seconds,
            adopted=partial(self._adopt, settings, wanted),
            dropped=lambda: self._listeners.close_others(self._wanted),
        )

    def renew(self, reread: Callable[[], Settings]) -> Plan | None:
        """Return what is to run by the configuration as it is; None if it is refused, which is logged."""
        log.info("reloading")
        try:
            settings = reread()
            _check_store(settings)
            return self.plan(settings)
        except ConfigErrors as errors:
            problems = [str(problem) for problem in errors.problems[:MAX_PROBLEMS]]
            log.error("reload_refused", extra={"problems": problems})  # noqa: TRY400 - it says all
        except OperatorError as error:
            log.error("reload_refused", extra={"reason": str(error)})  # noqa: TRY400
        except Exception:
            # Whatever it is, it must not end what serves.
            log.exception("reload_refused")
        return None

    def _adopt(self, settings: Settings, wanted: Wanted) -> None:
        self._wanted = wanted
        self.log_handler.setFormatter(logs.formatter(as_json=settings.log.format is LogFormat.JSON))
        self._listeners.close_others(wanted)

    def _processes(
        self, settings: Settings, public: Sequence[socket.socket], admin: Sequence[socket.socket]
    ) -> list[Process]:
        supervisor = os.getpid()
        if settings.workers == 1:
            return [partial(self._run_process, settings, supervisor, None, public, admin)]
        run_process = partial(self._run_process, settings, supervisor, self._metrics.directory)
        # There may be more sockets than workers, since fewer workers than before serve.
        shares = [public[index :: settings.workers] for index in range(settings.workers)]
        return [*(partial(run_process, share, ()) for share in shares), partial(run_process, (), admin)]

    def _run_process(
        self,
        settings: Settings,
        supervisor: int,
        metrics: str | None,
        public: Sequence[socket.socket],
        admin: Sequence[socket.socket],
        ready: Callable[[], None],
    ) -> int | str:
        self._listeners.close_all_but([*public, *admin])
        if metrics is not None:
            os.environ[VARIABLE] = metrics
        return serve(settings, public=public, admin=admin, supervision=Supervision(supervisor, ready, self._reloads))


def _check_store(settings: Settings) -> None:
    if not settings.store.is_shared:
        raise ConfigError(
            "store.url: a memory store ends with its process, and all sessions with it; it needs a restart"
        )

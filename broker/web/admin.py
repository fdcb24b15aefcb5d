"""The operators' listener: health, readiness and metrics. It is on loopback unless the configuration says otherwise."""

import re
from collections.abc import Callable
from ipaddress import ip_address

from aiohttp import web
from aiohttp.typedefs import Handler

from broker.errors import StoreError
from broker.services import metrics
from broker.stores.base import Store

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::[0-9]{1,5})?")


class Readiness:
    """Whether this process should be sent requests."""

    def __init__(self, store: Store, *, is_shedding: Callable[[], bool] = lambda: False) -> None:
        """
        Args:
            store: Without it next to nothing can be served.
            is_shedding: Tells whether requests are refused because memory is nearly out.
        """
        self._store = store
        self._is_shedding = is_shedding
        self.draining = False

    async def reason_against(self) -> str | None:
        """Return why no requests should be sent here, or None."""
        if self.draining:
            return "draining"
        if self._is_shedding():
            return "overloaded"
        try:
            await self._store.ping()
        except StoreError:
            return "store_unavailable"
        return None


def admin_app(readiness: Readiness, reloads: metrics.ReloadCounts | None = None) -> web.Application:
    """
    Return the operators' application.

    Args:
        readiness: Whether requests should be sent here.
        reloads: What came of reloads; None for a process without a supervisor.
    """

    async def healthz(_request: web.Request) -> web.Response:
        """The process runs. It asks nobody: a store that is down is no reason to restart the broker."""
        return web.json_response({"status": "ok"})

    async def readyz(_request: web.Request) -> web.Response:
        reason = await readiness.reason_against()
        return web.json_response({"status": reason or "ok"}, status=503 if reason else 200)

    async def exposition(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(reloads), headers={"Content-Type": metrics.CONTENT_TYPE})

    app = web.Application(middlewares=[_host_guard])
    app.on_response_prepare.append(_name_no_software)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", exposition)
    return app


async def _name_no_software(_request: web.Request, response: web.StreamResponse) -> None:
    """As on the public listener, callers aren't told which parts of which versions they might attack."""
    response.headers["Server"] = "token-broker"
    response.headers["X-Content-Type-Options"] = "nosniff"


@web.middleware
async def _host_guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """
    Refuse other names of the loopback address.

    Whoever owns a name can let it lead to 127.0.0.1, and then a page of theirs reads here what it likes, as its own
    origin (DNS rebinding; SECURITY AD-01). Off loopback the operator's own names lead here, and any may be right.
    """
    transport = request.transport
    local = transport.get_extra_info("sockname") if transport is not None else None
    on_loopback = isinstance(local, tuple) and ip_address(local[0]).is_loopback
    if on_loopback and not all(_is_own(host) for host in request.headers.getall("Host", [])):
        return web.json_response({"status": "unknown_host"}, status=421)
    return await handler(request)


def _is_own(host: str) -> bool:
    """Whether nobody was asked where *host* leads."""
    spelled = _HOST.fullmatch(host)
    if spelled is None:
        return False
    name = spelled[1].strip("[]")
    try:
        ip_address(name)
    except ValueError:
        return name.lower() == "localhost"
    return True

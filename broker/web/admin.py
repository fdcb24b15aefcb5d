"""The operators' listener: health, readiness and metrics. It is on loopback unless the configuration says otherwise."""

import os

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest, multiprocess
from prometheus_client import REGISTRY as OWN_REGISTRY

from broker.errors import StoreError
from broker.stores.base import Store


class Readiness:
    """Whether this process should be sent requests."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.draining = False

    async def reason_against(self) -> str | None:
        """Return why no requests should be sent here, or None."""
        if self.draining:
            return "draining"
        try:
            await self._store.ping()
        except StoreError:
            return "store_unavailable"
        return None


def admin_app(readiness: Readiness) -> web.Application:
    """Return the operators' application."""

    async def healthz(_request: web.Request) -> web.Response:
        """The process runs. It asks nobody: a store that is down is no reason to restart the broker."""
        return web.json_response({"status": "ok"})

    async def readyz(_request: web.Request) -> web.Response:
        reason = await readiness.reason_against()
        return web.json_response({"status": reason or "ok"}, status=503 if reason else 200)

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(_registry()), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app


def _registry() -> CollectorRegistry:
    """The metrics of all processes, where there are several."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return OWN_REGISTRY
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry

"""The operators' listener: health, readiness and metrics. It is on loopback unless the configuration says otherwise."""

from aiohttp import web

from broker.errors import StoreError
from broker.services import metrics
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

    async def exposition(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers={"Content-Type": metrics.CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", exposition)
    return app

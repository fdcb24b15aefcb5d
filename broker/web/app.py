"""
The composition root: the one place where settings become objects.

    settings ─▶ store, keyring ─▶ vault, spool, servers ─▶ token broker ─▶ sessions ─▶ /bff and the proxy
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from broker.config.settings import Settings
from broker.core.forward_auth import ForwardAuthOptions
from broker.core.forwarded import TrustedProxies
from broker.core.grant import Grant
from broker.core.pressure import Pressure
from broker.core.session import Index
from broker.errors import ConfigError, StoreError, StoreMisplaced
from broker.services import metrics
from broker.services.callers import Callers
from broker.services.claims import ClaimsRenewal
from broker.services.clock import Clock, Randomness, SystemClock, SystemRandomness
from broker.services.handles import Handles
from broker.services.imports import Imports
from broker.services.keepalive import KeepAlive
from broker.services.keyring import Keyring
from broker.services.memory import MemoryWatch, control_groups
from broker.services.outbound import Outbound
from broker.services.pool import UpstreamPools
from broker.services.provider import AuthorizationServer, Identity
from broker.services.sessions import Sessions
from broker.services.shared_limits import SharedLimits
from broker.services.spool import Spool
from broker.services.standing import StandingGrants
from broker.services.tasks import Tasks
from broker.services.tokens import TokenBroker
from broker.services.vault import Vault
from broker.services.watchdog import watch_event_loop
from broker.stores.open import open_store
from broker.stores.options import StoreKind
from broker.web.admin import Readiness, admin_app
from broker.web.admin_api import AdminApi
from broker.web.auth import auth_app
from broker.web.connections import ProxyRunner
from broker.web.forward_auth import ForwardAuth
from broker.web.middleware import Outermost
from broker.web.proxy import Proxy

STORE_RETRY_SECONDS = 1.0

log = logging.getLogger(__name__)


class Installation:
    """Everything that one process of the broker consists of."""

    def __init__(
        self,
        settings: Settings,
        *,
        access_log: Callable[[str], None] | None = None,
        clock: Clock | None = None,
        randomness: Randomness | None = None,
    ) -> None:
        """
        Args:
            settings: The whole configuration.
            access_log: Takes one line per request.
            clock: Time.
            randomness: Ids, keys, jitter.

        Raises:
            OperatorError: If a setting can't be applied as it is.
        """
        clock, randomness = clock or SystemClock(), randomness or SystemRandomness()
        self.settings = settings
        self.store = open_store(settings.store, clock, randomness)
        self.readiness = Readiness(self.store, is_shedding=self._is_shedding)
        keyring = Keyring(settings.keys, randomness)
        spool_key = "store.url" if settings.spool_dir is None else "spool_dir"
        self.spool = Spool(spool_directory(settings), keyring, randomness, key=spool_key)
        self.servers = {
            name: AuthorizationServer(
                name,
                options,
                outbound=Outbound(options.tls, insecure=options.insecure),
                clock=clock,
                randomness=randomness,
            )
            for name, options in settings.providers.items()
        }
        vault = Vault(self.store, keyring)
        self.standing = StandingGrants(
            settings.grants,
            servers=self.servers,
            vault=vault,
            store=self.store,
            clock=clock,
            randomness=randomness,
        )
        self.tokens = TokenBroker(
            store=self.store,
            vault=vault,
            spool=self.spool,
            servers=self.servers,
            clock=clock,
            randomness=randomness,
            cache_ttl_seconds=settings.session.cache_ttl_seconds,
            max_known=settings.session.max_cached,
            acquire=self.standing.acquire,
            has_session=self._has_session,
        )
        self.imports = Imports(
            tokens=self.tokens,
            servers=self.servers,
            vault=vault,
            keyring=keyring,
            clock=clock,
            randomness=randomness,
        )
        self.sessions = Sessions(
            self.store, keyring, settings.session, clock, randomness, touch_grant=self.tokens.touch
        )
        trusted = {
            "cache_ttl_seconds": settings.session.cache_ttl_seconds,
            "outage_grace_seconds": settings.session.outage_grace_seconds,
        }
        self.handles = Handles(self.store, keyring, clock, randomness, **trusted)
        self.callers = Callers(
            settings.callers, handles=self.handles, tokens=self.tokens, store=self.store, clock=clock, **trusted
        )
        self.keep_alive = KeepAlive(vault, self.tokens.refresher, self.tokens.revocations, clock, randomness)
        self.trusted_proxies = TrustedProxies(settings.trusted_proxies, settings.forwarding_field)
        self._limits = SharedLimits(self.store if settings.store.is_shared else None, keyring, clock.monotonic)
        self.upstreams = UpstreamPools(route.upstream_options for route in settings.routes)
        self.proxy = Proxy(
            routes=settings.routes,
            upstreams=self.upstreams,
            public_url=str(settings.public_url),
            sessions=self.sessions,
            tokens=self.tokens,
            trusted_proxies=self.trusted_proxies,
            standing_grants=self.standing.ids,
            callers=self.callers,
            allowed_parameters={name: server.options.allowed_parameters for name, server in self.servers.items()},
            base_path=settings.base_path,
            limits=settings.limits,
            events=self.store,
            access_log=access_log,
            clock=clock,
            randomness=randomness,
            rates=self._limits.buckets,
        )
        self._memory = MemoryWatch(
            self.proxy.gate.shedding, max_bytes=settings.limits.max_memory_bytes, groups=control_groups()
        )
        self._claims = ClaimsRenewal(self.servers, self.tokens, self.sessions)
        self.tokens.on_identified(self._renew_claims)
        self._keyring = keyring
        self._clock = clock
        self._randomness = randomness
        self._access_log = access_log
        self._tasks = Tasks()

    # --- what listens

    def public_runner(self) -> web.AppRunner:
        """Return what serves browsers and API clients."""
        outermost = Outermost(
            public_url=str(self.settings.public_url),
            login_url=f"{self.settings.base_path}/login" if self.servers else None,
            trusted_proxies=self.trusted_proxies,
            clock=self._clock,
            randomness=self._randomness,
            access_log=self._access_log,
        )
        app = web.Application(middlewares=[outermost])
        if self.settings.forward_auth is not None:
            self._forward_auth(self.settings.forward_auth, outermost).register(app)
        app.add_subapp(self.settings.base_path, self._auth_app())
        return ProxyRunner(
            app,
            proxy=self.proxy,
            outermost=outermost,
            limits=self.settings.limits,
            shutdown_timeout_seconds=self.settings.drain_timeout_seconds,
        )

    def _forward_auth(self, options: ForwardAuthOptions, outermost: Outermost) -> ForwardAuth:
        return ForwardAuth(
            options,
            gate=self.proxy.gate,
            routes=self.settings.routes,
            public_url=str(self.settings.public_url),
            base_path=self.settings.base_path,
            refuse=outermost.refuse,
        )

    def _auth_app(self) -> web.Application:
        return auth_app(
            public_url=str(self.settings.public_url),
            options=self.settings.login,
            same_site=self.settings.session.same_site,
            servers=self.servers,
            tokens=self.tokens,
            sessions=self.sessions,
            store=self.store,
            keyring=self._keyring,
            trusted_proxies=self.trusted_proxies,
            clock=self._clock,
            randomness=self._randomness,
            rates=self._limits.buckets,
        )

    def admin_runner(self, reloads: metrics.ReloadCounts | None = None) -> web.AppRunner:
        """Return what serves operators; *reloads* is what a supervisor's metrics are made of."""
        app = admin_app(self.readiness, reloads)
        if self.settings.admin.token is not None:
            api = AdminApi(
                token=self.settings.admin.token,
                tokens=self.tokens,
                imports=self.imports,
                standing=self.standing,
                handles=self.handles,
                servers=self.servers,
                routes=self.settings.routes,
                clock=self._clock,
            )
            app.add_subapp("/api", api.app())
        return web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2.0)

    # --- life

    async def start(self) -> None:
        """
        Open the spool and the store. A store that is down doesn't stop the start: it is asked again until it works.

        Raises:
            ConfigError: If the spool's directory can't be written, or no store can ever be where the URL says.
        """
        self.spool.open()
        try:
            await self._start_store()
        except StoreMisplaced as fault:
            await self.store.close()
            self.spool.close()
            raise ConfigError(f"store.url: {fault}") from fault
        except StoreError as fault:
            _tell_unavailable(fault)
            self._tasks.launch(self._start_store_later(fault.look_at), name="store-start")
        self._tasks.launch(self.keep_alive.run(), name="keep-alive")
        self._tasks.launch(self.standing.run(), name="standing-grants")
        self._tasks.launch(self.tokens.report(), name="grants-gauge")
        self._tasks.launch(watch_event_loop(self._clock), name="watchdog")
        self._tasks.launch(self._memory.run(), name="memory-watch")

    async def _start_store(self) -> None:
        await self.store.start()
        # Before the first request: an answer that a killed process had must not be asked for again.
        await self.tokens.recover()
        await self.standing.ensure()

    async def _start_store_later(self, look_at: str | None) -> None:
        while True:
            await asyncio.sleep(STORE_RETRY_SECONDS)
            try:
                await self._start_store()
            except StoreError as fault:
                if fault.look_at not in {None, look_at}:  # one mistake may hide the next
                    look_at = fault.look_at
                    _tell_unavailable(fault)
                continue
            log.warning("store_recovered")
            return

    async def close(self) -> None:
        """Let what runs end, save what must be saved, then release everything."""
        await self._tasks.cancel()
        self.standing.close()
        await self.proxy.close(self.settings.drain_timeout_seconds)
        await self.tokens.close(self.settings.end_seconds)
        await self.sessions.close()
        await self.upstreams.close()
        await self._limits.close()
        await self.callers.close()
        for server in self.servers.values():
            await server.close()
        await self.store.close()
        self.spool.close()

    def _is_shedding(self) -> bool:
        # One process of several is enough: what it refuses another installation could serve.
        return metrics.highest(metrics.LOAD_SHEDDING) >= Pressure.HIGH

    async def _has_session(self, grant_id: str) -> bool:
        return bool(await self.sessions.find_by(Index.GRANT, grant_id))

    def _renew_claims(self, grant: Grant, identity: Identity) -> None:
        self._tasks.launch(self._claims.renew(grant, identity), name="claims")


def _tell_unavailable(fault: StoreError) -> None:
    log.error("store_unavailable_at_start", extra={"error": str(fault), "look_at": fault.look_at})


def spool_directory(settings: Settings) -> Path | None:
    """Return where answers are spooled: as configured, or beside the SQLite file; None keeps them in memory alone."""
    if settings.spool_dir is not None:
        return settings.spool_dir
    location = settings.store.location
    if location.kind is StoreKind.SQLITE and location.path is not None:
        return location.path.with_name(f"{location.path.name}-spool")
    return None

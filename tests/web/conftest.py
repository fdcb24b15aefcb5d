"""A whole broker in the test's process: real login, real store in memory, real authorization server."""

import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from broker.core.forwarded import TrustedProxies
from broker.core.login import LoginOptions
from broker.core.provider import ProviderOptions
from broker.core.secret import Secret
from broker.core.session import Index, SameSite, SessionOptions
from broker.services.clock import SystemRandomness
from broker.services.keyring import Keyring, new_key
from broker.services.outbound import Outbound
from broker.services.provider import AuthorizationServer
from broker.services.sessions import Sessions
from broker.services.spool import Spool
from broker.services.tokens import TokenBroker
from broker.services.vault import Vault
from broker.stores.memory import MemoryBackend, MemoryStore
from broker.web.auth import auth_app
from broker.web.middleware import Outermost
from tests.support.authorization_server import CLIENT_ID, CLIENT_SECRET, LedgerServer
from tests.support.browser import Browser
from tests.support.clock import ManualClock
from tests.support.faulty_store import FaultyStore
from tests.support.proxying import Way

SITE = "https://app.example.com"
KEY = new_key(SystemRandomness())


@pytest.fixture(params=["fast", "slow"])
def either_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """The test runs twice: with the fast path, and with aiohttp's parser and handler alone."""
    Way.fast = request.param == "fast"
    yield
    Way.fast = True


@dataclass
class Process:
    """One process of the broker: its own cache and its own connection to the store."""

    store: FaultyStore
    sessions: Sessions
    tokens: TokenBroker
    servers: Mapping[str, AuthorizationServer]
    spool: Spool
    url: str

    async def kill(self) -> None:
        """Let nothing more come of what runs: only what is stored, or on the disk, remains."""
        self.store.down = True
        self.spool._pending.clear()
        if self.spool._file is not None:
            os.close(self.spool._file)
            self.spool._file = None
        await self.tokens.close(0)


@dataclass
class Site:
    """An installation of one or more processes behind ``https://app.example.com``, and its authorization servers."""

    clock: ManualClock
    backend: MemoryBackend
    providers: dict[str, LedgerServer]
    exits: AsyncExitStack
    processes: list[Process] = field(default_factory=list)

    @property
    def provider(self) -> LedgerServer:
        return self.providers["corp"]

    @property
    def process(self) -> Process:
        return self.processes[0]

    async def start(
        self,
        *,
        public_url: str = SITE,
        login: LoginOptions | None = None,
        same_site: SameSite = SameSite.STRICT,
        provider: Mapping[str, Any] | None = None,
        keys: list[Secret] | None = None,
        trusted_proxies: TrustedProxies | None = None,
        access_log: list[str] | None = None,
        tls: ssl.SSLContext | None = None,
        spool_dir: Path | None = None,
    ) -> Process:
        """Start one more process. With *tls* it really is at ``https://localhost``, on a port of its own."""
        listener = socket.create_server(("127.0.0.1", 0))
        if tls is not None:
            public_url = f"https://localhost:{listener.getsockname()[1]}"
            self.register(public_url)
        clock, randomness, trusted = self.clock, SystemRandomness(), trusted_proxies or TrustedProxies()
        options = login or LoginOptions()
        store = FaultyStore(MemoryStore(self.backend))
        await store.start()
        keyring = Keyring(keys or [KEY])
        spool = Spool(spool_dir, keyring, randomness)
        spool.open()
        servers = {
            name: AuthorizationServer(
                name,
                ProviderOptions(
                    **{
                        "issuer": server.url,
                        "client_id": CLIENT_ID,
                        "client_secret": Secret(CLIENT_SECRET),
                        "scope": "openid offline_access",
                        "allowed_parameters": ("login_hint", "prompt", "max_age"),
                        **(provider or {}),
                    }
                ),
                outbound=Outbound(None),
                clock=clock,
                randomness=randomness,
            )
            for name, server in self.providers.items()
        }

        async def has_session(grant_id: str) -> bool:
            return bool(await sessions.find_by(Index.GRANT, grant_id))

        tokens = TokenBroker(
            store=store,
            vault=Vault(store, keyring),
            spool=spool,
            servers=servers,
            clock=clock,
            randomness=randomness,
            has_session=has_session,
        )
        sessions = Sessions(store, keyring, SessionOptions(), clock, randomness, touch_grant=tokens.touch)
        outermost = Outermost(
            public_url=public_url,
            login_url=f"{options.base_path}/login",
            trusted_proxies=trusted,
            clock=clock,
            randomness=randomness,
            access_log=None if access_log is None else access_log.append,
        )
        app = web.Application(middlewares=[outermost])
        app.add_subapp(
            options.base_path,
            auth_app(
                public_url=public_url,
                options=options,
                same_site=same_site,
                servers=servers,
                tokens=tokens,
                sessions=sessions,
                store=store,
                keyring=keyring,
                trusted_proxies=trusted,
                clock=clock,
                randomness=randomness,
            ),
        )
        app.router.add_get("/{page:.*}", show_page)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)  # as web.connections does
        await runner.setup()
        await web.SockSite(runner, listener, ssl_context=tls).start()
        port = listener.getsockname()[1]
        for server in servers.values():
            self.exits.push_async_callback(server.close)
        self.exits.push_async_callback(tokens.close, 1.0)
        self.exits.push_async_callback(sessions.close)
        self.exits.push_async_callback(runner.cleanup)
        url = f"http://127.0.0.1:{port}" if tls is None else public_url
        self.processes.append(Process(store, sessions, tokens, servers, spool, url))
        return self.processes[-1]

    def register(self, origin: str) -> None:
        """Tell the authorization servers that the broker is at *origin*."""
        for server in self.providers.values():
            client = server.clients[CLIENT_ID]
            callbacks = tuple(f"{origin}/bff/callback/{name}" for name in self.providers)
            server.clients[CLIENT_ID] = replace(
                client,
                redirect_uris=(*client.redirect_uris, *callbacks),
                post_logout_redirect_uris=(*client.post_logout_redirect_uris, f"{origin}/"),
            )

    async def browser(self, process: Process | None = None) -> Browser:
        """Open a browser of its own."""
        browser = Browser(servers={SITE: (process or self.process).url})
        return await self.exits.enter_async_context(browser)

    def move(self, browser: Browser, process: Process) -> None:
        """Let a balancer send the browser to another process from now on."""
        browser.servers = {SITE: process.url}


async def show_page(request: web.Request) -> web.StreamResponse:
    """The application's own page: it shows which cookies came."""
    return web.json_response({"path": request.raw_path, "cookie": request.headers.get("Cookie", "")})


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    clock = ManualClock()
    async with AsyncExitStack() as exits:
        corp = await exits.enter_async_context(LedgerServer(clock=clock))
        other = await exits.enter_async_context(LedgerServer(clock=clock))
        site = Site(clock, MemoryBackend(clock), {"corp": corp, "other": other}, exits)
        site.register(SITE)
        yield site

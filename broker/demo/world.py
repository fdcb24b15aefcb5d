"""
The rest of the demo's world, in a process of its own: the authorization server and the API.

It lives by a pipe that its parent holds, so it ends after the broker, however the broker ended.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Iterable
from contextlib import closing
from socket import socket

from broker.core.secret import Secret
from broker.demo.authorization_server import AuthorizationServer
from broker.demo.clients import Client
from broker.demo.families import Families
from broker.demo.issuer import Issuer
from broker.demo.sample_api import AUDIENCE, SampleApi
from broker.demo.signing import SigningKey
from broker.services.clock import SystemClock, SystemRandomness

ACCESS_TOKEN_SECONDS = 15.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class World:
    """The process of the authorization server and the API."""

    def __init__(self, *, provider: socket, api: socket, client_secret: Secret, origin: str) -> None:
        """
        Args:
            provider: Where the authorization server listens.
            api: Where the API and the page listen.
            client_secret: The broker's.
            origin: Where the broker is seen.
        """
        self._provider = provider
        self._api = api
        self._client_secret = client_secret
        self._origin = origin
        self._pid = 0
        self._lifeline = -1

    def start(self, *, not_its_own: Iterable[socket]) -> None:
        """Fork. It must not run yet: neither an event loop nor a thread. The process closes what is *not_its_own*."""
        read_end, self._lifeline = os.pipe()
        # A Ctrl-C in these moments waits until the child ignores it.
        held_back = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        self._pid = os.fork()
        if self._pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, held_back)
            os.close(read_end)
            self._provider.close()
            self._api.close()
            return
        code = 1
        try:
            # Ctrl-C reaches the whole group; the broker still needs this process while it drains.
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            os.close(self._lifeline)
            for each in not_its_own:
                each.close()
            logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
            asyncio.run(self._play(read_end))
            code = 0
        finally:
            os._exit(code)

    def stop(self) -> None:
        """End the process, if it was started."""
        if self._pid:
            os.close(self._lifeline)
            os.waitpid(self._pid, 0)

    async def _play(self, lifeline: int) -> None:
        """Serve until the other end of *lifeline* closes."""
        provider = demo_authorization_server(client_secret=self._client_secret, origin=self._origin)
        await provider.start(listening=self._provider)
        api = SampleApi(issuer=provider.url, clock=SystemClock())
        await api.start(self._api)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(lifeline, ended.set)
        with closing(os.fdopen(lifeline)):
            await ended.wait()
        await api.stop()
        await provider.stop()


def demo_authorization_server(*, client_secret: Secret, origin: str) -> AuthorizationServer:
    """Return the demo's authorization server, with the broker at *origin* as its client."""
    clock, randomness = SystemClock(), SystemRandomness()
    client = Client(
        client_id="demo",
        client_secret=client_secret,
        redirect_uris=(f"{origin}/bff/callback/demo",),
        post_logout_redirect_uris=(f"{origin}/",),
    )
    issuer = Issuer(
        signing_key=SigningKey(),
        clock=clock,
        randomness=randomness,
        access_token_seconds=ACCESS_TOKEN_SECONDS,
        default_audience=AUDIENCE,
    )
    families = Families(clock=clock, randomness=randomness)
    return AuthorizationServer(clients=[client], families=families, issuer=issuer, clock=clock, randomness=randomness)

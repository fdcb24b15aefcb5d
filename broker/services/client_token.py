"""
The access token by which the broker authenticates itself (``client_access_token``).

Transmit Mosaic's backend API wants such a bearer at each call. It comes by ``client_credentials``, lasts an hour, and
can't be refreshed: a new one is asked for before it ends, and after a 401.
"""

import asyncio
from collections.abc import Awaitable, Callable

from broker.core.oauth import TokenFailure, TokenOutcome, TokenSet
from broker.core.secret import AccessToken
from broker.services.clock import Clock
from broker.services.tasks import Tasks
from broker.services.token_endpoint import spared

FAILURE_REST_SECONDS = 1.0
"""After a failure the next callers get the same answer for so long, so that a storm is one request per second."""


class ClientToken:
    """One access token, shared by all requests of this process."""

    def __init__(
        self, fetch: Callable[[], Awaitable[TokenOutcome]], *, clock: Clock, renew_before_expiry_seconds: float
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        self._leeway_seconds = renew_before_expiry_seconds
        self._tasks = Tasks()
        self._fetching: asyncio.Task[TokenOutcome] | None = None
        self._held: TokenSet | None = None
        self._failure: TokenFailure | None = None
        self._rest_until = float("-inf")

    async def get(self) -> AccessToken | TokenFailure:
        """Return a live token, or why there is none. Whatever fails here, no grant is touched by it."""
        held = self._held
        if held is not None and self._clock.now() < held.expires_at - self._leeway(held):
            return held.access_token
        outcome = await self._fetch_once()
        if isinstance(outcome, TokenSet):
            return outcome.access_token
        if held is not None and held is self._held and self._clock.now() < held.expires_at:
            return held.access_token
        return spared(outcome, "client_token")

    def reject(self, token: AccessToken) -> None:
        """Forget *token*: the server answered it with a 401. A newer one is kept."""
        if self._held is not None and self._held.access_token == token:
            self._held = None

    async def close(self) -> None:
        """Stop a request that is under way."""
        await self._tasks.cancel()

    def _leeway(self, held: TokenSet) -> float:
        # A token that lives shorter than the leeway would be asked for at every call.
        return min(self._leeway_seconds, (held.expires_at - held.requested_at) / 4)

    async def _fetch_once(self) -> TokenOutcome:
        if self._fetching is None:
            if self._failure is not None and self._clock.monotonic() < self._rest_until:
                return self._failure
            self._fetching = self._tasks.spawn(self._fetch_and_keep(), name="client token")
        return await asyncio.shield(self._fetching)

    async def _fetch_and_keep(self) -> TokenOutcome:
        try:
            outcome = await self._fetch()
            if isinstance(outcome, TokenSet):
                self._held, self._failure = outcome, None
            else:
                self._failure = outcome
                self._rest_until = self._clock.monotonic() + FAILURE_REST_SECONDS
            return outcome
        finally:
            self._fetching = None

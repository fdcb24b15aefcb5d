"""A resource server's question to a real authorization server: does this access token live?"""

import ssl
from collections.abc import Mapping
from typing import Any, Self

import aiohttp


class Introspection:
    """Judges tokens at an introspection endpoint (RFC 7662), each time anew, so that a revocation counts at once."""

    def __init__(
        self, endpoint: str, *, client_id: str, client_secret: str, trust: ssl.SSLContext | bool = True
    ) -> None:
        self._endpoint = endpoint
        self._trust = trust
        self._client = {"client_id": client_id, "client_secret": client_secret}
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=8, ssl=self._trust))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._http is not None:
            await self._http.close()

    async def __call__(self, token: str) -> Mapping[str, Any]:
        assert self._http is not None
        async with self._http.post(self._endpoint, data={"token": token, **self._client}) as response:
            assert response.status == 200, (response.status, await response.text())
            claims: Mapping[str, Any] = await response.json(content_type=None)
            return claims

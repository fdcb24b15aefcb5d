"""Asks the admin API of a broker that runs on this machine."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import aiohttp

from broker.config.settings import AdminOptions
from broker.core.json_object import read_object
from broker.core.secret import Secret
from broker.services.connection_faults import describe_fault

TIMEOUT_SECONDS = 30.0
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to connect, not where to listen


class CommandRefused(Exception):
    """A command can't be done. The text is for the operator's eyes."""


class AdminClient(AbstractAsyncContextManager["AdminClient"]):
    """A connection to the admin API; a context manager."""

    def __init__(self, options: AdminOptions) -> None:
        """
        Args:
            options: Where the broker's admin listener is, and its token.

        Raises:
            CommandRefused: If the configuration has no ``admin.token``: there is no API then.
        """
        if options.token is None:
            raise CommandRefused("admin.token: the broker has no admin API without it")
        host, port = _WILDCARDS.get(options.listen.host, options.listen.host), options.listen.port
        self._url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._token: Secret = options.token
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # No proxy of the environment, no redirect: the token goes to the listener and nowhere else.
        self._http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS), cookie_jar=aiohttp.DummyCookieJar()
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.close()

    async def ask(
        self,
        method: str,
        path: str,
        content: Mapping[str, object] | None = None,
        *,
        query: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """
        Return the members of an answer.

        Args:
            method: The HTTP method.
            path: Below ``/api``; ids from a command line are quoted by the caller.
            content: What is sent as JSON.
            query: Parameters.

        Raises:
            CommandRefused: If there is no answer, or it isn't a success.
        """
        assert self._http is not None, "used outside its context"
        try:
            async with self._http.request(
                method,
                f"{self._url}/api{path}",
                params=query,
                json=content,
                headers={"Authorization": f"Bearer {self._token.reveal()}"},
                allow_redirects=False,
            ) as response:
                members = read_object(await response.read()) or {}
        except (aiohttp.ClientError, TimeoutError) as fault:
            raise CommandRefused(f"no broker answers at {self._url} (admin.listen): {describe_fault(fault)}") from None
        if response.status == 401:
            raise CommandRefused("admin.token: the broker that runs has another one")
        if not 200 <= response.status <= 299:
            raise CommandRefused(printable(members.get("title", f"the broker answered {response.status}")))
        return members


def quoted(name: str) -> str:
    """Return an id from a command line as one segment of a path."""
    return quote(name, safe="")


def printable(value: object) -> str:
    """Return *value* as text that can't steer a terminal, ``-`` for nothing."""
    text = "-" if value is None or value == "" else str(value)
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)

"""A LedgerServer in a process of its own, so that its ledger outlives the brokers that a test kills."""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import aiohttp

from tests.support.authorization_server import Behaviour
from tests.support.ledger import Ledger

ROOT = Path(__file__).parents[2]


class RemoteLedgerServer:
    """Starts the process, and speaks to its control interface."""

    def __init__(self, *, port: int = 0, redirect_uris: Sequence[str] = (), **behaviour: Any) -> None:
        self.url = ""
        self._port = port
        self._redirect_uris = redirect_uris
        self._behaviour = Behaviour(**behaviour)
        self._process: asyncio.subprocess.Process | None = None
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        arguments = ["--port", str(self._port), "--behaviour", json.dumps(self._behaviour.to_document())]
        for uri in self._redirect_uris:
            arguments += ["--redirect-uri", uri]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.support.authorization_server",
            *arguments,
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.url = json.loads(await self._process.stdout.readline())["url"]
        self._http = aiohttp.ClientSession(self.url)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._http is not None:
            await self._http.close()
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            await self._process.wait()

    async def ledger(self) -> Ledger:
        """Return the ledger as it is now."""
        return Ledger.from_document(await self._call("GET", "/_ledger"))

    async def issue(self, subject: str = "alice", **wanted: Any) -> dict[str, Any]:
        """As :meth:`LedgerServer.issue`."""
        issued: dict[str, Any] = await self._call("POST", "/_issue", {"subject": subject, **wanted})
        return issued

    async def issue_many(self, subjects: Sequence[str], **wanted: Any) -> list[dict[str, Any]]:
        """One grant for each of *subjects*."""
        issued: list[dict[str, Any]] = await self._call("POST", "/_issue", {"subjects": list(subjects), **wanted})
        return issued

    async def fail_next(self, how: str = "status", **fault: Any) -> None:
        """As :meth:`LedgerServer.fail_next`."""
        await self._call("POST", "/_faults", {"how": how, **fault})

    async def clear_faults(self) -> None:
        await self._call("DELETE", "/_faults")

    async def configure(self, **changes: Any) -> None:
        """As :meth:`LedgerServer.configure`."""
        jsonable = {name: sorted(value) if isinstance(value, frozenset) else value for name, value in changes.items()}
        await self._call("POST", "/_behaviour", jsonable)

    async def revoke_subject(self, subject: str, *, access_tokens_only: bool = False) -> None:
        await self._call("POST", "/_revoke", {"subject": subject, "access_tokens_only": access_tokens_only})

    async def logout_token(self, subject: str) -> str:
        """As :meth:`LedgerServer.logout_token`."""
        return str(await self._call("GET", f"/_logout_token?subject={subject}"))

    async def has_ended_all(self) -> bool:
        """Return whether no family of refresh tokens lives."""
        return all(family.revoked for family in (await self.ledger()).families.values())

    async def _call(self, method: str, path: str, document: Any = None) -> Any:
        assert self._http is not None
        async with self._http.request(method, path, json=document) as response:
            response.raise_for_status()
            return await response.json()

"""Faults that a test server commits at exactly the named call."""

import asyncio
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from aiohttp import web


class How(StrEnum):
    """What the server does instead of answering."""

    STATUS = "status"
    """Answers ``status`` with ``body`` and ``headers``."""
    CLOSE = "close"
    """Closes the connection without a byte."""
    RESET = "reset"
    """Resets the connection (RST)."""
    HANG = "hang"
    """Answers nothing until it is released or stopped."""
    WAIT = "wait"
    """Goes on with the call, and answers it, once it is released. Only of the token endpoint."""
    GARBAGE = "garbage"
    """A 200 with JSON that ends too early."""
    TRUNCATED = "truncated"
    """A 200 whose connection closes before its content is whole."""


@dataclass(slots=True, kw_only=True)
class Fault:
    """
    One rule.

    Attributes:
        how: What is done.
        when: ``before`` the server acts on the request, or ``after`` it did and would answer.
        endpoint: The last part of the endpoint's path: ``token``, ``jwks``, ``revoke`` …
        grant_type: Only token requests of this type.
        subject: Only refreshes of this user's grants.
        skip: How many matching calls pass first.
        count: How many calls it strikes; None: all, until it is cleared.
        status: For ``status``.
        body: For ``status``.
        headers: For ``status``.
        delay_seconds: Waited before it is done.
    """

    how: How = How.STATUS
    when: Literal["before", "after"] = "before"
    endpoint: str = "token"
    grant_type: str | None = None
    subject: str | None = None
    skip: int = 0
    count: int | None = 1
    status: int = 500
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.how = How(self.how)


class Faults:
    """The faults that are still to come, oldest first."""

    def __init__(self) -> None:
        self._rules: list[Fault] = []
        self._released = asyncio.Event()

    def __len__(self) -> int:
        return len(self._rules)

    def add(self, fault: Fault) -> None:
        self._rules.append(fault)

    def clear(self) -> None:
        """Forget every fault, and let go of what hangs."""
        self._rules.clear()
        self.release()

    def release(self) -> None:
        """Close the connections that hang, and let go on what waits."""
        self._released.set()
        self._released = asyncio.Event()

    def take(self, endpoint: str, *, grant_type: str | None = None, subject: str | None = None) -> Fault | None:
        """Return the fault that strikes this call, and count it."""
        for fault in self._rules:
            if fault.endpoint != endpoint:
                continue
            if fault.grant_type not in {None, grant_type} or fault.subject not in {None, subject}:
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            if fault.count is not None:
                fault.count -= 1
                if fault.count == 0:
                    self._rules.remove(fault)
            return fault
        return None

    async def released(self) -> None:
        """Wait until what hangs or waits is let go of."""
        await self._released.wait()

    async def commit(self, fault: Fault, request: web.Request) -> web.StreamResponse:
        """Do what *fault* says."""
        if fault.delay_seconds:
            await asyncio.sleep(fault.delay_seconds)
        match fault.how:
            case How.STATUS:
                return web.Response(status=fault.status, text=fault.body, headers=fault.headers)
            case How.GARBAGE:
                return web.Response(text='{"access_token": "at_', content_type="application/json")
            case How.TRUNCATED:
                return await self._truncated(request)
            case How.HANG:
                await self.released()
            case How.WAIT:
                raise NotImplementedError(f"{fault.endpoint} doesn't wait")
            case How.RESET:
                reset(request)
            case How.CLOSE:
                pass
        if request.transport is not None:
            request.transport.close()
        return web.Response()  # goes nowhere: the connection is closed

    async def _truncated(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = 1000
        await response.prepare(request)
        await response.write(b'{"access_token": "at_')
        if request.transport is not None:
            request.transport.close()
        return response


def reset(request: web.Request) -> None:
    """Reset the connection of *request*: the peer reads ECONNRESET, not an end."""
    transport = request.transport
    if transport is None:
        return
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()

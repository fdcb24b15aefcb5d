"""A receiver that keeps what it is told."""

import asyncio
from dataclasses import dataclass, field

from broker.core.response_head import ResponseHead, ResponseRules
from broker.core.upstream_options import TimeoutOptions
from broker.errors import UpstreamError
from broker.services.upstream import Exchange


@dataclass(slots=True)
class Recorder:
    """Implements ``services.upstream.Receiver``."""

    informational: list[int] = field(default_factory=list)
    head: ResponseHead | None = None
    upgraded: bool = False
    body: bytes = b""
    pieces: int = 0
    complete_at_once: bool = False
    error: UpstreamError | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    paused: int = 0
    current: bool = True
    outdated: asyncio.Event = field(default_factory=asyncio.Event)

    def on_informational(self, head: ResponseHead) -> None:
        self.informational.append(head.status)

    def on_head(self, head: ResponseHead, body: bytes, *, complete: bool) -> None:
        assert self.head is None, "one head per answer"
        self.head = head
        self.body += body
        self.complete_at_once = complete

    def on_upgraded(self, head: ResponseHead, body: bytes) -> None:
        self.upgraded = True
        self.body += body

    def on_body(self, body: bytes) -> None:
        assert body, "never empty"
        self.body += body
        self.pieces += 1

    def on_end(self) -> None:
        assert not self.ended.is_set(), "told once"
        self.ended.set()

    def on_failed(self, error: UpstreamError) -> None:
        assert not self.ended.is_set(), "told once"
        self.error = error
        self.ended.set()

    def on_write_paused(self) -> None:
        self.paused += 1

    def on_write_resumed(self) -> None:
        self.paused -= 1

    def is_current(self) -> bool:
        return self.current

    def on_outdated(self) -> None:
        assert not self.ended.is_set(), "not after the end"
        self.outdated.set()

    async def wait(self) -> None:
        await asyncio.wait_for(self.ended.wait(), 10)


def exchange_for(
    recorder: Recorder, *, method: str = "GET", target: str = "/", timeouts: TimeoutOptions | None = None
) -> Exchange:
    """Return a request without a body, whose answer goes to *recorder*."""
    head = f"{method} {target} HTTP/1.1\r\nHost: up\r\n\r\n".encode()
    return Exchange(method, head, recorder, ResponseRules(), timeouts or TimeoutOptions())

"""
The only HTTP client towards an authorization server.

What came of a request is a value of a closed set, and one distinction in it decides whether a grant may be lost:
:class:`NotSent` means that no byte of the request has left, so the server can't have processed it; :class:`NoAnswer`
means that it may have.

Three things are done against surprises. Redirects are never followed. Each connection serves one request, since a
server that closes an idle connection just when a refresh is written on it would turn a harmless refresh into one in
doubt. And no cookie is kept.
"""

import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict
from yarl import URL

from broker.core.client_auth import TlsOptions
from broker.core.outbound_urls import is_forbidden, url_refusal
from broker.services.connection_faults import describe_fault
from broker.services.deadline import deadline
from broker.services.tls import client_context

log = logging.getLogger(__name__)

MAX_CONTENT_BYTES = 512 * 1024
"""Larger answers are cut off: no metadata, key set or token response comes near."""

HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "token-broker"}
"""Sent with each request. GitHub answers form-encoded without the first, and not at all without the last."""

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=None, sock_read=None, sock_connect=None)
"""aiohttp's own would drop an answer that came while the process stood still."""

MAX_CONNECTIONS = 100
"""Towards one authorization server, from one process. Further requests queue up to their deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """
    The server answered.

    Attributes:
        status: The HTTP status.
        headers: The header fields.
        content: The content; None if it was cut off, undecodable or too large.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class NotSent:
    """No byte of the request has left: no connection, no name, no TLS, or a URL that is refused."""

    reason: str


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """The request was sent, at least in part, and no answer came."""

    reason: str


Exchange = Answer | NotSent | NoAnswer


class Outbound:
    """Requests to one authorization server."""

    def __init__(self, tls: TlsOptions | None = None, *, insecure: bool = False) -> None:
        """
        Args:
            tls: CA and client certificate.
            insecure: Allow plain http off loopback.

        Raises:
            ConfigError: If a certificate or key can't be loaded. The start must be refused (CVE-2026-22750).
        """
        self._ssl = client_context(tls or TlsOptions())
        self._insecure = insecure
        self._session: aiohttp.ClientSession | None = None

    async def get(self, url: str, *, headers: Mapping[str, str] | None = None, timeout_seconds: float) -> Exchange:
        """Send a GET."""
        return await self._request("GET", url, headers or {}, None, timeout_seconds)

    async def post(
        self,
        url: str,
        *,
        content: bytes,
        headers: Mapping[str, str],
        timeout_seconds: float,
        is_late: Callable[[], bool] = lambda: False,
    ) -> Exchange:
        """
        Send a POST, once. Whether it may be sent again is for the caller to judge.

        Args:
            url: Where to.
            content: What.
            headers: Its header fields.
            timeout_seconds: For all of it.
            is_late: Is asked in the last moment, with the connection open: if it says yes, nothing is sent.
        """
        return await self._request("POST", url, headers, content, timeout_seconds, is_late)

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    async def _request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes | None,
        timeout_seconds: float,
        is_late: Callable[[], bool] = lambda: False,
    ) -> Exchange:
        if (refusal := url_refusal(url, insecure=self._insecure)) is not None:
            return NotSent(f"the URL {refusal}")
        progress = SimpleNamespace(writing=False, has_content=content is not None, is_late=is_late)
        answer: Answer | None = None
        try:
            async with (
                deadline(timeout_seconds),
                self._client().request(
                    method,
                    URL(url, encoded=True),
                    data=content,
                    headers={**HEADERS, **headers},
                    allow_redirects=False,
                    timeout=_NO_TIMEOUT,
                    trace_request_ctx=progress,
                ) as response,
            ):
                answer = Answer(status=response.status, headers=CIMultiDict(response.headers), content=None)
                return replace(answer, content=await _content(response))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as fault:
            # A TimeoutError says nothing: the trace knows whether it struck before or after the first byte.
            if answer is not None:
                return answer
            reason = describe_fault(fault)
            return NoAnswer(reason) if progress.writing else NotSent(reason)

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    ssl=self._ssl,
                    limit=MAX_CONNECTIONS,
                    force_close=True,
                    use_dns_cache=False,
                    resolver=_GuardedResolver(),
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                trace_configs=[_trace()],
                requote_redirect_url=False,
                max_line_size=16 * 1024,
                max_field_size=16 * 1024,
            )
        return self._session


def _trace() -> aiohttp.TraceConfig:
    """
    Note the moment before the first byte is written, the last one in which a late request can be held back.

    aiohttp keeps the header until there is content to go with it, and writes both in a task of its own.
    """

    async def headers(
        _session: aiohttp.ClientSession, context: SimpleNamespace, _params: aiohttp.TraceRequestHeadersSentParams
    ) -> None:
        if not context.trace_request_ctx.has_content:
            context.trace_request_ctx.writing = True

    async def content(
        _session: aiohttp.ClientSession, context: SimpleNamespace, _params: aiohttp.TraceRequestChunkSentParams
    ) -> None:
        if context.trace_request_ctx.is_late():
            raise TimeoutError
        context.trace_request_ctx.writing = True

    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(headers)
    trace.on_request_chunk_sent.append(content)
    return trace


async def _content(response: aiohttp.ClientResponse) -> bytes | None:
    """Return the whole content, or None if it doesn't arrive whole and in bounds."""
    content = bytearray()
    try:
        async for chunk in response.content.iter_any():
            content += chunk
            if len(content) > MAX_CONTENT_BYTES:
                return None
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None
    return bytes(content)


class _GuardedResolver(AbstractResolver):
    """Names that resolve to link-local addresses don't resolve."""

    def __init__(self) -> None:
        self._inner = aiohttp.DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        results = await self._inner.resolve(host, port, family)
        if allowed := [result for result in results if not is_forbidden(result["host"])]:
            return allowed
        raise OSError(None, "the name has link-local addresses only")

    async def close(self) -> None:
        await self._inner.close()

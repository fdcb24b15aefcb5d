"""What operators read of a connection that fails: words, as the real libraries' faults mean them."""

import asyncio
import errno
import socket
import ssl

import aiohttp
import pytest

from broker.core.client_auth import TlsOptions
from broker.services.connection_faults import describe_fault
from broker.services.outbound import NotSent, Outbound
from tests.support.ports import free_port


async def reason_of(url: str, tls: TlsOptions | None = None) -> str:
    outbound = Outbound(tls, insecure=True)
    try:
        exchange = await outbound.get(url, timeout_seconds=5)
    finally:
        await outbound.close()
    assert isinstance(exchange, NotSent)
    return exchange.reason


async def test_faults_of_real_connections_are_words() -> None:
    """Nobody listens; the name isn't known; the server speaks no TLS."""

    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    plain = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with plain:
        port = plain.sockets[0].getsockname()[1]

        assert "connection refused" == await reason_of(f"http://127.0.0.1:{free_port()}/")
        assert (await reason_of("http://nowhere.invalid/")) in {"name not known", "the name service doesn't answer"}
        assert "TLS failed: wrong version number" == await reason_of(f"https://127.0.0.1:{port}/")


@pytest.mark.parametrize(
    ("fault", "phrase"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "name not known"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "the name service doesn't answer"),
        (TimeoutError(), "timed out"),
        (ConnectionResetError(errno.ECONNRESET, "x"), "connection reset by peer"),
        (OSError(None, "the name has link-local addresses only"), "the name has link-local addresses only"),
        (OSError("Multiple exceptions: …"), "no connection"),
        (ssl.SSLError(1, "[SSL: NO_CIPHERS] x"), "TLS failed: no reason given"),
        (aiohttp.ServerDisconnectedError(), "connection closed without an answer"),
        (ValueError("http://user:canary@host"), "ValueError"),
    ],
)
def test_a_fault_has_its_phrase(fault: Exception, phrase: str) -> None:
    """A fault that is not known keeps its kind, and says nothing else: it may quote a secret."""
    assert phrase == describe_fault(fault)


def test_the_cause_says_more_than_what_wraps_it() -> None:
    """The certificate's fault is told, and not that there is no connection for it."""
    untrusted = ssl.SSLCertVerificationError()
    untrusted.verify_message = "self-signed certificate"
    wrapper = OSError("no connection")
    wrapper.__cause__ = untrusted
    assert "certificate not trusted: self-signed certificate" == describe_fault(wrapper)

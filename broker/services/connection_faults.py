"""What is wrong with a connection, in words."""

import os
import socket
import ssl
from collections.abc import Iterator

import aiohttp


def describe_fault(fault: BaseException) -> str:
    """
    Return a phrase about a foreign *fault*, for the log and for operators' eyes.

    Libraries wrap what the system said: the innermost of the causes that says something is told. The text of an
    exception is left out, since it may quote a URL with a password.
    """
    for each in reversed(list(_causes(fault))):
        if (phrase := _phrase(each)) is not None:
            return phrase
    return type(fault).__name__


def _causes(fault: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = fault
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _phrase(fault: BaseException) -> str | None:
    match fault:
        case ssl.SSLCertVerificationError():
            return f"certificate not trusted: {_said(fault, 'verify_message')}"
        case ssl.SSLError():
            return f"TLS failed: {_said(fault, 'reason').replace('_', ' ').lower()}"
        case socket.gaierror(errno=socket.EAI_AGAIN):
            return "the name service doesn't answer"
        case socket.gaierror():
            return "name not known"
        case TimeoutError():
            return "timed out"
        case OSError(errno=int(number)) if number > 0:
            return os.strerror(number).lower()
        case aiohttp.ServerDisconnectedError():
            return "connection closed without an answer"
        case aiohttp.ClientResponseError():
            return "what was answered isn't HTTP"
        case OSError():
            return fault.strerror or "no connection"
        case _:
            return None


def _said(fault: ssl.SSLError, name: str) -> str:
    """Return what OpenSSL said; a fault that wasn't made by it has no such attribute."""
    return getattr(fault, name, None) or "no reason given"

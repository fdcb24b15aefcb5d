"""
The head of an upstream's answer, judged.

An upstream is trusted less than its operator trusts it: an answer whose end two readers could see in different places
would let one user's bytes into another user's answer. What isn't framed in exactly one way is refused with 502.

Source: RFC 9112 sections 4, 6.3 and 9.3; RFC 9110 sections 5.5, 6.4.1 and 15.2.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from broker.core.headers import Field
from broker.core.request_head import MAX_CONTENT_LENGTH
from broker.errors import UpstreamUnavailable

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_FIELD_NAMES = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+\n)*")
_CONTENT_LENGTH = re.compile(rb"0|[1-9][0-9]{0,18}")
_NO_OPTIONS: frozenset[bytes] = frozenset()


@dataclass(slots=True)
class ResponseHead:
    """
    An answer that may be relayed.

    Attributes:
        status: The status code.
        reason: The reason phrase, as it came.
        fields: Every header field, as it came.
        declared_length: What ``Content-Length`` says; it is about another answer where there is no body (HEAD, 304).
        body_length: The length of the body in bytes; None if it is chunked or ends with the connection.
        chunked: Whether the body is chunked.
        until_close: Whether the body ends with the connection.
        reusable: Whether the connection may carry another request after the body.
        connection: The options of ``Connection``, in lower case.
        upgrade: The protocol that a 101 switches to, in lower case; empty if none.
    """

    status: int
    reason: bytes
    fields: list[Field]
    declared_length: int | None
    body_length: int | None
    chunked: bool
    until_close: bool
    reusable: bool
    connection: frozenset[bytes]
    upgrade: bytes


def read_response_head(
    *, status: int, reason: bytes, is_http11: bool, fields: list[Field], request_method: str
) -> ResponseHead:
    """
    Judge the head of an answer.

    Args:
        status: The status code.
        reason: The reason phrase.
        is_http11: Whether it is HTTP/1.1; otherwise HTTP/1.0.
        fields: The header fields, without the white space around values.
        request_method: The method of the request that it answers.

    Raises:
        UpstreamUnavailable: If its end isn't certain, or it holds what no answer may hold.
    """
    lengths: list[bytes] = []
    codings: list[bytes] = []
    connections: list[bytes] = []
    upgrades: list[bytes] = []
    for name, value in fields:
        match len(name):
            case 14 if name.lower() == b"content-length":
                lengths.append(value)
            case 17 if name.lower() == b"transfer-encoding":
                codings.append(value)
            case 10 if name.lower() == b"connection":
                connections.append(value)
            case 7 if name.lower() == b"upgrade":
                upgrades.append(value)
    _check_bytes(status, reason, fields)
    connection = _options(connections)
    declared_length = _declared_length(lengths)
    bodyless = request_method == "HEAD" or status in {204, 304} or status < 200
    chunked = False
    if codings:
        if lengths:
            raise UpstreamUnavailable("the answer is framed twice")
        if len(codings) > 1 or codings[0].lower() != b"chunked" or not is_http11:
            raise UpstreamUnavailable("the answer has a transfer coding other than chunked")
        chunked = not bodyless
    until_close = not (bodyless or chunked or lengths)
    return ResponseHead(
        status=status,
        reason=reason,
        fields=fields,
        declared_length=declared_length,
        body_length=0 if bodyless else declared_length,
        chunked=chunked,
        until_close=until_close,
        reusable=is_http11 and not until_close and b"close" not in connection,
        connection=connection,
        upgrade=upgrades[0].lower() if len(upgrades) == 1 else b"",
    )


def _check_bytes(status: int, reason: bytes, fields: Sequence[Field]) -> None:
    if not 100 <= status <= 599:
        raise UpstreamUnavailable("the answer's status is not one of 100 to 599")
    names = b"".join([name + b"\n" for name, _ in fields])
    if not _FIELD_NAMES.fullmatch(names):
        raise UpstreamUnavailable("the answer has a field name with a byte that no name may hold")
    if _CONTROL.search(reason) or _CONTROL.search(b"".join([value for _, value in fields])):
        raise UpstreamUnavailable("the answer's head holds a control character")


def _declared_length(lengths: Sequence[bytes]) -> int | None:
    if not lengths:
        return None
    if len(lengths) > 1 or not _CONTENT_LENGTH.fullmatch(lengths[0]):
        raise UpstreamUnavailable("the answer's Content-Length is not one plain number")
    length = int(lengths[0])
    if length > MAX_CONTENT_LENGTH:
        raise UpstreamUnavailable("the answer's Content-Length is not one plain number")
    return length


def _options(connections: Sequence[bytes]) -> frozenset[bytes]:
    if not connections:
        return _NO_OPTIONS
    return frozenset(option.strip(b" \t").lower() for value in connections for option in value.split(b",")) - {b""}

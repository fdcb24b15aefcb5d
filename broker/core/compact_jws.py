"""The compact form of a JWS (RFC 7515 section 7.1), read strictly and without trusting it."""

import base64
import re
from dataclasses import dataclass

from broker.core.json_object import read_object
from broker.core.secret import IdToken

MAX_TOKEN_BYTES = 64 * 1024
"""Longer tokens are refused unread."""

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")


class MalformedToken(ValueError):
    """This is no JWS in compact form with a JSON object in it."""


@dataclass(frozen=True, slots=True)
class CompactJws:
    """
    A JWS whose signature nobody has checked yet.

    Attributes:
        header: The protected header.
        payload: The payload's bytes.
        signing_input: What the signature signs.
        signature: The signature's bytes; empty for an unsecured JWS.
    """

    header: dict[str, object]
    payload: bytes
    signing_input: bytes
    signature: bytes

    def claims(self) -> dict[str, object]:
        """Return the payload as claims (RFC 7519 section 7.2). Raises ``MalformedToken``."""
        if (claims := read_object(self.payload)) is None:
            raise MalformedToken("the payload is no JSON object")
        return claims


def read_compact(token: str) -> CompactJws:
    """
    Take *token* apart.

    Base64url is read to the letter: no padding, no white space, no stray bits, since a decoder that forgives lets one
    signature stand for many texts.

    Raises:
        MalformedToken: If it isn't three such parts, or too long.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise MalformedToken("the token is too long")
    parts = token.split(".")
    if len(parts) != 3:
        raise MalformedToken("a JWS has three parts")
    header = read_object(_decode(parts[0]))
    if header is None:
        raise MalformedToken("the header is no JSON object")
    return CompactJws(
        header=header,
        payload=_decode(parts[1]),
        signing_input=f"{parts[0]}.{parts[1]}".encode("ascii"),
        signature=_decode(parts[2]),
    )


def unverified_claim(token: str, name: str) -> object:
    """Return a claim of *token* if it is a JWT, else None. Nothing vouches for it: it may only serve as a hint."""
    try:
        return read_compact(token).claims().get(name)
    except MalformedToken:
        return None


def session_of(id_token: IdToken | None) -> object:
    """Return the ``sid`` of an id token, which nobody need vouch for here; None if it isn't known."""
    return None if id_token is None else unverified_claim(id_token.reveal(), "sid")


def share_a_session(one: IdToken | None, other: IdToken | None) -> bool:
    """Return whether two id tokens name the same ``sid``; False where one of them names none."""
    sid = session_of(one)
    return sid is not None and sid == session_of(other)


def _decode(part: str) -> bytes:
    if not _BASE64URL.fullmatch(part) or len(part) % 4 == 1:
        raise MalformedToken("a part is not base64url")
    decoded = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if base64.urlsafe_b64encode(decoded).rstrip(b"=").decode("ascii") != part:
        raise MalformedToken("a part has stray bits")
    return decoded

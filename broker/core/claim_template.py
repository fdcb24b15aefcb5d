"""
Header values made of claims: ``{claims.sub}`` in a route's ``headers: set``.

A claim is data from outside. One rule makes it safe in a field value, and its reader can undo it: the claim's UTF-8
bytes are percent-encoded (RFC 3986 section 2.1) except for visible ASCII without ``%`` and ``,``. So no claim can end
the line, begin a new field, or pass for two members of a list; lists are joined by ``,``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from broker.core.options import OptionError

MAX_VALUE_BYTES = 4096
"""A longer value isn't sent: it would push the header section over what upstreams take."""

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_CLAIM = re.compile(r"claims\.([A-Za-z0-9_:/.-]+)")
_LITERAL = re.compile(r"[\x20-\x7e]*")
_ENCODED = tuple(
    bytes((byte,)) if 0x21 <= byte <= 0x7E and byte not in b"%," else b"%%%02X" % byte for byte in range(256)
)


@dataclass(frozen=True, slots=True)
class ClaimTemplate:
    """
    A parsed template.

    Attributes:
        parts: Literal text (``bytes``) and names of claims (``str``), in turn.
    """

    parts: tuple[bytes | str, ...]

    @classmethod
    def parse(cls, text: str) -> "ClaimTemplate":
        """
        Parse ``Bearer-like {claims.sub}`` and such.

        Raises:
            OptionError: If it holds something else in braces, or what no field value may hold.
        """
        parts: list[bytes | str] = []
        end = 0
        for placeholder in _PLACEHOLDER.finditer(text):
            claim = _CLAIM.fullmatch(placeholder[1])
            if claim is None:
                raise OptionError("", f"{{claims.NAME}} instead of {placeholder[0]}")
            parts += (_literal(text[end : placeholder.start()]), claim[1])
            end = placeholder.end()
        parts.append(_literal(text[end:]))
        return cls(tuple(part for part in parts if part))

    @property
    def is_constant(self) -> bool:
        """Whether it names no claim."""
        return all(isinstance(part, bytes) for part in self.parts)

    def render(self, claims: Mapping[str, object]) -> bytes | None:
        """Return the field value for *claims*; None if one is missing, empty, not encodable or too long."""
        value = b""
        for part in self.parts:
            encoded = part if isinstance(part, bytes) else _encode(claims.get(part))
            if not encoded:
                return None
            value += encoded
        return value if len(value) <= MAX_VALUE_BYTES else None


def _literal(text: str) -> bytes:
    if not _LITERAL.fullmatch(text) or "{" in text or "}" in text:
        raise OptionError("", "visible ASCII and spaces, with claims as {claims.NAME}")
    return text.encode()


def _encode(claim: object) -> bytes:
    """The claim as a part of a field value; empty for what has no such form."""
    match claim:
        case bool():
            return b"true" if claim else b"false"
        case int() | float() | str():
            return b"".join(map(_ENCODED.__getitem__, str(claim).encode(errors="replace")))
        case list() | tuple():
            members = [_encode(member) for member in claim if not isinstance(member, list | tuple)]
            return b",".join(members) if all(members) else b""
        case _:
            return b""

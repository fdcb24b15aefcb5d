"""Proof Key for Code Exchange, with S256 only (RFC 7636)."""

import base64
import hashlib

SECRET_BYTES = 32
"""Random bytes in a state, a nonce and a verifier: 256 bits (RFC 7636 section 7.1 asks for them)."""


def text_of(random_bytes: bytes) -> str:
    """Return *random_bytes* as unpadded base64url; 32 of them make 43 characters."""
    return base64.urlsafe_b64encode(random_bytes).rstrip(b"=").decode("ascii")


def code_challenge(code_verifier: str) -> str:
    """
    Return the S256 challenge of *code_verifier*.

    Source: RFC 7636 section 4.2.
    """
    return text_of(hashlib.sha256(code_verifier.encode("ascii")).digest())

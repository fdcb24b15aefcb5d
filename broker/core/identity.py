"""Whether an identity may log in by its email address (SECURITY RT-11)."""

import re
from collections.abc import Mapping

# One @, and around it nothing that a mailbox can only hold in quotes (RFC 5322 section 3.2.3), no space, no control.
_PART = r"[^\s@\"(),:;<>\[\\\]\x00-\x20\x7f-\x9f]"
_ADDRESS = re.compile(rf"{_PART}{{1,64}}@({_PART}{{1,255}})")


def email_refusal(claims: Mapping[str, object], *, domains: tuple[str, ...], verified: bool) -> str | None:
    """
    Return why the claims' email address is refused, as a phrase; None if it isn't.

    An address that can be read in two ways is always refused: an upstream might take another part of it for the
    domain. ``email_verified`` counts only as the JSON value ``true`` (OpenID Connect Core section 5.1); "false" is a
    text, and a true one in many languages.

    Args:
        claims: The user's.
        domains: If there are any, the address must be verified and of one of them, exactly.
        verified: Whether a verified address is required anyway.
    """
    address = claims.get("email")
    if address is None:
        return "email is missing" if domains or verified else None
    match = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    if match is None:
        return "email is no unambiguous address"
    if (domains or verified) and claims.get("email_verified") is not True:
        return "email is not verified"
    if domains and match[1].lower() not in {domain.lower() for domain in domains}:
        return "email is of another domain"
    return None

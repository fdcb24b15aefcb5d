"""
Whether a call that the session cookie authenticates was made by our own frontend.

A cookie goes with every request to its origin, whoever causes it; so it proves who the user is, and not that the user
wanted this. The rules, first match first:

    ``Origin`` came and isn't ours   refused: a sibling subdomain, ``null``, two of them
    a WebSocket                      passes if ``Origin`` came; browsers always send it
    ``X-CSRF: 1``                    passes unless ``Sec-Fetch-Site`` names another site: other origins can't set the
                                     header without a preflight, and none of theirs is ever granted
    the user goes to a page          passes where the route serves pages: a safe method, ``Sec-Fetch-Mode: navigate``
                                     to a document, from our own site or from none (see ``same_site_ok``)
    anything else                    refused

Source: draft-ietf-oauth-browser-based-apps section 6.1.3.3; W3C Fetch Metadata Request Headers section 2; RFC 6455
section 10.2.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

from broker.errors import CsrfFailed

SAFE_METHODS = frozenset({"GET", "HEAD"})
"""Methods of a navigation that asks for nothing to be done (RFC 9110 section 9.2.1)."""

_DOCUMENTS = frozenset({"document", "iframe", "frame"})


class Headers(Protocol):
    """What is read of a request's headers: a ``CIMultiDictProxy`` of aiohttp, or a part of one."""

    def getall(self, key: str, default: Sequence[str], /) -> Sequence[str]:
        """Return every value of the field *key*, or *default*."""
        ...


def judge(
    *,
    method: str,
    headers: Headers,
    own_origin: str,
    navigation_allowed: bool,
    websocket: bool,
    same_site_ok: bool = False,
) -> None:
    """
    Pass a call that our own frontend made.

    Args:
        method: As the request line spells it.
        headers: The request's headers.
        own_origin: The origin of ``public_url``, as browsers write it: ``https://app.example.com``.
        navigation_allowed: Whether the route serves pages.
        websocket: Whether the call asks for a WebSocket; scripts can't add a header to it.
        same_site_ok: Whether a page on a sibling subdomain may link here.

    Raises:
        CsrfFailed: If the call could come from somewhere else. Its text says which rule it met.
    """
    origin = _single(headers, "Origin")
    if origin is not None and origin != own_origin:
        raise CsrfFailed("foreign origin")
    site = _single(headers, "Sec-Fetch-Site")
    if websocket:
        if origin is None or site not in (None, "same-origin"):
            raise CsrfFailed("a websocket without our origin")
        return
    marker = _single(headers, "X-CSRF")
    if marker is not None:
        if marker != "1" or site not in (None, "same-origin", "none"):
            raise CsrfFailed("x-csrf is not 1" if marker != "1" else "foreign site")
        return
    if not navigation_allowed:
        raise CsrfFailed("x-csrf is missing")
    _judge_navigation(method, headers, site, same_site_ok=same_site_ok)


def judge_certificate(*, headers: Headers, own_origins: Collection[str]) -> None:
    """
    Pass a call that a client certificate authenticates, unless a browser says that another site has caused it.

    A browser shows its certificate to whoever asks, as it sends cookies. But callers with certificates are seldom
    browsers, so nothing is asked of them.

    Args:
        headers: The request's headers.
        own_origins: Ours, and those that the route names.

    Raises:
        CsrfFailed: If the call comes from somewhere else.
    """
    origin = _single(headers, "Origin")
    if origin is not None and origin not in own_origins:
        raise CsrfFailed("foreign origin")
    if origin is None and _single(headers, "Sec-Fetch-Site") not in (None, "same-origin", "none"):
        raise CsrfFailed("foreign site")


def _judge_navigation(method: str, headers: Headers, site: str | None, *, same_site_ok: bool) -> None:
    if method not in SAFE_METHODS:
        raise CsrfFailed("x-csrf is missing on an unsafe method")
    if _single(headers, "Sec-Fetch-Mode") != "navigate" or _single(headers, "Sec-Fetch-Dest") not in _DOCUMENTS:
        raise CsrfFailed("x-csrf is missing and this is no navigation")
    if not (site in ("same-origin", "none") or (same_site_ok and site == "same-site")):
        raise CsrfFailed("a navigation from another site", may_go_on=True)


def _single(headers: Headers, name: str) -> str | None:
    values = headers.getall(name, ())
    if len(values) > 1:
        raise CsrfFailed(f"{name.lower()} came twice")
    return values[0] if values else None

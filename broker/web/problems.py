"""
How an error is shown: a problem document to programs, a page or the login to people.

Source: RFC 9457 (problem documents); W3C Fetch Metadata (who asks).
"""

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol
from urllib.parse import urlencode

from aiohttp import web

from broker.core.return_url import is_safe_return_url, with_return_url
from broker.errors import BrokerError, CsrfFailed, LoginFailed, MethodNotAllowed, NoSession, ProviderError
from broker.web.pages import FRAME_POLICY, PAGE_POLICY, error_page

PROBLEM_TYPE = "urn:token-broker:problem:"
"""What an error's ``code`` follows in ``type``. It is a name, not an address."""

DEFAULT_RETRY_AFTER_SECONDS = 5.0
MAX_RETRY_AFTER_SECONDS = 3600.0

ADVICE: Mapping[int, str] = MappingProxyType(
    {
        400: "The address can't be served as it is. If a link led here, tell those who run this site.",
        401: "You aren't logged in, or not any more.",
        403: "This can't be opened from here. If a link led here, tell those who run this site.",
        404: "Nothing is at this address. It may be misspelt, or have moved.",
        421: "This site isn't served under that name.",
        429: "Too much came from here in a short time. Wait a moment, then try again.",
        500: "Something is wrong on our side. You are still logged in.",
        502: "The service behind this page doesn't answer. You are still logged in; try again in a moment.",
        503: "Something that is needed is unavailable or has too much to do. It loses no login; try again in a moment.",
        504: "The service behind this page takes too long. You are still logged in; try again in a moment.",
    }
)
"""What people are told beside an error's title, by its status."""

SECURITY_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Cache-Control": "no-store",
        "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "Server": "token-broker",  # aiohttp would name itself, Python, and both versions
        "Vary": "Origin, Cookie",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }
)
"""On every answer that the broker itself makes (SECURITY BR-02, BR-04, BR-05). HSTS is added where there is TLS."""


class Asked(Protocol):
    """What an answer depends on: of a request, or of one that a gateway holds."""

    @property
    def method(self) -> str:
        """Its method."""
        ...

    @property
    def raw_path(self) -> str:
        """Its target, as it came."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Its fields, by names in any case."""
        ...


class OwnResponse(web.Response):
    """An answer that the broker itself makes, in full. The outermost middleware completes it."""

    def __init__(
        self,
        *,
        status: int = 200,
        text: str = "",
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            status: The HTTP status.
            text: The content.
            content_type: Its type, where there is content.
            headers: Beside the security headers, or in place of some.
        """
        super().__init__(
            status=status,
            body=text.encode(),
            content_type=content_type,
            charset="utf-8" if content_type == "text/html" else None,
            headers={**SECURITY_HEADERS, **(headers or {})},
        )


def is_navigation(request: Asked) -> bool:
    """Return whether a person is looking: the browser goes to a page, and doesn't run a script's request."""
    mode = request.headers.get("Sec-Fetch-Mode")
    if mode is not None:
        return mode == "navigate"
    return "X-CSRF" not in request.headers and "text/html" in request.headers.get("Accept", "")


def is_speculative(request: Asked) -> bool:
    """Return whether the browser asks ahead of a user who may never come (prefetch, prerender)."""
    purposes = (request.headers.get(name, "").lower() for name in ("Sec-Purpose", "Purpose", "X-Moz", "X-Purpose"))
    return any("prefetch" in purpose or "preview" in purpose or "prerender" in purpose for purpose in purposes)


def page_response(text: str, *, status: int = 200) -> web.Response:
    """Return a page of :mod:`broker.web.pages`."""
    policy = {"Content-Security-Policy": PAGE_POLICY}
    return OwnResponse(status=status, text=text, content_type="text/html", headers=policy)


def framed_response(text: str, *, status: int = 200) -> web.Response:
    """Return a page that our own pages may frame."""
    headers = {"Content-Security-Policy": FRAME_POLICY, "X-Frame-Options": "SAMEORIGIN"}
    return OwnResponse(status=status, text=text, content_type="text/html", headers=headers)


def json_response(
    document: Mapping[str, object], *, status: int = 200, content_type: str = "application/json"
) -> web.Response:
    """Return a JSON document."""
    return OwnResponse(status=status, text=json.dumps(document), content_type=content_type)


def see_other(location: str) -> web.Response:
    """Return a redirect that is followed by GET, whatever was asked (RFC 9110 section 15.4.4, SECURITY BR-07)."""
    return OwnResponse(status=303, headers={"Location": location})


def problem_response(
    request: Asked, error: BrokerError, *, request_id: str, login_url: str | None = None
) -> web.Response:
    """
    Return what the caller is told of *error*.

    Programs get ``application/problem+json``. People get a page; and where only a login helps, they are taken there,
    and afterwards back to where they were.

    Args:
        request: What was asked.
        error: What is wrong. Only its class speaks: its text is for the log.
        request_id: Names the request.
        login_url: The path of the login; None where there is none.
    """
    if login_url is not None and error.login_parameters:
        login_url = f"{login_url}?{urlencode(error.login_parameters)}"
    if not is_navigation(request):
        response = _document(error, request_id, login_url)
    elif error.status == 401 and login_url is not None and _may_redirect(request, error):
        back = _own_url(request, login_url)
        named = "returnUrl" in error.login_parameters
        response = see_other(login_url if back is None or named else with_return_url(login_url, back))
    else:
        links = _ways_on(request, error, login_url)
        page = error_page(error.title, ADVICE.get(error.status, ""), request_id=request_id, links=links)
        response = page_response(page, status=error.status)
    if error.status in (429, 503):
        seconds = error.retry_after_seconds or DEFAULT_RETRY_AFTER_SECONDS
        response.headers["Retry-After"] = str(math.ceil(min(seconds, MAX_RETRY_AFTER_SECONDS)))
    if response.status == 401:
        # A challenge is due (RFC 9110 section 15.5.2). No browser asks for a password on this one.
        response.headers["WWW-Authenticate"] = 'Cookie realm="token-broker"'
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ", ".join(error.allow)
    return response


def _document(error: BrokerError, request_id: str, login_url: str | None) -> web.Response:
    document: dict[str, object] = {
        "type": f"{PROBLEM_TYPE}{error.code}",
        "title": error.title,
        "status": error.status,
        "code": error.code,
        "request_id": request_id,
    }
    if login_url is not None and error.status == 401:
        document["login_url"] = login_url
    return json_response(document, status=error.status, content_type="application/problem+json")


def _may_redirect(request: Asked, error: BrokerError) -> bool:
    """Nobody logs in inside a frame, ahead of coming or in vain; and what was posted can't be taken along."""
    if isinstance(error, NoSession) and not error.leads_back:
        return False
    in_window = request.headers.get("Sec-Fetch-Dest", "document") == "document"
    return request.method in ("GET", "HEAD") and in_window and not is_speculative(request)


def _own_url(request: Asked, login_url: str) -> str | None:
    """Return where the user is, if it is somewhere that a login may end."""
    url = request.raw_path
    return url if is_safe_return_url(url, base_path=login_url.partition("?")[0].rpartition("/")[0]) else None


def _ways_on(request: Asked, error: BrokerError, login_url: str | None) -> Mapping[str, str]:
    here = _own_url(request, login_url or "/bff/login") if request.method == "GET" else None
    if isinstance(error, CsrfFailed) and error.may_go_on and here is not None:
        return {here: "Continue"}
    if login_url is not None and (error.status == 401 or isinstance(error, LoginFailed)):
        return {login_url: "Log in"}
    if error.status in (429, 502, 503, 504) and here is not None:
        return {here: "Try again"}
    if login_url is not None and isinstance(error, ProviderError):
        return {login_url: "Try again"}
    return {"/": "Go to the start page"}

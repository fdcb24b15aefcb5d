"""What is asked of a request before it reaches one of the broker's own endpoints."""

import re
from collections.abc import Mapping

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from multidict import MultiMapping

from broker.core.hosts import KnownHosts
from broker.errors import BadRequest, Forbidden, NoRoute
from broker.web.problems import is_speculative

_PLAIN_PATH = re.compile(r"(?:/[A-Za-z0-9_-]+)+")


def own_endpoint_guard(hosts: KnownHosts) -> Middleware:
    """
    Return the middleware that lets only plainly written requests to our own host through.

    aiohttp matches the path after decoding it and removing dot segments. Whoever judged the path before us may have
    read another one, so nothing that needs decoding names an endpoint here (SECURITY RT-01, RT-08).
    """

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        named = [value for name, value in request.raw_headers if name.lower() == b"host"]
        if len(named) != 1:
            raise BadRequest("there is not exactly one Host")
        hosts.match(named[0])
        if _PLAIN_PATH.fullmatch(request.raw_path.partition("?")[0]) is None:
            raise NoRoute("the path is not plainly written")
        return await handler(request)

    return guard


def check_top_level(request: web.Request) -> None:
    """
    Refuse whatever isn't a user who goes to this page: frames, images, scripts, prefetching (SECURITY LG-09).

    Raises:
        Forbidden: If it is something else. No attempt is begun or used up by it.
    """
    if is_speculative(request):
        raise Forbidden("asked ahead of the user")
    destination = request.headers.get("Sec-Fetch-Dest", "document")
    if destination != "document" or request.headers.get("Sec-Fetch-Mode", "navigate") != "navigate":
        raise Forbidden(f"a login is a page of its own, not a {destination[:16]!r}")


def is_framed(request: web.Request) -> bool:
    """Return whether the browser shows in a frame what it asks for."""
    return request.headers.get("Sec-Fetch-Dest") == "iframe"


def check_framed(request: web.Request) -> None:
    """
    Refuse whatever isn't a frame that goes to this page.

    Raises:
        Forbidden: If it is something else.
    """
    if is_speculative(request) or not is_framed(request) or request.headers.get("Sec-Fetch-Mode") != "navigate":
        raise Forbidden("a silent login runs in a frame")


def is_led_by_another_site(request: web.Request) -> bool:
    """
    Return whether another site led here, a sibling subdomain included.

    A browser leaves out the SameSite=Strict cookies then, so what it shows says nothing of what it has.
    """
    return request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")


def comes_from_here(request: web.Request) -> bool:
    """Return whether one of our own pages led here, with no other site on the way."""
    return request.headers.get("Sec-Fetch-Site") == "same-origin"


def single_values(values: MultiMapping[str]) -> Mapping[str, str]:
    """
    Return parameters of which each came once (RFC 6749 section 3.1, SECURITY HD-09).

    Raises:
        BadRequest: If one came twice.
    """
    single = dict(values)
    if len(single) != len(values):
        raise BadRequest("a parameter came twice")
    return single

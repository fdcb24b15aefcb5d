"""What an operator's request to the admin API holds."""

import json
import re
from collections.abc import Iterable, Sequence
from ipaddress import ip_network
from typing import Any

from aiohttp import web

from broker.core.compact_jws import unverified_claim
from broker.core.lifetimes import date_time, instant, number, numeric_date
from broker.core.oauth import TokenSet
from broker.core.routing import Route, reachable
from broker.core.secret import AccessToken, IdToken, RefreshToken
from broker.errors import BadRequest
from broker.services.dpop import read_dpop_key

_PATH = re.compile(r"/[^?#*\\{}\[\]\s]*")
"""A path, and neither a query nor another proxy's pattern, which would match nothing."""

ASKED_BEFORE_SECONDS = 30.0
"""
Tokens that are handed over count as so old at least: nobody knows how old they are, and a token that is refused right
after it was issued isn't replaced (``services.rejections``).
"""


class Content:
    """The members of a JSON object, each taken once; a refusal names the member and never its value."""

    def __init__(self, members: dict[str, Any]) -> None:
        self._members = dict(members)

    def text(self, name: str) -> str:
        """Return a text that must be there."""
        value = self.optional_text(name)
        if value is None:
            raise BadRequest(f"{name}: expected a text")
        return value

    def optional_text(self, name: str) -> str | None:
        """Return a text; None if it is missing."""
        value = self._members.pop(name, None)
        if value is not None and not (isinstance(value, str) and 0 < len(value) <= 64 << 10):
            raise BadRequest(f"{name}: expected a text")
        return value

    def optional_number(self, name: str) -> float | None:
        """Return a number of seconds; None if it is missing."""
        value = self._members.pop(name, None)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e10:
            raise BadRequest(f"{name}: expected a number of seconds")
        return float(value)

    def optional_lifetime(self, name: str) -> object:
        """Return what :func:`~broker.core.lifetimes.instant` reads."""
        value = self._members.pop(name, None)
        if value is not None and number(value) is None and date_time(value) is None:
            raise BadRequest(f"{name}: expected seconds, an instant, or a date with its time and zone")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts, which may be missing."""
        value = self._members.pop(name, [])
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise BadRequest(f"{name}: expected a list of texts")
        return tuple(value)

    def refuse_others(self) -> None:
        """Refuse members that nobody took: a typo must not pass for a bound that holds."""
        if self._members:
            raise BadRequest(f"{min(self._members)[:64]}: no such member")


async def read_content(request: web.Request) -> Content:
    """Return the JSON object that a request holds; nothing is an empty one."""
    try:
        document = json.loads(await request.read() or b"{}")
    except ValueError:
        raise BadRequest("the content isn't JSON") from None
    if not isinstance(document, dict):
        raise BadRequest("the content isn't a JSON object")
    return Content(document)


def tokens_of(content: Content, *, now: float) -> TokenSet:
    """Return the tokens of an import. Without an access token, or a word of its end, the first use refreshes."""
    access_token = content.optional_text("access_token")
    lifetimes = [content.optional_lifetime(name) for name in ("expires_at", "expires_in")]
    refresh_lifetime = content.optional_lifetime("refresh_expires_in")
    refresh_token, id_token = content.optional_text("refresh_token"), content.optional_text("id_token")
    session_id = content.optional_text("session_id")
    if refresh_token is None and session_id is None:
        raise BadRequest("refresh_token: expected one, or a session_id")
    return TokenSet(
        access_token=AccessToken(access_token or ""),
        expires_at=_earliest(lifetimes, access_token, now) if access_token else now,
        requested_at=now - ASKED_BEFORE_SECONDS,
        refresh_token=None if refresh_token is None else RefreshToken(refresh_token),
        refresh_expires_at=instant(refresh_lifetime, now),
        id_token=None if id_token is None else IdToken(id_token),
        scope=content.optional_text("scope"),
        session_id=session_id,
    )


def _earliest(lifetimes: Iterable[object], access_token: str, now: float) -> float:
    """
    Return when an imported access token ends: the earliest that is said, for nobody knows when ``expires_in`` began.

    Where nothing is said, or only nonsense, that is now.
    """
    ends = [instant(value, now) or now for value in lifetimes if value is not None]
    claimed = unverified_claim(access_token, "exp")
    return min([*ends, *([] if claimed is None else [numeric_date(claimed, now) or now])], default=now)


def dpop_key_of(content: Content) -> RefreshToken | None:
    """Return the key that imported tokens are bound to (RFC 9449), if they are."""
    text = content.optional_text("dpop_key")
    try:
        return None if text is None else read_dpop_key(text)
    except ValueError as refusal:
        raise BadRequest(f"dpop_key: {refusal}") from None


def handle_attributes(content: Content, *, now: float, provider: str, routes: Sequence[Route]) -> dict[str, object]:
    """
    Return what a new handle is for and bound to.

    Args:
        content: What the operator sent.
        now: Unix seconds.
        provider: That of its grant.
        routes: Those of the configuration: a bound that none of them could meet is a slip.

    Raises:
        BadRequest: If the handle could never be used as it is bound.
    """
    paths, networks = content.texts("routes"), content.texts("networks")
    for index, path in enumerate(paths):
        _check_route(f"routes[{index}]", path, provider, routes)
    for index, network in enumerate(networks):
        try:
            ip_network(network)
        except ValueError:
            raise BadRequest(f"networks[{index}]: expected a network without host bits, such as 192.0.2.0/24") from None
    ends_at = content.optional_number("ends_at")
    if ends_at is not None and ends_at <= now:
        raise BadRequest("ends_at: expected an instant to come")
    return {"label": content.optional_text("label") or "", "routes": paths, "networks": networks, "ends_at": ends_at}


def _check_route(member: str, path: str, provider: str, routes: Sequence[Route]) -> None:
    if not _PATH.fullmatch(path):
        raise BadRequest(f"{member}: expected a path such as /api/orders: everything below it is meant too")
    reached = reachable(routes, path)
    if not reached:
        raise BadRequest(f"{member}: the configuration has no route there")
    needed = {route.provider for route in reached if route.asks_who_calls}
    if not needed:
        raise BadRequest(f"{member}: the route there takes no handles, since its `token` is none or a grant's")
    if needed.isdisjoint({None, provider}):
        named = " or ".join(sorted(name for name in needed if name is not None))
        raise BadRequest(f"{member}: the route there is for provider {named}, and the grant is of {provider}")

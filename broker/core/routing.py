"""
Routes: which request goes to which upstream, with which token.

A route is found by the longest path on segment boundaries, then by host, then by method. Paths are compared without
regard to case and in every reading that a tolerant server might have (broker.core.paths); where these disagree, the
request is refused, because the broker and the upstream would decide about different resources.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from broker.core.audience import Audience
from broker.core.claim_template import ClaimTemplate
from broker.core.options import OptionError, option
from broker.core.paths import Target, read_target
from broker.core.upstream_options import TimeoutOptions, UpstreamOptions
from broker.errors import AmbiguousPath, BadRequest, MethodNotAllowed, NoRoute

T = TypeVar("T")

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_METHOD = re.compile(r"[A-Z][A-Z-]{0,31}")
_HOST = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\])")
_ORIGIN = re.compile(r"https?://[^/?#@\s]+")
_EXTERNAL_URL = re.compile(r"https?://[A-Za-z0-9.:_\[\]-]+(?:/[!$&-.0-;=A-Z_a-z~%@]+)*")
_TOKEN_CHOICE = "none, user, user_or_none, or {grant: NAME}"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

REFUSED_METHODS = frozenset({"CONNECT", "TRACE", "TRACK"})
"""Methods that no route takes: they tunnel, or show headers that only the upstream may see (RFC 9110 section 9.3)."""

OWNED_FIELDS = frozenset(
    {
        "authorization",
        "connection",
        "content-length",
        "cookie",
        "dpop",
        "forwarded",
        "host",
        "keep-alive",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Fields that the broker makes itself, so that no route may set them."""


class TokenKind(StrEnum):
    """Whose token goes upstream."""

    NONE = "none"
    """Nobody's: the route is anonymous, and no session is looked at."""
    USER = "user"
    """The caller's; without a session a login is needed."""
    USER_OR_NONE = "user_or_none"
    """The caller's if there is a session, otherwise none."""
    GRANT = "grant"
    """A standing grant's; no session is looked at."""


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """Whose token goes upstream: ``none``, ``user``, ``user_or_none``, or ``{grant: NAME}``."""

    kind: TokenKind
    grant: str | None = None

    @classmethod
    def from_option(cls, value: object) -> "TokenChoice":
        """Read the YAML value. Raises ``OptionError``."""
        if isinstance(value, str) and value in {"none", "user", "user_or_none"}:
            return cls(TokenKind(value))
        if isinstance(value, dict) and set(value) == {"grant"}:
            name = value["grant"]
            if isinstance(name, str) and _NAME.fullmatch(name):
                return cls(TokenKind.GRANT, name)
        raise OptionError("", _TOKEN_CHOICE)

    @classmethod
    def option_schema(cls) -> dict[str, object]:
        """Describe the YAML value as a JSON Schema."""
        return {
            "description": _TOKEN_CHOICE,
            "oneOf": [
                {"enum": ["none", "user", "user_or_none"]},
                {
                    "type": "object",
                    "properties": {"grant": {"type": "string", "pattern": f"^{_NAME.pattern}$"}},
                    "required": ["grant"],
                    "additionalProperties": False,
                },
            ],
        }


class RetryOn401(StrEnum):
    """Which requests are sent again, with a newer token, after the upstream answered 401."""

    REPLAYABLE = "replayable"
    """Those whose body was kept: none, or at most ``max_replay_body``."""
    IDEMPOTENT = "idempotent"
    """Of these, only idempotent methods (RFC 9110 section 9.2.2)."""
    NEVER = "never"


class Navigation(StrEnum):
    """Whether a browser may go to the route's resources by itself, without the ``X-CSRF`` header."""

    DENY = "deny"
    ALLOW = "allow"


class CacheControl(StrEnum):
    """What ``Cache-Control`` says of answers that were made for one user."""

    NO_STORE = "no-store"
    """``private, no-store``, whatever the upstream says."""
    UPSTREAM = "upstream"
    """What the upstream says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderOptions:
    """Fields that the route adds to requests, or takes out of them."""

    assign: Mapping[str, str] = option(
        "Fields to set. {claims.NAME} stands for a claim of the session, percent-encoded; a field whose claim is "
        "missing is left out, and so is each that names a claim where there is no session: callers with a handle, a "
        "signed token or a certificate have no claims, nor has a route with a grant's token. What the caller sends "
        "under the name, in any spelling, is dropped.",
        default_factory=dict,
        key="set",
        example='{X-User: "{claims.sub}"}',
    )
    remove: tuple[str, ...] = option("Fields of the caller to drop.", default=(), example="[X-Debug]")
    forwarded: bool = option(
        "Say in `Forwarded` (RFC 7239), too, where the request came from; `X-Forwarded-*` say it in any case.",
        default=False,
    )

    def __post_init__(self) -> None:
        for name, template in self.assign.items():
            if not _TOKEN.fullmatch(name):
                raise OptionError(f"set.{name}", "a field name, which has no blank and no colon", found=name)
            if name.lower() in OWNED_FIELDS:
                raise OptionError(f"set.{name}", "the name of a field that the broker doesn't make itself", found=name)
            try:
                ClaimTemplate.parse(template)
            except OptionError as error:
                raise OptionError(f"set.{name}", error.expected) from None
        for index, name in enumerate(self.remove):
            if not _TOKEN.fullmatch(name):
                raise OptionError(f"remove[{index}]", "a field name")


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitOptions:
    """A token bucket, which fills steadily; each request takes one token."""

    requests_per_second: float = option("How fast the bucket fills.", example="10")
    burst: int = option("How many requests a full bucket holds.", example="50")

    def __post_init__(self) -> None:
        if not 0 < self.requests_per_second <= 1e6:
            raise OptionError("requests_per_second", "a number above 0")
        if not 1 <= self.burst <= 1_000_000:
            raise OptionError("burst", "a number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where requests of one path go."""

    path: str = option("The path; everything below it is meant too.", example="/api/orders")
    host: str | None = option("Only requests of this host, without a port; by default any.", default=None)
    methods: tuple[str, ...] = option("Only these methods; by default any.", default=(), example="[GET, POST]")
    upstream: str | tuple[str, ...] | UpstreamOptions = option(
        "Where the requests go: a URL, a list of URLs, or a mapping.", example="https://orders.internal:8443"
    )
    external_url: str | None = option(
        "The URL that the upstream goes by where it isn't the one at which it is reached, as an origin or with the "
        "beginning of a path: proofs of possession (RFC 9449) name it. By default they name what the upstream is sent.",
        default=None,
        example="https://api.example.com/v2",
    )
    strip_prefix: bool = option("Take the route's path off before the request is forwarded.", default=False)
    rewrite_prefix: str | None = option("Put this in place of the route's path.", default=None, example="/v2/orders")
    token: TokenChoice = option("Whose access token goes upstream: none, user, user_or_none, or {grant: NAME}.")
    provider: str | None = option(
        "The provider whose login the route needs, and whose tokens alone its upstream is sent: a caller with a "
        "handle, a signed token or a certificate gets 403 if its grant is of another. By default any; a login "
        "begins at the only one there is, or at `login.default_provider`.",
        default=None,
    )
    audience_name: str | None = option(
        "Ask for an access token with this audience.", default=None, key="audience", example="https://orders.internal"
    )
    resource: str | None = option("Ask for an access token of this resource (RFC 8707).", default=None)
    scope: str | None = option("Ask for an access token of only this scope.", default=None)
    exchange: bool = option("Get that access token by token exchange (RFC 8693).", default=False)
    retry_on_401: RetryOn401 = option(
        "Which requests are sent again, with a newer token, after the upstream answered 401.",
        default=RetryOn401.REPLAYABLE,
    )
    max_replay_body_bytes: int = option("A body up to this size is kept for that.", default=64 << 10)
    max_body_bytes: int = option("The largest body that is taken.", default=100 << 20)
    navigation: Navigation = option(
        "allow: the route serves pages, which a browser goes to without the X-CSRF header, and by way of the login. "
        "deny: whoever goes there is told that it can't be opened, logged in or not.",
        default=Navigation.DENY,
    )
    websocket: bool = option("Whether WebSockets are let through.", default=True)
    origins: tuple[str, ...] = option(
        "Further origins whose pages may open WebSockets.", default=(), example="[https://app.example.com]"
    )
    timeout: TimeoutOptions = option("How long the upstream may take.", default_factory=TimeoutOptions)
    headers: HeaderOptions = option("Fields to set and to drop.", default_factory=HeaderOptions)
    cache_control: CacheControl = option(
        "What Cache-Control says of answers that were made with a token.", default=CacheControl.NO_STORE
    )
    release_token: bool = option(
        "Give the access token to a gateway that asks at `/bff/auth`, where `forward_auth.release_token` is true, too.",
        default=False,
    )
    scrub: bool = option("Refuse answers that hold the very access token that was sent.", default=False)
    internal_redirects: bool = option(
        "Let the upstream tell a server in front of the broker to send a file or another page in place of its answer "
        "(X-Accel-Redirect, X-Sendfile and their like).",
        default=False,
    )
    rate_limit: RateLimitOptions | None = option(
        "How many requests each caller may send, to all processes and hosts together. A session is a caller, and "
        "without one an address.",
        default=None,
    )
    total_rate_limit: RateLimitOptions | None = option("How many requests all callers together may send.", default=None)
    insecure: bool = option("Let the token go over plain HTTP to a host that isn't loopback.", default=False)

    def __post_init__(self) -> None:
        self._check_match()
        self._check_upstream()
        if self.strip_prefix and self.rewrite_prefix is not None:
            raise OptionError("rewrite_prefix", "either it or strip_prefix")
        if self.rewrite_prefix is not None:
            _check_path("rewrite_prefix", self.rewrite_prefix)
        if self.external_url is not None and not _EXTERNAL_URL.fullmatch(self.external_url):
            raise OptionError("external_url", "an http or https URL without a query, and without a slash at its end")
        if self.audience.key and self.token.kind is TokenKind.NONE:
            raise OptionError("token", "user or {grant: NAME} beside audience, resource, scope or exchange")
        if self.release_token and self.token.kind is TokenKind.NONE:
            raise OptionError("release_token", "false, since the route has no token")
        if not 0 <= self.max_replay_body_bytes <= 16 << 20:
            raise OptionError("max_replay_body", "a size of at most 16MiB: it is kept in memory")
        if self.max_body_bytes < 0:
            raise OptionError("max_body", "a size")
        for index, origin in enumerate(self.origins):
            if not _ORIGIN.fullmatch(origin):
                raise OptionError(f"origins[{index}]", "an origin such as https://app.example.com")

    def _check_match(self) -> None:
        _check_path("path", self.path)
        if self.host is not None and not _HOST.fullmatch(self.host):
            raise OptionError("host", "a host name in lower case, without a port")
        for index, method in enumerate(self.methods):
            if not _METHOD.fullmatch(method) or method in REFUSED_METHODS:
                raise OptionError(f"methods[{index}]", "a method in capitals, and none of CONNECT, TRACE, TRACK")
        if len(set(self.methods)) != len(self.methods):
            raise OptionError("methods", "each method once")

    def _check_upstream(self) -> None:
        try:
            addresses = self.upstream_options.addresses
        except OptionError as error:
            key = "upstream" if not isinstance(self.upstream, UpstreamOptions) else f"upstream.{error.key}"
            raise OptionError(key, error.expected) from None
        for address in addresses:
            if not self.insecure and not address.is_private_channel:
                raise OptionError("upstream", "https off loopback, or insecure: true beside it")

    @property
    def upstream_options(self) -> UpstreamOptions:
        """The upstream in its long form."""
        match self.upstream:
            case UpstreamOptions():
                return self.upstream
            case str():
                return UpstreamOptions(urls=(self.upstream,))
            case _:
                return UpstreamOptions(urls=self.upstream)

    @property
    def audience(self) -> Audience:
        """For whom its access tokens are meant."""
        return Audience(resource=self.resource, audience=self.audience_name, scope=self.scope, exchange=self.exchange)

    @property
    def asks_who_calls(self) -> bool:
        """Whether its token is the caller's: a session's, or that of a handle's grant."""
        return self.token.kind in {TokenKind.USER, TokenKind.USER_OR_NONE}

    @property
    def name(self) -> str:
        """Its name in logs and metrics."""
        return (self.host or "") + self.path


def reachable(routes: Sequence[Route], path: str) -> list[Route]:
    """
    Return the routes to which requests at *path*, or below it, may belong, for whatever host and method.

    Args:
        routes: All that there are.
        path: A path, whose case doesn't matter; a slash at its end means only what is below.
    """
    wanted = path.lower().rstrip("/") or "/"
    found: dict[str, Route] = {}
    for host in {None, *(route.host for route in routes)}:
        places: dict[str, list[Route]] = {}
        # A host's own routes take the place of those of the same path for any host.
        for owner in dict.fromkeys((None, host)):
            own: dict[str, list[Route]] = {}
            for route in routes:
                if route.host == owner:
                    own.setdefault(route.path.lower(), []).append(route)
            places |= own
        around = max((each for each in places if _is_at_or_below(wanted, each)), key=len, default=None)
        for each, there in places.items():
            if each == around or _is_at_or_below(each, wanted):
                found |= {f"{route.name} {route.methods}": route for route in there}
    return list(found.values())


def _is_at_or_below(path: str, other: str) -> bool:
    return path == other or path.startswith(other if other == "/" else f"{other}/")


def _check_path(key: str, path: str) -> None:
    """Refuse a path that a request could only reach by one of several readings."""
    if not path.startswith("/"):
        raise OptionError(key, "a path that begins with a slash")
    try:
        target = read_target(path.encode(), b"")
    except (AmbiguousPath, BadRequest) as error:
        raise OptionError(key, f"a path that is read in one way only ({error})") from None
    if target.readings or target.query or (path != "/" and path.endswith("/")):
        raise OptionError(key, "a plain path without a query and without a slash at its end")


@dataclass(slots=True)
class _Place(Generic[T]):
    """The routes of one path, as one host sees them."""

    path: bytes
    by_method: dict[str, T] = field(default_factory=dict)
    any_method: T | None = None
    reserved: bool = False

    def find(self, method: str) -> T:
        if self.reserved:
            raise NoRoute("the path is reserved")
        found = self.by_method.get(method, self.any_method)
        if found is None:
            raise MethodNotAllowed("the route doesn't take this method", allow=tuple(sorted(self.by_method)))
        return found


class RouteClash(OptionError):
    """
    Two routes match alike. The key is the second one's: ``[3].path``.

    Attributes:
        earlier: The index of the first one.
    """

    def __init__(self, key: str, expected: str, *, earlier: int) -> None:
        super().__init__(key, expected)
        self.earlier = earlier


class RouteTable(Generic[T]):
    """
    Finds what belongs to a request: the value that was given with its route.

    Raises:
        RouteClash: If two routes match alike.
    """

    def __init__(self, routes: Iterable[tuple[Route, T]], *, reserved: Sequence[str] = ()) -> None:
        """
        Args:
            routes: The routes, each with what :meth:`match` returns for it.
            reserved: Paths that belong to somebody else, so that no reading of a request's path may name them.
        """
        pairs = list(enumerate(routes))
        paths = [*(route.path for _, (route, _) in pairs), *reserved]
        self._longest = max(map(len, paths), default=1)
        kept_out: dict[bytes, _Place[T]] = {
            path.lower().encode(): _Place(path.encode(), reserved=True) for path in reserved
        }
        everywhere = [pair for pair in pairs if pair[1][0].host is None]
        self._any_host = _places(everywhere) | kept_out
        self._by_host: dict[str, dict[bytes, _Place[T]]] = {}
        for host in {route.host for _, (route, _) in pairs if route.host is not None}:
            own = _places([pair for pair in pairs if pair[1][0].host == host])
            self._by_host[host] = self._any_host | own | kept_out

    @property
    def hosts(self) -> frozenset[str]:
        """The hosts that routes name."""
        return frozenset(self._by_host)

    def match(self, target: Target, host: str, method: str) -> T:
        """
        Return what belongs to the request.

        Args:
            target: Its judged target.
            host: Its host in lower case, without a port.
            method: Its method, as it came.

        Raises:
            AmbiguousPath: If another reading of the path belongs to another route.
            MethodNotAllowed: If the path is known, but not for this method.
            NoRoute: If nothing matches.
        """
        places = self._by_host.get(host, self._any_host)
        place = self._deepest(places, target.folded)
        if target.readings:
            for reading in target.readings:
                if self._deepest(places, reading) is not place:
                    raise AmbiguousPath("another reading of the path belongs to another route")
        if place is None:
            raise NoRoute("no route has this path")
        if not target.path.startswith(place.path):
            raise AmbiguousPath("the path names a route in another case")
        if method in REFUSED_METHODS:
            raise MethodNotAllowed("no route takes this method", allow=tuple(sorted(place.by_method)))
        return place.find(method)

    def _deepest(self, places: Mapping[bytes, "_Place[T]"], folded: bytes) -> "_Place[T] | None":
        """The place with the longest path that *folded* is at or below."""
        path = folded
        if len(path) > self._longest:
            # No route is deeper than this, so most of a long path need not be looked at.
            path = path[: path.rfind(b"/", 0, self._longest + 1)]
        while path:
            place = places.get(path)
            if place is not None:
                return place
            path = path[: path.rfind(b"/")]
        return places.get(b"/")


def _places(pairs: Iterable[tuple[int, tuple[Route, T]]]) -> dict[bytes, _Place[T]]:
    """The routes of one host by their paths in lower case."""
    places: dict[bytes, _Place[T]] = {}
    firsts: dict[tuple[bytes, str], int] = {}
    for index, (route, value) in pairs:
        path = route.path.encode()
        place = places.setdefault(path.lower(), _Place(path))
        first = firsts.setdefault((path.lower(), "path"), index)
        if place.path != path:
            raise RouteClash(f"[{index}].path", "paths that differ in more than the case of letters", earlier=first)
        for method in route.methods or ("",):
            earlier = firsts.setdefault((path.lower(), method), index)
            if earlier != index:
                key = f"[{index}].methods" if method else f"[{index}].path"
                raise RouteClash(key, "a path, host and methods that no earlier route has", earlier=earlier)
        if not route.methods:
            place.any_method = value
        place.by_method |= dict.fromkeys(route.methods, value)
    return places

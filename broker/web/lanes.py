"""Routes made ready: everything about a route that doesn't change from request to request, computed once."""

import json
from collections.abc import Mapping
from urllib.parse import urlsplit

from broker.core.audience import Audience
from broker.core.claim_template import ClaimTemplate
from broker.core.cookies import CookieNames
from broker.core.forwarded_field import write_elements
from broker.core.headers import canonical, without
from broker.core.outcome import Token
from broker.core.request_head import RequestHead
from broker.core.response_head import ResponseRules
from broker.core.routing import CacheControl, RetryOn401, Route, TokenKind
from broker.core.secret import RefreshToken
from broker.services.dpop import Proofs
from broker.services.limits import Rates
from broker.services.route_stats import RouteStats
from broker.services.session_cache import LiveSession
from broker.services.upstream import IDEMPOTENT_METHODS, Upstream

MAX_RENDERED = 10_000


class Lane:
    """
    A route that is ready for requests.

    Attributes:
        route: Its options.
        name: Its name, in metrics.
        logged: The same as a member of a line in the access log.
        upstream: Where its requests go.
        kind: Whose token goes along.
        provider: Whose tokens alone may go along, where the caller's does; None for any.
        max_body_bytes: The largest body that is taken.
        audience: For whom its tokens are meant.
        answers: What is done to its answers.
        stats: What is counted of its requests.
        buckets: How often each caller may come; None for as often as it likes.
        total: How often all of them together may come.
        is_limited: Whether there is any such limit.
    """

    def __init__(
        self,
        route: Route,
        upstream: Upstream,
        *,
        public_url: str,
        cookies: CookieNames,
        rates: Rates,
        proofs: Proofs,
    ) -> None:
        """
        Args:
            route: Its options.
            upstream: Where its requests go.
            public_url: The origin under which browsers reach the broker.
            cookies: What the broker calls its cookies.
            rates: Makes the buckets of rate limits.
            proofs: Makes proofs for tokens that are bound to a key, and remembers the upstream's nonces.
        """
        self.route = route
        self.name = route.name
        self.logged = f',"route":{json.dumps(route.name)}'
        self.upstream = upstream
        self.kind = route.token.kind
        self.provider = route.provider if route.asks_who_calls else None
        self.max_body_bytes = route.max_body_bytes
        self.stats = RouteStats(self.name)
        name = f"{self.name} {','.join(sorted(route.methods))}"
        self.buckets = None if route.rate_limit is None else rates(f"route {name}", route.rate_limit)
        self.total = None if route.total_rate_limit is None else rates(f"total {name}", route.total_rate_limit)
        self.is_limited = self.buckets is not None or self.total is not None
        self.audience: Audience = route.audience
        self._retried = _retried_methods(route)
        self._cut, self._prefix = _rewriting(route)
        self._upstream_host = b"" if route.upstream_options.preserve_host else upstream.authority
        self._external_url = route.external_url or ""
        self._scheme = "https" if route.upstream_options.addresses[0].tls else "http"
        self._proofs = proofs
        self._own_authority = urlsplit(public_url).netloc.encode()
        self._removed = frozenset(canonical(name.encode()) for name in route.headers.remove)
        self._constant, self._templates = _assignments(route.headers.assign)
        self._rendered: dict[tuple[str, int], bytes] = {}
        self._proto = urlsplit(public_url).scheme.encode()
        self._says_forwarded = route.headers.forwarded
        self._constant += b"X-Forwarded-Proto: %b\r\n" % urlsplit(public_url).scheme.encode()
        with_token = route.token.kind is not TokenKind.NONE
        self.answers = ResponseRules(
            with_token=with_token,
            no_store=with_token and route.cache_control is CacheControl.NO_STORE,
            internal_redirects=route.internal_redirects,
            is_own_cookie=cookies.matcher(),
        )

    def may_retry(self, head: RequestHead) -> bool:
        """Whether a 401 of the upstream may be answered with a newer token, as far as the method says."""
        return self._retried is None or head.method in self._retried

    def compose(
        self,
        head: RequestHead,
        *,
        forwarded_for: bytes,
        request_id: bytes,
        token: Token | None,
        session: LiveSession | None,
    ) -> bytes:
        """
        Return the head of the request to the upstream.

        Args:
            head: The caller's.
            forwarded_for: The value of ``X-Forwarded-For``.
            request_id: The value of ``X-Request-ID``.
            token: What goes into ``Authorization``; None for nothing.
            session: Whose claims the route's fields are made of; None for nobody's.

        Raises:
            ProviderError: If the token holds what no field may hold.
        """
        block = head.block
        authority = block.authority or self._own_authority
        passed = block.passed
        if self._removed:
            passed = b"\r\n".join([*without(block.lines, self._removed), b""])
        credentials, more = b"", b""  # most requests need nothing more
        if self._says_forwarded:
            elements = write_elements(forwarded_for.split(b", "), host=authority, proto=self._proto)
            more += b"Forwarded: %b\r\n" % elements
        if self._templates and session is not None:
            more += self._claims(session)
        if token is not None:
            credentials = token.access_token.field(token.token_type)
            if token.dpop_key is not None:
                more += b"DPoP: %b\r\n" % self._proof(head, token, token.dpop_key).encode()
        if block.chunked:
            more += b"Transfer-Encoding: chunked\r\n"
        elif block.content_length is not None:
            more += b"Content-Length: %d\r\n" % block.content_length
        if head.upgrade:
            more += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.upgrade
        return (
            b"%b %b%b HTTP/1.1\r\nHost: %b\r\n%bX-Forwarded-For: %b\r\nX-Forwarded-Host: %b\r\nX-Request-ID: %b\r\n"
            b"%b%b%b\r\n"
        ) % (
            head.method.encode(),
            head.target.path if self._cut is None else self._path(head.target.path),
            head.target.query,
            self._upstream_host or authority,
            passed,
            forwarded_for,
            authority,
            request_id,
            self._constant,
            credentials,
            more,
        )

    def made_here(self, head: RequestHead, *, token: Token | None, session: LiveSession | None) -> list[bytes]:
        """
        Return the lines about the user that :meth:`compose` sends, for a gateway that forwards the request itself: the
        caller's cookies without ours, the fields that the route sets, and the token.

        Raises:
            ProviderError: If the token holds what no field may hold.
        """
        made = self._constant
        if session is not None:
            made += self._claims(session)
        if token is not None:
            made += token.access_token.field(token.token_type)
        cookies = [line for line in head.block.lines if line.startswith(b"Cookie: ")]
        return [*cookies, *made.split(b"\r\n")[:-1]]

    def learn_nonce(self, head: RequestHead, nonce: bytes) -> bool:
        """Remember the nonce that the upstream's answer to a request brings. Returns whether it is one."""
        return self._proofs.learn(self._target_uri(head), nonce.decode("latin-1"))

    def _proof(self, head: RequestHead, token: Token, key: RefreshToken) -> str:
        return self._proofs.proof(key, method=head.method, url=self._target_uri(head), access_token=token.access_token)

    def _target_uri(self, head: RequestHead) -> str:
        """The request's target URI without its query, as the upstream reads it (RFC 9449 section 4.2, ``htu``)."""
        base = self._external_url
        if not base:
            authority = self._upstream_host or head.block.authority or self._own_authority
            base = f"{self._scheme}://{authority.decode()}"
        return base + self._path(head.target.path).decode()

    def _path(self, path: bytes) -> bytes:
        if self._cut is None:
            return path
        rest = path[self._cut :]
        return self._prefix + rest or b"/"

    def _claims(self, session: LiveSession) -> bytes:
        """The lines that are made of claims."""
        key = (session.key, session.version)
        lines = self._rendered.get(key)
        if lines is None:
            record = session.session
            claims = {**record.claims, "sub": record.subject, "iss": record.issuer}
            values = [(name, template.render(claims)) for name, template in self._templates]
            lines = b"".join([b"%b: %b\r\n" % (name, value) for name, value in values if value is not None])
            if len(self._rendered) >= MAX_RENDERED:
                self._rendered.clear()
            self._rendered[key] = lines
        return lines


def _retried_methods(route: Route) -> frozenset[str] | None:
    """The methods of requests that may be sent again after a 401; None for all."""
    match route.retry_on_401:
        case RetryOn401.NEVER:
            return frozenset()
        case RetryOn401.IDEMPOTENT:
            return IDEMPOTENT_METHODS
        case RetryOn401.REPLAYABLE:
            return None


def _rewriting(route: Route) -> tuple[int | None, bytes]:
    """How much of the path is cut off, None for nothing, and what is put in its place."""
    own = 0 if route.path == "/" else len(route.path.encode())
    if route.rewrite_prefix is not None:
        return own, b"" if route.rewrite_prefix == "/" else route.rewrite_prefix.encode()
    return (own, b"") if route.strip_prefix and own else (None, b"")


def _assignments(assign: Mapping[str, str]) -> tuple[bytes, list[tuple[bytes, ClaimTemplate]]]:
    """The lines that are always the same, and the templates of the others."""
    constant = b""
    templates = []
    for name, text in assign.items():
        template = ClaimTemplate.parse(text)
        if template.is_constant:
            constant += b"%b: %b\r\n" % (name.encode(), template.render({}) or b"")
        else:
            templates.append((name.encode(), template))
    return constant, templates

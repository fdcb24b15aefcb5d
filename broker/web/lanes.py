"""Routes made ready: everything about a route that doesn't change from request to request, computed once."""

from collections.abc import Mapping
from urllib.parse import urlsplit

from broker.core.audience import Audience
from broker.core.claim_template import ClaimTemplate
from broker.core.cookies import CookieNames, set_cookie_name, strip_cookies
from broker.core.headers import ResponseFields, canonical, without
from broker.core.request_head import RequestHead
from broker.core.routing import CacheControl, RetryOn401, Route, TokenKind
from broker.services.upstream import IDEMPOTENT_METHODS, Upstream
from broker.web.relay import AnswerRules

MAX_RENDERED = 10_000


class Lane:
    """
    A route that is ready for requests.

    Attributes:
        route: Its options.
        upstream: Where its requests go.
        audience: For whom its tokens are meant.
        answers: What is done to its answers.
    """

    def __init__(self, route: Route, upstream: Upstream, *, public_url: str, cookies: CookieNames) -> None:
        """
        Args:
            route: Its options.
            upstream: Where its requests go.
            public_url: The origin under which browsers reach the broker.
            cookies: What the broker calls its cookies.
        """
        self.route = route
        self.upstream = upstream
        self.audience: Audience = route.audience
        self._is_own_cookie = is_own_cookie = cookies.matcher()
        self._cut, self._prefix = _rewriting(route)
        self._host_line = None if route.upstream_options.preserve_host else b"Host: %b\r\n" % upstream.authority
        self._proto = urlsplit(public_url).scheme.encode()
        self._own_authority = urlsplit(public_url).netloc.encode()
        self._removed = frozenset(canonical(name.encode()) for name in route.headers.remove)
        self._constant, self._templates = _assignments(route.headers.assign)
        self._rendered: dict[tuple[str, int], bytes] = {}
        with_token = route.token.kind is not TokenKind.NONE
        no_store = with_token and route.cache_control is CacheControl.NO_STORE
        self.answers = AnswerRules(
            fields=ResponseFields(
                with_token=with_token,
                no_store=no_store,
                is_own_cookie=lambda value: is_own_cookie(set_cookie_name(value)),
            ),
            added=b"Cache-Control: private, no-store\r\n" if no_store else b"",
        )

    @property
    def needs_claims(self) -> bool:
        """Whether its headers are made of the session's claims."""
        return bool(self._templates)

    def may_retry(self, head: RequestHead) -> bool:
        """Whether a 401 of the upstream may be answered with a newer token, as far as the method says."""
        match self.route.retry_on_401:
            case RetryOn401.NEVER:
                return False
            case RetryOn401.IDEMPOTENT:
                return head.method in IDEMPOTENT_METHODS
            case RetryOn401.REPLAYABLE:
                return True

    def compose(
        self,
        head: RequestHead,
        *,
        forwarded_for: bytes,
        request_id: bytes,
        authorization: bytes,
        claims: bytes,
    ) -> bytes:
        """
        Return the head of the request to the upstream.

        Args:
            head: The caller's.
            forwarded_for: The value of ``X-Forwarded-For``.
            request_id: The value of ``X-Request-ID``.
            authorization: The ``Authorization`` line with its CRLF; empty for none.
            claims: What :meth:`render` made, or nothing.
        """
        fields = head.fields if not self._removed else without(head.fields, self._removed)
        return b"".join(
            (
                b"%b %b%b HTTP/1.1\r\n" % (head.method.encode(), self._path(head.target.path), head.target.query),
                self._host_line or b"Host: %b\r\n" % (head.authority or self._own_authority),
                b"".join([b"%b: %b\r\n" % field for field in fields]),
                self._cookie_lines(head),
                b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Forwarded-Host: %b\r\nX-Request-ID: %b\r\n"
                % (forwarded_for, self._proto, head.authority or self._own_authority, request_id),
                self._constant,
                claims,
                authorization,
                _framing_lines(head),
                b"\r\n",
            )
        )

    def _path(self, path: bytes) -> bytes:
        if self._cut is None:
            return path
        rest = path[self._cut :]
        return self._prefix + rest or b"/"

    def _cookie_lines(self, head: RequestHead) -> bytes:
        lines = head.values(b"cookie")
        if not lines:
            return b""
        return b"".join([b"Cookie: %b\r\n" % line for line in strip_cookies(lines, self._is_own_cookie)])

    def render(self, key: tuple[str, int], claims: Mapping[str, object]) -> bytes:
        """Return the header lines that are made of *claims*; *key* names the session and its version."""
        rendered = self._rendered.get(key)
        if rendered is None:
            if len(self._rendered) >= MAX_RENDERED:
                self._rendered.clear()
            lines = [(name, template.render(claims)) for name, template in self._templates]
            rendered = b"".join([b"%b: %b\r\n" % (name, value) for name, value in lines if value is not None])
            self._rendered[key] = rendered
        return rendered

    def rendered(self, key: tuple[str, int]) -> bytes | None:
        """Return what :meth:`render` made before for *key*, or None."""
        return self._rendered.get(key)


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


def _framing_lines(head: RequestHead) -> bytes:
    lines = b""
    if head.chunked:
        lines = b"Transfer-Encoding: chunked\r\n"
    elif head.content_length is not None:
        lines = b"Content-Length: %d\r\n" % head.content_length
    if head.upgrade:
        lines += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.upgrade
    return lines

"""The outermost layer: names each request, and turns whatever goes wrong into an answer that says no more than due."""

import json
import logging
import re
from collections.abc import Callable
from itertools import count

from aiohttp import web
from aiohttp.typedefs import Handler

from broker.core.forwarded import TrustedProxies
from broker.errors import (
    BadRequest,
    BrokerError,
    CallerError,
    Forbidden,
    MethodNotAllowed,
    NoRoute,
    Overloaded,
    PayloadTooLarge,
    RequestTimeout,
    StoreError,
)
from broker.services import logs, metrics
from broker.services.clock import Clock, Randomness
from broker.web.access_log import MAX_LOGGED_PATH, access_line
from broker.web.connection import CallerConnection
from broker.web.pages import silent_login_page
from broker.web.problems import Asked, OwnResponse, framed_response, problem_response
from broker.web.relay import RelayedResponse

REQUEST_ID = web.RequestKey("request_id", str)
"""The id of the request, in logs, problems and ``X-Request-ID``, ours and the upstream's."""

ASKED = web.RequestKey("asked", Asked)
"""What was really asked for, where the request only asks about one that a gateway holds."""

ROUTE = web.RequestKey("route", str)
"""The name of the route that the request goes by, once that is known."""

SET_COOKIES = web.RequestKey("set_cookies", list[str])
"""``Set-Cookie`` lines that go out with whatever answers this request, an error included."""

SILENT = web.RequestKey("silent", bool)
"""Set on a step of a silent login: whatever goes wrong, the page that frames it is told that nobody is logged in."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HSTS = "max-age=31536000"

log = logging.getLogger(__name__)


class Outermost:
    """The outermost middleware: names each request, and answers for whatever goes wrong inside."""

    __middleware_version__ = 1  # what @web.middleware says of a function

    def __init__(
        self,
        *,
        public_url: str,
        login_url: str | None,
        trusted_proxies: TrustedProxies,
        clock: Clock,
        randomness: Randomness,
        access_log: Callable[[str], None] | None = None,
    ) -> None:
        """
        Args:
            public_url: The origin under which browsers reach the broker; with https it is said to be https for ever.
            login_url: The path of the login, for callers who need one; None if nobody can log in.
            trusted_proxies: Who may name requests and their clients.
            clock: Time.
            randomness: For the names.
            access_log: Takes one line of JSON for each request that isn't proxied: the proxy knows more of its own.
        """
        self._clock = clock
        self._access_log = access_log
        self._login_url = login_url
        self._trusted_proxies = trusted_proxies
        self._new_name = request_names(randomness)
        self._secure = public_url.startswith("https:")

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        began_at = self._clock.monotonic()
        request_id = _known_name(request) or _given_name(request, self._trusted_proxies) or self._new_name()
        request[REQUEST_ID] = request_id
        logs.REQUEST_ID.set(request_id)
        try:
            response = await handler(request)
        except BrokerError as error:
            response = self.refuse(request, error)
        except web.HTTPException as answer:
            response = self.refuse(request, _as_error(answer))
        except Exception as fault:
            # The last line: a fault of ours is logged with its traceback, and doesn't show itself.
            ours = BrokerError(type(fault).__name__)
            log.exception("request_failed", extra=self._described(request, ours))
            response = self._problem(request, ours)
        if isinstance(response, RelayedResponse):
            return response
        if isinstance(response, OwnResponse):
            self._finish(request, response)
        if self._access_log is not None:
            self._access_log(self._access_line(request, response.status, began_at))
        return response

    def refuse(self, request: web.Request, error: BrokerError) -> web.Response:
        """Log and count *error*, and return what the caller of *request* is told of it."""
        # Of an overload, or a store that is lost, there is one warning when it begins, and not one for each request.
        level = logging.INFO if isinstance(error, CallerError | Overloaded | StoreError) else logging.WARNING
        log.log(level, "request_refused", extra=self._described(request, error))
        return self._problem(request, error)

    def _problem(self, request: web.Request, error: BrokerError) -> web.Response:
        metrics.REQUESTS_REFUSED.labels(error.code).inc()
        if SILENT in request:
            return framed_response(silent_login_page(is_logged_in=False), status=error.status)
        asked = request.get(ASKED, request)
        return problem_response(asked, error, request_id=request[REQUEST_ID], login_url=self._login_url)

    def _finish(self, request: web.Request, response: OwnResponse) -> None:
        response.headers["X-Request-ID"] = request[REQUEST_ID]
        if self._secure:
            response.headers["Strict-Transport-Security"] = _HSTS
        for line in request.get(SET_COOKIES, ()):
            response.headers.add("Set-Cookie", line)

    def _access_line(self, request: web.Request, status: int, began_at: float) -> str:
        return access_line(
            now=self._clock.now(),
            request_id=request[REQUEST_ID],
            client=client_address(request, self._trusted_proxies),
            method=request.method,
            path=request.raw_path.partition("?")[0],
            status=status,
            seconds=self._clock.monotonic() - began_at,
            more=f',"route":{json.dumps(request[ROUTE])}' if ROUTE in request else "",
        )

    def _described(self, request: web.Request, error: BrokerError) -> dict[str, object]:
        """Return what the log says of a request. Its query stays out: codes and tokens are in queries."""
        asked = request.get(ASKED, request)
        return {
            "code": error.code,
            "status": error.status,
            "detail": str(error),
            "method": asked.method[:16],
            "path": asked.raw_path.partition("?")[0][:MAX_LOGGED_PATH],
            "client": client_address(request, self._trusted_proxies),
            **({"route": request[ROUTE]} if ROUTE in request else {}),
        }


def request_names(randomness: Randomness) -> Callable[[], str]:
    """Return a source of names that no other process draws from. They needn't be hard to guess, but cheap."""
    prefix, numbers = randomness.token_bytes(8).hex(), count(1)
    return lambda: f"{prefix}-{next(numbers):x}"


def peer_address(request: web.BaseRequest) -> str:
    """Return the address at the other end of the connection; empty for a Unix socket."""
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return str(peer[0]) if isinstance(peer, tuple) else ""


def client_address(request: web.BaseRequest, trusted_proxies: TrustedProxies) -> str:
    """Return the address of the client, for the audit trail; the peer's own where that can't be told."""
    peer = peer_address(request)
    name = trusted_proxies.field.decode()
    claimed = [value.encode("utf-8", "surrogateescape") for value in request.headers.getall(name, ())]
    try:
        return trusted_proxies.caller(peer, claimed).address
    except BadRequest:
        return peer


def _known_name(request: web.Request) -> str | None:
    """Return the id under which a call went up that is only told of here."""
    connection = request.protocol
    failure = connection.failure if isinstance(connection, CallerConnection) else None
    return None if failure is None else failure.request_id or None


def _given_name(request: web.Request, trusted_proxies: TrustedProxies) -> str | None:
    given = request.headers.get("X-Request-ID")
    if given is None or not trusted_proxies.trusts(peer_address(request)):
        return None
    return given if _REQUEST_ID.fullmatch(given) else None


def _as_error(answer: web.HTTPException) -> BrokerError:
    """Return the error of ours that aiohttp's own answer means."""
    if isinstance(answer, web.HTTPMethodNotAllowed):
        return MethodNotAllowed("no handler takes this method", allow=tuple(sorted(answer.allowed_methods)))
    errors: dict[int, type[CallerError]] = {
        403: Forbidden,
        404: NoRoute,
        408: RequestTimeout,
        413: PayloadTooLarge,
    }
    kind = errors.get(answer.status, BadRequest) if 400 <= answer.status < 500 else BrokerError
    if kind is NoRoute:
        return kind("no endpoint of the broker has this path; some are there only if they are configured")
    return kind(f"aiohttp answered {answer.status}")
